#include "wire/token.h"

#include <cbor.h>

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
static void on_bytes(void *context, cbor_data data, size_t len) {
    put_string(context, ENCL_TOK_BYTES, data, len);
}
static void on_bytes_begin(void *context) {
    put(context, ENCL_TOK_BYTES_BEGIN, 0);
}
static void on_text(void *context, cbor_data data, size_t len) {
    put_string(context, ENCL_TOK_TEXT, data, len);
}
static void on_text_begin(void *context) {
    put(context, ENCL_TOK_TEXT_BEGIN, 0);
}
static void on_array(void *context, size_t n) {
    put(context, ENCL_TOK_ARRAY, n);
}
static void on_array_begin(void *context) {
    put(context, ENCL_TOK_ARRAY_BEGIN, 0);
}
static void on_map(void *context, size_t n) {
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

static encl_result check_declared(const encl_cursor *c, const encl_token *t, encl_error *err) {
    size_t room = encl_cursor_left(c);

    if (t->kind == ENCL_TOK_MAP) {
        room /= 2;
    } else if (t->kind != ENCL_TOK_ARRAY) {
        return ENCL_OK;
    }
    ENCL_ENSURE(t->value <= room, err, ENCL_E_PROTOCOL,
                "CBOR: expected at most %zu items in %s here, came a declared length of %llu", room,
                encl_token_name(t->kind), (unsigned long long)t->value);
    return ENCL_OK;
}

encl_result encl_token_next(encl_cursor *c, const char *what, encl_token *token, encl_error *err) {
    sink s = {.block = c->block, .token = token};
    size_t left = encl_cursor_left(c);
    struct cbor_decoder_result got;

    ENCL_ENSURE(left != 0, err, ENCL_E_PROTOCOL, "CBOR: expected %s, came the end of the message",
                what);
    *token = (encl_token){.kind = ENCL_TOK_COUNT_};
    got = cbor_stream_decode(c->block + c->at, left, &callbacks, &s);
    ENCL_ENSURE(got.status != CBOR_DECODER_NEDATA, err, ENCL_E_PROTOCOL,
                "CBOR: expected %s, came a head of 0x%02x at offset %zu whose item does not end "
                "within the %zu bytes left",
                what, c->block[c->at], c->at, left);
    ENCL_ENSURE(got.status == CBOR_DECODER_FINISHED && token->kind != ENCL_TOK_COUNT_ &&
                    got.read != 0 && got.read <= left,
                err, ENCL_E_PROTOCOL,
                "CBOR: expected %s, came 0x%02x at offset %zu, no item's head", what,
                c->block[c->at], c->at);
    c->at += got.read;
    return check_declared(c, token, err);
}
