/* Writes the bytes that both sides sign, and for local enclaves whole documents. Decides nothing
 * about trust. Calls cbor and es384.c. */
#include <string.h>

#include <openssl/err.h>

#include "attest/internal.h"
#include "cbor/writer.h"

#define LITERAL(text) ENCL_SLICE((text), sizeof(text) - 1)

/* Heads, and the texts and empty items between the parts of a COSE structure, take less. */
#define COSE_OVERHEAD 64

encl_result encl_sig_structure(encl_slice protected_header, encl_slice payload, encl_buf *out,
                               encl_error *err) {
    encl_writer w;

    ENCL_TRY(encl_writer_begin(&w, out, protected_header.len + payload.len + COSE_OVERHEAD, err));
    encl_put_array(&w, 4);
    encl_put_text(&w, LITERAL("Signature1"));
    encl_put_bytes(&w, protected_header);
    encl_put_bytes(&w, ENCL_SLICE_NONE);
    encl_put_bytes(&w, payload);
    return encl_writer_end(&w, out, "Sig_structure", err);
}

static void put_optional(encl_writer *w, encl_slice key, encl_slice value) {
    encl_put_text(w, key);
    if (value.data == NULL) {
        encl_put_null(w);
    } else {
        encl_put_bytes(w, value);
    }
}

static void put_pcrs(encl_writer *w, const encl_pcr pcrs[ENCL_PCR_SLOTS]) {
    size_t count = 0;

    for (size_t i = 0; i < ENCL_PCR_SLOTS; i++) {
        count += pcrs[i].len != 0 ? 1 : 0;
    }
    encl_put_text(w, LITERAL("pcrs"));
    encl_put_map(w, count);
    for (size_t i = 0; i < ENCL_PCR_SLOTS; i++) {
        if (pcrs[i].len != 0) {
            encl_put_uint(w, i);
            encl_put_bytes(w, ENCL_SLICE(pcrs[i].value, pcrs[i].len));
        }
    }
}

static void put_certificates(encl_writer *w, const encl_doc_template *doc) {
    encl_put_text(w, LITERAL("certificate"));
    encl_put_bytes(w, doc->certificate);
    encl_put_text(w, LITERAL("cabundle"));
    encl_put_array(w, doc->cabundle_len);
    for (size_t i = 0; i < doc->cabundle_len; i++) {
        encl_put_bytes(w, doc->cabundle[i]);
    }
}

static encl_result check_template(const encl_doc_template *doc, encl_error *err) {
    for (size_t i = 0; i < ENCL_PCR_SLOTS; i++) {
        ENCL_ENSURE(doc->pcrs[i].len <= ENCL_PCR_MAX_BYTES, err, ENCL_E_INVALID,
                    "PCR%zu: expected at most %d bytes, got %d", i, ENCL_PCR_MAX_BYTES,
                    doc->pcrs[i].len);
    }
    ENCL_ENSURE(doc->cabundle_len <= ENCL_CABUNDLE_MAX, err, ENCL_E_INVALID,
                "cabundle: expected at most %d certificates, got %zu", ENCL_CABUNDLE_MAX,
                doc->cabundle_len);
    return ENCL_OK;
}

static encl_result put_payload(encl_buf *out, const encl_doc_template *doc, encl_error *err) {
    encl_writer w;

    ENCL_TRY(check_template(doc, err));
    ENCL_TRY(encl_writer_begin(&w, out, ENCL_DOCUMENT_MAX_BYTES, err));
    encl_put_map(&w, 9);
    encl_put_text(&w, LITERAL("module_id"));
    encl_put_text(&w, doc->module_id);
    encl_put_text(&w, LITERAL("digest"));
    encl_put_text(&w, LITERAL("SHA384"));
    encl_put_text(&w, LITERAL("timestamp"));
    encl_put_uint(&w, doc->timestamp_ms);
    put_pcrs(&w, doc->pcrs);
    put_certificates(&w, doc);
    put_optional(&w, LITERAL("public_key"), doc->public_key);
    put_optional(&w, LITERAL("user_data"), doc->user_data);
    put_optional(&w, LITERAL("nonce"), doc->nonce);
    return encl_writer_end(&w, out, "the document's payload", err);
}

static encl_result sign(EVP_PKEY *key, encl_slice header, encl_slice payload,
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
    encl_writer w;

    ENCL_TRY(
        encl_writer_begin(&w, out, header.len + payload.len + signature.len + COSE_OVERHEAD, err));
    encl_put_array(&w, 4);
    encl_put_bytes(&w, header);
    encl_put_map(&w, 0);
    encl_put_bytes(&w, payload);
    encl_put_bytes(&w, signature);
    return encl_writer_end(&w, out, "the document", err);
}

encl_result encl_attest_sign_with(const encl_doc_template *doc, encl_signing_key *signing_key,
                                  encl_buf *out, encl_error *err) {
    static const uint8_t es384_header[] = {0xa1, 0x01, 0x38, 0x22}; /* {1: -35} */
    encl_slice header = ENCL_SLICE(es384_header, sizeof es384_header);
    uint8_t signature[ENCL_ES384_SIGNATURE_BYTES] = {0};
    encl_buf payload;
    encl_code rc;

    encl_buf_init(&payload, ENCL_DOCUMENT_MAX_BYTES);
    ENCL_TRY_GOTO(put_payload(&payload, doc, err), done);
    if (signing_key != NULL) {
        ENCL_TRY_GOTO(sign(signing_key, header, encl_buf_peek(&payload), signature, err), done);
    }
    rc = put_sign1(out, header, encl_buf_peek(&payload), ENCL_SLICE(signature, sizeof signature),
                   err);
done:
    encl_buf_free(&payload);
    return rc;
}

encl_result encl_attest_sign(const encl_doc_template *doc, encl_slice key, encl_buf *out,
                             encl_error *err) {
    encl_signing_key *signing_key = NULL;
    encl_code rc;

    if (key.len != 0) {
        ENCL_TRY(encl_signing_key_new(key, &signing_key, err));
    }
    rc = encl_attest_sign_with(doc, signing_key, out, err);
    encl_signing_key_free(signing_key);
    return rc;
}
