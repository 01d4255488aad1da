/* libcbor's streaming decoder, turned from callbacks into a cursor. Decides what is an item at all:
 * well-formed heads, lengths that the block can hold, text in UTF-8. What an item means is its
 * callers' to decide. Calls libcbor and base. */
#include "cbor/cursor.h"

#include <cbor.h>

#include "base/utf8.h"

#define MAJOR_BYTES 2u
#define MAJOR_TEXT  3u
#define MAJOR_ARRAY 4u
#define MAJOR_MAP   5u
#define MAJOR_TAG   6u

#define BREAK       0xffu

/* Before 0.9 libcbor gives lengths as size_t, since then as uint64_t. */
#if CBOR_MAJOR_VERSION == 0 && CBOR_MINOR_VERSION < 9
typedef size_t declared_length;
#else
typedef uint64_t declared_length;
#endif

static const char *const names[ENCL_TOK_COUNT_] = {
    [ENCL_TOK_UINT] = "an unsigned integer",
    [ENCL_TOK_NEGATIVE] = "a negative integer",
    [ENCL_TOK_BYTES] = "a byte string",
    [ENCL_TOK_BYTES_BEGIN] = "a byte string of indefinite length",
    [ENCL_TOK_TEXT] = "a text",
    [ENCL_TOK_TEXT_BEGIN] = "a text of indefinite length",
    [ENCL_TOK_ARRAY] = "an array",
    [ENCL_TOK_ARRAY_BEGIN] = "an array of indefinite length",
    [ENCL_TOK_MAP] = "a map",
    [ENCL_TOK_MAP_BEGIN] = "a map of indefinite length",
    [ENCL_TOK_TAG] = "a tag",
    [ENCL_TOK_FLOAT] = "a floating-point number",
    [ENCL_TOK_BOOL] = "a boolean",
    [ENCL_TOK_NULL] = "null",
    [ENCL_TOK_UNDEFINED] = "undefined",
    [ENCL_TOK_BREAK] = "a break",
};

const char *encl_token_name(encl_token_kind kind) {
    return (unsigned)kind < ENCL_TOK_COUNT_ ? names[kind] : "nothing known";
}

/* What the callbacks fill in. */
typedef struct sink {
    const uint8_t *block;
    encl_token *token;
} sink;

static void put(void *context, encl_token_kind kind, uint64_t value) {
    sink *s = context;

    s->token->kind = kind;
    s->token->value = value;
}

static void put_string(void *context, encl_token_kind kind, cbor_data data, size_t len) {
    sink *s = context;

    s->token->kind = kind;
    s->token->at = (size_t)(data - s->block);
    s->token->len = len;
}

static void on_uint8(void *context, uint8_t v) {
    put(context, ENCL_TOK_UINT, v);
}
static void on_uint16(void *context, uint16_t v) {
    put(context, ENCL_TOK_UINT, v);
}
static void on_uint32(void *context, uint32_t v) {
    put(context, ENCL_TOK_UINT, v);
}
static void on_uint64(void *context, uint64_t v) {
    put(context, ENCL_TOK_UINT, v);
}
static void on_negint8(void *context, uint8_t v) {
    put(context, ENCL_TOK_NEGATIVE, v);
}
static void on_negint16(void *context, uint16_t v) {
    put(context, ENCL_TOK_NEGATIVE, v);
}
static void on_negint32(void *context, uint32_t v) {
    put(context, ENCL_TOK_NEGATIVE, v);
}
static void on_negint64(void *context, uint64_t v) {
    put(context, ENCL_TOK_NEGATIVE, v);
}
/* check_declared has seen that a string of this length is in the block, so it fits size_t. */
static void on_bytes(void *context, cbor_data data, declared_length len) {
    put_string(context, ENCL_TOK_BYTES, data, (size_t)len);
}
static void on_bytes_begin(void *context) {
    put(context, ENCL_TOK_BYTES_BEGIN, 0);
}
static void on_text(void *context, cbor_data data, declared_length len) {
    put_string(context, ENCL_TOK_TEXT, data, (size_t)len);
}
static void on_text_begin(void *context) {
    put(context, ENCL_TOK_TEXT_BEGIN, 0);
}
static void on_array(void *context, declared_length n) {
    put(context, ENCL_TOK_ARRAY, n);
}
static void on_array_begin(void *context) {
    put(context, ENCL_TOK_ARRAY_BEGIN, 0);
}
static void on_map(void *context, declared_length n) {
    put(context, ENCL_TOK_MAP, n);
}
static void on_map_begin(void *context) {
    put(context, ENCL_TOK_MAP_BEGIN, 0);
}
static void on_tag(void *context, uint64_t v) {
    put(context, ENCL_TOK_TAG, v);
}
static void on_float(void *context, float v) {
    (void)v;
    put(context, ENCL_TOK_FLOAT, 0);
}
static void on_double(void *context, double v) {
    (void)v;
    put(context, ENCL_TOK_FLOAT, 0);
}
static void on_bool(void *context, bool v) {
    put(context, ENCL_TOK_BOOL, v);
}
static void on_null(void *context) {
    put(context, ENCL_TOK_NULL, 0);
}
static void on_undefined(void *context) {
    put(context, ENCL_TOK_UNDEFINED, 0);
}
static void on_break(void *context) {
    put(context, ENCL_TOK_BREAK, 0);
}

static const struct cbor_callbacks callbacks = {
    .uint8 = on_uint8,
    .uint16 = on_uint16,
    .uint32 = on_uint32,
    .uint64 = on_uint64,
    .negint64 = on_negint64,
    .negint32 = on_negint32,
    .negint16 = on_negint16,
    .negint8 = on_negint8,
    .byte_string_start = on_bytes_begin,
    .byte_string = on_bytes,
    .string = on_text,
    .string_start = on_text_begin,
    .indef_array_start = on_array_begin,
    .array_start = on_array,
    .indef_map_start = on_map_begin,
    .map_start = on_map,
    .tag = on_tag,
    .float2 = on_float,
    .float4 = on_float,
    .float8 = on_double,
    .undefined = on_undefined,
    .null = on_null,
    .boolean = on_bool,
    .indef_break = on_break,
};

/* The number that a head carries (RFC 8949 section 3), and how many bytes the head has. False where
 * it carries none, or is cut off: libcbor then says which. left is at least 1. */
static bool read_head(const uint8_t *head, size_t left, uint64_t *value, size_t *size) {
    uint8_t info = head[0] & 0x1f;
    size_t width;

    *value = info;
    *size = 1;
    if (info < 24) {
        return true;
    }
    width = (size_t)1 << (info & 3);
    if (info > 27 || width > left - 1) {
        return false;
    }
    *value = 0;
    for (size_t i = 1; i <= width; i++) {
        *value = *value << 8 | head[i];
    }
    *size = 1 + width;
    return true;
}

static encl_result cut_short(const encl_cursor *c, const char *what, encl_error *err) {
    return encl_fail(err, c->code,
                     "CBOR: expected %s, got a head of 0x%02x at offset %zu whose item does not "
                     "end within the %zu bytes left",
                     what, c->block[c->at], c->at, encl_cursor_left(c));
}

/* Lengths are bounded before libcbor sees them: its versions before 0.9 keep them in a size_t,
 * which drops the upper half where that has 32 bits. An item of an array takes at least one byte,
 * a pair of a map two. */
static encl_result check_declared(const encl_cursor *c, const char *what, encl_error *err) {
    size_t left = encl_cursor_left(c), size, room;
    unsigned major = c->block[c->at] >> 5;
    uint64_t declared;

    if (major < MAJOR_BYTES || major > MAJOR_MAP ||
        !read_head(c->block + c->at, left, &declared, &size)) {
        return ENCL_OK;
    }
    room = left - size;
    if (major == MAJOR_BYTES || major == MAJOR_TEXT) {
        return declared <= room ? ENCL_OK : cut_short(c, what, err);
    }
    room = major == MAJOR_MAP ? room / 2 : room;
    ENCL_ENSURE(declared <= room, err, c->code,
                "CBOR: expected at most %zu %s in %s here, got a declared length of %llu", room,
                major == MAJOR_MAP ? "pairs" : "items", major == MAJOR_MAP ? "a map" : "an array",
                (unsigned long long)declared);
    return ENCL_OK;
}

/* libcbor before 0.11 refuses the one-byte tags 6 to 20, COSE_Sign1's 18 among them. */
static struct cbor_decoder_result decode(const uint8_t *from, size_t left, sink *s) {
    if (from[0] >> 5 == MAJOR_TAG && (from[0] & 0x1f) < 24) {
        on_tag(s, from[0] & 0x1f);
        return (struct cbor_decoder_result){.read = 1, .status = CBOR_DECODER_FINISHED};
    }
    return cbor_stream_decode(from, left, &callbacks, s);
}

static encl_result check_token(const encl_cursor *c, const char *what, const encl_token *t,
                               encl_error *err) {
    ENCL_ENSURE(!c->no_chunks ||
                    (t->kind != ENCL_TOK_BYTES_BEGIN && t->kind != ENCL_TOK_TEXT_BEGIN),
                err, c->code, "CBOR: expected %s, got %s, which is not accepted here", what,
                encl_token_name(t->kind));
    ENCL_ENSURE(t->kind != ENCL_TOK_TEXT || encl_utf8_valid(encl_token_bytes(c, t)), err, c->code,
                "%s: expected UTF-8, got other bytes", what);
    return ENCL_OK;
}

encl_result encl_token_next(encl_cursor *c, const char *what, encl_token *token, encl_error *err) {
    sink s = {.block = c->block, .token = token};
    size_t left = encl_cursor_left(c);
    struct cbor_decoder_result got;

    *token = (encl_token){.kind = ENCL_TOK_COUNT_};
    ENCL_ENSURE(left != 0, err, c->code, "CBOR: expected %s, got the end at offset %zu", what,
                c->at);
    ENCL_TRY(check_declared(c, what, err));
    got = decode(c->block + c->at, left, &s);
    if (got.status == CBOR_DECODER_NEDATA) {
        return cut_short(c, what, err);
    }
    ENCL_ENSURE(got.status == CBOR_DECODER_FINISHED && token->kind != ENCL_TOK_COUNT_ &&
                    got.read != 0 && got.read <= left,
                err, c->code, "CBOR: expected %s, got 0x%02x at offset %zu, which begins no item",
                what, c->block[c->at], c->at);
    ENCL_TRY(check_token(c, what, token, err));
    c->at += got.read;
    return ENCL_OK;
}

/* ARRAY for one of indefinite length, MAP likewise; else the kind itself. */
static encl_token_kind family(encl_token_kind kind) {
    return kind == ENCL_TOK_ARRAY_BEGIN ? ENCL_TOK_ARRAY
           : kind == ENCL_TOK_MAP_BEGIN ? ENCL_TOK_MAP
                                        : kind;
}

encl_result encl_token_ensure(const encl_cursor *c, const encl_token *token, encl_token_kind kind,
                              const char *what, encl_error *err) {
    ENCL_ENSURE(family(token->kind) == kind, err, c->code, "%s: expected %s, got %s", what,
                encl_token_name(kind), encl_token_name(token->kind));
    return ENCL_OK;
}

encl_result encl_token_expect(encl_cursor *c, encl_token_kind kind, const char *what,
                              encl_token *token, encl_error *err) {
    ENCL_TRY(encl_token_next(c, what, token, err));
    return encl_token_ensure(c, token, kind, what, err);
}

encl_entries encl_entries_of(const encl_token *head) {
    return (encl_entries){
        .open_end = head->kind == ENCL_TOK_ARRAY_BEGIN || head->kind == ENCL_TOK_MAP_BEGIN,
        .left = head->value,
    };
}

bool encl_entries_next(encl_cursor *c, encl_entries *entries) {
    if (entries->open_end) {
        if (c->at == c->len || c->block[c->at] != BREAK) {
            return true;
        }
        c->at++;
        return false;
    }
    if (entries->left == 0) {
        return false;
    }
    entries->left--;
    return true;
}
