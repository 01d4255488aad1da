/* ECDSA with P-256 and SHA-256: decides whether a link of an upgrade chain is signed by an
 * enclave's control key. Calls ecdsa.c and OpenSSL, which refuses points that are not on the curve,
 * and r and s outside of 1..n-1. */
#include <openssl/err.h>
#include <openssl/evp.h>

#include "attest/internal.h"

#define SCALAR_BYTES    32
#define SIGNATURE_BYTES 64
#define POINT_MAX_BYTES 65

static bool verify_message(EVP_PKEY *key, encl_slice message, const uint8_t *der, size_t der_len) {
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    bool good = ctx != NULL &&
                EVP_DigestVerifyInit_ex(ctx, NULL, "SHA2-256", NULL, NULL, key, NULL) == 1 &&
                EVP_DigestVerify(ctx, der, der_len, message.data, message.len) == 1;

    EVP_MD_CTX_free(ctx);
    return good;
}

static encl_result verify(EVP_PKEY *key, encl_slice message, encl_slice signature,
                          encl_error *err) {
    uint8_t der[ENCL_ECDSA_DER_MAX_BYTES];
    size_t der_len = encl_ecdsa_der(signature.data, SCALAR_BYTES, der);

    ENCL_ENSURE(der_len != 0, err, ENCL_E_NOMEM, "out of memory for a signature");
    ENCL_ENSURE(verify_message(key, message, der, der_len), err, ENCL_E_SIGNATURE,
                "the ES256 signature does not verify");
    return ENCL_OK;
}

encl_result encl_attest_es256_verify(encl_slice public_key, encl_slice message,
                                     encl_slice signature, encl_error *err) {
    EVP_PKEY *key;
    encl_code rc;

    ENCL_ENSURE(signature.len == SIGNATURE_BYTES, err, ENCL_E_SIGNATURE,
                "ES256: expected a signature of %d bytes, got %zu", SIGNATURE_BYTES, signature.len);
    ENCL_ENSURE(public_key.len > 1 && public_key.len <= POINT_MAX_BYTES, err, ENCL_E_SIGNATURE,
                "ES256: expected a SEC1 point of 33 or 65 bytes, got %zu", public_key.len);
    /* What OpenSSL queues for a bad key must not confuse this thread's TLS calls. */
    ERR_set_mark();
    key = encl_ecdsa_key("prime256v1", public_key);
    rc = key == NULL
             ? encl_fail(err, ENCL_E_SIGNATURE, "ES256: the public key is not a point of P-256")
             : verify(key, message, signature, err);
    EVP_PKEY_free(key);
    ERR_pop_to_mark();
    return rc;
}
