/* Decides nothing about what is written, only that it stays within its capacity. Calls libcbor's
 * encoders, which take the room that is left and write nothing where it is too small. */
#include "cbor/writer.h"

#include <string.h>

#include <cbor.h>

encl_result encl_writer_begin(encl_writer *w, encl_buf *out, size_t most, encl_error *err) {
    size_t room = encl_buf_room(out);

    *w = (encl_writer){.cap = most < room ? most : room};
    ENCL_TRY(encl_buf_reserve(out, w->cap, &w->out, err));
    w->ok = w->cap != 0;
    return ENCL_OK;
}

encl_result encl_writer_end(const encl_writer *w, encl_buf *out, const char *what,
                            encl_error *err) {
    ENCL_ENSURE(w->ok, err, ENCL_E_INVALID,
                "%s: expected an encoding of at most %zu bytes, got more", what, w->cap);
    return encl_buf_commit(out, w->at, err);
}

static void took(encl_writer *w, size_t written) {
    w->ok = written != 0;
    w->at += written;
}

/* A macro, because the encoders differ in what they put into the head. */
#define PUT_HEAD(w, encoder, value)                                                                \
    do {                                                                                           \
        if ((w)->ok) {                                                                             \
            took((w), encoder((value), (w)->out + (w)->at, (w)->cap - (w)->at));                   \
        }                                                                                          \
    } while (0)

static void put_content(encl_writer *w, encl_slice bytes) {
    w->ok = w->ok && bytes.len <= w->cap - w->at;
    if (w->ok && bytes.len != 0) {
        memcpy(w->out + w->at, bytes.data, bytes.len);
        w->at += bytes.len;
    }
}

void encl_put_uint(encl_writer *w, uint64_t v) {
    PUT_HEAD(w, cbor_encode_uint, v);
}

void encl_put_bool(encl_writer *w, bool v) {
    PUT_HEAD(w, cbor_encode_bool, v);
}

void encl_put_null(encl_writer *w) {
    if (w->ok) {
        took(w, cbor_encode_null(w->out + w->at, w->cap - w->at));
    }
}

void encl_put_array(encl_writer *w, size_t items) {
    PUT_HEAD(w, cbor_encode_array_start, items);
}

void encl_put_map(encl_writer *w, size_t pairs) {
    PUT_HEAD(w, cbor_encode_map_start, pairs);
}

void encl_put_bytes(encl_writer *w, encl_slice bytes) {
    PUT_HEAD(w, cbor_encode_bytestring_start, bytes.len);
    put_content(w, bytes);
}

void encl_put_text(encl_writer *w, encl_slice text) {
    PUT_HEAD(w, cbor_encode_string_start, text.len);
    put_content(w, text);
}

size_t encl_head_size(uint64_t value) {
    return value < 24 ? 1 : value <= 0xff ? 2 : value <= 0xffff ? 3 : value <= 0xffffffff ? 5 : 9;
}
