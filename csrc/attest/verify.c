/* Decides in which order a document is checked, and binds it to the nonce; the other checks are in
 * document.c, signatures.c and policy.c, which it calls. */
#include <stdlib.h>
#include <string.h>

#include <openssl/err.h>

#include "attest/internal.h"
#include "base/secmem.h"

#define STUB_BYTES 32

static encl_result check_arguments(const encl_policy *policy, encl_slice nonce, encl_error *err) {
    ENCL_ENSURE(policy->root != NULL, err, ENCL_E_INVALID, "the policy was never set up");
    ENCL_ENSURE(policy->debug || policy->pin_count != 0 || !policy->need_pins, err, ENCL_E_INVALID,
                "no PCRs are pinned: without them any enclave of anyone would pass");
    ENCL_ENSURE(nonce.data == NULL || nonce.len != 0, err, ENCL_E_INVALID,
                "an empty nonce binds a document to nothing");
    return ENCL_OK;
}

static encl_result check_nonce(const encl_attestation *a, encl_slice nonce, encl_error *err) {
    if (nonce.data == NULL) {
        return ENCL_OK;
    }
    ENCL_ENSURE(a->nonce.data != NULL, err, ENCL_E_NONCE,
                "the document has no nonce: it was not made for this channel");
    ENCL_ENSURE(
        encl_equal_ct(a->nonce, nonce), err, ENCL_E_NONCE,
        "expected the nonce asked for (%zu bytes; a channel's is its handshake hash), got another "
        "one of %zu bytes: the document was made for another channel, or somebody sits in between",
        nonce.len, a->nonce.len);
    return ENCL_OK;
}

static encl_code refuse_stub(encl_error *err) {
    (void)encl_fail(err, ENCL_E_DOCUMENT,
                    "expected a COSE_Sign1 document, got %d bare bytes: this looks like a debug "
                    "enclave, which only debug mode accepts",
                    STUB_BYTES);
    err->hint = ENCL_HINT_DEBUG_ENCLAVE;
    return err->code;
}

/* recorded: judged at its own moment, see encl_attest_verify_recorded. */
static encl_result verify_nitro(encl_slice document, const encl_policy *policy, encl_slice nonce,
                                bool recorded, encl_link_cache *cache, encl_attestation *a,
                                encl_error *err) {
    encl_cose cose;

    if (document.len == STUB_BYTES) {
        return refuse_stub(err);
    }
    a->form = ENCL_DOC_NITRO;
    ENCL_TRY(encl_document_parse(document, false, a, &cose, err));
    if (recorded) {
        a->verified_at = (int64_t)(a->timestamp_ms / 1000);
    }
    ENCL_TRY(encl_signatures_verify(a, &cose, policy, a->verified_at, cache, err));
    ENCL_TRY(check_nonce(a, nonce, err));
    return encl_policy_check_pcrs(policy, a, err);
}

static encl_result accept_stub(encl_slice document, encl_attestation *a, encl_error *err) {
    a->form = ENCL_DOC_STUB;
    a->raw = malloc(document.len);
    ENCL_ENSURE(a->raw != NULL, err, ENCL_E_NOMEM, "out of memory for a document");
    memcpy(a->raw, document.data, document.len);
    a->raw_len = document.len;
    a->nonce = ENCL_SLICE(a->raw, a->raw_len);
    return ENCL_OK;
}

static encl_result verify_debug(encl_slice document, const encl_policy *policy, encl_slice nonce,
                                encl_attestation *a, encl_error *err) {
    encl_cose cose;

    if (document.len == STUB_BYTES && encl_equal_ct(document, nonce)) {
        return accept_stub(document, a, err);
    }
    ENCL_ENSURE(document.len != STUB_BYTES || nonce.data == NULL, err, ENCL_E_NONCE,
                "a debug enclave's stub is not this channel's handshake hash");
    a->form = ENCL_DOC_DEBUG;
    ENCL_TRY(encl_document_parse(document, true, a, &cose, err));
    ENCL_TRY(check_nonce(a, nonce, err));
    return encl_policy_check_pcrs(policy, a, err);
}

/* Takes a over. */
static encl_result verify_document(encl_slice document, const encl_policy *policy, encl_slice nonce,
                                   bool recorded, encl_link_cache *cache, encl_attestation *a,
                                   encl_attestation **out, encl_error *err) {
    encl_code rc;

    /* What OpenSSL queues for a bad document must not confuse this thread's TLS calls. */
    ERR_set_mark();
    rc = policy->debug ? verify_debug(document, policy, nonce, a, err)
                       : verify_nitro(document, policy, nonce, recorded, cache, a, err);
    if (rc != ENCL_OK && !policy->debug) {
        encl_hint_add(document, policy, err);
    }
    ERR_pop_to_mark();
    if (rc != ENCL_OK) {
        encl_attestation_free(a);
        return rc;
    }
    *out = a;
    return ENCL_OK;
}

static encl_result attestation_new(encl_attestation **a, encl_error *err) {
    *a = calloc(1, sizeof **a);
    ENCL_ENSURE(*a != NULL, err, ENCL_E_NOMEM, "out of memory for a document");
    (*a)->matched = ENCL_MATCHED_NONE;
    return ENCL_OK;
}

encl_result encl_attest_verify(encl_slice document, const encl_policy *policy, encl_slice nonce,
                               int64_t now, encl_link_cache *cache, encl_attestation **out,
                               encl_error *err) {
    encl_attestation *a;

    *out = NULL;
    ENCL_TRY(check_arguments(policy, nonce, err));
    ENCL_TRY(attestation_new(&a, err));
    a->verified_at = now;
    return verify_document(document, policy, nonce, false, cache, a, out, err);
}

encl_result encl_attest_verify_recorded(encl_slice document, const encl_policy *policy,
                                        encl_link_cache *cache, encl_attestation **out,
                                        encl_error *err) {
    encl_slice none = {.data = NULL, .len = 0};
    encl_attestation *a;

    *out = NULL;
    ENCL_TRY(check_arguments(policy, none, err));
    ENCL_TRY(attestation_new(&a, err));
    return verify_document(document, policy, none, true, cache, a, out, err);
}
