/* Inside wire: libcbor's streaming decoder, turned from callbacks into a cursor. No allocation, no
 * recursion; nothing is looked at beyond len. */
#ifndef ENCL_WIRE_TOKEN_H
#define ENCL_WIRE_TOKEN_H

#include "base/buf.h"

typedef enum encl_token_kind {
    ENCL_TOK_UINT,
    ENCL_TOK_NEGATIVE,
    ENCL_TOK_BYTES,
    ENCL_TOK_BYTES_BEGIN, /* indefinite length */
    ENCL_TOK_TEXT,
    ENCL_TOK_TEXT_BEGIN,
    ENCL_TOK_ARRAY,
    ENCL_TOK_ARRAY_BEGIN,
    ENCL_TOK_MAP,
    ENCL_TOK_MAP_BEGIN,
    ENCL_TOK_TAG,
    ENCL_TOK_FLOAT,
    ENCL_TOK_BOOL,
    ENCL_TOK_NULL,
    ENCL_TOK_UNDEFINED,
    ENCL_TOK_BREAK,
    ENCL_TOK_COUNT_
} encl_token_kind;

typedef struct encl_token {
    encl_token_kind kind;
    uint64_t value; /* UINT; BOOL; ARRAY and MAP: how many are declared */
    size_t at, len; /* BYTES, TEXT: where in the block */
} encl_token;

typedef struct encl_cursor {
    uint8_t *block;
    size_t len, at;
} encl_cursor;

static inline size_t encl_cursor_left(const encl_cursor *c) {
    return c->len - c->at;
}

/* what: what the caller hopes for, for the message. A declared length of an array or map is only
 * ever passed on when that many items can still be in the block. */
encl_result encl_token_next(encl_cursor *c, const char *what, encl_token *token, encl_error *err);
const char *encl_token_name(encl_token_kind kind);

#endif
