/* The primitives behind Noise: BLAKE2s, HKDF over it, X25519, ChaCha20-Poly1305. Private to this
 * layer. */
#ifndef ENCL_NOISE_PRIMITIVES_H
#define ENCL_NOISE_PRIMITIVES_H

#include "noise/noise.h"

#define ENCL_AEAD_NONCE_BYTES 12

/* One key in one direction. OpenSSL's own heap holds the key schedule and wipes it when freed. */
typedef struct evp_cipher_ctx_st encl_aead;

/* Must succeed once before anything else here is used; later calls cost a load. */
encl_result encl_noise_init(encl_error *err);

encl_result encl_blake2s(encl_slice first, encl_slice second, uint8_t out[ENCL_NOISE_HASH_BYTES],
                         encl_error *err);
/* Noise section 4.3, two outputs. ck may be the same memory as either output. */
encl_result encl_noise_hkdf2(const uint8_t ck[ENCL_NOISE_HASH_BYTES], encl_slice input,
                             uint8_t first[ENCL_NOISE_HASH_BYTES],
                             uint8_t second[ENCL_NOISE_HASH_BYTES], encl_error *err);

encl_result encl_aead_new(const uint8_t key[ENCL_NOISE_KEY_BYTES], bool seal, encl_aead **out,
                          encl_error *err);
void encl_aead_free(encl_aead *aead);
/* In place; the tag goes to, or comes from, block[len..len+16). Both return false where OpenSSL
 * refuses or the tag does not verify, and then have wiped len + 16 bytes. */
ENCL_MUST_USE bool encl_aead_seal(encl_aead *aead, const uint8_t nonce[ENCL_AEAD_NONCE_BYTES],
                                  encl_slice aad, uint8_t *block, size_t len);
ENCL_MUST_USE bool encl_aead_open(encl_aead *aead, const uint8_t nonce[ENCL_AEAD_NONCE_BYTES],
                                  encl_slice aad, uint8_t *block, size_t len);

#endif
