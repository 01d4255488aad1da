/* CBOR (RFC 8949) as a tree, read and written independently of the library under test. */
#ifndef ENCL_FUZZ_CBOR_TREE_H
#define ENCL_FUZZ_CBOR_TREE_H

#include "mutate.h"

enum { CBOR_UINT, CBOR_NEGINT, CBOR_BYTES, CBOR_TEXT, CBOR_ARRAY, CBOR_MAP, CBOR_TAG, CBOR_SIMPLE };

typedef struct cbor_node {
    uint8_t major;                  /* as above */
    uint8_t width;                  /* bytes of the argument after the head: 0, 1, 2, 4 or 8 */
    bool indefinite;                /* a string of chunks, an array or a map */
    uint64_t value;                 /* the number, tag, simple value or a float's bits */
    int64_t lie;                    /* how far a written count or length is from the truth */
    encl_slice bytes;               /* of a definite string */
    struct cbor_node *child, *next; /* chunks; elements; keys and values in turn; what is tagged */
} cbor_node;

/* One well-formed item at the beginning of in; NULL where there is none. In the arena. */
cbor_node *cbor_parse(encl_slice in, size_t *used);
/* The same, and nothing may follow. */
cbor_node *cbor_parse_all(encl_slice in);
/* Empty where memory ends. In the arena. */
encl_slice cbor_write(const cbor_node *n);

cbor_node *cbor_new(uint8_t major, uint64_t value);
cbor_node *cbor_new_string(uint8_t major, encl_slice bytes);
/* With all that is in it, without what follows. */
cbor_node *cbor_copy(const cbor_node *n);
size_t cbor_count(const cbor_node *container);
cbor_node *cbor_at(const cbor_node *container, size_t i);
/* The bytes of a string of either form. */
encl_slice cbor_bytes(const cbor_node *string);
bool cbor_is_text(const cbor_node *n, const char *text);
/* The values whose key is this text; *value is the last of them, NULL where none is. */
size_t cbor_lookup(const cbor_node *map, const char *key, cbor_node **value);
bool cbor_same(const cbor_node *a, const cbor_node *b);

#endif
