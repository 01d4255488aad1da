/* greeting: the handshake's answer and attestation documents. It decides which faults take the
 * place of them. Calls answers to send, identity for documents and faults for what is switched on,
 * each of which takes the enclave's lock for itself; none is held here. */
#include "enclave/greeting.h"

#include "enclave/faults.h"
#include "enclave/identity.h"

encl_result encl_greeting_handshake(encl_answers *a, encl_error *err) {
    bool silent = false, closing = false;
    size_t split = encl_fault_split(a->enclave);

    ENCL_TRY(encl_fault_handshake(a->enclave, &a->made, &silent, &closing, err));
    if (silent) {
        encl_buf_clear(&a->made);
    }
    ENCL_TRY(encl_answers_bare(a, split, err));
    ENCL_ENSURE(!closing, err, ENCL_E_STATE, "handshake cut short");
    ENCL_TRY(encl_fault_after_handshake(a->enclave, &a->made, err));
    return encl_answers_bare(a, split, err);
}

static encl_result send_document(encl_answers *a, encl_error *err) {
    encl_slice hash = ENCL_SLICE(encl_session_handshake_hash(a->session), ENCL_NOISE_HASH_BYTES);
    encl_buf document;
    encl_code rc;

    encl_buf_init(&document, ENCL_DOCUMENT_MAX_BYTES);
    ENCL_TRY_GOTO(encl_identity_document(a->enclave, hash, &document, err), done);
    ENCL_TRY_GOTO(encl_answers_document(a, encl_buf_peek(&document), err), done);
done:
    encl_buf_free(&document);
    return rc;
}

static encl_result send_hostile(encl_answers *a, encl_hostile which, bool *sent, encl_error *err) {
    encl_buf plaintext;
    encl_code rc;

    encl_buf_init(&plaintext, ENCL_NOISE_MAX_PLAIN);
    rc = encl_fault_plaintext(a->enclave, which, &plaintext, err);
    *sent = rc == ENCL_OK && encl_buf_readable(&plaintext) != 0;
    if (*sent) {
        rc = encl_answers_plaintext(a, encl_buf_peek(&plaintext), err);
    }
    encl_buf_free(&plaintext);
    return rc;
}

encl_result encl_greeting_attest(encl_answers *a, bool *attested, encl_error *err) {
    bool first = !*attested, sent;

    encl_stat_add(a->enclave, &a->enclave->stats.attestations_total, 1);
    if (encl_fault_on(a->enclave, ENCL_FAULT_SILENT_ATTESTATION)) {
        return ENCL_OK;
    }
    *attested = true;
    ENCL_TRY(send_hostile(a, ENCL_INSTEAD_OF_ATTESTATION, &sent, err));
    if (!sent) {
        ENCL_TRY(send_document(a, err));
    }
    return first ? send_hostile(a, ENCL_AFTER_ATTESTATION, &sent, err) : ENCL_OK;
}
