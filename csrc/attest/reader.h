/* One CBOR item at a time out of a buffer, by libcbor's streaming decoder: no tree, no allocation,
 * and no trust in declared lengths. Every failure is ENCL_E_DOCUMENT. */
#ifndef ENCL_ATTEST_READER_H
#define ENCL_ATTEST_READER_H

#include "base/buf.h"

typedef enum encl_item_type {
    ENCL_ITEM_OTHER, /* booleans, floats, undefined: nothing a document uses */
    ENCL_ITEM_UINT,
    ENCL_ITEM_NEGINT, /* value n stands for -1 - n */
    ENCL_ITEM_BYTES,
    ENCL_ITEM_TEXT,
    ENCL_ITEM_ARRAY,
    ENCL_ITEM_MAP,
    ENCL_ITEM_TAG,
    ENCL_ITEM_NULL,
    ENCL_ITEM_BREAK,
    ENCL_ITEM_CHUNKED,
} encl_item_type;

typedef struct encl_item {
    encl_item_type type;
    uint64_t value;   /* the number, the tag, or the count of a definite array or map */
    bool indefinite;  /* an array or map that ends with a break */
    encl_slice bytes; /* a string's, inside the buffer */
} encl_item;

/* Takes one item head, and a string's bytes with it. Text is valid UTF-8. Chunked (indefinite
 * length) strings are refused: no known maker of documents writes them, and slices could not
 * point at them. */
encl_result encl_item_next(encl_buf *in, encl_item *item, encl_error *err);
/* The same, and it must be of this type; what names it in the message. */
encl_result encl_item_expect(encl_buf *in, encl_item_type type, const char *what, encl_item *item,
                             encl_error *err);
/* Takes one whole item of any kind, nested up to a fixed depth. */
encl_result encl_item_skip(encl_buf *in, encl_error *err);

/* Walks the entries of an array or map: more turns false at its end. */
typedef struct encl_entries {
    bool indefinite;
    uint64_t left;
} encl_entries;
encl_entries encl_entries_of(const encl_item *collection);
encl_result encl_entries_next(encl_buf *in, encl_entries *entries, bool *more, encl_error *err);

/* The keys a map showed so far, so that none comes twice. */
#define ENCL_KEYS_MAX 64
typedef struct encl_keys {
    encl_item key[ENCL_KEYS_MAX];
    size_t count;
} encl_keys;
/* Takes the next key, an integer or text. */
encl_result encl_keys_next(encl_buf *in, encl_keys *keys, encl_item *key, encl_error *err);

#endif
