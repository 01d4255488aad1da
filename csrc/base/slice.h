/* What several layers ask of slices. */
#ifndef ENCL_BASE_SLICE_H
#define ENCL_BASE_SLICE_H

#include <string.h>

#include "base/buf.h"

/* Of public bytes only: where it stops tells how many were equal. Secrets, and what decides about
 * trust, are compared by encl_equal_ct. */
static inline bool encl_slice_equal(encl_slice a, encl_slice b) {
    return a.len == b.len && (a.len == 0 || memcmp(a.data, b.data, a.len) == 0);
}

/* Two lower-case digits a byte into out, which holds 2 * bytes.len. No NUL. */
static inline void encl_slice_hex(encl_slice bytes, char *out) {
    static const char digits[] = "0123456789abcdef";

    for (size_t i = 0; i < bytes.len; i++) {
        out[2 * i] = digits[bytes.data[i] >> 4];
        out[2 * i + 1] = digits[bytes.data[i] & 15];
    }
}

#endif
