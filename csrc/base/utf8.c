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

bool encl_utf8_valid(encl_slice text) {
    size_t i = 0;

    while (i < text.len) {
        uint8_t low, high;
        size_t n;

        if (text.data[i] < 0x80) {
            i++;
            continue;
        }
        n = sequence(text.data[i], &low, &high);
        if (n == 0 || n > text.len - i || text.data[i + 1] < low || text.data[i + 1] > high ||
            !continuations(text.data + i + 2, n - 2)) {
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

const char *encl_utf8_show(encl_slice text, char shown[ENCL_UTF8_SHOWN]) {
    static const char more[] = "...";
    bool cut = text.len >= ENCL_UTF8_SHOWN;
    size_t n = cut ? ENCL_UTF8_SHOWN - sizeof more : text.len;

    for (size_t i = 0; i < n; i++) {
        uint8_t c = text.data[i];
        shown[i] = c >= 0x20 && c < 0x7f ? (char)c : '?';
    }
    shown[n] = '\0';
    if (cut) {
        memcpy(shown + n, more, sizeof more);
    }
    return shown;
}
