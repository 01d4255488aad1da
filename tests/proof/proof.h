/* Arbitrary values for the drivers. EVA knows no relations between variables, so what offsets are
 * computed from is taken apart into single values (any_split); what is only copied or compared
 * stays one interval (any). */
#ifndef ENCL_PROOF_H
#define ENCL_PROOF_H

#include <__fc_builtin.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

static inline size_t any(size_t low, size_t high) {
    return Frama_C_unsigned_long_interval(low, high);
}

/* Every value on its own path. */
static inline size_t any_split(size_t low, size_t high) {
    size_t value = low;

    while (value < high && Frama_C_nondet(0, 1)) {
        value++;
    }
    return value;
}

static inline bool any_bool(void) {
    return Frama_C_nondet(0, 1) != 0;
}

/* The last len bytes of an array, or as many one byte before: what reads beyond them is beyond the
 * array in the first case. That it is one of two keeps EVA from learning each byte's value from
 * each test of it, and so from a path for every text. The array is a byte longer than any len. */
#define ANY_BYTES(array, len) ((array) + sizeof(array) - (len)-any(0, 1))

#endif
