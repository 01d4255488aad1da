/* Bounded buffer, by induction: the two ways to make one give r <= w <= cap <= limit, and every
 * call keeps that, from any such state and with any argument. */
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "proof.h"

#define BLOCK 6 /* bytes of a block that does not grow */

static uint8_t source[8];
static uint8_t block[BLOCK];

static void is_whole(const encl_buf *b) {
    //@ assert b->r <= b->w;
    //@ assert b->w <= b->cap;
    //@ assert b->cap <= b->limit;
}

static void any_write(encl_buf *b) {
    encl_error err;
    uint8_t *room;

    switch (Frama_C_interval_split(0, 4)) {
    case 0:
        if (encl_buf_reserve(b, any(0, SIZE_MAX), &room, &err) == ENCL_OK) {
            (void)!encl_buf_commit(b, any(0, SIZE_MAX), &err);
        }
        break;
    case 1:
        (void)!encl_buf_commit(b, any(0, SIZE_MAX), &err);
        break;
    case 2:
        (void)!encl_buf_write(b, ENCL_SLICE(source, any_split(0, sizeof source)), &err);
        break;
    case 3:
        (void)!encl_buf_write_u8(b, (uint8_t)any(0, UINT8_MAX), &err);
        break;
    default:
        (void)!encl_buf_write_u32(b, (uint32_t)any(0, UINT32_MAX), &err);
        break;
    }
}

static void any_read(encl_buf *b) {
    encl_slice got;
    encl_error err;

    switch (Frama_C_interval_split(0, 2)) {
    case 0:
        (void)!encl_buf_read(b, any(0, SIZE_MAX), &got, &err);
        break;
    case 1:
        (void)!encl_buf_skip(b, any(0, SIZE_MAX), &err);
        break;
    default:
        encl_buf_clear(b);
        break;
    }
}

static void any_call(encl_buf *b) {
    if (any_bool()) {
        any_write(b);
    } else {
        any_read(b);
    }
    is_whole(b);
}

/* Over the caller's block: any capacity, any cursors. */
static void over_a_block(void) {
    size_t cap = any_split(0, BLOCK);
    encl_buf b;

    encl_buf_wrap(&b, block, cap);
    is_whole(&b);
    b.w = any_split(0, cap);
    b.r = any_split(0, b.w);
    any_call(&b);
    encl_buf_free(&b);
}

/* On its own block: around the sizes at which it begins, doubles, and meets its limit. */
static void that_grows(void) {
    static const size_t limits[] = {0, 5, 600, 1100}, fills[] = {0, 1, 511, 512};
    size_t filled = fills[any_split(0, 3)];
    encl_error err;
    uint8_t *room;
    encl_buf b;

    encl_buf_init(&b, limits[any_split(0, 3)]);
    is_whole(&b);
    if (encl_buf_reserve(&b, filled, &room, &err) == ENCL_OK) {
        if (filled != 0) {
            memset(room, (int)any(0, UINT8_MAX), filled);
        }
        b.w = filled;
        b.r = any_bool() ? 0 : filled;
        any_call(&b);
    }
    encl_buf_free(&b);
    is_whole(&b);
}

int main(void) {
    Frama_C_make_unknown((char *)source, sizeof source);
    Frama_C_make_unknown((char *)block, sizeof block);
    if (any_bool()) {
        over_a_block();
    } else {
        that_grows();
    }
    return 0;
}
