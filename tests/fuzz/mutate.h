/* What the mutators share: a seeded generator, short-lived memory, and libFuzzer's own mutator. */
#ifndef ENCL_FUZZ_MUTATE_H
#define ENCL_FUZZ_MUTATE_H

#include "fuzz.h"

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned int seed);
size_t LLVMFuzzerCustomCrossOver(const uint8_t *a, size_t a_size, const uint8_t *b, size_t b_size,
                                 uint8_t *out, size_t max_size, unsigned int seed);

typedef struct fuzz_random {
    uint64_t state;
} fuzz_random;

fuzz_random fuzz_random_from(unsigned int seed);
/* 0 to n - 1; 0 where n is 0. */
size_t fuzz_below(fuzz_random *r, size_t n);
static inline bool fuzz_one_in(fuzz_random *r, size_t n) {
    return fuzz_below(r, n) == 0;
}
/* A number near a place where widths, signs or limits change, or any. */
uint64_t fuzz_number(fuzz_random *r);

/* Memory for one input or one mutation: all of it is free again at the next reset. NULL where no
 * more is left. */
void fuzz_arena_reset(void);
void *fuzz_arena_take(size_t n);
/* What is left, as one block; commit takes its first n bytes. */
uint8_t *fuzz_arena_rest(size_t *n);
void fuzz_arena_commit(size_t n);

/* Bytes as libFuzzer changes them, in new memory. */
encl_slice fuzz_mutate_bytes(encl_slice bytes, fuzz_random *r);
/* A CBOR text, CBOR or DER string by its structure, others byte by byte. */
encl_slice fuzz_mutate_string(encl_slice bytes, fuzz_random *r);

/* CBOR in data[0..size), changed by its items; returns the new size, at most max. */
size_t fuzz_mutate_cbor(uint8_t *data, size_t size, size_t max, fuzz_random *r);
/* A part of b where something was in a; written to out. */
size_t fuzz_cross_cbor(encl_slice a, encl_slice b, uint8_t *out, size_t max, fuzz_random *r);
/* DER, changed by its values; empty where it is none. */
encl_slice fuzz_mutate_der(encl_slice der, fuzz_random *r);
bool fuzz_is_der(encl_slice bytes);
/* Public keys that a certificate may be given in place of its own. */
void fuzz_der_offer_keys(const encl_slice *spki, size_t count);

#endif
