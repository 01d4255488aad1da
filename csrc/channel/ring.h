/* A queue of bytes that grows by doubling up to its limit; no byte is moved once it is in, but for
 * growing. */
#ifndef ENCL_CHANNEL_RING_H
#define ENCL_CHANNEL_RING_H

#include "base/buf.h"

typedef struct encl_ring {
    uint8_t *data;
    size_t cap, head, len, limit; /* cap is a power of two or 0 */
} encl_ring;

void encl_ring_init(encl_ring *ring, size_t limit);
void encl_ring_free(encl_ring *ring);
/* ENCL_E_NOMEM, or ENCL_E_INVALID above the limit; then nothing was taken. */
encl_result encl_ring_write(encl_ring *ring, encl_slice bytes, encl_error *err);
size_t encl_ring_read(encl_ring *ring, uint8_t *out, size_t cap);

#endif
