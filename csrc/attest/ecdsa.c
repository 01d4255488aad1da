/* What ECDSA with any curve needs in COSE's form (RFC 9053 section 2.1): decides how a raw
 * signature and a point are told to OpenSSL, which judges both. */
#include <openssl/core_names.h>
#include <openssl/ecdsa.h>
#include <openssl/evp.h>
#include <openssl/params.h>

#include "attest/internal.h"

EVP_PKEY *encl_ecdsa_key(const char *group, encl_slice point) {
    OSSL_PARAM params[] = {
        OSSL_PARAM_construct_utf8_string(OSSL_PKEY_PARAM_GROUP_NAME, (char *)(uintptr_t)group, 0),
        OSSL_PARAM_construct_octet_string(OSSL_PKEY_PARAM_PUB_KEY, (void *)(uintptr_t)point.data,
                                          point.len),
        OSSL_PARAM_construct_end(),
    };
    EVP_PKEY_CTX *ctx = EVP_PKEY_CTX_new_from_name(NULL, "EC", NULL);
    EVP_PKEY *key = NULL;

    if (ctx != NULL && EVP_PKEY_fromdata_init(ctx) == 1 &&
        EVP_PKEY_fromdata(ctx, &key, EVP_PKEY_PUBLIC_KEY, params) != 1) {
        key = NULL;
    }
    EVP_PKEY_CTX_free(ctx);
    return key;
}

size_t encl_ecdsa_der(const uint8_t *raw, size_t scalar_bytes,
                      uint8_t der[ENCL_ECDSA_DER_MAX_BYTES]) {
    ECDSA_SIG *sig = ECDSA_SIG_new();
    BIGNUM *r = BN_bin2bn(raw, (int)scalar_bytes, NULL);
    BIGNUM *s = BN_bin2bn(raw + scalar_bytes, (int)scalar_bytes, NULL);
    int n = 0;

    if (sig == NULL || r == NULL || s == NULL || ECDSA_SIG_set0(sig, r, s) != 1) {
        BN_free(r);
        BN_free(s);
    } else if (i2d_ECDSA_SIG(sig, NULL) <= ENCL_ECDSA_DER_MAX_BYTES) {
        n = i2d_ECDSA_SIG(sig, &der);
    }
    ECDSA_SIG_free(sig);
    return n > 0 ? (size_t)n : 0;
}
