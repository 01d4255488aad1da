/* CBOR items written one after another into a block of a given capacity, each in its shortest form.
 * Errors are remembered rather than returned: what does not fit is not written, nor is anything
 * after it, and encl_writer_end refuses. */
#ifndef ENCL_CBOR_WRITER_H
#define ENCL_CBOR_WRITER_H

#include "base/buf.h"

/* Invariant: at <= cap. */
typedef struct encl_writer {
    uint8_t *out;
    size_t cap, at;
    bool ok; /* false once something did not fit */
} encl_writer;

/* Over room in out for at most this many bytes, or as many as out's limit leaves. */
encl_result encl_writer_begin(encl_writer *w, encl_buf *out, size_t most, encl_error *err);
/* Appends to out what was written. ENCL_E_INVALID, and nothing appended, where it did not fit; what
 * names it in the message. */
encl_result encl_writer_end(const encl_writer *w, encl_buf *out, const char *what, encl_error *err);

void encl_put_uint(encl_writer *w, uint64_t v);
void encl_put_bool(encl_writer *w, bool v);
void encl_put_null(encl_writer *w);
/* Heads: the items, or the keys and values, are put next. */
void encl_put_array(encl_writer *w, size_t items);
void encl_put_map(encl_writer *w, size_t pairs);
void encl_put_bytes(encl_writer *w, encl_slice bytes);
void encl_put_text(encl_writer *w, encl_slice text);

/* The encoded size of a head that carries value. */
size_t encl_head_size(uint64_t value);

#endif
