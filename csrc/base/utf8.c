/* Decides what is well-formed UTF-8, where text may be cut, and how text from outside is shown.
 * Calls nothing. */
#include "base/utf8.h"

#include <string.h>

/* Length of the sequence that lead begins, and the bounds of its second byte, which is where
 * overlong forms, surrogates and values above U+10FFFF show (RFC 3629 section 4). */
static size_t sequence(uint8_t lead, uint8_t *low, uint8_t *high) {
    *low = 0x80;
    *high = 0xbf;
    if (lead >= 0xc2 && lead <= 0xdf) {
        return 2;
    }
    if (lead >= 0xe0 && lead <= 0xef) {
        *low = lead == 0xe0 ? 0xa0 : 0x80;
        *high = lead == 0xed ? 0x9f : 0xbf;
        return 3;
    }
    if (lead >= 0xf0 && lead <= 0xf4) {
        *low = lead == 0xf0 ? 0x90 : 0x80;
        *high = lead == 0xf4 ? 0x8f : 0xbf;
        return 4;
    }
    return 0;
}

static bool continuations(const uint8_t *p, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if ((p[i] & 0xc0) != 0x80) {
            return false;
        }
    }
    return true;
}

/* Length of the character at p and its code point; 0 where they are not well-formed. */
static size_t character(const uint8_t *p, size_t left, uint32_t *code) {
    uint8_t low, high;
    size_t n;

    *code = p[0];
    if (p[0] < 0x80) {
        return 1;
    }
    n = sequence(p[0], &low, &high);
    if (n == 0 || n > left || p[1] < low || p[1] > high || !continuations(p + 2, n - 2)) {
        return 0;
    }
    *code = p[0] & (0xffu >> (n + 1));
    for (size_t i = 1; i < n; i++) {
        *code = *code << 6 | (p[i] & 0x3fu);
    }
    return n;
}

bool encl_utf8_valid(encl_slice text) {
    size_t i = 0;

    while (i < text.len) {
        uint32_t code;
        size_t n = character(text.data + i, text.len - i, &code);

        if (n == 0) {
            return false;
        }
        i += n;
    }
    return true;
}

size_t encl_utf8_cut(encl_slice text, size_t max) {
    size_t n = max;

    if (text.len <= max) {
        return text.len;
    }
    while (n > 0 && (text.data[n] & 0xc0) == 0x80) {
        n--;
    }
    return n;
}

/* Unicode's categories Cc, Cf, Co, Cs, Zl and Zp, with what is not assigned between them. */
static bool is_hidden(uint32_t code) {
    static const struct {
        uint32_t first, last;
    } ranges[] = {
        {0x00, 0x1f},       {0x7f, 0x9f},        {0xad, 0xad},       {0x600, 0x605},
        {0x61c, 0x61c},     {0x6dd, 0x6dd},      {0x70f, 0x70f},     {0x890, 0x891},
        {0x8e2, 0x8e2},     {0x180e, 0x180e},    {0x200b, 0x200f},   {0x2028, 0x202e},
        {0x2060, 0x206f},   {0xd800, 0xf8ff},    {0xfeff, 0xfeff},   {0xfff0, 0xfffb},
        {0x110bd, 0x110bd}, {0x110cd, 0x110cd},  {0x13430, 0x1343f}, {0x1bca0, 0x1bca3},
        {0x1d173, 0x1d17a}, {0xe0000, 0x10ffff},
    };

    for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++) {
        if (code >= ranges[i].first && code <= ranges[i].last) {
            return true;
        }
    }
    return false;
}

#define PIECE_BYTES 10 /* \U and eight digits */

static size_t put_escape(char piece[PIECE_BYTES], char kind, uint32_t value, size_t digits) {
    static const char hex[] = "0123456789abcdef";

    piece[0] = '\\';
    piece[1] = kind;
    for (size_t i = 0; i < digits; i++) {
        piece[2 + i] = hex[value >> (4 * (digits - 1 - i)) & 15];
    }
    return 2 + digits;
}

static size_t escape(char piece[PIECE_BYTES], uint32_t code) {
    switch (code) {
    case '\n':
        return put_escape(piece, 'n', 0, 0);
    case '\r':
        return put_escape(piece, 'r', 0, 0);
    case '\t':
        return put_escape(piece, 't', 0, 0);
    default:
        break;
    }
    if (code < 0x80) {
        return put_escape(piece, 'x', code, 2);
    }
    return code < 0x10000 ? put_escape(piece, 'u', code, 4) : put_escape(piece, 'U', code, 8);
}

/* What is shown for the character at p; *taken is how many bytes it has. */
static size_t show_one(const uint8_t *p, size_t left, char piece[PIECE_BYTES], size_t *taken) {
    uint32_t code;
    size_t n = character(p, left, &code);

    *taken = n == 0 ? 1 : n;
    if (n == 0) {
        return put_escape(piece, 'x', p[0], 2);
    }
    if (is_hidden(code)) {
        return escape(piece, code);
    }
    memcpy(piece, p, n);
    return n;
}

const char *encl_utf8_show_in(encl_slice text, char *out, size_t cap) {
    static const char more[] = "...";
    size_t used = 0, before_more = 0, i = 0;

    while (i < text.len) {
        char piece[PIECE_BYTES];
        size_t taken, n = show_one(text.data + i, text.len - i, piece, &taken);

        if (n >= cap - used) {
            memcpy(out + before_more, more, sizeof more);
            return out;
        }
        memcpy(out + used, piece, n);
        used += n;
        i += taken;
        if (used + sizeof more <= cap) {
            before_more = used;
        }
    }
    out[used] = '\0';
    return out;
}

const char *encl_utf8_show(encl_slice text, char shown[ENCL_UTF8_SHOWN]) {
    return encl_utf8_show_in(text, shown, ENCL_UTF8_SHOWN);
}
