/* Bounded buffer: one block, a read cursor and a write cursor, a limit it never grows beyond. The
 * only way bytes are parsed or built in this project. Invariant: r <= w <= cap <= limit. */
#ifndef ENCL_BASE_BUF_H
#define ENCL_BASE_BUF_H

#include "base/error.h"

typedef struct encl_slice {
    const uint8_t *data;
    size_t len;
} encl_slice;

#define ENCL_SLICE(pointer, length) ((encl_slice){(const uint8_t *)(pointer), (length)})
#define ENCL_SLICE_NONE             ((encl_slice){NULL, 0})

typedef struct encl_buf {
    uint8_t *data;
    size_t r, w, cap, limit;
    bool owned; /* data is from malloc here; otherwise it is the caller's and never grows */
} encl_buf;

/* An empty buffer that grows on demand up to limit bytes. */
void encl_buf_init(encl_buf *b, size_t limit);
/* An empty buffer over the caller's block of cap bytes. */
void encl_buf_wrap(encl_buf *b, uint8_t *block, size_t cap);
/* Frees an owned block; wipes it first. Leaves b empty and reusable. */
void encl_buf_free(encl_buf *b);

static inline size_t encl_buf_readable(const encl_buf *b) {
    return b->w - b->r;
}
static inline encl_slice encl_buf_peek(const encl_buf *b) {
    return ENCL_SLICE(b->data == NULL ? NULL : b->data + b->r, b->w - b->r);
}
/* Forgets everything, keeps the block. */
static inline void encl_buf_clear(encl_buf *b) {
    b->r = b->w = 0;
}

/* How many bytes more the limit allows. */
static inline size_t encl_buf_room(const encl_buf *b) {
    return b->limit - (b->w - b->r);
}
/* Makes room for n more bytes (moving unread bytes to the front or growing) and points *room at
 * them; commit says how many were written. ENCL_E_INVALID when the limit would be passed. */
encl_result encl_buf_reserve(encl_buf *b, size_t n, uint8_t **room, encl_error *err);
encl_result encl_buf_commit(encl_buf *b, size_t n, encl_error *err);

encl_result encl_buf_write(encl_buf *b, encl_slice bytes, encl_error *err);
encl_result encl_buf_write_u8(encl_buf *b, uint8_t v, encl_error *err);
encl_result encl_buf_write_u32(encl_buf *b, uint32_t v, encl_error *err); /* big-endian */

/* Reads fail with ENCL_E_PROTOCOL when fewer bytes are there, and then take nothing. */
encl_result encl_buf_read(encl_buf *b, size_t n, encl_slice *bytes, encl_error *err);
encl_result encl_buf_skip(encl_buf *b, size_t n, encl_error *err);

#endif
