/* A queue of bytes that grows. It has no lock of its own and calls nothing of this folder; what
 * was in it is wiped before its memory is given back. */
#include "channel/ring.h"

#include <stdlib.h>
#include <string.h>

#include "base/secmem.h"

#define FIRST_CAP ((size_t)16 * 1024)
/* An emptied ring larger than this gives its memory back. */
#define KEEP_CAP ((size_t)256 * 1024)

void encl_ring_init(encl_ring *ring, size_t limit) {
    *ring = (encl_ring){.limit = limit};
}

void encl_ring_free(encl_ring *ring) {
    encl_wipe(ring->data, ring->cap);
    free(ring->data);
    *ring = (encl_ring){.limit = ring->limit};
}

static void copy_out(const encl_ring *ring, uint8_t *out, size_t n) {
    size_t first = ring->cap - ring->head;

    if (first > n) {
        first = n;
    }
    memcpy(out, ring->data + ring->head, first);
    memcpy(out + first, ring->data, n - first);
}

static encl_result grow(encl_ring *ring, size_t need, encl_error *err) {
    size_t cap = ring->cap == 0 ? FIRST_CAP : ring->cap;
    uint8_t *data;

    while (cap < need) {
        cap *= 2;
    }
    data = malloc(cap);
    ENCL_ENSURE(data != NULL, err, ENCL_E_NOMEM, "out of memory for %zu received bytes", need);
    if (ring->len != 0) {
        copy_out(ring, data, ring->len);
    }
    encl_wipe(ring->data, ring->cap);
    free(ring->data);
    ring->data = data;
    ring->cap = cap;
    ring->head = 0;
    return ENCL_OK;
}

encl_result encl_ring_write(encl_ring *ring, encl_slice bytes, encl_error *err) {
    size_t tail, first;

    ENCL_ENSURE(bytes.len <= ring->limit - ring->len, err, ENCL_E_INVALID,
                "more than %zu received bytes wait for their reader", ring->limit);
    if (bytes.len > ring->cap - ring->len) {
        ENCL_TRY(grow(ring, ring->len + bytes.len, err));
    }
    if (bytes.len == 0) {
        return ENCL_OK;
    }
    tail = (ring->head + ring->len) & (ring->cap - 1);
    first = ring->cap - tail;
    if (first > bytes.len) {
        first = bytes.len;
    }
    memcpy(ring->data + tail, bytes.data, first);
    memcpy(ring->data, bytes.data + first, bytes.len - first);
    ring->len += bytes.len;
    return ENCL_OK;
}

size_t encl_ring_read(encl_ring *ring, uint8_t *out, size_t cap) {
    size_t n = ring->len < cap ? ring->len : cap;

    if (n == 0) {
        return 0;
    }
    copy_out(ring, out, n);
    ring->head = (ring->head + n) & (ring->cap - 1);
    ring->len -= n;
    if (ring->len == 0) {
        ring->head = 0;
        if (ring->cap > KEEP_CAP) {
            encl_ring_free(ring);
        }
    }
    return n;
}
