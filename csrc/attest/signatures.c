/* Decides whether each certificate of a document's chain is signed by its issuer, and the document
 * by the last of them. These verifications take most of a first connection's time and do not need
 * each other's results, so threads may share them; the policy says how. Calls chain.c, es384.c and
 * sign.c. */
#include <stdatomic.h>

#include <openssl/evp.h>

#include "attest/internal.h"

typedef struct signatures {
    encl_chain chain;
    size_t links[ENCL_CHAIN_MAX]; /* those of the chain that are to be verified, from the root on */
    size_t count;
    const encl_cose *cose;
    encl_buf message; /* what the document's signature covers */
    bool document_verified;
    encl_error document_error; /* why it is not */
    /* The number of a signature that does not hold: those after it need not be verified any more.
     * As long as all hold it is greater than all their numbers. */
    _Atomic size_t refused;
} signatures;

static bool verify_document(signatures *s) {
    s->document_verified =
        encl_es384_verify(encl_chain_leaf_key(&s->chain), encl_buf_peek(&s->message),
                          s->cose->signature, &s->document_error) == ENCL_OK;
    return s->document_verified;
}

/* The links, and then the document. One is left out only where one before it does not hold, which
 * is then the first that was not verified: what the error says does not depend on who was faster.
 */
static void verify_one(void *arg, size_t i) {
    signatures *s = arg;

    if (i > atomic_load(&s->refused)) {
        return;
    }
    if (!(i < s->count ? encl_chain_verify_link(&s->chain, s->links[i]) : verify_document(s))) {
        atomic_store(&s->refused, i);
    }
}

static void one_by_one(void (*one)(void *arg, size_t i), void *arg, size_t count) {
    for (size_t i = 0; i < count; i++) {
        one(arg, i);
    }
}

/* What verifies is noted where it is verified. What nobody has looked at does not hold. */
static encl_result settle(signatures *s, encl_link_cache *cache, encl_error *err) {
    ENCL_TRY(encl_chain_settle(&s->chain, cache, err));
    if (!s->document_verified) {
        *err = s->document_error;
        encl_error_prefix(err, "the document is not signed by its certificate");
        return err->code;
    }
    return ENCL_OK;
}

static encl_result verify_all(signatures *s, encl_each *each, encl_link_cache *cache,
                              encl_error *err) {
    for (size_t i = 1; i < s->chain.count; i++) {
        if (!s->chain.links[i].verified) {
            s->links[s->count++] = i;
        }
    }
    ENCL_ENSURE(encl_chain_leaf_key(&s->chain) != NULL, err, ENCL_E_INTERNAL,
                "OpenSSL could not share the leaf's key");
    ENCL_TRY(encl_sig_structure(s->cose->protected_header, s->cose->payload, &s->message, err));
    (void)encl_fail(&s->document_error, ENCL_E_SIGNATURE, "nobody has verified its signature");
    s->refused = s->count + 1;
    (each != NULL ? each : one_by_one)(verify_one, s, s->count + 1);
    return settle(s, cache, err);
}

encl_result encl_signatures_verify(encl_attestation *a, const encl_cose *cose,
                                   const encl_policy *policy, int64_t now, encl_link_cache *cache,
                                   encl_error *err) {
    encl_root root = {ENCL_SLICE(policy->root, policy->root_len), policy->root_cert};
    encl_clock clock = {.now = now, .leeway = policy->clock_leeway};
    signatures s = {.cose = cose};
    encl_code rc;

    encl_buf_init(&s.message, ENCL_DOCUMENT_MAX_BYTES);
    ENCL_TRY_GOTO(encl_chain_read(&s.chain, a, root, clock, cache, err), done);
    ENCL_TRY_GOTO(verify_all(&s, policy->each, cache, err), done);
    a->valid_until = s.chain.until;
done:
    encl_chain_release(&s.chain);
    encl_buf_free(&s.message);
    return rc;
}
