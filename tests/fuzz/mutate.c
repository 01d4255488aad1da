#include "mutate.h"

#define ARENA_BYTES ((size_t)4 << 20)

static uint8_t arena[ARENA_BYTES] __attribute__((aligned(16)));
static size_t arena_used;

/* splitmix64 */
static uint64_t next(fuzz_random *r) {
    uint64_t z = r->state += 0x9e3779b97f4a7c15u;

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

fuzz_random fuzz_random_from(unsigned int seed) {
    return (fuzz_random){seed};
}

size_t fuzz_below(fuzz_random *r, size_t n) {
    return n == 0 ? 0 : (size_t)(next(r) % n);
}

uint64_t fuzz_number(fuzz_random *r) {
    static const uint64_t edges[] = {
        0,     1,         2,          23,         24,        31,         32,        47,
        48,    64,        65,         95,         96,        97,         127,       128,
        255,   256,       1023,       1024,       1025,      32768,      65519,     65535,
        65536, INT32_MAX, UINT32_MAX, 1ull << 32, INT64_MAX, 1ull << 63, UINT64_MAX};

    switch (fuzz_below(r, 4)) {
    case 0:
        return next(r);
    case 1:
        return fuzz_below(r, 80);
    default:
        return edges[fuzz_below(r, sizeof edges / sizeof *edges)] + fuzz_below(r, 3) - 1;
    }
}

void fuzz_arena_reset(void) {
    arena_used = 0;
}

uint8_t *fuzz_arena_rest(size_t *n) {
    *n = ARENA_BYTES - arena_used;
    return arena + arena_used;
}

void fuzz_arena_commit(size_t n) {
    arena_used += (n + 15) & ~(size_t)15;
}

void *fuzz_arena_take(size_t n) {
    void *block = arena + arena_used;

    if (n + 16 > ARENA_BYTES - arena_used) {
        return NULL;
    }
    fuzz_arena_commit(n);
    return block;
}

encl_slice fuzz_mutate_bytes(encl_slice bytes, fuzz_random *r) {
    size_t room = bytes.len + 1 + fuzz_below(r, 64);
    uint8_t *block = fuzz_arena_take(room);

    if (block == NULL) {
        return bytes;
    }
    if (bytes.len != 0) {
        memcpy(block, bytes.data, bytes.len);
    }
    return ENCL_SLICE(block, LLVMFuzzerMutate(block, bytes.len, room));
}
