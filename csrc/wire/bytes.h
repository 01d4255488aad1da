/* Inside wire: what the message codec needs of the payload loops beyond wire.h. */
#ifndef ENCL_WIRE_BYTES_H
#define ENCL_WIRE_BYTES_H

#include "wire/wire.h"

/* Encoded size of the elements alone, without the array's head. */
size_t encl_bytes_encoded_size(encl_slice bytes);

/* Decodes up to max elements and stops at the first byte that begins none (an indefinite array's
 * break, the end of the input, anything else); returns how many there were. in[*consumed] is that
 * byte, still as it came. out as for encl_bytes_decode. */
size_t encl_bytes_decode_run(const uint8_t *in, size_t in_len, size_t max, uint8_t *out,
                             size_t *consumed);

#endif
