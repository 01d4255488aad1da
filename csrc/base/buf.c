/* Decides when a buffer moves its bytes, grows, or refuses to. Calls malloc and secmem.c, which
 * wipes what is given back. */
#include "base/buf.h"

#include <stdlib.h>
#include <string.h>

#include "base/secmem.h"

#define FIRST_BLOCK ((size_t)512)

void encl_buf_init(encl_buf *b, size_t limit) {
    memset(b, 0, sizeof *b);
    b->limit = limit;
    b->owned = true;
}

void encl_buf_wrap(encl_buf *b, uint8_t *block, size_t cap) {
    memset(b, 0, sizeof *b);
    b->data = block;
    b->cap = b->limit = cap;
}

void encl_buf_free(encl_buf *b) {
    if (b->owned && b->data != NULL) {
        encl_wipe(b->data, b->cap);
        free(b->data);
        b->data = NULL;
        b->cap = 0;
    }
    b->r = b->w = 0;
}

static void move_to_front(encl_buf *b) {
    size_t n = encl_buf_readable(b);

    if (b->r != 0 && n != 0) {
        memmove(b->data, b->data + b->r, n);
    }
    b->r = 0;
    b->w = n;
}

static encl_result grow(encl_buf *b, size_t need, encl_error *err) {
    size_t cap = b->cap == 0 ? FIRST_BLOCK : b->cap;
    uint8_t *block;

    while (cap < need) {
        cap = cap > b->limit / 2 ? b->limit : cap * 2;
    }
    if (cap > b->limit) {
        cap = b->limit;
    }
    block = malloc(cap);
    ENCL_ENSURE(block != NULL, err, ENCL_E_NOMEM, "out of memory for a buffer of %zu bytes", cap);
    if (b->w != 0) {
        memcpy(block, b->data, b->w);
    }
    if (b->data != NULL) {
        encl_wipe(b->data, b->cap);
        free(b->data);
    }
    b->data = block;
    b->cap = cap;
    return ENCL_OK;
}

encl_result encl_buf_reserve(encl_buf *b, size_t n, uint8_t **room, encl_error *err) {
    size_t unread = encl_buf_readable(b);

    ENCL_ENSURE(n <= b->limit - unread, err, ENCL_E_INVALID,
                "buffer limit: expected at most %zu bytes more, got %zu", b->limit - unread, n);
    if (n > b->cap - b->w) {
        if (b->r != 0) {
            move_to_front(b);
        }
        if (n > b->cap - b->w) {
            ENCL_TRY(grow(b, b->w + n, err));
        }
    }
    /* A buffer that never grew has no block, and a zero-byte reserve needs none. */
    *room = b->data == NULL ? NULL : b->data + b->w;
    return ENCL_OK;
}

encl_result encl_buf_commit(encl_buf *b, size_t n, encl_error *err) {
    ENCL_ENSURE(n <= b->cap - b->w, err, ENCL_E_INTERNAL,
                "commit of %zu bytes where %zu were reserved", n, b->cap - b->w);
    b->w += n;
    return ENCL_OK;
}

encl_result encl_buf_write(encl_buf *b, encl_slice bytes, encl_error *err) {
    uint8_t *room;

    ENCL_TRY(encl_buf_reserve(b, bytes.len, &room, err));
    if (bytes.len != 0) {
        memcpy(room, bytes.data, bytes.len);
    }
    return encl_buf_commit(b, bytes.len, err);
}

static encl_result write_be(encl_buf *b, uint32_t v, size_t width, encl_error *err) {
    uint8_t *room;

    ENCL_TRY(encl_buf_reserve(b, width, &room, err));
    for (size_t i = 0; i < width; i++) {
        room[i] = (uint8_t)(v >> (8 * (width - 1 - i)));
    }
    return encl_buf_commit(b, width, err);
}

encl_result encl_buf_write_u8(encl_buf *b, uint8_t v, encl_error *err) {
    return write_be(b, v, 1, err);
}

encl_result encl_buf_write_u32(encl_buf *b, uint32_t v, encl_error *err) {
    return write_be(b, v, 4, err);
}

encl_result encl_buf_read(encl_buf *b, size_t n, encl_slice *bytes, encl_error *err) {
    ENCL_ENSURE(n <= encl_buf_readable(b), err, ENCL_E_PROTOCOL,
                "input ends early: expected %zu bytes, got %zu", n, encl_buf_readable(b));
    *bytes = ENCL_SLICE(b->data == NULL ? NULL : b->data + b->r, n);
    b->r += n;
    return ENCL_OK;
}

encl_result encl_buf_skip(encl_buf *b, size_t n, encl_error *err) {
    encl_slice ignored;

    return encl_buf_read(b, n, &ignored, err);
}
