/* Noise_NN_25519_ChaChaPoly_BLAKE2s (Noise Protocol Framework, revision 34), both roles. Pure: no
 * sockets, no threads, no clock. Keys live in guarded memory and are wiped when freed. */
#ifndef ENCL_NOISE_NOISE_H
#define ENCL_NOISE_NOISE_H

#include "base/buf.h"

#define ENCL_NOISE_KEY_BYTES   32
#define ENCL_NOISE_HASH_BYTES  32
#define ENCL_NOISE_TAG_BYTES   16
#define ENCL_NOISE_MAX_MESSAGE 65535 /* Noise section 3: no message is longer */
#define ENCL_NOISE_MAX_PLAIN   (ENCL_NOISE_MAX_MESSAGE - ENCL_NOISE_TAG_BYTES)

typedef enum encl_role { ENCL_INITIATOR, ENCL_RESPONDER } encl_role;

typedef struct encl_noise_handshake encl_noise_handshake;
typedef struct encl_noise_transport encl_noise_transport;

/* fixed_ephemeral is NULL for a random key; test vectors give one (32 bytes). */
encl_result encl_noise_handshake_new(encl_role role, encl_slice prologue,
                                     const uint8_t *fixed_ephemeral, encl_noise_handshake **out,
                                     encl_error *err);
void encl_noise_handshake_free(encl_noise_handshake *hs);

/* Appends the next handshake message, with payload, to out. ENCL_E_STATE out of turn. */
encl_result encl_noise_handshake_write(encl_noise_handshake *hs, encl_slice payload, encl_buf *out,
                                       encl_error *err);
/* Takes the peer's next handshake message, all of it; appends its payload to payload. A message of
 * another length, a low-order key or a tag that does not verify is ENCL_E_PROTOCOL, and the
 * handshake cannot go on. */
encl_result encl_noise_handshake_read(encl_noise_handshake *hs, encl_slice message,
                                      encl_buf *payload, encl_error *err);
bool encl_noise_handshake_complete(const encl_noise_handshake *hs);

/* After completion: the two transport keys and the handshake hash. Can be taken once; the
 * handshake's own secrets are wiped. */
encl_result encl_noise_handshake_split(encl_noise_handshake *hs, encl_noise_transport **out,
                                       uint8_t hash[ENCL_NOISE_HASH_BYTES], encl_error *err);

void encl_noise_transport_free(encl_noise_transport *t);

/* Encrypts block[0..plain_len) in place and appends the 16-byte tag; the block must hold
 * plain_len + 16 bytes (cap says how many it holds). plain_len is at most ENCL_NOISE_MAX_PLAIN.
 * Refuses (ENCL_E_STATE) before the counter could repeat, and after any failure; refuses
 * (ENCL_E_FORKED) in a forked child. */
encl_result encl_noise_seal(encl_noise_transport *t, uint8_t *block, size_t plain_len, size_t cap,
                            size_t *sealed_len, encl_error *err);
/* Decrypts block[0..sealed_len) in place. A tag that does not verify is ENCL_E_PROTOCOL and ends
 * the receiving direction for good; the block's content is then wiped. */
encl_result encl_noise_open(encl_noise_transport *t, uint8_t *block, size_t sealed_len,
                            size_t *plain_len, encl_error *err);

#ifdef ENCL_TESTING
/* Only in test builds: jump to a counter, to reach exhaustion. */
void encl_noise_transport_set_counters(encl_noise_transport *t, uint64_t send, uint64_t receive);
#endif

/* The primitives as used above, exposed for attack vectors (Wycheproof) and nothing else. */
encl_result encl_noise_x25519(const uint8_t secret[32], const uint8_t public_key[32],
                              uint8_t shared[32], encl_error *err);
encl_result encl_noise_aead_seal(const uint8_t key[32], const uint8_t nonce[12], encl_slice aad,
                                 encl_slice plain, encl_buf *sealed, encl_error *err);
encl_result encl_noise_aead_open(const uint8_t key[32], const uint8_t nonce[12], encl_slice aad,
                                 encl_slice sealed, encl_buf *plain, encl_error *err);

#endif
