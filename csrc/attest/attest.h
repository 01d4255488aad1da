/* attest: AWS Nitro attestation documents: COSE_Sign1 (RFC 9052), the document's CBOR map, the
 * X.509 chain (RFC 5280), nonce and PCRs. Pure: the time is a parameter, roots are parameters. */
#ifndef ENCL_ATTEST_ATTEST_H
#define ENCL_ATTEST_ATTEST_H

#include "base/buf.h"

#define ENCL_PCR_SLOTS          32
#define ENCL_PINNED_PCRS        3 /* PCR0, PCR1 and PCR2: every set of pins has them */
#define ENCL_CERT_MAX_BYTES     1024
#define ENCL_CABUNDLE_MAX       16 /* certificates; AWS bundles hold four */
#define ENCL_DOCUMENT_MAX_BYTES 32768

typedef struct encl_pcr {
    uint8_t len; /* 0 where absent; else 32, 48 or 64 */
    uint8_t value[ENCL_PCR_MAX_BYTES];
} encl_pcr;

/* By index. One of len 0 is not pinned, which is possible from ENCL_PINNED_PCRS on. */
typedef struct encl_pins {
    encl_pcr pcr[ENCL_PCR_SLOTS];
} encl_pins;

/* Calls one(arg, i) once for each i below count, in any order and in any threads, and returns when
 * all the calls have. */
typedef void encl_each(void (*one)(void *arg, size_t i), void *arg, size_t count);

/* What a document must satisfy. Owned copies; freed with encl_policy_free. */
typedef struct encl_policy {
    encl_pins *pins; /* any one of them; NULL where none are pinned */
    size_t pin_count;
    uint8_t *root; /* DER */
    size_t root_len;
    struct x509_st *root_cert; /* OpenSSL's: what root was parsed to. Not changed any more, so that
                                * threads may share it */
    bool debug;           /* accept self-signed and stub documents; checks only nonce and PCRs */
    bool need_pins;       /* a channel's policy: without pins only debug may pass */
    int64_t clock_leeway; /* seconds that a leaf may be used before its notBefore */
    encl_each *each;      /* runs the verifications of a document's signatures, which may be in
                           * several threads at once. NULL: one after the other, in the caller's */
} encl_policy;

#define ENCL_CLOCK_LEEWAY_MAX 300 /* seconds */

/* Copies the arguments and checks them: pins of 32, 48 or 64 bytes, those of a set of one length;
 * none of the first three all-zero unless debug (ENCL_E_INVALID, "debug enclave" in the message),
 * while a further one may be, since that is what a register shows that was never written; at least
 * one set of pins when need_pins and not debug; root is one certificate, DER or PEM. Only NULL
 * means "not given": pins NULL pins nothing, root.data NULL is AWS's G1. What was given and is
 * empty is an error. */
encl_result encl_policy_init(encl_policy *policy, const encl_pins *pins, size_t pin_count,
                             encl_slice root, bool debug, bool need_pins, encl_error *err);
/* How far the leaf's notBefore may lie in the future: the verifier's clock may be behind AWS's, and
 * a leaf is used from the second it is made. 0 until set; at most ENCL_CLOCK_LEEWAY_MAX. Other
 * certificates and notAfter never get any. */
encl_result encl_policy_set_clock_leeway(encl_policy *policy, int64_t seconds, encl_error *err);
/* Of one that was checked; costs no certificate parsing. */
encl_result encl_policy_copy(encl_policy *to, const encl_policy *from, encl_error *err);
void encl_policy_free(encl_policy *policy);

/* The AWS Nitro Enclaves root G1, DER. */
encl_slice encl_aws_root_g1(void);

typedef enum encl_doc_form {
    ENCL_DOC_NITRO, /* COSE_Sign1, verified up to the pinned root */
    ENCL_DOC_DEBUG, /* COSE_Sign1, signature and chain not looked at */
    ENCL_DOC_STUB,  /* the bare handshake hash */
} encl_doc_form;

#define ENCL_MATCHED_NONE (-1)

/* A parsed document. raw owns every byte; the slices point into it. Absent fields have data NULL.
 */
typedef struct encl_attestation {
    encl_doc_form form;
    uint8_t *raw;
    size_t raw_len;
    encl_slice module_id; /* text */
    uint64_t timestamp_ms;
    encl_pcr pcrs[ENCL_PCR_SLOTS];
    encl_slice certificate;                 /* leaf, DER */
    encl_slice cabundle[ENCL_CABUNDLE_MAX]; /* root first, DER */
    size_t cabundle_len;
    encl_slice public_key, user_data, nonce;
    int64_t verified_at;   /* Unix seconds: the time the certificates were judged at */
    int64_t valid_until;   /* Unix seconds: when the first of the chain's certificates ends; 0 where
                            * no chain was judged, which is in debug mode */
    int matched;           /* which set of the policy's pins, of which the document has every PCR;
                            * ENCL_MATCHED_NONE where none are pinned, and in debug mode where PCRs
                            * are missing */
    uint32_t matched_pcrs; /* bit i: that set has PCRi */
} encl_attestation;

void encl_attestation_free(encl_attestation *a);

/* Links of certificate chains that verified before, each with its child's certificate in parsed
 * form, so that reconnecting pays for one signature and no parsing. A hit says only: "these exact
 * child bytes carry a valid signature by these exact issuer bytes, and were parsed to this";
 * validity times and every other check are made anew each time. Bounded; entries end with the
 * shorter validity of the two. Not thread-safe: its owner uses it in one thread or holds a lock. */
typedef struct encl_link_cache encl_link_cache;
encl_result encl_link_cache_new(size_t max_entries, encl_link_cache **out, encl_error *err);
void encl_link_cache_free(encl_link_cache *cache);
#ifdef ENCL_TESTING
size_t encl_link_cache_hits(const encl_link_cache *cache);
#endif

/* Verifies document, in the order of the AWS specification and stopping at the first failure:
 * structure (ENCL_E_DOCUMENT), chain (ENCL_E_CERTIFICATE), signature (ENCL_E_SIGNATURE), nonce
 * (ENCL_E_NONCE), PCRs (ENCL_E_PCR with index, expected, actual).
 *   nonce: data NULL means "not checked" (documents from elsewhere); a channel always gives one.
 *   now: Unix seconds.  cache: may be NULL.
 * A leaf that becomes valid within ENCL_CLOCK_LEEWAY_MAX is the one failure that is retryable.
 * On success *out is the caller's; on failure it is NULL. */
encl_result encl_attest_verify(encl_slice document, const encl_policy *policy, encl_slice nonce,
                               int64_t now, encl_link_cache *cache, encl_attestation **out,
                               encl_error *err);

/* The same for a document of the past: its certificates are judged at the moment that it states
 * itself, under its signature, and no nonce is asked for. Whether that moment is one that may be is
 * the caller's to decide. */
encl_result encl_attest_verify_recorded(encl_slice document, const encl_policy *policy,
                                        encl_link_cache *cache, encl_attestation **out,
                                        encl_error *err);

#ifdef ENCL_TESTING
/* ECDSA P-384/SHA-384 over message with a raw r||s signature of 96 bytes (RFC 9053 section 2.1), as
 * a document's is verified; public_key is an uncompressed point of 97 bytes. For attack vectors. */
encl_result encl_attest_es384_verify(encl_slice public_key, encl_slice message,
                                     encl_slice signature, encl_error *err);
#endif

/* ECDSA P-256/SHA-256 over message with a raw r||s signature of 64 bytes; public_key is a point in
 * any form of SEC 1 section 2.3.3 that is not the point at infinity: ENCL_E_SIGNATURE where the
 * signature does not verify, or where the key is none. */
encl_result encl_attest_es256_verify(encl_slice public_key, encl_slice message,
                                     encl_slice signature, encl_error *err);

/* What a link of an upgrade chain attests: a CBOR map whose SHA-256 is its document's user_data. */
typedef enum encl_link_kind {
    ENCL_LINK_BOOT,
    ENCL_LINK_UPGRADE,
    ENCL_LINK_REVOCATION,
    ENCL_LINK_KIND_COUNT_
} encl_link_kind;

#define ENCL_UUID_BYTES             16
#define ENCL_LINK_PAYLOAD_MAX_BYTES 8192
#define ENCL_IMAGE_DIGEST_MAX_BYTES 512

/* Slices point into what was parsed; a field that the kind does not have is empty. Times are text,
 * which RFC 3339 is for the caller to read. */
typedef struct encl_link_payload {
    encl_slice enclave_id; /* ENCL_UUID_BYTES bytes */
    encl_slice image_digest;
    encl_pins pcrs;        /* boot: its own; upgrade: those it starts from */
    encl_pins to_pcrs;     /* upgrade */
    encl_slice booted_at;  /* boot */
    encl_slice valid_from; /* upgrade */
    encl_slice issued_at;  /* upgrade, revocation */
    encl_slice revokes;    /* revocation: ENCL_UUID_BYTES bytes */
    encl_slice nonce;      /* 1 to 64 bytes */
} encl_link_payload;

/* ENCL_E_DOCUMENT for whatever is not exactly one map with the fields of this kind, each once, and
 * no others: a field that is not known here may change what the others mean, so it is refused by
 * its name. */
encl_result encl_link_payload_parse(encl_slice payload, encl_link_kind kind, encl_link_payload *out,
                                    encl_error *err);

/* The signing side, for local enclaves only: builds and signs one document. key is the leaf's
 * private key, PKCS#8 DER. */
typedef struct encl_doc_template {
    encl_slice module_id;
    uint64_t timestamp_ms;
    encl_pcr pcrs[ENCL_PCR_SLOTS];
    encl_slice certificate;
    encl_slice cabundle[ENCL_CABUNDLE_MAX];
    size_t cabundle_len;
    encl_slice public_key, user_data, nonce; /* data NULL: null */
} encl_doc_template;
/* key empty: a self-signed debug form, with 96 zero bytes where the signature would be. */
encl_result encl_attest_sign(const encl_doc_template *doc, encl_slice key, encl_buf *out,
                             encl_error *err);

/* The same with a key that is read once: OpenSSL takes longer to read one than to sign. It is not
 * changed by signing. key is PKCS#8 DER of a P-384 key, otherwise ENCL_E_INVALID; freeing wipes it.
 * signing_key NULL: the debug form. */
typedef struct evp_pkey_st encl_signing_key; /* OpenSSL's */
encl_result encl_signing_key_new(encl_slice key, encl_signing_key **out, encl_error *err);
void encl_signing_key_free(encl_signing_key *key);
encl_result encl_attest_sign_with(const encl_doc_template *doc, encl_signing_key *signing_key,
                                  encl_buf *out, encl_error *err);

#endif
