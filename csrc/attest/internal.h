/* attest, inside: what its files show each other. */
#ifndef ENCL_ATTEST_INTERNAL_H
#define ENCL_ATTEST_INTERNAL_H

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

/* chain.c: verifies certificate and cabundle up to root at a moment, and gives the leaf's key. */
encl_result encl_chain_verify(const encl_attestation *a, encl_slice root, encl_clock clock,
                              encl_link_cache *cache, uint8_t leaf_point[ENCL_ES384_POINT_BYTES],
                              encl_error *err);
/* Everything about a root that does not depend on the time. */
encl_result encl_chain_check_root(encl_slice root, encl_error *err);

/* cache.c: has drops the entry it finds when that has expired at now. */
bool encl_link_cache_has(encl_link_cache *cache, encl_slice child, encl_slice issuer, int64_t now);
void encl_link_cache_put(encl_link_cache *cache, encl_slice child, encl_slice issuer,
                         int64_t expires);

/* hint.c: says in a refusal's message what it looks like, where that is known. */
void encl_hint_add(encl_slice document, const encl_policy *policy, encl_error *err);

/* policy.c: the PCRs against the pins, or without pins only against zero. */
encl_result encl_policy_check_pcrs(const encl_policy *policy, const encl_attestation *a,
                                   encl_error *err);

/* sign.c: the bytes a COSE_Sign1 signature covers (RFC 9052 section 4.4), into out. */
encl_result encl_sig_structure(encl_slice protected_header, encl_slice payload, encl_buf *out,
                               encl_error *err);

/* es384.c; key is PKCS#8 DER. */
encl_result encl_es384_sign(encl_slice key, encl_slice message,
                            uint8_t signature[ENCL_ES384_SIGNATURE_BYTES], encl_error *err);

#endif
