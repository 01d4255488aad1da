/* ECDSA with P-384 and SHA-384 in COSE's form (RFC 9053 section 2.1): decides whether a signature
 * is one of a key over a message. Calls OpenSSL. */
#include <limits.h>
#include <stdatomic.h>
#include <string.h>

#include <openssl/core_names.h>
#include <openssl/ec.h>
#include <openssl/ecdsa.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/x509.h>

#include "attest/internal.h"

#define SCALAR_BYTES 48
#define DIGEST_BYTES 48
#define GROUP        "secp384r1"

/* Set once; it lives as long as the process. Not under pthread_once: what failed once, for want of
 * memory, is tried again. */
static EVP_MD *_Atomic sha384;

static void fetch_sha384(void) {
    EVP_MD *made = EVP_MD_fetch(NULL, "SHA2-384", NULL), *none = NULL;

    if (made != NULL && !atomic_compare_exchange_strong(&sha384, &none, made)) {
        EVP_MD_free(made); /* another thread was first */
    }
}

static encl_result digest_of(encl_slice message, uint8_t digest[DIGEST_BYTES], encl_error *err) {
    unsigned int n = 0;

    if (sha384 == NULL) {
        fetch_sha384();
    }
    ENCL_ENSURE(sha384 != NULL, err, ENCL_E_INTERNAL, "OpenSSL has no SHA-384");
    ENCL_ENSURE(EVP_Digest(message.data, message.len, digest, &n, sha384, NULL) == 1 &&
                    n == DIGEST_BYTES,
                err, ENCL_E_INTERNAL, "OpenSSL could not compute a SHA-384 digest");
    return ENCL_OK;
}

static bool verify_digest(EVP_PKEY *key, const uint8_t *der, size_t der_len,
                          const uint8_t digest[DIGEST_BYTES]) {
    EVP_PKEY_CTX *ctx = EVP_PKEY_CTX_new_from_pkey(NULL, key, NULL);
    bool good = ctx != NULL && EVP_PKEY_verify_init(ctx) == 1 &&
                EVP_PKEY_verify(ctx, der, der_len, digest, DIGEST_BYTES) == 1;

    EVP_PKEY_CTX_free(ctx);
    return good;
}

/* OpenSSL refuses r and s outside of 1..n-1. */
encl_result encl_es384_verify(EVP_PKEY *key, encl_slice message, encl_slice signature,
                              encl_error *err) {
    uint8_t digest[DIGEST_BYTES], der[ENCL_ECDSA_DER_MAX_BYTES];
    size_t der_len;

    ENCL_ENSURE(signature.len == ENCL_ES384_SIGNATURE_BYTES, err, ENCL_E_SIGNATURE,
                "ES384: expected a signature of %d bytes, got %zu", ENCL_ES384_SIGNATURE_BYTES,
                signature.len);
    ENCL_TRY(digest_of(message, digest, err));
    der_len = encl_ecdsa_der(signature.data, SCALAR_BYTES, der);
    ENCL_ENSURE(der_len != 0, err, ENCL_E_NOMEM, "out of memory for a signature");
    ENCL_ENSURE(verify_digest(key, der, der_len, digest), err, ENCL_E_SIGNATURE,
                "the ES384 signature does not verify");
    return ENCL_OK;
}

#ifdef ENCL_TESTING
/* OpenSSL refuses points that are not on the curve. */
encl_result encl_attest_es384_verify(encl_slice public_key, encl_slice message,
                                     encl_slice signature, encl_error *err) {
    EVP_PKEY *key;
    encl_code rc;

    ENCL_ENSURE(public_key.len == ENCL_ES384_POINT_BYTES && public_key.data[0] == 0x04, err,
                ENCL_E_SIGNATURE, "ES384: expected an uncompressed point of %d bytes, got %zu",
                ENCL_ES384_POINT_BYTES, public_key.len);
    key = encl_ecdsa_key(GROUP, public_key);
    ENCL_ENSURE(key != NULL, err, ENCL_E_SIGNATURE, "ES384: the key is not a point of P-384");
    rc = encl_es384_verify(key, message, signature, err);
    EVP_PKEY_free(key);
    return rc;
}
#endif

static encl_result read_private_key(encl_slice der, EVP_PKEY **out, encl_error *err) {
    const uint8_t *at = der.data;
    PKCS8_PRIV_KEY_INFO *info = NULL;
    char group[32] = "";
    bool good;

    *out = NULL;
    ENCL_ENSURE(der.len <= LONG_MAX, err, ENCL_E_INVALID, "a key of %zu bytes", der.len);
    info = d2i_PKCS8_PRIV_KEY_INFO(NULL, &at, (long)der.len);
    if (info != NULL && at == der.data + der.len) {
        *out = EVP_PKCS82PKEY(info);
    }
    PKCS8_PRIV_KEY_INFO_free(info);
    good = *out != NULL && EVP_PKEY_is_a(*out, "EC") == 1 &&
           EVP_PKEY_get_utf8_string_param(*out, OSSL_PKEY_PARAM_GROUP_NAME, group, sizeof group,
                                          NULL) == 1 &&
           strcmp(group, GROUP) == 0;
    if (!good) {
        EVP_PKEY_free(*out);
        *out = NULL;
    }
    ENCL_ENSURE(good, err, ENCL_E_INVALID, "expected a P-384 private key in PKCS#8 DER");
    return ENCL_OK;
}

encl_result encl_signing_key_new(encl_slice key, encl_signing_key **out, encl_error *err) {
    encl_code rc;

    ERR_set_mark();
    rc = read_private_key(key, out, err);
    ERR_pop_to_mark();
    return rc;
}

void encl_signing_key_free(encl_signing_key *key) {
    EVP_PKEY_free(key);
}

static bool sign_digest(EVP_PKEY *key, const uint8_t digest[DIGEST_BYTES],
                        uint8_t der[ENCL_ECDSA_DER_MAX_BYTES], size_t *der_len) {
    EVP_PKEY_CTX *ctx = EVP_PKEY_CTX_new_from_pkey(NULL, key, NULL);
    bool good;

    *der_len = ENCL_ECDSA_DER_MAX_BYTES;
    good = ctx != NULL && EVP_PKEY_sign_init(ctx) == 1 &&
           EVP_PKEY_sign(ctx, der, der_len, digest, DIGEST_BYTES) == 1;
    EVP_PKEY_CTX_free(ctx);
    return good;
}

static bool raw_from_der(const uint8_t *der, size_t der_len,
                         uint8_t raw[ENCL_ES384_SIGNATURE_BYTES]) {
    ECDSA_SIG *sig = d2i_ECDSA_SIG(NULL, &der, (long)der_len);
    bool good =
        sig != NULL && BN_bn2binpad(ECDSA_SIG_get0_r(sig), raw, SCALAR_BYTES) == SCALAR_BYTES &&
        BN_bn2binpad(ECDSA_SIG_get0_s(sig), raw + SCALAR_BYTES, SCALAR_BYTES) == SCALAR_BYTES;

    ECDSA_SIG_free(sig);
    return good;
}

encl_result encl_es384_sign(EVP_PKEY *key, encl_slice message,
                            uint8_t signature[ENCL_ES384_SIGNATURE_BYTES], encl_error *err) {
    uint8_t digest[DIGEST_BYTES], der[ENCL_ECDSA_DER_MAX_BYTES];
    size_t der_len;

    ENCL_TRY(digest_of(message, digest, err));
    ENCL_ENSURE(sign_digest(key, digest, der, &der_len) && raw_from_der(der, der_len, signature),
                err, ENCL_E_INTERNAL, "OpenSSL could not sign a document");
    return ENCL_OK;
}
