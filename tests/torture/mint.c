#include "mint.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

void must(bool ok, const char *what) {
    if (!ok) {
        (void)fprintf(stderr, "failed: %s\n", what);
        _Exit(3);
    }
}

static void extend(X509 *cert, int nid, const char *value) {
    X509_EXTENSION *extension = X509V3_EXT_conf_nid(NULL, NULL, nid, value);

    must(extension != NULL && X509_add_ext(cert, extension, -1) == 1, "an extension");
    X509_EXTENSION_free(extension);
}

static void add_name(X509_NAME *n, const char *common) {
    must(X509_NAME_add_entry_by_txt(n, "CN", MBSTRING_ASC, (const uint8_t *)common, -1, -1, 0) == 1,
         "a name");
}

static void issue(minted *m, size_t i, EVP_PKEY *key, EVP_PKEY *issuer) {
    static const char *const names[] = {"root", "ca", "leaf"};
    X509 *cert = X509_new();
    uint8_t *to = m->der[i];
    int n;

    must(cert != NULL && X509_set_version(cert, X509_VERSION_3) == 1 &&
             ASN1_INTEGER_set(X509_get_serialNumber(cert), (long)i + 1) == 1 &&
             X509_gmtime_adj(X509_getm_notBefore(cert), -3600) != NULL &&
             X509_gmtime_adj(X509_getm_notAfter(cert), 24L * 3600) != NULL &&
             X509_set_pubkey(cert, key) == 1,
         "a certificate");
    add_name(X509_get_subject_name(cert), names[i]);
    add_name(X509_get_issuer_name(cert), names[i == 0 ? 0 : i - 1]);
    extend(cert, NID_basic_constraints, i == 2 ? "critical,CA:FALSE" : "critical,CA:TRUE");
    extend(cert, NID_key_usage, i == 2 ? "critical,digitalSignature" : "critical,keyCertSign");
    must(X509_sign(cert, issuer, EVP_sha384()) > 0, "signing a certificate");
    n = i2d_X509(cert, &to);
    must(n > 0 && n <= ENCL_CERT_MAX_BYTES, "encoding a certificate");
    m->cert[i] = ENCL_SLICE(m->der[i], (size_t)n);
    X509_free(cert);
}

void mint(minted *m) {
    EVP_PKEY *keys[3];
    PKCS8_PRIV_KEY_INFO *info;
    uint8_t *to = m->key;
    int n;

    memset(m, 0, sizeof *m);
    for (size_t i = 0; i < 3; i++) {
        keys[i] = EVP_EC_gen("P-384");
        must(keys[i] != NULL, "a key");
        issue(m, i, keys[i], keys[i == 0 ? 0 : i - 1]);
    }
    info = EVP_PKEY2PKCS8(keys[2]);
    n = i2d_PKCS8_PRIV_KEY_INFO(info, &to);
    must(n > 0 && (size_t)n <= sizeof m->key, "encoding a key");
    m->leaf_key = ENCL_SLICE(m->key, (size_t)n);
    PKCS8_PRIV_KEY_INFO_free(info);
    for (size_t i = 0; i < 3; i++) {
        EVP_PKEY_free(keys[i]);
        m->pins.pcr[i].len = 48;
        memset(m->pins.pcr[i].value, (int)i + 1, 48);
        m->document.pcrs[i] = m->pins.pcr[i];
    }
    m->document.module_id = ENCL_SLICE("i-torture", 9);
    m->document.certificate = m->cert[2];
    m->document.cabundle[0] = m->cert[0];
    m->document.cabundle[1] = m->cert[1];
    m->document.cabundle_len = 2;
}

encl_policy production_policy(const minted *m) {
    encl_policy policy;
    encl_error err;

    must(encl_policy_init(&policy, &m->pins, 1, m->cert[0], false, true, &err) == ENCL_OK,
         "a policy");
    return policy;
}
