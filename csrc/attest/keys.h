/* Inside attest: the keys of a document's maps. */
#ifndef ENCL_ATTEST_KEYS_H
#define ENCL_ATTEST_KEYS_H

#include "cbor/cursor.h"

typedef struct encl_key {
    encl_token_kind kind; /* UINT, NEGATIVE or TEXT */
    uint64_t value;       /* as a token's */
    encl_slice text;      /* of a TEXT */
} encl_key;

/* The keys that a map showed so far, so that none is accepted twice. */
#define ENCL_KEYS_MAX 64
typedef struct encl_keys {
    encl_key key[ENCL_KEYS_MAX];
    size_t count;
} encl_keys;

/* Takes the next key, an integer or a text. */
encl_result encl_keys_next(encl_cursor *c, encl_keys *keys, encl_key *key, encl_error *err);

#endif
