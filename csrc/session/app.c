/* What an open session may send: decides whether a message fits the role, the state and the open
 * ids, then has it encoded and sealed. Calls record.c, table.c and wire. */
#include "session/app.h"

#include <stdlib.h>
#include <string.h>

#include "session/record.h"

_Static_assert(ENCL_TABLE_MAX == ENCL_MAX_OPEN + 1, "a responder sees one beyond the limit");

encl_result encl_app_new(encl_role role, size_t max_open, encl_noise_transport *sealer,
                         encl_app **out, encl_error *err) {
    encl_app *app = calloc(1, sizeof *app);

    *out = NULL;
    ENCL_ENSURE(app != NULL, err, ENCL_E_NOMEM, "out of memory for the table of open ids");
    app->role = role;
    app->sealer = sealer;
    app->next_id = 1;
    encl_table_init(&app->table, role == ENCL_RESPONDER ? max_open + 1 : max_open);
    *out = app;
    return ENCL_OK;
}

void encl_app_disarm(encl_app *app) {
    if (app != NULL) {
        app->sealer = NULL;
        app->attestations_due = 0;
        encl_table_init(&app->table, 0);
    }
}

void encl_app_free(encl_app *app) {
    free(app);
}

static encl_result check_armed(const encl_app *app, encl_error *err) {
    ENCL_ENSURE(app != NULL, err, ENCL_E_STATE,
                "expected an open session, got one whose peer is not verified or that is closed");
    ENCL_ENSURE(app->sealer != NULL, err, ENCL_E_CLOSED, "the session is closed");
    return ENCL_OK;
}

static encl_result check_role(const encl_app *app, encl_role role, const char *what,
                              encl_error *err) {
    ENCL_TRY(check_armed(app, err));
    ENCL_ENSURE(app->role == role, err, ENCL_E_STATE, "expected the %s to %s, got the %s",
                role == ENCL_INITIATOR ? "initiator" : "responder", what,
                role == ENCL_INITIATOR ? "responder" : "initiator");
    return ENCL_OK;
}

static encl_result send_message(const encl_app *app, const encl_msg *m, encl_buf *out,
                                encl_error *err) {
    encl_direction direction = app->role == ENCL_INITIATOR ? ENCL_TO_SERVER : ENCL_TO_CLIENT;

    return encl_record_seal(app->sealer, m, direction, out, err);
}

/* The entry comes first, so that nothing can fail once the record is sealed. */
static encl_result send_new_id(encl_app *app, encl_msg_type type, encl_id_kind kind,
                               encl_slice payload, uint64_t *id, encl_buf *out, encl_error *err) {
    encl_msg m = {.type = type, .id = app->next_id, .payload = payload};
    encl_code rc;

    ENCL_ENSURE(app->next_id != UINT64_MAX, err, ENCL_E_STATE, "no id is left on this connection");
    ENCL_TRY(encl_table_add(&app->table, m.id, kind, err));
    rc = send_message(app, &m, out, err);
    if (rc != ENCL_OK) {
        encl_table_remove(&app->table, m.id);
        return rc;
    }
    app->next_id++;
    *id = m.id;
    return ENCL_OK;
}

encl_result encl_app_open_stream(encl_app *app, encl_slice payload, uint64_t *id, encl_buf *out,
                                 encl_error *err) {
    ENCL_TRY(check_role(app, ENCL_INITIATOR, "open streams", err));
    return send_new_id(app, ENCL_MSG_OPEN_STREAM, ENCL_ID_STREAM, payload, id, out, err);
}

encl_result encl_app_request(encl_app *app, encl_slice payload, uint64_t *id, encl_buf *out,
                             encl_error *err) {
    ENCL_TRY(check_role(app, ENCL_INITIATOR, "send requests", err));
    return send_new_id(app, ENCL_MSG_DATA, ENCL_ID_ONE_SHOT, payload, id, out, err);
}

static encl_result find_kind(encl_app *app, uint64_t id, encl_id_kind kind, encl_id_entry **entry,
                             encl_error *err) {
    const char *expected = kind == ENCL_ID_STREAM ? "stream" : "one-shot request";

    *entry = encl_table_find(&app->table, id);
    ENCL_ENSURE(*entry != NULL, err, ENCL_E_STATE, "expected an open %s, got id %llu, not open",
                expected, (unsigned long long)id);
    ENCL_ENSURE((*entry)->kind == kind, err, ENCL_E_STATE,
                "expected an open %s, got id %llu of another kind", expected,
                (unsigned long long)id);
    return ENCL_OK;
}

static encl_result find_writable(encl_app *app, uint64_t id, encl_id_entry **entry,
                                 encl_error *err) {
    ENCL_TRY(find_kind(app, id, ENCL_ID_STREAM, entry, err));
    ENCL_ENSURE(!(*entry)->errored, err, ENCL_E_STATE, "stream %llu was ended by an Error",
                (unsigned long long)id);
    ENCL_ENSURE(!(*entry)->we_closed, err, ENCL_E_STATE,
                "stream %llu is closed for writing from this side", (unsigned long long)id);
    /* A client may shut down its writing and go on reading; a workload that closed is gone. */
    ENCL_ENSURE(app->role == ENCL_RESPONDER || !(*entry)->peer_closed, err, ENCL_E_STATE,
                "the workload closed stream %llu", (unsigned long long)id);
    return ENCL_OK;
}

encl_result encl_app_stream_data(encl_app *app, uint64_t id, encl_slice payload, encl_buf *out,
                                 encl_error *err) {
    encl_msg m = {.type = ENCL_MSG_STREAM_DATA, .id = id, .payload = payload};
    encl_id_entry *entry = NULL;

    ENCL_TRY(check_armed(app, err));
    ENCL_TRY(find_writable(app, id, &entry, err));
    return send_message(app, &m, out, err);
}

static encl_result close_writing(encl_app *app, const encl_msg *m, encl_buf *out, encl_error *err) {
    encl_id_entry *entry = NULL;

    ENCL_TRY(find_writable(app, m->id, &entry, err));
    ENCL_TRY(send_message(app, m, out, err));
    entry->we_closed = true;
    return ENCL_OK;
}

static encl_result close_both(encl_app *app, const encl_msg *m, encl_buf *out, encl_error *err) {
    encl_id_entry *entry = NULL;

    ENCL_TRY(find_kind(app, m->id, ENCL_ID_STREAM, &entry, err));
    ENCL_TRY(send_message(app, m, out, err));
    encl_table_remove(&app->table, m->id);
    return ENCL_OK;
}

encl_result encl_app_stream_close(encl_app *app, uint64_t id, encl_half half, encl_buf *out,
                                  encl_error *err) {
    encl_msg m = {.type = ENCL_MSG_STREAM_CLOSE, .id = id, .half = half};

    ENCL_TRY(check_armed(app, err));
    if (app->role == ENCL_RESPONDER) {
        m.half = ENCL_HALF_NONE;
        return close_writing(app, &m, out, err);
    }
    ENCL_ENSURE(half == ENCL_HALF_WRITE || half == ENCL_HALF_BOTH, err, ENCL_E_INVALID,
                "expected to close the half Write or Both, got %d", (int)half);
    return half == ENCL_HALF_WRITE ? close_writing(app, &m, out, err)
                                   : close_both(app, &m, out, err);
}

encl_result encl_app_request_attestation(encl_app *app, encl_buf *out, encl_error *err) {
    encl_msg m = {.type = ENCL_MSG_REQUEST_ATTESTATION};

    ENCL_TRY(check_role(app, ENCL_INITIATOR, "ask for attestation", err));
    ENCL_TRY(send_message(app, &m, out, err));
    app->attestations_due++;
    return ENCL_OK;
}

encl_result encl_app_attestation(encl_app *app, encl_slice document, const uint8_t *control_nonce,
                                 encl_buf *out, encl_error *err) {
    encl_msg m = {.type = ENCL_MSG_ATTESTATION, .payload = document};

    ENCL_TRY(check_role(app, ENCL_RESPONDER, "give attestation", err));
    if (control_nonce != NULL) {
        memcpy(m.control_nonce, control_nonce, sizeof m.control_nonce);
    }
    return send_message(app, &m, out, err);
}

encl_result encl_app_reply(encl_app *app, uint64_t id, encl_slice payload, encl_buf *out,
                           encl_error *err) {
    encl_msg m = {.type = ENCL_MSG_DATA, .id = id, .payload = payload};
    encl_id_entry *entry = NULL;

    ENCL_TRY(check_role(app, ENCL_RESPONDER, "answer requests", err));
    ENCL_TRY(find_kind(app, id, ENCL_ID_ONE_SHOT, &entry, err));
    ENCL_TRY(send_message(app, &m, out, err));
    encl_table_remove(&app->table, id);
    return ENCL_OK;
}

encl_result encl_app_error(encl_app *app, uint64_t id, encl_slice text, encl_buf *out,
                           encl_error *err) {
    encl_msg m = {.type = ENCL_MSG_ERROR, .id = id, .payload = text};

    ENCL_TRY(check_role(app, ENCL_RESPONDER, "send errors", err));
    ENCL_TRY(send_message(app, &m, out, err));
    encl_table_remove(&app->table, id);
    return ENCL_OK;
}

encl_result encl_app_raw(encl_app *app, encl_slice plaintext, encl_buf *out, encl_error *err) {
    ENCL_TRY(check_role(app, ENCL_RESPONDER, "send plaintexts as they are", err));
    return encl_record_seal_raw(app->sealer, plaintext, out, err);
}
