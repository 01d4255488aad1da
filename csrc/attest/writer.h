/* CBOR into a bounded buffer, by libcbor's encoders. */
#ifndef ENCL_ATTEST_WRITER_H
#define ENCL_ATTEST_WRITER_H

#include "base/buf.h"

encl_result encl_put_uint(encl_buf *out, uint64_t v, encl_error *err);
encl_result encl_put_null(encl_buf *out, encl_error *err);
encl_result encl_put_array(encl_buf *out, size_t count, encl_error *err);
encl_result encl_put_map(encl_buf *out, size_t count, encl_error *err);
encl_result encl_put_bytes(encl_buf *out, encl_slice bytes, encl_error *err);
encl_result encl_put_text(encl_buf *out, encl_slice text, encl_error *err);

#endif
