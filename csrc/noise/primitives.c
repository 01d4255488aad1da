/* The primitives of Noise_NN_25519_ChaChaPoly_BLAKE2s: hash, HMAC and HKDF, X25519, AEAD. Decides
 * only which lengths and which public keys (those of low order) are refused. Calls OpenSSL and
 * libsodium. */
#include "noise/primitives.h"

#include <limits.h>
#include <openssl/core_names.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <sodium.h>
#include <stdatomic.h>
#include <string.h>

#include "base/secmem.h"

/* Fetching an algorithm by name costs more than a short record. Each is set once and never freed:
 * it lives as long as the process. Not under pthread_once: what failed once, for want of memory, is
 * tried again. */
static EVP_MD *_Atomic blake2s;
static EVP_MAC *_Atomic hmac;
static EVP_CIPHER *_Atomic chacha20_poly1305;

/* In each of these: if another thread was first, its value is kept and ours is freed. */
static void fetch_blake2s(void) {
    EVP_MD *made = EVP_MD_fetch(NULL, "BLAKE2S-256", NULL), *none = NULL;

    if (made != NULL && !atomic_compare_exchange_strong(&blake2s, &none, made)) {
        EVP_MD_free(made);
    }
}

static void fetch_hmac(void) {
    EVP_MAC *made = EVP_MAC_fetch(NULL, "HMAC", NULL), *none = NULL;

    if (made != NULL && !atomic_compare_exchange_strong(&hmac, &none, made)) {
        EVP_MAC_free(made);
    }
}

static void fetch_chacha20_poly1305(void) {
    EVP_CIPHER *made = EVP_CIPHER_fetch(NULL, "ChaCha20-Poly1305", NULL), *none = NULL;

    if (made != NULL && !atomic_compare_exchange_strong(&chacha20_poly1305, &none, made)) {
        EVP_CIPHER_free(made);
    }
}

static bool have_algorithms(void) {
    return blake2s != NULL && hmac != NULL && chacha20_poly1305 != NULL;
}

static void fetch_algorithms(void) {
    fetch_blake2s();
    fetch_hmac();
    fetch_chacha20_poly1305();
    /* An error left in this thread's queue would be taken for one of a later TLS call. */
    ERR_clear_error();
}

encl_result encl_noise_init(encl_error *err) {
    ENCL_TRY(encl_base_init(err));
    if (!have_algorithms()) {
        fetch_algorithms();
    }
    ENCL_ENSURE(have_algorithms(), err, ENCL_E_INTERNAL,
                "OpenSSL lacks BLAKE2s, HMAC or ChaCha20-Poly1305");
    return ENCL_OK;
}

static encl_code openssl_refused(encl_error *err, const char *what) {
    ERR_clear_error();
    return encl_fail(err, ENCL_E_INTERNAL, "OpenSSL refused to compute %s", what);
}

static bool digest_two(EVP_MD_CTX *ctx, encl_slice first, encl_slice second,
                       uint8_t out[ENCL_NOISE_HASH_BYTES]) {
    unsigned int len = 0;

    return EVP_DigestInit_ex2(ctx, blake2s, NULL) == 1 &&
           EVP_DigestUpdate(ctx, first.data, first.len) == 1 &&
           (second.len == 0 || EVP_DigestUpdate(ctx, second.data, second.len) == 1) &&
           EVP_DigestFinal_ex(ctx, out, &len) == 1 && len == ENCL_NOISE_HASH_BYTES;
}

encl_result encl_blake2s(encl_slice first, encl_slice second, uint8_t out[ENCL_NOISE_HASH_BYTES],
                         encl_error *err) {
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    bool done = ctx != NULL && digest_two(ctx, first, second, out);

    EVP_MD_CTX_free(ctx);
    return done ? ENCL_OK : openssl_refused(err, "BLAKE2s");
}

/* A context that has its digest keeps it for all keys. Named again, it would be fetched again. */
static bool set_digest(EVP_MAC_CTX *ctx) {
    char name[] = "BLAKE2S-256";
    OSSL_PARAM params[] = {OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, name, 0),
                           OSSL_PARAM_construct_end()};

    return EVP_MAC_CTX_set_params(ctx, params) == 1;
}

static bool hmac_two(EVP_MAC_CTX *ctx, const uint8_t key[ENCL_NOISE_HASH_BYTES], encl_slice first,
                     uint8_t last, bool with_last, uint8_t out[ENCL_NOISE_HASH_BYTES]) {
    size_t len = 0;

    return EVP_MAC_init(ctx, key, ENCL_NOISE_HASH_BYTES, NULL) == 1 &&
           (first.len == 0 || EVP_MAC_update(ctx, first.data, first.len) == 1) &&
           (!with_last || EVP_MAC_update(ctx, &last, 1) == 1) &&
           EVP_MAC_final(ctx, out, &len, ENCL_NOISE_HASH_BYTES) == 1 &&
           len == ENCL_NOISE_HASH_BYTES;
}

encl_result encl_noise_hkdf2(const uint8_t ck[ENCL_NOISE_HASH_BYTES], encl_slice input,
                             uint8_t first[ENCL_NOISE_HASH_BYTES],
                             uint8_t second[ENCL_NOISE_HASH_BYTES], encl_error *err) {
    uint8_t temp[ENCL_NOISE_HASH_BYTES];
    EVP_MAC_CTX *ctx = EVP_MAC_CTX_new(hmac);
    bool done = ctx != NULL && set_digest(ctx) && hmac_two(ctx, ck, input, 0, false, temp) &&
                hmac_two(ctx, temp, ENCL_SLICE_NONE, 1, true, first) &&
                hmac_two(ctx, temp, ENCL_SLICE(first, ENCL_NOISE_HASH_BYTES), 2, true, second);

    EVP_MAC_CTX_free(ctx);
    encl_wipe(temp, sizeof temp);
    return done ? ENCL_OK : openssl_refused(err, "HMAC-BLAKE2s");
}

encl_result encl_noise_x25519(const uint8_t secret[32], const uint8_t public_key[32],
                              uint8_t shared[32], encl_error *err) {
    ENCL_TRY(encl_base_init(err));
    if (crypto_scalarmult_curve25519(shared, secret, public_key) != 0) {
        encl_wipe(shared, 32);
        return encl_fail(err, ENCL_E_PROTOCOL,
                         "expected an X25519 key, got one of low order: the shared secret would "
                         "be all zero");
    }
    return ENCL_OK;
}

encl_result encl_aead_new(const uint8_t key[ENCL_NOISE_KEY_BYTES], bool seal, encl_aead **out,
                          encl_error *err) {
    EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();

    if (ctx == NULL ||
        EVP_CipherInit_ex2(ctx, chacha20_poly1305, key, NULL, seal ? 1 : 0, NULL) != 1 ||
        EVP_CIPHER_CTX_get_iv_length(ctx) != ENCL_AEAD_NONCE_BYTES) {
        EVP_CIPHER_CTX_free(ctx);
        return openssl_refused(err, "ChaCha20-Poly1305");
    }
    *out = ctx;
    return ENCL_OK;
}

void encl_aead_free(encl_aead *aead) {
    EVP_CIPHER_CTX_free(aead);
}

/* A new nonce under the key already set; the additional data; then the text in place. */
static bool run_cipher(encl_aead *aead, const uint8_t nonce[ENCL_AEAD_NONCE_BYTES], encl_slice aad,
                       uint8_t *block, size_t len, uint8_t *open_tag) {
    int n = 0;

    if (aad.len > INT_MAX || len > INT_MAX ||
        EVP_CipherInit_ex2(aead, NULL, NULL, nonce, -1, NULL) != 1) {
        return false;
    }
    if (open_tag != NULL &&
        EVP_CIPHER_CTX_ctrl(aead, EVP_CTRL_AEAD_SET_TAG, ENCL_NOISE_TAG_BYTES, open_tag) != 1) {
        return false;
    }
    if (aad.len != 0 && EVP_CipherUpdate(aead, NULL, &n, aad.data, (int)aad.len) != 1) {
        return false;
    }
    n = 0;
    if (len != 0 && EVP_CipherUpdate(aead, block, &n, block, (int)len) != 1) {
        return false;
    }
    return n == (int)len;
}

static bool finish(encl_aead *aead) {
    uint8_t none[ENCL_NOISE_TAG_BYTES];
    int n = 0;

    return EVP_CipherFinal_ex(aead, none, &n) == 1 && n == 0;
}

bool encl_aead_seal(encl_aead *aead, const uint8_t nonce[ENCL_AEAD_NONCE_BYTES], encl_slice aad,
                    uint8_t *block, size_t len) {
    bool done =
        run_cipher(aead, nonce, aad, block, len, NULL) && finish(aead) &&
        EVP_CIPHER_CTX_ctrl(aead, EVP_CTRL_AEAD_GET_TAG, ENCL_NOISE_TAG_BYTES, block + len) == 1;

    if (!done) {
        encl_wipe(block, len + ENCL_NOISE_TAG_BYTES);
        ERR_clear_error();
    }
    return done;
}

bool encl_aead_open(encl_aead *aead, const uint8_t nonce[ENCL_AEAD_NONCE_BYTES], encl_slice aad,
                    uint8_t *block, size_t len) {
    bool done = run_cipher(aead, nonce, aad, block, len, block + len) && finish(aead);

    if (!done) {
        encl_wipe(block, len + ENCL_NOISE_TAG_BYTES);
        ERR_clear_error();
    }
    return done;
}

static encl_result aead_once(const uint8_t key[32], bool seal, const uint8_t nonce[12],
                             encl_slice aad, encl_slice in, encl_buf *out, encl_error *err) {
    encl_code rc = ENCL_OK;
    encl_aead *aead = NULL;
    uint8_t *room;
    size_t text_len = seal ? in.len : in.len - ENCL_NOISE_TAG_BYTES;
    bool done;

    ENCL_TRY(encl_noise_init(err));
    ENCL_TRY(encl_buf_reserve(out, text_len + ENCL_NOISE_TAG_BYTES, &room, err));
    ENCL_TRY(encl_aead_new(key, seal, &aead, err));
    if (in.len != 0) {
        memcpy(room, in.data, in.len);
    }
    done = seal ? encl_aead_seal(aead, nonce, aad, room, text_len)
                : encl_aead_open(aead, nonce, aad, room, text_len);
    ENCL_ENSURE_GOTO(done, out, err, seal ? ENCL_E_INTERNAL : ENCL_E_PROTOCOL,
                     seal ? "OpenSSL refused to encrypt" : "the tag does not verify");
    rc = encl_buf_commit(out, seal ? text_len + ENCL_NOISE_TAG_BYTES : text_len, err);
out:
    encl_aead_free(aead);
    return rc;
}

encl_result encl_noise_aead_seal(const uint8_t key[32], const uint8_t nonce[12], encl_slice aad,
                                 encl_slice plain, encl_buf *sealed, encl_error *err) {
    ENCL_ENSURE(plain.len <= INT_MAX - ENCL_NOISE_TAG_BYTES, err, ENCL_E_INVALID,
                "expected at most %d bytes to encrypt, got %zu", INT_MAX - ENCL_NOISE_TAG_BYTES,
                plain.len);
    return aead_once(key, true, nonce, aad, plain, sealed, err);
}

encl_result encl_noise_aead_open(const uint8_t key[32], const uint8_t nonce[12], encl_slice aad,
                                 encl_slice sealed, encl_buf *plain, encl_error *err) {
    ENCL_ENSURE(sealed.len >= ENCL_NOISE_TAG_BYTES && sealed.len <= INT_MAX, err, ENCL_E_PROTOCOL,
                "expected at least the %d bytes of a tag, got %zu", ENCL_NOISE_TAG_BYTES,
                sealed.len);
    return aead_once(key, false, nonce, aad, sealed, plain, err);
}
