/* libcbor, by its contract: a decoder that takes any number of the bytes it is given and calls at
 * most one callback, with any number, or with any string that lies in what it takes; encoders that
 * write up to nine bytes into the room they have, or nothing. UTF-8 is proof_utf8.c's: here any
 * text of which every byte may be read is, or is not. */
#include <cbor.h>

#include "base/utf8.h"
#include "proof.h"

bool encl_utf8_valid(encl_slice text) {
    uint8_t seen = 0;

    for (size_t i = 0; i < text.len; i++) {
        seen = text.data[i];
    }
    return any_bool() && seen <= UINT8_MAX;
}

static void call_with_number(const struct cbor_callbacks *on, void *to) {
    switch (Frama_C_interval_split(0, 10)) {
    case 0:
        on->uint8(to, (uint8_t)any(0, UINT8_MAX));
        break;
    case 1:
        on->uint16(to, (uint16_t)any(0, UINT16_MAX));
        break;
    case 2:
        on->uint32(to, (uint32_t)any(0, UINT32_MAX));
        break;
    case 3:
        on->uint64(to, any(0, UINT64_MAX));
        break;
    case 4:
        on->negint8(to, (uint8_t)any(0, UINT8_MAX));
        break;
    case 5:
        on->negint16(to, (uint16_t)any(0, UINT16_MAX));
        break;
    case 6:
        on->negint32(to, (uint32_t)any(0, UINT32_MAX));
        break;
    case 7:
        on->negint64(to, any(0, UINT64_MAX));
        break;
    case 8:
        on->tag(to, any(0, UINT64_MAX));
        break;
    case 9:
        on->array_start(to, any(0, SIZE_MAX));
        break;
    default:
        on->map_start(to, any(0, SIZE_MAX));
        break;
    }
}

static void call_with_nothing(const struct cbor_callbacks *on, void *to) {
    switch (Frama_C_interval_split(0, 10)) {
    case 0:
        on->byte_string_start(to);
        break;
    case 1:
        on->string_start(to);
        break;
    case 2:
        on->indef_array_start(to);
        break;
    case 3:
        on->indef_map_start(to);
        break;
    case 4:
        on->float2(to, 0);
        break;
    case 5:
        on->float4(to, 0);
        break;
    case 6:
        on->float8(to, 0);
        break;
    case 7:
        on->undefined(to);
        break;
    case 8:
        on->null(to);
        break;
    case 9:
        on->boolean(to, any_bool());
        break;
    default:
        on->indef_break(to);
        break;
    }
}

struct cbor_decoder_result cbor_stream_decode(cbor_data from, size_t size,
                                              const struct cbor_callbacks *on, void *to) {
    size_t read = any_split(0, size), at;

    switch (Frama_C_interval_split(0, 4)) {
    case 0:
        return (struct cbor_decoder_result){.read = read, .status = CBOR_DECODER_FINISHED};
    case 1:
        return (struct cbor_decoder_result){
            .read = read, .status = any_bool() ? CBOR_DECODER_NEDATA : CBOR_DECODER_ERROR};
    case 2:
        at = any_split(0, read);
        if (any_bool()) {
            on->byte_string(to, from + at, read - at);
        } else {
            on->string(to, from + at, read - at);
        }
        break;
    case 3:
        call_with_number(on, to);
        break;
    default:
        call_with_nothing(on, to);
        break;
    }
    return (struct cbor_decoder_result){.read = read, .status = CBOR_DECODER_FINISHED};
}

static size_t any_head(unsigned char *to, size_t size) {
    size_t n = any_split(0, size < 9 ? size : 9);

    for (size_t i = 0; i < n; i++) {
        to[i] = (unsigned char)any(0, UINT8_MAX);
    }
    return n;
}

size_t cbor_encode_uint(uint64_t v, unsigned char *to, size_t size) {
    (void)v;
    return any_head(to, size);
}

size_t cbor_encode_bool(bool v, unsigned char *to, size_t size) {
    (void)v;
    return any_head(to, size);
}

size_t cbor_encode_null(unsigned char *to, size_t size) {
    return any_head(to, size);
}

size_t cbor_encode_array_start(size_t n, unsigned char *to, size_t size) {
    (void)n;
    return any_head(to, size);
}

size_t cbor_encode_map_start(size_t n, unsigned char *to, size_t size) {
    (void)n;
    return any_head(to, size);
}

size_t cbor_encode_bytestring_start(size_t n, unsigned char *to, size_t size) {
    (void)n;
    return any_head(to, size);
}

size_t cbor_encode_string_start(size_t n, unsigned char *to, size_t size) {
    (void)n;
    return any_head(to, size);
}
