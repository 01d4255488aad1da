/* One walk over the map. Serde puts "type" first, so as a rule each value is decoded where it is
 * met. Values met before the type is known are stepped over and decoded after the walk: only then
 * is it clear which keys mean anything. Decoding a value writes only within that value's own bytes,
 * so the others stay where they are. */
#include "wire/wire.h"

#include <string.h>

#include "base/utf8.h"
#include "wire/bytes.h"
#include "wire/schema.h"
#include "wire/token.h"

typedef struct decoder {
    encl_cursor c;
    encl_direction direction;
    encl_msg *m;
    const encl_layout *layout; /* NULL until the type is known */
    bool seen[ENCL_F_COUNT_];
    bool twice[ENCL_F_COUNT_];
    size_t deferred[ENCL_F_COUNT_]; /* where the value begins; 0: not put off */
} decoder;

static bool same(encl_slice a, encl_slice b) {
    return a.len == b.len && (a.len == 0 || memcmp(a.data, b.data, a.len) == 0);
}

/* The chunks of an indefinite string, moved together in place; it ends up where its first chunk
 * was. kind is that of a chunk: BYTES or TEXT. */
static encl_result join_chunks(encl_cursor *c, encl_token_kind kind, encl_slice *joined,
                               encl_error *err) {
    size_t start = c->at, len = 0;

    for (;;) {
        encl_token t;

        ENCL_TRY(encl_token_next(c, "a chunk or a break", &t, err));
        if (t.kind == ENCL_TOK_BREAK) {
            *joined = ENCL_SLICE(c->block + start, len);
            return ENCL_OK;
        }
        ENCL_ENSURE(t.kind == kind, err, ENCL_E_PROTOCOL,
                    "CBOR: expected a chunk that is %s, came %s", encl_token_name(kind),
                    encl_token_name(t.kind));
        ENCL_ENSURE(kind != ENCL_TOK_TEXT || encl_utf8_valid(ENCL_SLICE(c->block + t.at, t.len)),
                    err, ENCL_E_PROTOCOL, "CBOR: expected a chunk in UTF-8, came other bytes");
        memmove(c->block + start + len, c->block + t.at, t.len);
        len += t.len;
    }
}

static encl_result take_text(encl_cursor *c, const char *what, encl_slice *text, encl_error *err) {
    encl_token t;

    ENCL_TRY(encl_token_next(c, what, &t, err));
    if (t.kind == ENCL_TOK_TEXT_BEGIN) {
        return join_chunks(c, ENCL_TOK_TEXT, text, err);
    }
    ENCL_ENSURE(t.kind == ENCL_TOK_TEXT, err, ENCL_E_PROTOCOL, "%s: expected a text, came %s", what,
                encl_token_name(t.kind));
    *text = ENCL_SLICE(c->block + t.at, t.len);
    ENCL_ENSURE(encl_utf8_valid(*text), err, ENCL_E_PROTOCOL,
                "%s: expected UTF-8, came other bytes", what);
    return ENCL_OK;
}

static encl_result no_element(const encl_cursor *c, const char *what, size_t done,
                              encl_error *err) {
    size_t left = encl_cursor_left(c);
    uint8_t head = left == 0 ? 0 : c->block[c->at];
    bool wide = head >= 0x18 && head <= 0x1b;

    ENCL_ENSURE(left != 0 && !(wide && left <= (size_t)1 << (head - 0x18)), err, ENCL_E_PROTOCOL,
                "%s: expected more elements, came the end of the message after %zu", what, done);
    return encl_fail(err, ENCL_E_PROTOCOL,
                     "%s: expected an integer of 0..255 as element %zu, came %s (0x%02x at offset "
                     "%zu)",
                     what, done, wide ? "a greater one" : "something else", head, c->at);
}

/* The elements of an array whose head is taken, decoded to where they begin. */
static encl_result take_elements(encl_cursor *c, const char *what, const encl_token *head,
                                 encl_slice *bytes, encl_error *err) {
    bool open_end = head->kind == ENCL_TOK_ARRAY_BEGIN;
    uint8_t *start = c->block + c->at;
    size_t left = encl_cursor_left(c), consumed, done;

    done =
        encl_bytes_decode_run(start, left, open_end ? left : (size_t)head->value, start, &consumed);
    c->at += consumed;
    if (open_end) {
        if (c->at == c->len || c->block[c->at] != 0xff) {
            return no_element(c, what, done, err);
        }
        c->at++;
    } else if (done != head->value) {
        return no_element(c, what, done, err);
    }
    *bytes = ENCL_SLICE(start, done);
    return ENCL_OK;
}

static encl_result take_bytes(encl_cursor *c, const char *what, encl_slice *bytes,
                              encl_error *err) {
    encl_token t;

    ENCL_TRY(encl_token_next(c, what, &t, err));
    switch (t.kind) {
    case ENCL_TOK_ARRAY:
    case ENCL_TOK_ARRAY_BEGIN:
        return take_elements(c, what, &t, bytes, err);
    case ENCL_TOK_BYTES:
        *bytes = ENCL_SLICE(c->block + t.at, t.len);
        return ENCL_OK;
    case ENCL_TOK_BYTES_BEGIN:
        return join_chunks(c, ENCL_TOK_BYTES, bytes, err);
    default:
        return encl_fail(err, ENCL_E_PROTOCOL,
                         "%s: expected an array of integers or a byte string, came %s", what,
                         encl_token_name(t.kind));
    }
}

static encl_result take_nonce(decoder *d, const char *what, encl_error *err) {
    encl_slice bytes;

    ENCL_TRY(take_bytes(&d->c, what, &bytes, err));
    ENCL_ENSURE(bytes.len == ENCL_CONTROL_NONCE_BYTES, err, ENCL_E_PROTOCOL,
                "%s: expected %d bytes, came %zu", what, ENCL_CONTROL_NONCE_BYTES, bytes.len);
    memcpy(d->m->control_nonce, bytes.data, bytes.len);
    return ENCL_OK;
}

static encl_result take_half(decoder *d, encl_error *err) {
    char shown[ENCL_UTF8_SHOWN];
    encl_slice text;

    ENCL_TRY(take_text(&d->c, "half", &text, err));
    for (encl_half half = ENCL_HALF_WRITE; half <= ENCL_HALF_BOTH; half++) {
        if (same(text, encl_half_name(half))) {
            d->m->half = half;
            return ENCL_OK;
        }
    }
    return encl_fail(err, ENCL_E_PROTOCOL, "half: expected \"Write\" or \"Both\", came \"%s\"",
                     encl_utf8_show(text, shown));
}

static encl_result take_scalar(decoder *d, encl_field field, encl_error *err) {
    encl_token_kind kind = field == ENCL_F_ID ? ENCL_TOK_UINT : ENCL_TOK_BOOL;
    const char *what = (const char *)encl_field_name(field).data;
    encl_token t;

    ENCL_TRY(encl_token_next(&d->c, what, &t, err));
    ENCL_ENSURE(t.kind == kind, err, ENCL_E_PROTOCOL, "%s: expected %s, came %s", what,
                encl_token_name(kind), encl_token_name(t.kind));
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
        return take_bytes(&d->c, what, &d->m->payload, err);
    case ENCL_F_SIGNATURE:
        return take_bytes(&d->c, what, &d->m->signature, err);
    case ENCL_F_CONTROL_NONCE:
    case ENCL_F_NONCE:
        return take_nonce(d, what, err);
    case ENCL_F_HALF:
        return take_half(d, err);
    case ENCL_F_MESSAGE:
        return take_text(&d->c, what, &d->m->payload, err);
    case ENCL_F_COUNT_:
        break;
    }
    return encl_fail(err, ENCL_E_INTERNAL, "field %d is in no message", (int)field);
}

/* An open container in a value that is stepped over. */
typedef struct level {
    uint64_t left; /* items still to come; of an indefinite one: how many came, mod 2 */
    bool open_end, map;
} level;

typedef struct stack {
    level levels[ENCL_WIRE_MAX_DEPTH];
    size_t depth;
} stack;

static encl_result push(stack *s, const encl_token *t, encl_error *err) {
    level l = {.left = t->value};

    ENCL_ENSURE(s->depth < ENCL_WIRE_MAX_DEPTH, err, ENCL_E_PROTOCOL,
                "CBOR: expected at most %d nested arrays and maps, came more", ENCL_WIRE_MAX_DEPTH);
    l.map = t->kind == ENCL_TOK_MAP || t->kind == ENCL_TOK_MAP_BEGIN;
    l.open_end = t->kind == ENCL_TOK_ARRAY_BEGIN || t->kind == ENCL_TOK_MAP_BEGIN;
    if (l.map) {
        l.left *= 2; /* checked against the bytes left: no overflow */
    }
    s->levels[s->depth++] = l;
    return ENCL_OK;
}

/* An item is complete: so may be the containers around it. */
static void item_done(stack *s) {
    while (s->depth != 0) {
        level *top = &s->levels[s->depth - 1];

        if (top->open_end) {
            top->left ^= 1;
            return;
        }
        if (top->left != 0 && --top->left != 0) {
            return;
        }
        s->depth--;
    }
}

static encl_result take_break(stack *s, encl_error *err) {
    const level *top = s->depth == 0 ? NULL : &s->levels[s->depth - 1];

    ENCL_ENSURE(top != NULL && top->open_end, err, ENCL_E_PROTOCOL,
                "CBOR: expected an item, came a break outside of an indefinite length");
    ENCL_ENSURE(!top->map || top->left == 0, err, ENCL_E_PROTOCOL,
                "CBOR: expected a key's value, came a break");
    s->depth--;
    item_done(s);
    return ENCL_OK;
}

static encl_result skip_chunks(encl_cursor *c, encl_token_kind kind, encl_error *err) {
    encl_token t;

    do {
        ENCL_TRY(encl_token_next(c, "a chunk or a break", &t, err));
        ENCL_ENSURE(t.kind == kind || t.kind == ENCL_TOK_BREAK, err, ENCL_E_PROTOCOL,
                    "CBOR: expected a chunk that is %s, came %s", encl_token_name(kind),
                    encl_token_name(t.kind));
    } while (t.kind != ENCL_TOK_BREAK);
    return ENCL_OK;
}

static encl_result skip_item(encl_cursor *c, stack *s, encl_error *err) {
    bool tagged = false;
    encl_token t;

    ENCL_TRY(encl_token_next(c, "a value", &t, err));
    while (t.kind == ENCL_TOK_TAG) {
        tagged = true;
        ENCL_TRY(encl_token_next(c, "a tagged value", &t, err));
    }
    switch (t.kind) {
    case ENCL_TOK_BREAK:
        ENCL_ENSURE(!tagged, err, ENCL_E_PROTOCOL, "CBOR: expected a tagged value, came a break");
        return take_break(s, err);
    case ENCL_TOK_ARRAY:
    case ENCL_TOK_MAP:
    case ENCL_TOK_ARRAY_BEGIN:
    case ENCL_TOK_MAP_BEGIN:
        ENCL_TRY(push(s, &t, err));
        if (!s->levels[s->depth - 1].open_end && t.value == 0) {
            item_done(s);
        }
        return ENCL_OK;
    case ENCL_TOK_BYTES_BEGIN:
        ENCL_TRY(skip_chunks(c, ENCL_TOK_BYTES, err));
        break;
    case ENCL_TOK_TEXT_BEGIN:
        ENCL_TRY(skip_chunks(c, ENCL_TOK_TEXT, err));
        break;
    default:
        break;
    }
    item_done(s);
    return ENCL_OK;
}

static encl_result skip_value(encl_cursor *c, encl_error *err) {
    stack s = {.depth = 0};

    do {
        ENCL_TRY(skip_item(c, &s, err));
    } while (s.depth != 0);
    return ENCL_OK;
}

static encl_result take_type(decoder *d, encl_error *err) {
    char shown[ENCL_UTF8_SHOWN];
    encl_slice text;

    ENCL_ENSURE(d->layout == NULL, err, ENCL_E_PROTOCOL,
                "expected each key once, came \"type\" twice");
    ENCL_TRY(take_text(&d->c, "type", &text, err));
    for (encl_msg_type type = 0; type < ENCL_MSG_COUNT_; type++) {
        const char *name = encl_msg_type_name(type);

        if (same(text, ENCL_SLICE(name, strlen(name)))) {
            d->m->type = type;
            d->layout = encl_layout_of(type, d->direction);
            break;
        }
    }
    ENCL_ENSURE(d->layout != NULL, err, ENCL_E_PROTOCOL,
                "type: expected a message to %s, came \"%s\"", encl_direction_name(d->direction),
                encl_utf8_show(text, shown));
    return ENCL_OK;
}

static encl_field find_field(encl_slice key) {
    encl_field field = 0;

    while (field < ENCL_F_COUNT_ && !same(key, encl_field_name(field))) {
        field++;
    }
    return field;
}

static encl_result ensure_once(const decoder *d, encl_field field, encl_error *err) {
    ENCL_ENSURE(!d->twice[field], err, ENCL_E_PROTOCOL,
                "%s: expected each key once, came \"%s\" twice", encl_msg_type_name(d->m->type),
                (const char *)encl_field_name(field).data);
    return ENCL_OK;
}

static encl_result take_pair(decoder *d, encl_slice key, encl_error *err) {
    encl_field field;

    if (same(key, ENCL_SLICE("type", 4))) {
        return take_type(d, err);
    }
    field = find_field(key);
    if (field == ENCL_F_COUNT_ || (d->layout != NULL && !encl_layout_has(d->layout, field))) {
        return skip_value(&d->c, err);
    }
    d->twice[field] = d->seen[field];
    d->seen[field] = true;
    if (d->layout == NULL) {
        d->deferred[field] = d->c.at;
        return skip_value(&d->c, err);
    }
    ENCL_TRY(ensure_once(d, field, err));
    return take_field(d, field, err);
}

static bool at_break(const encl_cursor *c) {
    return c->at < c->len && c->block[c->at] == 0xff;
}

static encl_result take_pairs(decoder *d, const encl_token *map, encl_error *err) {
    bool open_end = map->kind == ENCL_TOK_MAP_BEGIN;

    for (uint64_t i = 0; open_end ? !at_break(&d->c) : i < map->value; i++) {
        encl_slice key;

        ENCL_TRY(take_text(&d->c, "key", &key, err));
        ENCL_TRY(take_pair(d, key, err));
    }
    d->c.at += open_end;
    ENCL_ENSURE(d->c.at == d->c.len, err, ENCL_E_PROTOCOL,
                "expected the message to end after its map, came %zu more bytes",
                encl_cursor_left(&d->c));
    return ENCL_OK;
}

static encl_result take_deferred(decoder *d, encl_field field, encl_error *err) {
    ENCL_ENSURE(d->seen[field], err, ENCL_E_PROTOCOL, "%s: expected a key \"%s\", came none",
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

    ENCL_TRY(encl_token_next(&d->c, "a map", &map, err));
    ENCL_ENSURE(map.kind == ENCL_TOK_MAP || map.kind == ENCL_TOK_MAP_BEGIN, err, ENCL_E_PROTOCOL,
                "expected a message that is a map, came %s", encl_token_name(map.kind));
    ENCL_TRY(take_pairs(d, &map, err));
    ENCL_ENSURE(d->layout != NULL, err, ENCL_E_PROTOCOL, "expected a key \"type\", came none");
    for (size_t i = 0; i < d->layout->count; i++) {
        ENCL_TRY(take_deferred(d, d->layout->fields[i], err));
    }
    return ENCL_OK;
}

encl_result encl_wire_decode(uint8_t *block, size_t len, encl_direction direction, encl_msg *m,
                             encl_error *err) {
    decoder d = {.c = {.block = block, .len = len}, .direction = direction, .m = m};
    encl_code rc;

    memset(m, 0, sizeof *m);
    rc = decode(&d, err);
    if (rc != ENCL_OK) {
        memset(m, 0, sizeof *m);
    }
    return rc;
}
