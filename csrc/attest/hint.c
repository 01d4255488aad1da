/* What to do about a refused document, in words, and what it looks like, for programs. Users meet
 * two refusals that are no attack: an enclave in debug mode, and one under a root of its own.
 * Nothing is decided here: the error is there already, its message grows, and its hint is set. */
#include <stdlib.h>
#include <string.h>

#include <openssl/x509.h>

#include "attest/internal.h"

/* NULL where there is none; freed with X509_free. */
static X509 *certificate_in(encl_slice der) {
    const uint8_t *at = der.data;

    return der.len == 0 ? NULL : d2i_X509(NULL, &at, (long)der.len);
}

static bool is_self_issued(const X509 *cert) {
    return X509_NAME_cmp(X509_get_subject_name(cert), X509_get_issuer_name(cert)) == 0;
}

/* Stand-ins for a leaf: zeros, or a certificate that nobody else has signed. */
static bool is_debug_document(const encl_attestation *a) {
    X509 *leaf = certificate_in(a->certificate);
    bool proves_nothing = leaf == NULL || is_self_issued(leaf);

    X509_free(leaf);
    return proves_nothing;
}

static bool has_another_root(const encl_attestation *a, encl_slice root) {
    encl_slice first = a->cabundle[0];
    bool another;
    X509 *cert;

    if (a->cabundle_len == 0 ||
        (first.len == root.len && memcmp(first.data, root.data, root.len) == 0)) {
        return false;
    }
    cert = certificate_in(first);
    another = cert != NULL && is_self_issued(cert);
    X509_free(cert);
    return another;
}

static encl_hint hint_of(const encl_attestation *a, encl_slice root, encl_code code) {
    if (is_debug_document(a)) {
        return ENCL_HINT_DEBUG_ENCLAVE;
    }
    if (code == ENCL_E_CERTIFICATE && has_another_root(a, root)) {
        return ENCL_HINT_ANOTHER_ROOT;
    }
    return ENCL_HINT_NONE;
}

static const char *advice(encl_hint hint) {
    switch (hint) {
    case ENCL_HINT_DEBUG_ENCLAVE:
        return "; this looks like the self-signed document of a debug enclave, which proves "
               "nothing: only debug_mode=True takes it";
    case ENCL_HINT_ANOTHER_ROOT:
        return "; the document leads to another root than the pinned one: an enclave with a root "
               "of its own (a local one, another AWS partition) needs root=, from whoever runs it";
    default:
        return "";
    }
}

void encl_hint_add(encl_slice document, const encl_policy *policy, encl_error *err) {
    encl_attestation *a;
    encl_error ignored;
    encl_cose cose;

    if (err->hint != ENCL_HINT_NONE ||
        (err->code != ENCL_E_DOCUMENT && err->code != ENCL_E_CERTIFICATE)) {
        return;
    }
    a = calloc(1, sizeof *a);
    if (a == NULL) {
        return;
    }
    if (encl_document_parse(document, true, a, &cose, &ignored) == ENCL_OK) {
        err->hint = hint_of(a, ENCL_SLICE(policy->root, policy->root_len), err->code);
        encl_error_suffix(err, advice(err->hint));
    }
    encl_attestation_free(a);
}
