/* wire: the CBOR messages inside the records, both directions. Pure. */
#ifndef ENCL_WIRE_WIRE_H
#define ENCL_WIRE_WIRE_H

#include "base/buf.h"

#define ENCL_CONTROL_NONCE_BYTES 32

typedef enum encl_msg_type {
    ENCL_MSG_REQUEST_ATTESTATION, /* client to server from here on */
    ENCL_MSG_DATA,                /* both */
    ENCL_MSG_OPEN_STREAM,
    ENCL_MSG_STREAM_DATA,  /* both */
    ENCL_MSG_STREAM_CLOSE, /* both; half only from the client */
    ENCL_MSG_GET_CONTROL_NONCE,
    ENCL_MSG_CONTROL,
    ENCL_MSG_ATTESTATION, /* server to client from here on */
    ENCL_MSG_ERROR,
    ENCL_MSG_CONTROL_RESULT,
    ENCL_MSG_CONTROL_NONCE,
    ENCL_MSG_COUNT_
} encl_msg_type;

typedef enum encl_direction { ENCL_TO_SERVER, ENCL_TO_CLIENT } encl_direction;
typedef enum encl_half { ENCL_HALF_NONE, ENCL_HALF_WRITE, ENCL_HALF_BOTH } encl_half;

typedef struct encl_msg {
    encl_msg_type type;
    uint64_t id;          /* DATA, OPEN_STREAM, STREAM_DATA, STREAM_CLOSE, ERROR */
    encl_slice payload;   /* payload, data (ATTESTATION) or message (ERROR, CONTROL_RESULT) */
    encl_half half;       /* STREAM_CLOSE to the server */
    bool success;         /* CONTROL_RESULT */
    encl_slice signature; /* CONTROL */
    uint8_t control_nonce[ENCL_CONTROL_NONCE_BYTES]; /* ATTESTATION, CONTROL_NONCE */
} encl_msg;

const char *encl_msg_type_name(encl_msg_type type);

/* Encoded size of bytes as a CBOR array of small unsigned integers, head included. */
size_t encl_wire_array_size(encl_slice bytes);
/* Exact encoded size of m, as its payload is now. */
size_t encl_wire_size(const encl_msg *m, encl_direction direction);
/* The most that m can take encoded. Known from lengths alone, so it holds even where another thread
 * changes the payload's bytes. SIZE_MAX where that is too large for a size. */
size_t encl_wire_bound(const encl_msg *m);
/* Appends m to out. Every byte of a payload is read once and written straight into out, within the
 * room that out's limit leaves: what a payload holds may change meanwhile without harm to anything
 * but the payload. ENCL_E_INVALID, and nothing appended, for a message that does not go in that
 * direction, or does not fit. */
encl_result encl_wire_encode(const encl_msg *m, encl_direction direction, encl_buf *out,
                             encl_error *err);

/* Decodes exactly one message from block[0..len), overwriting the block: *m's slices point into
 * it (byte arrays are decoded in place, always shorter than their encoding). Accepts any key
 * order, indefinite lengths, unknown keys (nested at most ENCL_CBOR_MAX_DEPTH deep), byte fields
 * as integer arrays or as byte strings, integers in any width. Refuses (ENCL_E_PROTOCOL, naming
 * what was expected and what it got): duplicate or missing known keys, unknown types, wrong kinds,
 * values out of range, text that is not UTF-8, trailing bytes, lengths beyond the block. */
encl_result encl_wire_decode(uint8_t *block, size_t len, encl_direction direction, encl_msg *m,
                             encl_error *err);

/* Which of the loops decodes payloads on this processor: "ssse3", "neon" or "plain". */
const char *encl_bytes_codec(void);

#endif
