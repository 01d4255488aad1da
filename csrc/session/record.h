/* Records: [u32 big-endian length][ciphertext]. Private to this layer. */
#ifndef ENCL_SESSION_RECORD_H
#define ENCL_SESSION_RECORD_H

#include "noise/noise.h"
#include "session/session.h"

/* Shorter ciphertexts hold no message: a tag and at least one byte. */
#define ENCL_RECORD_MIN_CIPHERTEXT (ENCL_NOISE_TAG_BYTES + 1)

/* What has arrived of something that is split over several blocks. */
typedef struct encl_gather {
    encl_buf bytes;
    size_t expected; /* 0: not known yet (the length itself is split) */
    bool done;       /* bytes were handed out whole; the next call may overwrite them */
} encl_gather;

void encl_gather_init(encl_gather *g);
void encl_gather_free(encl_gather *g);
/* Bytes received of something not yet whole. */
size_t encl_gather_partial(const encl_gather *g);
/* Forgets what was gathered; returns whether it was something not yet whole. */
bool encl_gather_forget(encl_gather *g);

/* Takes the first thing of all, the handshake message of exactly size bytes, from block[*pos..len).
 * *message is set to where it lies whole, or to NULL where more must come. */
encl_result encl_gather_exact(encl_gather *g, uint8_t *block, size_t len, size_t *pos, size_t size,
                              uint8_t **message, encl_error *err);
/* Takes one record. *ciphertext points into block, or into g where the record was split; NULL
 * where more must come. */
encl_result encl_gather_record(encl_gather *g, uint8_t *block, size_t len, size_t *pos,
                               uint8_t **ciphertext, size_t *ciphertext_len, encl_error *err);

/* Appends m as one record to out. Nothing is appended and no nonce used where m does not fit. */
encl_result encl_record_seal(encl_noise_transport *transport, const encl_msg *m,
                             encl_direction direction, encl_buf *out, encl_error *err);
/* The same for any plaintext. */
encl_result encl_record_seal_raw(encl_noise_transport *transport, encl_slice plaintext,
                                 encl_buf *out, encl_error *err);

#endif
