/* The plain loop of the array codec: any bytes, any length up to MAX, any count, decoded in place
 * and to elsewhere; any bytes encoded into any room, also too little. */
#include "proof.h"
#include "wire/bytes.h"
#include "wire/wire.h"

#define MAX 8

static uint8_t in[MAX + 1], out[2 * MAX + 1];

static void decodes(void) {
    size_t len = any_split(0, MAX), count = any_bool() ? any(0, SIZE_MAX) : any_split(0, MAX);
    uint8_t *from = ANY_BYTES(in, len);
    size_t consumed;

    Frama_C_make_unknown((char *)in, sizeof in);
    (void)encl_bytes_decode_run(from, len, count, any_bool() ? from : ANY_BYTES(out, len),
                                &consumed);
    //@ assert consumed <= len;
}

static void encodes(void) {
    size_t len = any_split(0, MAX), cap = any_split(0, 2 * MAX), size, written;
    encl_slice bytes = ENCL_SLICE(ANY_BYTES(in, len), len);

    Frama_C_make_unknown((char *)in, sizeof in);
    size = encl_bytes_encoded_size(bytes);
    //@ assert size <= 2 * len;
    (void)encl_bytes_encode(bytes, ANY_BYTES(out, cap), cap, &written);
    //@ assert written <= cap;
}

int main(void) {
    if (any_bool()) {
        decodes();
    } else {
        encodes();
    }
    return 0;
}
