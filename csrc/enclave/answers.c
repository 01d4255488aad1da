/* answers: makes one record at a time, in the connection's own buffer where it is sent as one
 * message, aside where faults or its length have it sent in pieces. It decides how bytes are laid
 * into messages and nothing else. Calls session for the record and net to send it; net's lock is
 * held between tx_begin and tx_end, in which only session is called. */
#include "enclave/answers.h"

#include <string.h>

#include "base/slice.h"
#include "enclave/faults.h"

/* No message of the connection is longer, not even as hex digits. */
#define PIECE_MAX ((size_t)32000)

encl_result encl_answers_init(encl_answers *a, encl_enclave *e, encl_conn *conn, encl_error *err) {
    encl_session_config config = {.role = ENCL_RESPONDER};

    *a = (encl_answers){.enclave = e, .conn = conn};
    encl_buf_init(&a->made, ENCL_RECORD_MAX);
    return encl_session_new(&config, &a->session, err);
}

void encl_answers_free(encl_answers *a) {
    encl_session_free(a->session);
    encl_buf_free(&a->made);
}

/* ---- messages */

static encl_result write_hex(encl_buf *tx, encl_slice piece, encl_error *err) {
    uint8_t *room;

    ENCL_TRY(encl_buf_reserve(tx, 2 * piece.len, &room, err));
    encl_slice_hex(piece, (char *)room);
    return encl_buf_commit(tx, 2 * piece.len, err);
}

/* The fault must be a frame that any WebSocket library takes, so its text is made of digits. */
static encl_result send_text(encl_answers *a, encl_slice piece, encl_error *err) {
    encl_buf *tx;
    encl_code rc;

    ENCL_TRY(encl_conn_tx_begin(a->conn, &tx, err));
    rc = write_hex(tx, piece, err);
    encl_conn_tx_end_text(a->conn);
    return rc;
}

static encl_result send_piece(encl_answers *a, encl_slice piece, encl_error *err) {
    encl_buf *tx;
    encl_code rc;

    if (encl_fault_on(a->enclave, ENCL_FAULT_TEXT_ONLY)) {
        return send_text(a, piece, err);
    }
    ENCL_TRY(encl_conn_tx_begin(a->conn, &tx, err));
    rc = encl_buf_write(tx, piece, err);
    encl_conn_tx_end(a->conn);
    return rc;
}

static encl_result send_pieces(encl_answers *a, encl_slice bytes, size_t split, encl_error *err) {
    if (split == 0 || split > PIECE_MAX) {
        split = PIECE_MAX;
    }
    while (bytes.len != 0) {
        size_t n = bytes.len < split ? bytes.len : split;

        ENCL_TRY(send_piece(a, ENCL_SLICE(bytes.data, n), err));
        bytes = ENCL_SLICE(bytes.data + n, bytes.len - n);
    }
    return ENCL_OK;
}

encl_result encl_answers_bare(encl_answers *a, size_t split, encl_error *err) {
    ENCL_TRY(send_pieces(a, encl_buf_peek(&a->made), split, err));
    encl_buf_clear(&a->made);
    return ENCL_OK;
}

/* ---- records */

typedef struct record {
    encl_app *app;
    encl_buf *out;
    size_t split; /* 0: out is the connection's own buffer */
} record;

/* Records that can be longer than one message of the connection are made aside. */
static encl_result record_begin(encl_answers *a, bool may_be_long, record *r, encl_error *err) {
    r->app = encl_session_app(a->session);
    ENCL_ENSURE(r->app != NULL, err, ENCL_E_CLOSED, "the connection is ending");
    if (encl_fault_on(a->enclave, ENCL_FAULT_HALF_RECORD_LOST)) {
        (void)encl_session_forget_partial_record(a->session);
    }
    r->split = encl_fault_split(a->enclave);
    if (r->split == 0 && (may_be_long || encl_fault_on(a->enclave, ENCL_FAULT_TEXT_ONLY))) {
        r->split = PIECE_MAX;
    }
    if (r->split != 0) {
        encl_buf_clear(&a->made);
        r->out = &a->made;
        return ENCL_OK;
    }
    return encl_conn_tx_begin(a->conn, &r->out, err);
}

/* Sends what was made; made is the result of making it. */
static encl_result record_end(encl_answers *a, const record *r, encl_code made, encl_error *err) {
    if (r->split == 0) {
        encl_conn_tx_end(a->conn);
        return made;
    }
    return made == ENCL_OK ? send_pieces(a, encl_buf_peek(&a->made), r->split, err) : made;
}

encl_result encl_answers_data(encl_answers *a, uint64_t id, encl_slice bytes, encl_error *err) {
    record r;

    ENCL_TRY(record_begin(a, false, &r, err));
    return record_end(a, &r, encl_app_stream_data(r.app, id, bytes, r.out, err), err);
}

encl_result encl_answers_eof(encl_answers *a, uint64_t id, encl_error *err) {
    record r;

    ENCL_TRY(record_begin(a, false, &r, err));
    return record_end(a, &r, encl_app_stream_close(r.app, id, ENCL_HALF_NONE, r.out, err), err);
}

encl_result encl_answers_reply(encl_answers *a, uint64_t id, encl_slice answer, encl_error *err) {
    record r;

    ENCL_ENSURE(answer.len <= ENCL_NOISE_MAX_PLAIN, err, ENCL_E_INVALID,
                "the answer to request %llu does not fit one record", (unsigned long long)id);
    ENCL_TRY(record_begin(a, true, &r, err));
    return record_end(a, &r, encl_app_reply(r.app, id, answer, r.out, err), err);
}

encl_result encl_answers_failed(encl_answers *a, uint64_t id, const char *text, encl_error *err) {
    record r;

    ENCL_TRY(record_begin(a, false, &r, err));
    return record_end(a, &r, encl_app_error(r.app, id, ENCL_SLICE(text, strlen(text)), r.out, err),
                      err);
}

encl_result encl_answers_document(encl_answers *a, encl_slice document, encl_error *err) {
    record r;

    ENCL_TRY(record_begin(a, true, &r, err));
    return record_end(
        a, &r, encl_app_attestation(r.app, document, a->enclave->control_nonce, r.out, err), err);
}

encl_result encl_answers_plaintext(encl_answers *a, encl_slice plaintext, encl_error *err) {
    record r;

    ENCL_TRY(record_begin(a, true, &r, err));
    return record_end(a, &r, encl_app_raw(r.app, plaintext, r.out, err), err);
}
