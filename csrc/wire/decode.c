/* Decides what a message is: its type, its fields, and that nothing else is in the record. Calls
 * cbor and the payload loops of bytes.c, and writes into the block it was given.
 *
 * One walk over the map. Serde puts "type" first, so as a rule each value is decoded where it is
 * met. Values met before the type is known are stepped over and decoded after the walk: only then
 * is it clear which keys mean anything. Decoding a value writes only within that value's own bytes,
 * so the others stay where they are. */
#include "wire/wire.h"

#include <string.h>

#include "base/slice.h"
#include "base/utf8.h"
#include "cbor/cursor.h"
#include "wire/bytes.h"
#include "wire/schema.h"

typedef struct decoder {
    uint8_t *block; /* what c reads, to be written to */
    encl_cursor c;
    encl_direction direction;
    encl_msg *m;
    const encl_layout *layout; /* NULL until the type is known */
    bool seen[ENCL_F_COUNT_];
    bool twice[ENCL_F_COUNT_];
    size_t deferred[ENCL_F_COUNT_]; /* where the value begins; 0: not put off */
} decoder;

/* The chunks of an indefinite string, moved together in place: it ends up where its first chunk
 * was. kind is that of a chunk, BYTES or TEXT. */
static encl_result join_chunks(decoder *d, encl_token_kind kind, encl_slice *joined,
                               encl_error *err) {
    size_t start = d->c.at, len = 0;

    for (;;) {
        encl_token t;

        ENCL_TRY(encl_token_next(&d->c, "a chunk or a break", &t, err));
        if (t.kind == ENCL_TOK_BREAK) {
            *joined = ENCL_SLICE(d->block + start, len);
            return ENCL_OK;
        }
        ENCL_TRY(encl_token_ensure(&d->c, &t, kind, "a chunk", err));
        memmove(d->block + start + len, d->block + t.at, t.len);
        len += t.len;
    }
}

static encl_result take_text(decoder *d, const char *what, encl_slice *text, encl_error *err) {
    encl_token t;

    ENCL_TRY(encl_token_next(&d->c, what, &t, err));
    if (t.kind == ENCL_TOK_TEXT_BEGIN) {
        return join_chunks(d, ENCL_TOK_TEXT, text, err);
    }
    ENCL_TRY(encl_token_ensure(&d->c, &t, ENCL_TOK_TEXT, what, err));
    *text = encl_token_bytes(&d->c, &t);
    return ENCL_OK;
}

static encl_result no_element(const encl_cursor *c, const char *what, size_t done,
                              encl_error *err) {
    size_t left = encl_cursor_left(c);
    uint8_t head = left == 0 ? 0 : c->block[c->at];
    bool wide = head >= 0x18 && head <= 0x1b;

    ENCL_ENSURE(left != 0 && !(wide && left <= (size_t)1 << (head - 0x18)), err, ENCL_E_PROTOCOL,
                "%s: expected more elements, got the end of the message after %zu", what, done);
    return encl_fail(err, ENCL_E_PROTOCOL,
                     "%s: expected an integer of 0..255 as element %zu, got %s (0x%02x at offset "
                     "%zu)",
                     what, done, wide ? "a greater one" : "something else", head, c->at);
}

/* The elements of an array whose head is taken, decoded to where they begin. */
static encl_result take_elements(decoder *d, const char *what, const encl_token *head,
                                 encl_slice *bytes, encl_error *err) {
    encl_entries entries = encl_entries_of(head);
    uint8_t *start = d->block + d->c.at;
    size_t left = encl_cursor_left(&d->c), consumed, done;
    /* A declared length is at most what is left: it fits a size_t. */
    size_t wanted = entries.open_end ? left : (size_t)entries.left;

    done = encl_bytes_decode_run(start, left, wanted, start, &consumed);
    d->c.at += consumed;
    if (entries.open_end ? encl_entries_next(&d->c, &entries) : done != wanted) {
        return no_element(&d->c, what, done, err);
    }
    *bytes = ENCL_SLICE(start, done);
    return ENCL_OK;
}

static encl_result take_bytes(decoder *d, const char *what, encl_slice *bytes, encl_error *err) {
    encl_token t;

    ENCL_TRY(encl_token_next(&d->c, what, &t, err));
    switch (t.kind) {
    case ENCL_TOK_ARRAY:
    case ENCL_TOK_ARRAY_BEGIN:
        return take_elements(d, what, &t, bytes, err);
    case ENCL_TOK_BYTES:
        *bytes = encl_token_bytes(&d->c, &t);
        return ENCL_OK;
    case ENCL_TOK_BYTES_BEGIN:
        return join_chunks(d, ENCL_TOK_BYTES, bytes, err);
    default:
        return encl_fail(err, ENCL_E_PROTOCOL,
                         "%s: expected an array of integers or a byte string, got %s", what,
                         encl_token_name(t.kind));
    }
}

static encl_result take_nonce(decoder *d, const char *what, encl_error *err) {
    encl_slice bytes;

    ENCL_TRY(take_bytes(d, what, &bytes, err));
    ENCL_ENSURE(bytes.len == ENCL_CONTROL_NONCE_BYTES, err, ENCL_E_PROTOCOL,
                "%s: expected %d bytes, got %zu", what, ENCL_CONTROL_NONCE_BYTES, bytes.len);
    memcpy(d->m->control_nonce, bytes.data, bytes.len);
    return ENCL_OK;
}

static encl_result take_half(decoder *d, encl_error *err) {
    char shown[ENCL_UTF8_SHOWN];
    encl_slice text;

    ENCL_TRY(take_text(d, "half", &text, err));
    for (encl_half half = ENCL_HALF_WRITE; half <= ENCL_HALF_BOTH; half++) {
        if (encl_slice_equal(text, encl_half_name(half))) {
            d->m->half = half;
            return ENCL_OK;
        }
    }
    return encl_fail(err, ENCL_E_PROTOCOL, "half: expected \"Write\" or \"Both\", got \"%s\"",
                     encl_utf8_show(text, shown));
}

static encl_result take_scalar(decoder *d, encl_field field, encl_error *err) {
    encl_token_kind kind = field == ENCL_F_ID ? ENCL_TOK_UINT : ENCL_TOK_BOOL;
    const char *what = (const char *)encl_field_name(field).data;
    encl_token t;

    ENCL_TRY(encl_token_expect(&d->c, kind, what, &t, err));
    if (field == ENCL_F_ID) {
        d->m->id = t.value;
    } else {
        d->m->success = t.value != 0;
    }
    return ENCL_OK;
}

static encl_result take_field(decoder *d, encl_field field, encl_error *err) {
    const char *what = (const char *)encl_field_name(field).data;

    switch (field) {
    case ENCL_F_ID:
    case ENCL_F_SUCCESS:
        return take_scalar(d, field, err);
    case ENCL_F_PAYLOAD:
    case ENCL_F_DATA:
        return take_bytes(d, what, &d->m->payload, err);
    case ENCL_F_SIGNATURE:
        return take_bytes(d, what, &d->m->signature, err);
    case ENCL_F_CONTROL_NONCE:
    case ENCL_F_NONCE:
        return take_nonce(d, what, err);
    case ENCL_F_HALF:
        return take_half(d, err);
    case ENCL_F_MESSAGE:
        return take_text(d, what, &d->m->payload, err);
    case ENCL_F_COUNT_:
        break;
    }
    return encl_fail(err, ENCL_E_INTERNAL, "field %d is in no message", (int)field);
}

static encl_result take_type(decoder *d, encl_error *err) {
    char shown[ENCL_UTF8_SHOWN];
    encl_slice text;

    ENCL_ENSURE(d->layout == NULL, err, ENCL_E_PROTOCOL,
                "expected each key once, got \"type\" twice");
    ENCL_TRY(take_text(d, "type", &text, err));
    for (encl_msg_type type = 0; type < ENCL_MSG_COUNT_; type++) {
        const char *name = encl_msg_type_name(type);

        if (encl_slice_equal(text, ENCL_SLICE(name, strlen(name)))) {
            d->m->type = type;
            d->layout = encl_layout_of(type, d->direction);
            break;
        }
    }
    ENCL_ENSURE(d->layout != NULL, err, ENCL_E_PROTOCOL,
                "type: expected a message to %s, got \"%s\"", encl_direction_name(d->direction),
                encl_utf8_show(text, shown));
    return ENCL_OK;
}

static encl_field find_field(encl_slice key) {
    encl_field field = 0;

    while (field < ENCL_F_COUNT_ && !encl_slice_equal(key, encl_field_name(field))) {
        field++;
    }
    return field;
}

static encl_result ensure_once(const decoder *d, encl_field field, encl_error *err) {
    ENCL_ENSURE(!d->twice[field], err, ENCL_E_PROTOCOL,
                "%s: expected each key once, got \"%s\" twice", encl_msg_type_name(d->m->type),
                (const char *)encl_field_name(field).data);
    return ENCL_OK;
}

static encl_result take_pair(decoder *d, encl_slice key, encl_error *err) {
    encl_field field;

    if (encl_slice_equal(key, ENCL_SLICE("type", 4))) {
        return take_type(d, err);
    }
    field = find_field(key);
    if (field == ENCL_F_COUNT_ || (d->layout != NULL && !encl_layout_has(d->layout, field))) {
        return encl_cursor_skip(&d->c, err);
    }
    d->twice[field] = d->seen[field];
    d->seen[field] = true;
    if (d->layout == NULL) {
        d->deferred[field] = d->c.at;
        return encl_cursor_skip(&d->c, err);
    }
    ENCL_TRY(ensure_once(d, field, err));
    return take_field(d, field, err);
}

static encl_result take_pairs(decoder *d, const encl_token *map, encl_error *err) {
    encl_entries pairs = encl_entries_of(map);

    while (encl_entries_next(&d->c, &pairs)) {
        encl_slice key;

        ENCL_TRY(take_text(d, "key", &key, err));
        ENCL_TRY(take_pair(d, key, err));
    }
    ENCL_ENSURE(d->c.at == d->c.len, err, ENCL_E_PROTOCOL,
                "expected the message to end after its map, got %zu more bytes",
                encl_cursor_left(&d->c));
    return ENCL_OK;
}

static encl_result take_deferred(decoder *d, encl_field field, encl_error *err) {
    ENCL_ENSURE(d->seen[field], err, ENCL_E_PROTOCOL, "%s: expected a key \"%s\", got none",
                encl_msg_type_name(d->m->type), (const char *)encl_field_name(field).data);
    ENCL_TRY(ensure_once(d, field, err));
    if (d->deferred[field] == 0) {
        return ENCL_OK;
    }
    d->c.at = d->deferred[field];
    return take_field(d, field, err);
}

static encl_result decode(decoder *d, encl_error *err) {
    encl_token map;

    ENCL_TRY(encl_token_expect(&d->c, ENCL_TOK_MAP, "the message", &map, err));
    ENCL_TRY(take_pairs(d, &map, err));
    ENCL_ENSURE(d->layout != NULL, err, ENCL_E_PROTOCOL, "expected a key \"type\", got none");
    for (size_t i = 0; i < d->layout->count; i++) {
        ENCL_TRY(take_deferred(d, d->layout->fields[i], err));
    }
    return ENCL_OK;
}

encl_result encl_wire_decode(uint8_t *block, size_t len, encl_direction direction, encl_msg *m,
                             encl_error *err) {
    decoder d = {.block = block, .direction = direction, .m = m};
    encl_code rc;

    d.c = (encl_cursor){.block = block, .len = len, .code = ENCL_E_PROTOCOL};
    memset(m, 0, sizeof *m);
    rc = decode(&d, err);
    if (rc != ENCL_OK) {
        memset(m, 0, sizeof *m);
    }
    return rc;
}
