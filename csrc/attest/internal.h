/* attest, inside: what its files show each other. */
#ifndef ENCL_ATTEST_INTERNAL_H
#define ENCL_ATTEST_INTERNAL_H

#include <openssl/types.h>

#include "attest/attest.h"

#define ENCL_ES384_POINT_BYTES     97
#define ENCL_ES384_SIGNATURE_BYTES 96

/* The three parts of a COSE_Sign1 that its signature is about; slices into attestation->raw. */
typedef struct encl_cose {
    encl_slice protected_header, payload, signature;
} encl_cose;

/* document.c: fills a (which owns a copy of document) and cose. debug relaxes the limits to what
 * crude stand-ins send. Frees nothing on failure; encl_attestation_free does. */
encl_result encl_document_parse(encl_slice document, bool debug, encl_attestation *a,
                                encl_cose *cose, encl_error *err);

/* The moment at which certificates are judged. */
typedef struct encl_clock {
    int64_t now;    /* Unix seconds */
    int64_t leeway; /* how much later than that a leaf may begin to be valid, in seconds */
} encl_clock;

/* What a policy trusts; cert is what der was parsed to. Both belong to the policy. */
typedef struct encl_root {
    encl_slice der;
    X509 *cert;
} encl_root;

#define ENCL_CHAIN_MAX         (ENCL_CABUNDLE_MAX + 2)
#define ENCL_CHAIN_LABEL_BYTES 128

typedef struct encl_chain_cert {
    encl_slice der;
    X509 *cert;    /* a reference of its own */
    bool known;    /* that the issuer signed it was verified before */
    bool verified; /* that the issuer signed it has been verified, now or before */
    int64_t not_before, not_after;
    char label[ENCL_CHAIN_LABEL_BYTES];
} encl_chain_cert;

/* Its slices point into the attestation and the root that it was read from. */
typedef struct encl_chain {
    encl_chain_cert links[ENCL_CHAIN_MAX]; /* 0 is the pinned root, the last is the leaf */
    size_t count;
    int64_t until; /* the first end of a validity among those that were judged */
} encl_chain;

/* chain.c. In this order:
 * read: parses certificate and cabundle up to root, and checks at a moment all about them but who
 *   signed them. Release it in any case.
 * verify_link: whether links[i - 1] signed links[i], 0 < i < count, which is noted there. Threads
 *   may call it at the same time for different i.
 * settle: ENCL_OK only where every link has been verified; the first that has not is the error's.
 *   What has is put into the cache, which may be NULL. */
encl_result encl_chain_read(encl_chain *c, const encl_attestation *a, encl_root root,
                            encl_clock clock, encl_link_cache *cache, encl_error *err);
bool encl_chain_verify_link(encl_chain *c, size_t i);
encl_result encl_chain_settle(const encl_chain *c, encl_link_cache *cache, encl_error *err);
/* The leaf's key, which belongs to the chain. NULL: OpenSSL cannot read it. */
EVP_PKEY *encl_chain_leaf_key(const encl_chain *c);
void encl_chain_release(encl_chain *c);
/* Parses a root and checks everything about it that does not depend on the time. The caller frees
 * the certificate with X509_free; NULL on failure. */
encl_result encl_chain_parse_root(encl_slice root, X509 **cert, encl_error *err);

/* signatures.c: verifies the chain at a moment, and that its leaf signed the document. Sets
 * a->valid_until. */
encl_result encl_signatures_verify(encl_attestation *a, const encl_cose *cose,
                                   const encl_policy *policy, int64_t now, encl_link_cache *cache,
                                   encl_error *err);

/* cache.c. find: the child's certificate as it was parsed when the link verified, NULL where the
 * link is not known or has expired at now, which also drops it. The caller frees it with X509_free.
 * put keeps a reference of its own to cert, which is what the bytes of child were parsed to. */
X509 *encl_link_cache_find(encl_link_cache *cache, encl_slice child, encl_slice issuer,
                           int64_t now);
void encl_link_cache_put(encl_link_cache *cache, encl_slice child, encl_slice issuer, X509 *cert,
                         int64_t expires);

/* hint.c: says in a refusal's message and in its hint what it looks like, where that is known. */
void encl_hint_add(encl_slice document, const encl_policy *policy, encl_error *err);

/* policy.c: the PCRs against the pins, or without pins only against zero. Sets a->matched. */
encl_result encl_policy_check_pcrs(const encl_policy *policy, encl_attestation *a, encl_error *err);

/* sign.c: the bytes a COSE_Sign1 signature covers (RFC 9052 section 4.4), into out. */
encl_result encl_sig_structure(encl_slice protected_header, encl_slice payload, encl_buf *out,
                               encl_error *err);

/* ecdsa.c. key: of a point in a form of SEC 1 section 2.3.3, NULL where it is not on the curve; the
 * caller frees it with EVP_PKEY_free. der: the length of r||s, two scalars of that many bytes, as a
 * DER ECDSA-Sig-Value, or 0 without memory. */
#define ENCL_ECDSA_DER_MAX_BYTES 128
EVP_PKEY *encl_ecdsa_key(const char *group, encl_slice point);
size_t encl_ecdsa_der(const uint8_t *raw, size_t scalar_bytes,
                      uint8_t der[ENCL_ECDSA_DER_MAX_BYTES]);

/* es384.c. verify: a raw r||s signature of key, which is one of P-384, over message.
 * sign: the signature of key, which encl_signing_key_new has read. */
encl_result encl_es384_verify(EVP_PKEY *key, encl_slice message, encl_slice signature,
                              encl_error *err);
encl_result encl_es384_sign(EVP_PKEY *key, encl_slice message,
                            uint8_t signature[ENCL_ES384_SIGNATURE_BYTES], encl_error *err);

#endif
