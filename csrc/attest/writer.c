#include "attest/writer.h"

#include <cbor.h>

#define HEAD_MAX_BYTES 9

typedef size_t (*head_encoder)(size_t value, unsigned char *to, size_t room);

static encl_result put_head(encl_buf *out, head_encoder encode, size_t value, encl_error *err) {
    uint8_t *room;
    size_t n;

    ENCL_TRY(encl_buf_reserve(out, HEAD_MAX_BYTES, &room, err));
    n = encode(value, room, HEAD_MAX_BYTES);
    ENCL_ENSURE(n != 0, err, ENCL_E_INTERNAL, "libcbor could not encode an item head");
    return encl_buf_commit(out, n, err);
}

static size_t encode_uint(size_t value, unsigned char *to, size_t room) {
    return cbor_encode_uint(value, to, room);
}

static size_t encode_null(size_t value, unsigned char *to, size_t room) {
    (void)value;
    return cbor_encode_null(to, room);
}

encl_result encl_put_uint(encl_buf *out, uint64_t v, encl_error *err) {
    _Static_assert(sizeof(size_t) >= sizeof(uint64_t), "heads are passed as size_t");
    return put_head(out, encode_uint, v, err);
}

encl_result encl_put_null(encl_buf *out, encl_error *err) {
    return put_head(out, encode_null, 0, err);
}

encl_result encl_put_array(encl_buf *out, size_t count, encl_error *err) {
    return put_head(out, cbor_encode_array_start, count, err);
}

encl_result encl_put_map(encl_buf *out, size_t count, encl_error *err) {
    return put_head(out, cbor_encode_map_start, count, err);
}

encl_result encl_put_bytes(encl_buf *out, encl_slice bytes, encl_error *err) {
    ENCL_TRY(put_head(out, cbor_encode_bytestring_start, bytes.len, err));
    return encl_buf_write(out, bytes, err);
}

encl_result encl_put_text(encl_buf *out, encl_slice text, encl_error *err) {
    ENCL_TRY(put_head(out, cbor_encode_string_start, text.len, err));
    return encl_buf_write(out, text, err);
}
