/* One whole item taken and forgotten, for values that nobody here asks about. The levels it is in
 * are kept in a table of fixed size: nesting costs no stack. Calls cursor.c alone. */
#include "cbor/cursor.h"

/* An array or map whose end has not been reached. */
typedef struct level {
    uint64_t left; /* items still to come; of an indefinite one: how many there were, modulo 2 */
    bool open_end, map;
} level;

typedef struct stack {
    level levels[ENCL_CBOR_MAX_DEPTH];
    size_t depth;
} stack;

static encl_result push(const encl_cursor *c, stack *s, const encl_token *t, encl_error *err) {
    level l = {.left = t->value};

    ENCL_ENSURE(s->depth < ENCL_CBOR_MAX_DEPTH, err, c->code,
                "CBOR: expected at most %d nested arrays and maps, got more", ENCL_CBOR_MAX_DEPTH);
    l.map = t->kind == ENCL_TOK_MAP || t->kind == ENCL_TOK_MAP_BEGIN;
    l.open_end = t->kind == ENCL_TOK_ARRAY_BEGIN || t->kind == ENCL_TOK_MAP_BEGIN;
    if (l.map) {
        l.left *= 2; /* at most the bytes that are left: no overflow */
    }
    s->levels[s->depth++] = l;
    return ENCL_OK;
}

/* An item is complete, and with it each array or map around it of which it was the last. */
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

static encl_result take_break(const encl_cursor *c, stack *s, encl_error *err) {
    const level *top = s->depth == 0 ? NULL : &s->levels[s->depth - 1];

    ENCL_ENSURE(top != NULL && top->open_end, err, c->code,
                "CBOR: expected an item, got a break outside of an indefinite length");
    ENCL_ENSURE(!top->map || top->left == 0, err, c->code,
                "CBOR: expected a key's value, got a break");
    s->depth--;
    item_done(s);
    return ENCL_OK;
}

static encl_result skip_chunks(encl_cursor *c, encl_token_kind kind, encl_error *err) {
    encl_token t;

    for (;;) {
        ENCL_TRY(encl_token_next(c, "a chunk or a break", &t, err));
        if (t.kind == ENCL_TOK_BREAK) {
            return ENCL_OK;
        }
        ENCL_TRY(encl_token_ensure(c, &t, kind, "a chunk", err));
    }
}

static encl_result skip_piece(encl_cursor *c, stack *s, encl_error *err) {
    bool tagged = false;
    encl_token t;

    ENCL_TRY(encl_token_next(c, "a value", &t, err));
    while (t.kind == ENCL_TOK_TAG) {
        tagged = true;
        ENCL_TRY(encl_token_next(c, "a tagged value", &t, err));
    }
    switch (t.kind) {
    case ENCL_TOK_BREAK:
        ENCL_ENSURE(!tagged, err, c->code, "CBOR: expected a tagged value, got a break");
        return take_break(c, s, err);
    case ENCL_TOK_ARRAY:
    case ENCL_TOK_MAP:
    case ENCL_TOK_ARRAY_BEGIN:
    case ENCL_TOK_MAP_BEGIN:
        ENCL_TRY(push(c, s, &t, err));
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

encl_result encl_cursor_skip(encl_cursor *c, encl_error *err) {
    stack s = {.depth = 0};

    do {
        ENCL_TRY(skip_piece(c, &s, err));
    } while (s.depth != 0);
    return ENCL_OK;
}
