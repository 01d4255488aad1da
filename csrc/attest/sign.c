/* The signing side, and the bytes both sides sign. */
#include <string.h>

#include <openssl/err.h>

#include "attest/internal.h"
#include "attest/writer.h"

#define LITERAL(text) ENCL_SLICE((text), sizeof(text) - 1)

encl_result encl_sig_structure(encl_slice protected_header, encl_slice payload, encl_buf *out,
                               encl_error *err) {
    ENCL_TRY(encl_put_array(out, 4, err));
    ENCL_TRY(encl_put_text(out, LITERAL("Signature1"), err));
    ENCL_TRY(encl_put_bytes(out, protected_header, err));
    ENCL_TRY(encl_put_bytes(out, ENCL_SLICE_NONE, err));
    return encl_put_bytes(out, payload, err);
}

static encl_result put_optional(encl_buf *out, encl_slice key, encl_slice value, encl_error *err) {
    ENCL_TRY(encl_put_text(out, key, err));
    return value.data == NULL ? encl_put_null(out, err) : encl_put_bytes(out, value, err);
}

static encl_result put_pcrs(encl_buf *out, const encl_pcr pcrs[ENCL_PCR_SLOTS], encl_error *err) {
    size_t count = 0;

    for (size_t i = 0; i < ENCL_PCR_SLOTS; i++) {
        ENCL_ENSURE(pcrs[i].len <= ENCL_PCR_MAX_BYTES, err, ENCL_E_INVALID,
                    "PCR%zu: expected at most %d bytes, came %d", i, ENCL_PCR_MAX_BYTES,
                    pcrs[i].len);
        count += pcrs[i].len != 0 ? 1 : 0;
    }
    ENCL_TRY(encl_put_text(out, LITERAL("pcrs"), err));
    ENCL_TRY(encl_put_map(out, count, err));
    for (size_t i = 0; i < ENCL_PCR_SLOTS; i++) {
        if (pcrs[i].len != 0) {
            ENCL_TRY(encl_put_uint(out, i, err));
            ENCL_TRY(encl_put_bytes(out, ENCL_SLICE(pcrs[i].value, pcrs[i].len), err));
        }
    }
    return ENCL_OK;
}

static encl_result put_certificates(encl_buf *out, const encl_doc_template *doc, encl_error *err) {
    ENCL_ENSURE(doc->cabundle_len <= ENCL_CABUNDLE_MAX, err, ENCL_E_INVALID,
                "cabundle: expected at most %d certificates, came %zu", ENCL_CABUNDLE_MAX,
                doc->cabundle_len);
    ENCL_TRY(encl_put_text(out, LITERAL("certificate"), err));
    ENCL_TRY(encl_put_bytes(out, doc->certificate, err));
    ENCL_TRY(encl_put_text(out, LITERAL("cabundle"), err));
    ENCL_TRY(encl_put_array(out, doc->cabundle_len, err));
    for (size_t i = 0; i < doc->cabundle_len; i++) {
        ENCL_TRY(encl_put_bytes(out, doc->cabundle[i], err));
    }
    return ENCL_OK;
}

static encl_result put_payload(encl_buf *out, const encl_doc_template *doc, encl_error *err) {
    ENCL_TRY(encl_put_map(out, 9, err));
    ENCL_TRY(encl_put_text(out, LITERAL("module_id"), err));
    ENCL_TRY(encl_put_text(out, doc->module_id, err));
    ENCL_TRY(encl_put_text(out, LITERAL("digest"), err));
    ENCL_TRY(encl_put_text(out, LITERAL("SHA384"), err));
    ENCL_TRY(encl_put_text(out, LITERAL("timestamp"), err));
    ENCL_TRY(encl_put_uint(out, doc->timestamp_ms, err));
    ENCL_TRY(put_pcrs(out, doc->pcrs, err));
    ENCL_TRY(put_certificates(out, doc, err));
    ENCL_TRY(put_optional(out, LITERAL("public_key"), doc->public_key, err));
    ENCL_TRY(put_optional(out, LITERAL("user_data"), doc->user_data, err));
    return put_optional(out, LITERAL("nonce"), doc->nonce, err);
}

static encl_result sign(encl_slice key, encl_slice header, encl_slice payload,
                        uint8_t signature[ENCL_ES384_SIGNATURE_BYTES], encl_error *err) {
    encl_buf message;
    encl_code rc;

    encl_buf_init(&message, ENCL_DOCUMENT_MAX_BYTES);
    ENCL_TRY_GOTO(encl_sig_structure(header, payload, &message, err), done);
    ERR_set_mark();
    rc = encl_es384_sign(key, encl_buf_peek(&message), signature, err);
    ERR_pop_to_mark();
done:
    encl_buf_free(&message);
    return rc;
}

static encl_result put_sign1(encl_buf *out, encl_slice header, encl_slice payload,
                             encl_slice signature, encl_error *err) {
    ENCL_TRY(encl_put_array(out, 4, err));
    ENCL_TRY(encl_put_bytes(out, header, err));
    ENCL_TRY(encl_put_map(out, 0, err));
    ENCL_TRY(encl_put_bytes(out, payload, err));
    return encl_put_bytes(out, signature, err);
}

encl_result encl_attest_sign(const encl_doc_template *doc, encl_slice key, encl_buf *out,
                             encl_error *err) {
    static const uint8_t es384_header[] = {0xa1, 0x01, 0x38, 0x22}; /* {1: -35} */
    encl_slice header = ENCL_SLICE(es384_header, sizeof es384_header);
    uint8_t signature[ENCL_ES384_SIGNATURE_BYTES] = {0};
    encl_buf payload;
    encl_code rc;

    encl_buf_init(&payload, ENCL_DOCUMENT_MAX_BYTES);
    ENCL_TRY_GOTO(put_payload(&payload, doc, err), done);
    if (key.len != 0) {
        ENCL_TRY_GOTO(sign(key, header, encl_buf_peek(&payload), signature, err), done);
    }
    rc = put_sign1(out, header, encl_buf_peek(&payload), ENCL_SLICE(signature, sizeof signature),
                   err);
done:
    encl_buf_free(&payload);
    return rc;
}
