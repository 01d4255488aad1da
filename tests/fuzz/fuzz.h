/* What the fuzzers share: an input read piece by piece, and checks that end the run. */
#ifndef ENCL_FUZZ_H
#define ENCL_FUZZ_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"

#define REQUIRE(cond)                                                                              \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            fprintf(stderr, "%s:%d: expected %s\n", __FILE__, __LINE__, #cond);                    \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

typedef struct fuzz_input {
    const uint8_t *data;
    size_t len;
} fuzz_input;

static inline uint8_t fuzz_u8(fuzz_input *in) {
    uint8_t v = in->len == 0 ? 0 : in->data[0];

    if (in->len != 0) {
        in->data++;
        in->len--;
    }
    return v;
}

static inline encl_slice fuzz_take(fuzz_input *in, size_t n) {
    encl_slice s = {in->data, n < in->len ? n : in->len};

    in->data += s.len;
    in->len -= s.len;
    return s;
}

/* A copy of exactly its size, so that AddressSanitizer sees every step beyond it. */
static inline uint8_t *fuzz_copy(encl_slice bytes) {
    uint8_t *copy = malloc(bytes.len == 0 ? 1 : bytes.len);

    REQUIRE(copy != NULL);
    if (bytes.len != 0) {
        memcpy(copy, bytes.data, bytes.len);
    }
    return copy;
}

/* Reads every byte, so that a slice into freed or foreign memory is noticed. */
static inline void fuzz_touch(encl_slice s) {
    static volatile uint8_t sum;

    for (size_t i = 0; i < s.len; i++) {
        sum = (uint8_t)(sum ^ s.data[i]);
    }
}

/* A failure must say so in words. */
static inline void fuzz_check_error(encl_code rc, const encl_error *err) {
    REQUIRE(rc == err->code && rc != ENCL_OK && rc != ENCL_E_INTERNAL);
    REQUIRE(strnlen(err->message, sizeof err->message) != 0);
    REQUIRE(strnlen(err->message, sizeof err->message) < sizeof err->message);
}

#endif
