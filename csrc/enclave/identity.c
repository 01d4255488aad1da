/* identity: a copy of what documents are made of, and a document for one handshake. Calls attest to
 * sign, with the enclave's lock held so that the identity is not exchanged meanwhile. */
#include "enclave/identity.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "enclave/faults.h"
#include "sync/fork.h"

static encl_slice take_copy(encl_buf *b, encl_slice from, encl_error *err, encl_code *rc) {
    size_t at = b->w;

    if (*rc != ENCL_OK || from.data == NULL) {
        return ENCL_SLICE_NONE;
    }
    *rc = encl_buf_write(b, from, err);
    return *rc == ENCL_OK ? ENCL_SLICE(b->data + at, from.len) : ENCL_SLICE_NONE;
}

static size_t total_len(const encl_doc_template *d) {
    size_t n = d->module_id.len + d->certificate.len + d->public_key.len;

    for (size_t i = 0; i < d->cabundle_len; i++) {
        n += d->cabundle[i].len;
    }
    return n;
}

/* Into identity's block, which has len bytes. */
static encl_result copy_fields(const encl_doc_template *d, size_t len, encl_identity *identity,
                               encl_error *err) {
    encl_code rc = ENCL_OK;
    encl_buf b;

    encl_buf_wrap(&b, identity->block, len);
    identity->document = *d;
    identity->document.nonce = identity->document.user_data = ENCL_SLICE_NONE;
    identity->document.module_id = take_copy(&b, d->module_id, err, &rc);
    identity->document.certificate = take_copy(&b, d->certificate, err, &rc);
    identity->document.public_key = take_copy(&b, d->public_key, err, &rc);
    for (size_t i = 0; i < d->cabundle_len; i++) {
        identity->document.cabundle[i] = take_copy(&b, d->cabundle[i], err, &rc);
    }
    return rc;
}

/* A key or certificate that cannot sign is better found now than in each connection. */
static encl_result try_signing(const encl_identity *identity, encl_enclave_mode mode,
                               encl_error *err) {
    encl_doc_template document = identity->document;
    encl_code rc;
    encl_buf b;

    if (mode == ENCL_ENCLAVE_STUB) {
        return ENCL_OK;
    }
    document.timestamp_ms = 1;
    encl_buf_init(&b, ENCL_DOCUMENT_MAX_BYTES);
    rc = encl_attest_sign_with(&document, identity->leaf_key, &b, err);
    encl_buf_free(&b);
    return rc;
}

static encl_result copy(const encl_doc_template *document, encl_slice leaf_key,
                        encl_enclave_mode mode, encl_identity *out, encl_error *err) {
    encl_code rc;
    size_t len;

    memset(out, 0, sizeof *out);
    ENCL_ENSURE(document->cabundle_len <= ENCL_CABUNDLE_MAX, err, ENCL_E_INVALID,
                "cabundle: expected at most %d certificates, got %zu", ENCL_CABUNDLE_MAX,
                document->cabundle_len);
    ENCL_ENSURE(document->module_id.len != 0, err, ENCL_E_INVALID,
                "module_id: expected a text, got an empty one");
    ENCL_ENSURE(mode != ENCL_ENCLAVE_PRODUCTION || leaf_key.len != 0, err, ENCL_E_INVALID,
                "production mode: expected the leaf's private key, got none");
    if (mode == ENCL_ENCLAVE_PRODUCTION) {
        ENCL_TRY(encl_signing_key_new(leaf_key, &out->leaf_key, err));
    }
    len = total_len(document);
    out->block = malloc(len + 1);
    ENCL_ENSURE_GOTO(out->block != NULL, done, err, ENCL_E_NOMEM,
                     "out of memory for an enclave's identity");
    ENCL_TRY_GOTO(copy_fields(document, len, out, err), done);
    ENCL_TRY_GOTO(try_signing(out, mode, err), done);
done:
    if (rc != ENCL_OK) {
        encl_identity_free(out);
    }
    return rc;
}

encl_result encl_identity_copy(const encl_doc_template *document, encl_slice leaf_key,
                               encl_enclave_mode mode, encl_identity *out, encl_error *err) {
    encl_code rc;

    encl_fork_hold();
    rc = copy(document, leaf_key, mode, out, err);
    encl_fork_let_go();
    return rc;
}

void encl_identity_free(encl_identity *identity) {
    encl_fork_hold();
    encl_signing_key_free(identity->leaf_key);
    encl_fork_let_go();
    free(identity->block);
    memset(identity, 0, sizeof *identity);
}

static uint64_t unix_ms(void) {
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static void spoil_pcrs(encl_doc_template *document) {
    for (size_t i = 0; i < ENCL_PINNED_PCRS; i++) {
        for (size_t j = 0; j < document->pcrs[i].len; j++) {
            document->pcrs[i].value[j] ^= 0xff;
        }
    }
}

static encl_result sign_locked(encl_enclave *e, encl_slice nonce, encl_buf *out, encl_error *err)
    ENCL_REQUIRES(e->lock) {
    encl_doc_template document = e->identity.document;

    document.nonce = nonce;
    document.user_data = ENCL_SLICE(e->control_nonce, sizeof e->control_nonce);
    document.timestamp_ms = unix_ms();
    if ((e->faults.mask & ENCL_FAULT_WRONG_PCRS) != 0) {
        spoil_pcrs(&document);
    }
    ENCL_TRY(encl_attest_sign_with(&document, e->identity.leaf_key, out, err));
    if ((e->faults.mask & ENCL_FAULT_BAD_SIGNATURE) != 0) {
        out->data[out->w - 1] ^= 1; /* COSE_Sign1 ends with the signature */
    }
    return ENCL_OK;
}

encl_result encl_identity_document(encl_enclave *e, encl_slice handshake_hash, encl_buf *out,
                                   encl_error *err) {
    uint8_t nonce[ENCL_NOISE_HASH_BYTES];
    encl_code rc;

    ENCL_ENSURE(handshake_hash.len == sizeof nonce, err, ENCL_E_INTERNAL,
                "handshake hash of %zu bytes", handshake_hash.len);
    memcpy(nonce, handshake_hash.data, sizeof nonce);
    if (encl_fault_on(e, ENCL_FAULT_WRONG_NONCE)) {
        nonce[0] ^= 1;
    }
    if (e->mode == ENCL_ENCLAVE_STUB) {
        return encl_buf_write(out, ENCL_SLICE(nonce, sizeof nonce), err);
    }
    encl_lock(&e->lock);
    rc = sign_locked(e, ENCL_SLICE(nonce, sizeof nonce), out, err);
    encl_unlock(&e->lock);
    return rc;
}
