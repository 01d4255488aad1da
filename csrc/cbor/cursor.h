/* cbor: CBOR (RFC 8949) read and written a piece at a time, for messages and for attestation
 * documents alike. Pure: no allocation, no recursion, no trust in declared lengths. */
#ifndef ENCL_CBOR_CURSOR_H
#define ENCL_CBOR_CURSOR_H

#include "base/buf.h"

/* Arrays and maps nested deeper than this are refused where a value is skipped. */
#define ENCL_CBOR_MAX_DEPTH 16

typedef enum encl_token_kind {
    ENCL_TOK_UINT,
    ENCL_TOK_NEGATIVE,
    ENCL_TOK_BYTES,
    ENCL_TOK_BYTES_BEGIN, /* indefinite length: chunks follow, then a break */
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
    uint64_t value; /* UINT; NEGATIVE: n stands for -1 - n; BOOL; TAG; ARRAY: its items; MAP: its
                     * pairs */
    size_t at, len; /* BYTES, TEXT: where in the block, so that it may be decoded in place */
} encl_token;

/* Where a reader is. Invariant: at <= len. */
typedef struct encl_cursor {
    const uint8_t *block;
    size_t len, at;
    encl_code code; /* of every refusal: ENCL_E_PROTOCOL in a message, ENCL_E_DOCUMENT elsewhere */
    bool no_chunks; /* refuse strings of indefinite length: their bytes do not lie together */
} encl_cursor;

static inline size_t encl_cursor_left(const encl_cursor *c) {
    return c->len - c->at;
}

/* Takes one item's head, and a string's bytes with it. what: what the caller expects, for the
 * message. A declared length is only passed on when that much can still be in the block; text is
 * valid UTF-8. On failure the cursor is where it was. */
encl_result encl_token_next(encl_cursor *c, const char *what, encl_token *token, encl_error *err);
/* The same, and the token must be of that kind. ARRAY and MAP stand for those of indefinite length
 * too. */
encl_result encl_token_expect(encl_cursor *c, encl_token_kind kind, const char *what,
                              encl_token *token, encl_error *err);
/* Refuses a token that is not of that kind, as encl_token_expect does. */
encl_result encl_token_ensure(const encl_cursor *c, const encl_token *token, encl_token_kind kind,
                              const char *what, encl_error *err);
const char *encl_token_name(encl_token_kind kind);

static inline encl_slice encl_token_bytes(const encl_cursor *c, const encl_token *token) {
    return ENCL_SLICE(c->block + token->at, token->len);
}

/* What is still to come of an array or map whose head was taken: items of an array, pairs of a
 * map. */
typedef struct encl_entries {
    bool open_end; /* indefinite length: a break ends it */
    uint64_t left;
} encl_entries;
encl_entries encl_entries_of(const encl_token *head);
/* False at the end, with the break taken that ends an indefinite length. Where the block ends too
 * early it stays true, and the next token says what is missing. */
bool encl_entries_next(encl_cursor *c, encl_entries *entries);

/* skip.c: takes one whole item of any kind, its tags and all that is nested in it. */
encl_result encl_cursor_skip(encl_cursor *c, encl_error *err);

#endif
