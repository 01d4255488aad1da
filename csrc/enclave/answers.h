/* answers: what a local enclave sends to one client, sealed in records or bare. Service thread
 * only. None of these ends the connection: a failure says that its owner must, and why. Where the
 * connection is closing already they fail with ENCL_E_CLOSED and nothing need be done. */
#ifndef ENCL_ENCLAVE_ANSWERS_H
#define ENCL_ENCLAVE_ANSWERS_H

#include "enclave/state.h"

typedef struct encl_answers {
    encl_enclave *enclave;
    encl_conn *conn;       /* the client's, which outlives this */
    encl_session *session; /* owned */
    encl_buf made;         /* a record that is sent in pieces; the handshake */
} encl_answers;

encl_result encl_answers_init(encl_answers *a, encl_enclave *e, encl_conn *conn, encl_error *err);
void encl_answers_free(encl_answers *a);

/* One record each. */
encl_result encl_answers_data(encl_answers *a, uint64_t id, encl_slice bytes, encl_error *err);
encl_result encl_answers_eof(encl_answers *a, uint64_t id, encl_error *err);
encl_result encl_answers_reply(encl_answers *a, uint64_t id, encl_slice answer, encl_error *err);
encl_result encl_answers_failed(encl_answers *a, uint64_t id, const char *text, encl_error *err);
encl_result encl_answers_document(encl_answers *a, encl_slice document, encl_error *err);
/* A fault: seals any plaintext. */
encl_result encl_answers_plaintext(encl_answers *a, encl_slice plaintext, encl_error *err);

/* What stands in made, not sealed, in messages of at most split bytes (0: as long as they may be);
 * made is empty afterwards. */
encl_result encl_answers_bare(encl_answers *a, size_t split, encl_error *err);

#endif
