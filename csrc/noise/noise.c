/* Noise_NN_25519_ChaChaPoly_BLAKE2s (the Noise specification, revision 34): decides the order of
 * the handshake's steps, and that no nonce is used twice. Calls primitives.c and secmem.c.
 *
 * Names follow the specification: h the handshake hash, ck the chaining key, k the cipher key.
 *
 *   NN:  -> e, payload in the clear      (step 0)
 *        <- e, ee, payload under k       (step 1)
 */
#include "noise/noise.h"

#include <sodium.h>
#include <string.h>

#include "base/secmem.h"
#include "noise/primitives.h"

#define PROTOCOL_NAME "Noise_NN_25519_ChaChaPoly_BLAKE2s"
#define STEPS         2u

struct encl_noise_handshake {
    encl_role role;
    unsigned step;
    bool failed;
    uint64_t fork_generation;
    uint8_t h[ENCL_NOISE_HASH_BYTES];
    uint8_t ck[ENCL_NOISE_HASH_BYTES];
    uint8_t k[ENCL_NOISE_KEY_BYTES];
    uint8_t e[ENCL_NOISE_KEY_BYTES];
    uint8_t e_public[ENCL_NOISE_KEY_BYTES];
    uint8_t re[ENCL_NOISE_KEY_BYTES];
};

typedef struct direction {
    encl_aead *aead;
    uint64_t n;
    bool failed;
} direction;

struct encl_noise_transport {
    uint64_t fork_generation;
    direction send, receive;
};

static encl_result refuse_in_forked_child(uint64_t made_under, encl_error *err) {
    ENCL_ENSURE(encl_fork_generation() == made_under, err, ENCL_E_FORKED,
                "this process was forked after the keys were made; the same key with the same "
                "nonce in two processes would give away both plaintexts");
    return ENCL_OK;
}

/* Section 5.2: MixHash. */
static encl_result mix_hash(encl_noise_handshake *hs, encl_slice data, encl_error *err) {
    return encl_blake2s(ENCL_SLICE(hs->h, sizeof hs->h), data, hs->h, err);
}

/* Section 5.2: MixKey with the result of DH(e, re). */
static encl_result mix_ee(encl_noise_handshake *hs, encl_error *err) {
    uint8_t shared[ENCL_NOISE_KEY_BYTES];
    encl_code rc;

    ENCL_TRY_GOTO(encl_noise_x25519(hs->e, hs->re, shared, err), out);
    ENCL_TRY_GOTO(encl_noise_hkdf2(hs->ck, ENCL_SLICE(shared, sizeof shared), hs->ck, hs->k, err),
                  out);
out:
    encl_wipe(shared, sizeof shared);
    return rc;
}

/* EncryptAndHash or DecryptAndHash under k with nonce 0, in place: NN encrypts one payload only, so
 * the handshake's counter never moves. */
static encl_result crypt_under_k(encl_noise_handshake *hs, bool seal, uint8_t *block, size_t len,
                                 encl_error *err) {
    static const uint8_t nonce[ENCL_AEAD_NONCE_BYTES];
    encl_slice aad = ENCL_SLICE(hs->h, sizeof hs->h);
    encl_aead *aead;
    bool done;

    ENCL_TRY(encl_aead_new(hs->k, seal, &aead, err));
    done = seal ? encl_aead_seal(aead, nonce, aad, block, len)
                : encl_aead_open(aead, nonce, aad, block, len);
    encl_aead_free(aead);
    ENCL_ENSURE(done || !seal, err, ENCL_E_INTERNAL, "OpenSSL refused to encrypt");
    ENCL_ENSURE(done, err, ENCL_E_PROTOCOL,
                "the tag of the handshake answer does not verify: expected %d bytes of key and tag "
                "from a peer that speaks " PROTOCOL_NAME,
                ENCL_NOISE_KEY_BYTES + ENCL_NOISE_TAG_BYTES);
    return ENCL_OK;
}

static encl_result set_ephemeral(encl_noise_handshake *hs, const uint8_t *fixed, encl_error *err) {
    if (fixed != NULL) {
        memcpy(hs->e, fixed, sizeof hs->e);
    } else {
        ENCL_TRY(encl_random(hs->e, sizeof hs->e, err));
    }
    ENCL_ENSURE(crypto_scalarmult_curve25519_base(hs->e_public, hs->e) == 0, err, ENCL_E_INTERNAL,
                "libsodium refused to derive a public key");
    return ENCL_OK;
}

encl_result encl_noise_handshake_new(encl_role role, encl_slice prologue,
                                     const uint8_t *fixed_ephemeral, encl_noise_handshake **out,
                                     encl_error *err) {
    encl_noise_handshake *hs = NULL;
    encl_code rc;

    *out = NULL;
    ENCL_ENSURE(role == ENCL_INITIATOR || role == ENCL_RESPONDER, err, ENCL_E_INVALID,
                "expected the role of an initiator or a responder, got %d", (int)role);
    ENCL_TRY(encl_noise_init(err));
    hs = encl_secret_alloc(sizeof *hs);
    ENCL_ENSURE(hs != NULL, err, ENCL_E_NOMEM, "out of guarded memory for a handshake");
    hs->role = role;
    hs->fork_generation = encl_fork_generation();
    ENCL_TRY_GOTO(set_ephemeral(hs, fixed_ephemeral, err), fail);
    /* The name is longer than a hash, so it is hashed and not padded (section 5.2). */
    _Static_assert(sizeof PROTOCOL_NAME - 1 > ENCL_NOISE_HASH_BYTES, "must be hashed");
    ENCL_TRY_GOTO(encl_blake2s(ENCL_SLICE(PROTOCOL_NAME, sizeof PROTOCOL_NAME - 1), ENCL_SLICE_NONE,
                               hs->h, err),
                  fail);
    memcpy(hs->ck, hs->h, sizeof hs->ck);
    ENCL_TRY_GOTO(mix_hash(hs, prologue, err), fail);
    *out = hs;
    return ENCL_OK;
fail:
    encl_noise_handshake_free(hs);
    return rc;
}

void encl_noise_handshake_free(encl_noise_handshake *hs) {
    encl_secret_free(hs, sizeof *hs);
}

bool encl_noise_handshake_complete(const encl_noise_handshake *hs) {
    return !hs->failed && hs->step == STEPS;
}

static encl_result check_turn(const encl_noise_handshake *hs, bool writing, encl_error *err) {
    bool initiators_turn = hs->step == 0;
    bool ours = (hs->role == ENCL_INITIATOR) == initiators_turn;

    ENCL_TRY(refuse_in_forked_child(hs->fork_generation, err));
    ENCL_ENSURE(!hs->failed, err, ENCL_E_STATE,
                "this handshake failed or was split before and cannot go on");
    ENCL_ENSURE(hs->step < STEPS, err, ENCL_E_STATE, "this handshake is complete");
    ENCL_ENSURE(ours == writing, err, ENCL_E_STATE,
                "expected to %s handshake message %u, not to %s it", writing ? "read" : "write",
                hs->step + 1, writing ? "write" : "read");
    return ENCL_OK;
}

static size_t overhead(const encl_noise_handshake *hs) {
    return hs->step == 0 ? ENCL_NOISE_KEY_BYTES : ENCL_NOISE_KEY_BYTES + ENCL_NOISE_TAG_BYTES;
}

static encl_result write_message(encl_noise_handshake *hs, encl_slice payload, uint8_t *room,
                                 encl_error *err) {
    uint8_t *body = room + ENCL_NOISE_KEY_BYTES;

    memcpy(room, hs->e_public, sizeof hs->e_public);
    ENCL_TRY(mix_hash(hs, ENCL_SLICE(hs->e_public, sizeof hs->e_public), err));
    if (payload.len != 0) {
        memcpy(body, payload.data, payload.len);
    }
    if (hs->step == 0) {
        return mix_hash(hs, ENCL_SLICE(body, payload.len), err);
    }
    ENCL_TRY(mix_ee(hs, err));
    ENCL_TRY(crypt_under_k(hs, true, body, payload.len, err));
    return mix_hash(hs, ENCL_SLICE(body, payload.len + ENCL_NOISE_TAG_BYTES), err);
}

encl_result encl_noise_handshake_write(encl_noise_handshake *hs, encl_slice payload, encl_buf *out,
                                       encl_error *err) {
    uint8_t *room;
    size_t size;
    encl_code rc;

    ENCL_TRY(check_turn(hs, true, err));
    ENCL_ENSURE(payload.len <= ENCL_NOISE_MAX_MESSAGE - overhead(hs), err, ENCL_E_INVALID,
                "expected a handshake payload of at most %zu bytes, got %zu",
                ENCL_NOISE_MAX_MESSAGE - overhead(hs), payload.len);
    size = payload.len + overhead(hs);
    ENCL_TRY(encl_buf_reserve(out, size, &room, err));
    ENCL_TRY_GOTO(write_message(hs, payload, room, err), fail);
    ENCL_TRY_GOTO(encl_buf_commit(out, size, err), fail);
    hs->step++;
    return ENCL_OK;
fail:
    hs->failed = true;
    return rc;
}

/* DecryptAndHash decrypts under h as it was before, and mixes the ciphertext into h afterwards. The
 * ciphertext must still be there by then: it is decrypted in out's room, and message is not
 * changed. */
static encl_result read_message(encl_noise_handshake *hs, encl_slice message, uint8_t *room,
                                encl_error *err) {
    encl_slice body =
        ENCL_SLICE(message.data + ENCL_NOISE_KEY_BYTES, message.len - ENCL_NOISE_KEY_BYTES);

    memcpy(hs->re, message.data, sizeof hs->re);
    ENCL_TRY(mix_hash(hs, ENCL_SLICE(hs->re, sizeof hs->re), err));
    if (body.len != 0) {
        memcpy(room, body.data, body.len);
    }
    if (hs->step == 1) {
        ENCL_TRY(mix_ee(hs, err));
        ENCL_TRY(crypt_under_k(hs, false, room, body.len - ENCL_NOISE_TAG_BYTES, err));
    }
    return mix_hash(hs, body, err);
}

encl_result encl_noise_handshake_read(encl_noise_handshake *hs, encl_slice message,
                                      encl_buf *payload, encl_error *err) {
    uint8_t *room;
    size_t least;
    encl_code rc;

    ENCL_TRY(check_turn(hs, false, err));
    least = overhead(hs);
    ENCL_ENSURE_GOTO(message.len >= least && message.len <= ENCL_NOISE_MAX_MESSAGE, fail, err,
                     ENCL_E_PROTOCOL, "expected a handshake message of %zu to %d bytes, got %zu",
                     least, ENCL_NOISE_MAX_MESSAGE, message.len);
    ENCL_TRY_GOTO(encl_buf_reserve(payload, message.len - ENCL_NOISE_KEY_BYTES, &room, err), fail);
    ENCL_TRY_GOTO(read_message(hs, message, room, err), fail);
    ENCL_TRY_GOTO(encl_buf_commit(payload, message.len - least, err), fail);
    hs->step++;
    return ENCL_OK;
fail:
    hs->failed = true;
    return rc;
}

static encl_result transport_new(encl_role role, const uint8_t k1[ENCL_NOISE_KEY_BYTES],
                                 const uint8_t k2[ENCL_NOISE_KEY_BYTES], encl_noise_transport **out,
                                 encl_error *err) {
    encl_noise_transport *t = encl_secret_alloc(sizeof *t);
    encl_code rc;

    ENCL_ENSURE(t != NULL, err, ENCL_E_NOMEM, "out of guarded memory for the transport keys");
    t->fork_generation = encl_fork_generation();
    ENCL_TRY_GOTO(encl_aead_new(role == ENCL_INITIATOR ? k1 : k2, true, &t->send.aead, err), fail);
    ENCL_TRY_GOTO(encl_aead_new(role == ENCL_INITIATOR ? k2 : k1, false, &t->receive.aead, err),
                  fail);
    *out = t;
    return ENCL_OK;
fail:
    encl_noise_transport_free(t);
    return rc;
}

encl_result encl_noise_handshake_split(encl_noise_handshake *hs, encl_noise_transport **out,
                                       uint8_t hash[ENCL_NOISE_HASH_BYTES], encl_error *err) {
    uint8_t k1[ENCL_NOISE_KEY_BYTES], k2[ENCL_NOISE_KEY_BYTES];
    encl_code rc;

    *out = NULL;
    ENCL_TRY(refuse_in_forked_child(hs->fork_generation, err));
    ENCL_ENSURE(encl_noise_handshake_complete(hs), err, ENCL_E_STATE,
                "expected a complete handshake, got one after %u of %u messages%s", hs->step, STEPS,
                hs->failed ? " that failed or was split before" : "");
    ENCL_TRY_GOTO(encl_noise_hkdf2(hs->ck, ENCL_SLICE_NONE, k1, k2, err), out);
    ENCL_TRY_GOTO(transport_new(hs->role, k1, k2, out, err), out);
    memcpy(hash, hs->h, sizeof hs->h);
out:
    encl_wipe(k1, sizeof k1);
    encl_wipe(k2, sizeof k2);
    encl_wipe(hs->ck, sizeof hs->ck);
    encl_wipe(hs->k, sizeof hs->k);
    encl_wipe(hs->e, sizeof hs->e);
    hs->failed = true;
    return rc;
}

void encl_noise_transport_free(encl_noise_transport *t) {
    if (t != NULL) {
        encl_aead_free(t->send.aead);
        encl_aead_free(t->receive.aead);
        encl_secret_free(t, sizeof *t);
    }
}

/* Section 12.3: 32 zero bits, then the counter, little-endian. */
static void make_nonce(uint8_t nonce[ENCL_AEAD_NONCE_BYTES], uint64_t n) {
    memset(nonce, 0, ENCL_AEAD_NONCE_BYTES);
    for (unsigned i = 0; i < 8; i++) {
        nonce[4 + i] = (uint8_t)(n >> (8 * i));
    }
}

static encl_result check_direction(const encl_noise_transport *t, const direction *d,
                                   const char *verb, encl_error *err) {
    ENCL_TRY(refuse_in_forked_child(t->fork_generation, err));
    ENCL_ENSURE(!d->failed, err, ENCL_E_STATE, "a record failed to %s before; no other may follow",
                verb);
    /* Section 5.1 reserves the highest counter. */
    ENCL_ENSURE(d->n != UINT64_MAX, err, ENCL_E_STATE,
                "no nonce is left to %s another record under this key", verb);
    return ENCL_OK;
}

encl_result encl_noise_seal(encl_noise_transport *t, uint8_t *block, size_t plain_len, size_t cap,
                            size_t *sealed_len, encl_error *err) {
    uint8_t nonce[ENCL_AEAD_NONCE_BYTES];

    ENCL_TRY(check_direction(t, &t->send, "encrypt", err));
    ENCL_ENSURE(plain_len <= ENCL_NOISE_MAX_PLAIN, err, ENCL_E_INVALID,
                "expected at most %d bytes for one record, got %zu", ENCL_NOISE_MAX_PLAIN,
                plain_len);
    ENCL_ENSURE(cap >= plain_len + ENCL_NOISE_TAG_BYTES, err, ENCL_E_INVALID,
                "expected a block of %zu bytes for a record and its tag, got %zu",
                plain_len + ENCL_NOISE_TAG_BYTES, cap);
    make_nonce(nonce, t->send.n);
    t->send.n++;
    if (!encl_aead_seal(t->send.aead, nonce, ENCL_SLICE_NONE, block, plain_len)) {
        t->send.failed = true;
        return encl_fail(err, ENCL_E_INTERNAL, "OpenSSL refused to encrypt a record");
    }
    *sealed_len = plain_len + ENCL_NOISE_TAG_BYTES;
    return ENCL_OK;
}

static encl_result open_record(encl_noise_transport *t, uint8_t *block, size_t sealed_len,
                               encl_error *err) {
    uint8_t nonce[ENCL_AEAD_NONCE_BYTES];

    ENCL_ENSURE(sealed_len >= ENCL_NOISE_TAG_BYTES && sealed_len <= ENCL_NOISE_MAX_MESSAGE, err,
                ENCL_E_PROTOCOL, "expected an encrypted record of %d to %d bytes, got %zu",
                ENCL_NOISE_TAG_BYTES, ENCL_NOISE_MAX_MESSAGE, sealed_len);
    make_nonce(nonce, t->receive.n);
    ENCL_ENSURE(encl_aead_open(t->receive.aead, nonce, ENCL_SLICE_NONE, block,
                               sealed_len - ENCL_NOISE_TAG_BYTES),
                err, ENCL_E_PROTOCOL,
                "record %llu of %zu bytes does not decrypt: expected the peer's next record, got "
                "something altered, lost or out of order",
                (unsigned long long)t->receive.n, sealed_len);
    return ENCL_OK;
}

encl_result encl_noise_open(encl_noise_transport *t, uint8_t *block, size_t sealed_len,
                            size_t *plain_len, encl_error *err) {
    encl_code rc;

    ENCL_TRY(check_direction(t, &t->receive, "decrypt", err));
    rc = open_record(t, block, sealed_len, err);
    if (rc != ENCL_OK) {
        t->receive.failed = true;
        encl_wipe(block, sealed_len);
        return rc;
    }
    t->receive.n++;
    *plain_len = sealed_len - ENCL_NOISE_TAG_BYTES;
    return ENCL_OK;
}

#ifdef ENCL_TESTING
void encl_noise_transport_set_counters(encl_noise_transport *t, uint64_t send, uint64_t receive) {
    t->send.n = send;
    t->receive.n = receive;
}
#endif
