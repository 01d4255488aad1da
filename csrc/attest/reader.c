#include "attest/reader.h"

#include <string.h>

#include <cbor.h>

#define SKIP_DEPTH_MAX 8

static void take(void *context, encl_item_type type, uint64_t value) {
    encl_item *item = context;

    item->type = type;
    item->value = value;
}

static void on_uint8(void *context, uint8_t v) {
    take(context, ENCL_ITEM_UINT, v);
}
static void on_uint16(void *context, uint16_t v) {
    take(context, ENCL_ITEM_UINT, v);
}
static void on_uint32(void *context, uint32_t v) {
    take(context, ENCL_ITEM_UINT, v);
}
static void on_uint64(void *context, uint64_t v) {
    take(context, ENCL_ITEM_UINT, v);
}
static void on_negint8(void *context, uint8_t v) {
    take(context, ENCL_ITEM_NEGINT, v);
}
static void on_negint16(void *context, uint16_t v) {
    take(context, ENCL_ITEM_NEGINT, v);
}
static void on_negint32(void *context, uint32_t v) {
    take(context, ENCL_ITEM_NEGINT, v);
}
static void on_negint64(void *context, uint64_t v) {
    take(context, ENCL_ITEM_NEGINT, v);
}
static void on_bytes(void *context, cbor_data data, size_t len) {
    take(context, ENCL_ITEM_BYTES, 0);
    ((encl_item *)context)->bytes = ENCL_SLICE(data, len);
}
static void on_text(void *context, cbor_data data, size_t len) {
    take(context, ENCL_ITEM_TEXT, 0);
    ((encl_item *)context)->bytes = ENCL_SLICE(data, len);
}
static void on_chunked(void *context) {
    take(context, ENCL_ITEM_CHUNKED, 0);
}
static void on_array(void *context, size_t count) {
    take(context, ENCL_ITEM_ARRAY, count);
}
static void on_map(void *context, size_t count) {
    take(context, ENCL_ITEM_MAP, count);
}
static void on_indefinite_array(void *context) {
    take(context, ENCL_ITEM_ARRAY, 0);
    ((encl_item *)context)->indefinite = true;
}
static void on_indefinite_map(void *context) {
    take(context, ENCL_ITEM_MAP, 0);
    ((encl_item *)context)->indefinite = true;
}
static void on_tag(void *context, uint64_t v) {
    take(context, ENCL_ITEM_TAG, v);
}
static void on_null(void *context) {
    take(context, ENCL_ITEM_NULL, 0);
}
static void on_break(void *context) {
    take(context, ENCL_ITEM_BREAK, 0);
}
static void on_float(void *context, float v) {
    (void)v;
    take(context, ENCL_ITEM_OTHER, 0);
}
static void on_double(void *context, double v) {
    (void)v;
    take(context, ENCL_ITEM_OTHER, 0);
}
static void on_undefined(void *context) {
    take(context, ENCL_ITEM_OTHER, 0);
}
static void on_boolean(void *context, bool v) {
    (void)v;
    take(context, ENCL_ITEM_OTHER, 0);
}

static const struct cbor_callbacks callbacks = {
    .uint8 = on_uint8,
    .uint16 = on_uint16,
    .uint32 = on_uint32,
    .uint64 = on_uint64,
    .negint8 = on_negint8,
    .negint16 = on_negint16,
    .negint32 = on_negint32,
    .negint64 = on_negint64,
    .byte_string_start = on_chunked,
    .byte_string = on_bytes,
    .string = on_text,
    .string_start = on_chunked,
    .indef_array_start = on_indefinite_array,
    .array_start = on_array,
    .indef_map_start = on_indefinite_map,
    .map_start = on_map,
    .tag = on_tag,
    .float2 = on_float,
    .float4 = on_float,
    .float8 = on_double,
    .undefined = on_undefined,
    .null = on_null,
    .boolean = on_boolean,
    .indef_break = on_break,
};

static const char *const type_names[] = {
    [ENCL_ITEM_OTHER] = "a boolean, float or undefined",
    [ENCL_ITEM_UINT] = "an unsigned integer",
    [ENCL_ITEM_NEGINT] = "a negative integer",
    [ENCL_ITEM_BYTES] = "a byte string",
    [ENCL_ITEM_TEXT] = "a text",
    [ENCL_ITEM_ARRAY] = "an array",
    [ENCL_ITEM_MAP] = "a map",
    [ENCL_ITEM_TAG] = "a tag",
    [ENCL_ITEM_NULL] = "null",
    [ENCL_ITEM_BREAK] = "a break",
    [ENCL_ITEM_CHUNKED] = "a chunked string",
};

/* The code point that starts at s[*at], or UINT32_MAX; RFC 3629: shortest form, no surrogates. */
static uint32_t next_code_point(encl_slice s, size_t *at) {
    static const uint32_t smallest[] = {0, 0x80, 0x800, 0x10000};
    uint8_t lead = s.data[(*at)++];
    size_t more = lead < 0x80 ? 0 : lead < 0xe0 ? 1 : lead < 0xf0 ? 2 : 3;
    uint32_t point = lead < 0x80 ? lead : lead & (0x3fu >> more);

    if ((lead >= 0x80 && lead < 0xc2) || lead > 0xf4 || more > s.len - *at) {
        return UINT32_MAX;
    }
    for (size_t i = 0; i < more; i++) {
        uint8_t next = s.data[(*at)++];

        if ((next & 0xc0) != 0x80) {
            return UINT32_MAX;
        }
        point = point << 6 | (next & 0x3f);
    }
    return point < smallest[more] ? UINT32_MAX : point;
}

static bool is_utf8(encl_slice s) {
    for (size_t at = 0; at < s.len;) {
        uint32_t point = next_code_point(s, &at);

        if (point > 0x10ffff || (point >= 0xd800 && point <= 0xdfff)) {
            return false;
        }
    }
    return true;
}

/* libcbor 0.8 refuses the one-byte tags 6 to 20, COSE_Sign1's 18 among them. */
static struct cbor_decoder_result decode(encl_slice from, encl_item *item) {
    uint8_t lead = from.data[0];

    if (lead >> 5 == 6 && (lead & 0x1f) < 24) {
        take(item, ENCL_ITEM_TAG, lead & 0x1f);
        return (struct cbor_decoder_result){.read = 1, .status = CBOR_DECODER_FINISHED};
    }
    return cbor_stream_decode(from.data, from.len, &callbacks, item);
}

encl_result encl_item_next(encl_buf *in, encl_item *item, encl_error *err) {
    encl_slice rest = encl_buf_peek(in);
    struct cbor_decoder_result result;

    memset(item, 0, sizeof *item);
    ENCL_ENSURE(rest.len != 0, err, ENCL_E_DOCUMENT, "expected a CBOR item, came the end");
    result = decode(rest, item);
    ENCL_ENSURE(result.status != CBOR_DECODER_NEDATA, err, ENCL_E_DOCUMENT,
                "a CBOR item announces more bytes than the %zu that are left", rest.len);
    ENCL_ENSURE(result.status == CBOR_DECODER_FINISHED, err, ENCL_E_DOCUMENT,
                "not CBOR: no item starts with the byte 0x%02x", rest.data[0]);
    ENCL_ENSURE(item->type != ENCL_ITEM_CHUNKED, err, ENCL_E_DOCUMENT,
                "strings of indefinite length are not accepted");
    ENCL_ENSURE(item->type != ENCL_ITEM_TEXT || is_utf8(item->bytes), err, ENCL_E_DOCUMENT,
                "a text is not valid UTF-8");
    return encl_buf_skip(in, result.read, err);
}

encl_result encl_item_expect(encl_buf *in, encl_item_type type, const char *what, encl_item *item,
                             encl_error *err) {
    ENCL_TRY(encl_item_next(in, item, err));
    ENCL_ENSURE(item->type == type, err, ENCL_E_DOCUMENT, "%s: expected %s, came %s", what,
                type_names[type], type_names[item->type]);
    return ENCL_OK;
}

encl_entries encl_entries_of(const encl_item *collection) {
    return (encl_entries){collection->indefinite, collection->value};
}

encl_result encl_entries_next(encl_buf *in, encl_entries *entries, bool *more, encl_error *err) {
    encl_slice rest = encl_buf_peek(in);

    if (!entries->indefinite) {
        *more = entries->left != 0;
        entries->left -= *more ? 1 : 0;
        return ENCL_OK;
    }
    *more = rest.len == 0 || rest.data[0] != 0xff;
    return *more ? ENCL_OK : encl_buf_skip(in, 1, err);
}

/* How many items follow a head as its content; an indefinite map is walked item by item. */
static encl_entries content_of(const encl_item *item) {
    encl_entries content = encl_entries_of(item);

    switch (item->type) {
    case ENCL_ITEM_ARRAY:
        return content;
    case ENCL_ITEM_MAP:
        /* A count that overflows cannot be met by any input: it stays too large. */
        content.left = content.left > UINT64_MAX / 2 ? UINT64_MAX : 2 * content.left;
        return content;
    case ENCL_ITEM_TAG:
        return (encl_entries){false, 1};
    default:
        return (encl_entries){false, 0};
    }
}

/* An array, map or tag whose content is being skipped. */
typedef struct nesting {
    encl_entries content;
    bool indefinite_map, odd;
} nesting;

static encl_result skip_level_end(const nesting *level, encl_error *err) {
    ENCL_ENSURE(!(level->indefinite_map && level->odd), err, ENCL_E_DOCUMENT,
                "a map ends after a key without a value");
    return ENCL_OK;
}

encl_result encl_item_skip(encl_buf *in, encl_error *err) {
    nesting open[SKIP_DEPTH_MAX + 1] = {{.content = {false, 1}}};
    size_t depth = 1;

    while (depth != 0) {
        nesting *level = &open[depth - 1];
        encl_item item;
        encl_entries content;
        bool more;

        ENCL_TRY(encl_entries_next(in, &level->content, &more, err));
        if (!more) {
            ENCL_TRY(skip_level_end(level, err));
            depth--;
            continue;
        }
        level->odd = !level->odd;
        ENCL_TRY(encl_item_next(in, &item, err));
        ENCL_ENSURE(item.type != ENCL_ITEM_BREAK, err, ENCL_E_DOCUMENT,
                    "a break outside of an indefinite array or map");
        content = content_of(&item);
        if (content.indefinite || content.left != 0) {
            ENCL_ENSURE(depth <= SKIP_DEPTH_MAX, err, ENCL_E_DOCUMENT,
                        "items are nested deeper than %d", SKIP_DEPTH_MAX);
            open[depth++] =
                (nesting){content, item.type == ENCL_ITEM_MAP && content.indefinite, false};
        }
    }
    return ENCL_OK;
}

static bool same_key(const encl_item *a, const encl_item *b) {
    return a->type == b->type && a->value == b->value && a->bytes.len == b->bytes.len &&
           (a->bytes.len == 0 || memcmp(a->bytes.data, b->bytes.data, a->bytes.len) == 0);
}

encl_result encl_keys_next(encl_buf *in, encl_keys *keys, encl_item *key, encl_error *err) {
    ENCL_TRY(encl_item_next(in, key, err));
    ENCL_ENSURE(key->type == ENCL_ITEM_UINT || key->type == ENCL_ITEM_NEGINT ||
                    key->type == ENCL_ITEM_TEXT,
                err, ENCL_E_DOCUMENT, "a map key: expected an integer or a text, came %s",
                type_names[key->type]);
    for (size_t i = 0; i < keys->count; i++) {
        ENCL_ENSURE(!same_key(key, &keys->key[i]), err, ENCL_E_DOCUMENT,
                    "a map has the same key twice (its %zuth and %zuth)", i + 1, keys->count + 1);
    }
    ENCL_ENSURE(keys->count < ENCL_KEYS_MAX, err, ENCL_E_DOCUMENT, "a map has more than %d keys",
                ENCL_KEYS_MAX);
    keys->key[keys->count++] = *key;
    return ENCL_OK;
}
