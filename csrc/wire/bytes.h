/* Inside wire: the payload loops. */
#ifndef ENCL_WIRE_BYTES_H
#define ENCL_WIRE_BYTES_H

#include "wire/wire.h"

/* Encoded size of the elements alone, without the array's head. */
size_t encl_bytes_encoded_size(encl_slice bytes);

/* Writes at most cap bytes, *written of them; returns false where they are too few (2 * bytes.len
 * always suffice). Reads every byte once. */
bool encl_bytes_encode(encl_slice bytes, uint8_t *out, size_t cap, size_t *written);

/* Decodes up to max elements and stops at the first byte that begins none (an indefinite array's
 * break, the end of the input, anything else); returns how many there were. in[*consumed] is that
 * byte, still as it was received. out may be in itself, or lie before it. */
size_t encl_bytes_decode_run(const uint8_t *in, size_t in_len, size_t max, uint8_t *out,
                             size_t *consumed);

#endif
