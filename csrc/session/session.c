/* Decides which message may be received in which state, and who handles it. Splitting bytes into
 * records is record.c's, decoding is wire's, application sending is app.c's. This file seals one
 * message itself: the first RequestAttestation. */
#include "session/session.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/secmem.h"
#include "session/app.h"
#include "session/record.h"

#define FIRST_MESSAGE_BYTES  ((size_t)ENCL_NOISE_KEY_BYTES)
#define ANSWER_MESSAGE_BYTES ((size_t)(ENCL_NOISE_KEY_BYTES + ENCL_NOISE_TAG_BYTES))
#define TEXT_SHOWN           200 /* of a peer's text in an error message */

struct encl_session {
    encl_role role;
    encl_session_state state;
    const encl_policy *policy;
    encl_link_cache *cache;
    size_t max_open;
    encl_noise_handshake *handshake; /* until the split */
    encl_noise_transport *transport; /* from the split on */
    uint8_t hash[ENCL_NOISE_HASH_BYTES];
    encl_gather in;
    encl_attestation *attestation;
    encl_app *app; /* made by become_open and nowhere else */
    uint64_t idle_records;
};

/* What one call of recv works on. */
typedef struct input {
    uint8_t *block;
    size_t len, pos;
    int64_t now;
    encl_buf *out;
    encl_event *event;
} input;

typedef encl_code (*step)(encl_session *s, input *in, encl_error *err);
typedef encl_code (*handler)(encl_session *s, const encl_msg *m, input *in, encl_error *err);

const char *encl_session_state_name(encl_session_state state) {
    static const char *const names[] = {
        [ENCL_SESSION_NEW] = "NEW",
        [ENCL_SESSION_HANDSHAKE] = "HANDSHAKE",
        [ENCL_SESSION_ATTESTING] = "ATTESTING",
        [ENCL_SESSION_OPEN] = "OPEN",
        [ENCL_SESSION_CLOSED] = "CLOSED",
    };

    return (size_t)state < sizeof names / sizeof *names ? names[state] : "unknown";
}

/* ---- life ---- */

static encl_result check_config(const encl_session_config *config, encl_error *err) {
    ENCL_ENSURE(config->role == ENCL_INITIATOR || config->role == ENCL_RESPONDER, err,
                ENCL_E_INVALID, "expected the role of an initiator or a responder, got %d",
                (int)config->role);
    ENCL_ENSURE(config->role == ENCL_RESPONDER || config->policy != NULL, err, ENCL_E_INVALID,
                "expected a policy to verify the peer by, got none");
    ENCL_ENSURE(config->max_open <= ENCL_MAX_OPEN, err, ENCL_E_INVALID,
                "expected at most %d ids open, got %zu", ENCL_MAX_OPEN, config->max_open);
    return ENCL_OK;
}

encl_result encl_session_new(const encl_session_config *config, encl_session **out,
                             encl_error *err) {
    encl_session *s;
    encl_code rc;

    *out = NULL;
    ENCL_TRY(check_config(config, err));
    s = calloc(1, sizeof *s);
    ENCL_ENSURE(s != NULL, err, ENCL_E_NOMEM, "out of memory for a session");
    s->role = config->role;
    s->state = config->role == ENCL_INITIATOR ? ENCL_SESSION_NEW : ENCL_SESSION_HANDSHAKE;
    s->policy = config->policy;
    s->cache = config->cache;
    s->max_open = config->max_open == 0 ? ENCL_MAX_OPEN : config->max_open;
    encl_gather_init(&s->in);
    rc = encl_noise_handshake_new(config->role, ENCL_SLICE_NONE, config->fixed_ephemeral,
                                  &s->handshake, err);
    if (rc != ENCL_OK) {
        encl_session_free(s);
        return rc;
    }
    *out = s;
    return ENCL_OK;
}

void encl_session_close(encl_session *s) {
    s->state = ENCL_SESSION_CLOSED;
    encl_app_disarm(s->app);
    encl_noise_handshake_free(s->handshake);
    s->handshake = NULL;
    encl_noise_transport_free(s->transport);
    s->transport = NULL;
    encl_gather_free(&s->in);
}

void encl_session_free(encl_session *s) {
    if (s != NULL) {
        encl_session_close(s);
        encl_attestation_free(s->attestation);
        encl_app_free(s->app);
        free(s);
    }
}

/* ---- what can be asked ---- */

encl_session_state encl_session_get_state(const encl_session *s) {
    return s->state;
}

#ifdef ENCL_TESTING
const encl_attestation *encl_session_attestation(const encl_session *s) {
    return s->attestation;
}
#endif

encl_attestation *encl_session_take_attestation(encl_session *s) {
    encl_attestation *taken = s->attestation;

    s->attestation = NULL;
    return taken;
}

const uint8_t *encl_session_handshake_hash(const encl_session *s) {
    return s->hash;
}

size_t encl_session_open_ids(const encl_session *s) {
    return s->app == NULL ? 0 : s->app->table.open;
}

uint64_t encl_session_idle_records(const encl_session *s) {
    return s->idle_records;
}

encl_app *encl_session_app(encl_session *s) {
    return s->state == ENCL_SESSION_OPEN ? s->app : NULL;
}

static bool takes_records(const encl_session *s) {
    return s->state == ENCL_SESSION_ATTESTING || s->state == ENCL_SESSION_OPEN;
}

bool encl_session_has_partial_record(const encl_session *s) {
    return takes_records(s) && encl_gather_partial(&s->in) != 0;
}

bool encl_session_forget_partial_record(encl_session *s) {
    return takes_records(s) && encl_gather_forget(&s->in);
}

/* ---- handshake, and the one way to OPEN ---- */

encl_result encl_session_start(encl_session *s, encl_buf *out, encl_error *err) {
    encl_code rc;

    ENCL_ENSURE(s->state == ENCL_SESSION_NEW, err, ENCL_E_STATE,
                "expected a session in state %s to start, got one in %s",
                encl_session_state_name(ENCL_SESSION_NEW), encl_session_state_name(s->state));
    rc = encl_noise_handshake_write(s->handshake, ENCL_SLICE_NONE, out, err);
    if (rc != ENCL_OK) {
        encl_session_close(s);
        return rc;
    }
    s->state = ENCL_SESSION_HANDSHAKE;
    return ENCL_OK;
}

static encl_result become_open(encl_session *s, encl_event *event, encl_error *err) {
    ENCL_ENSURE(s->role == ENCL_RESPONDER || s->attestation != NULL, err, ENCL_E_INTERNAL,
                "a session must not open before its peer is verified");
    ENCL_TRY(encl_app_new(s->role, s->max_open, s->transport, &s->app, err));
    s->state = ENCL_SESSION_OPEN;
    event->type = ENCL_EV_OPEN;
    return ENCL_OK;
}

static encl_result ask_for_document(encl_session *s, encl_buf *out, encl_error *err) {
    const encl_msg m = {.type = ENCL_MSG_REQUEST_ATTESTATION};

    ENCL_TRY(encl_record_seal(s->transport, &m, ENCL_TO_SERVER, out, err));
    s->state = ENCL_SESSION_ATTESTING;
    return ENCL_OK;
}

static encl_result read_handshake(encl_session *s, const uint8_t *message, size_t len,
                                  encl_error *err) {
    uint8_t block[ANSWER_MESSAGE_BYTES];
    encl_buf payload;

    encl_buf_wrap(&payload, block, sizeof block);
    return encl_noise_handshake_read(s->handshake, ENCL_SLICE(message, len), &payload, err);
}

static encl_result split_keys(encl_session *s, encl_error *err) {
    ENCL_TRY(encl_noise_handshake_split(s->handshake, &s->transport, s->hash, err));
    encl_noise_handshake_free(s->handshake);
    s->handshake = NULL;
    return ENCL_OK;
}

static size_t handshake_bytes_expected(const encl_session *s) {
    return s->role == ENCL_INITIATOR ? ANSWER_MESSAGE_BYTES : FIRST_MESSAGE_BYTES;
}

static encl_code step_handshake(encl_session *s, input *in, encl_error *err) {
    size_t size = handshake_bytes_expected(s);
    uint8_t *message = NULL;

    ENCL_TRY(encl_gather_exact(&s->in, in->block, in->len, &in->pos, size, &message, err));
    if (message == NULL) {
        return ENCL_OK;
    }
    ENCL_TRY(read_handshake(s, message, size, err));
    if (s->role == ENCL_INITIATOR) {
        ENCL_TRY(split_keys(s, err));
        return ask_for_document(s, in->out, err);
    }
    ENCL_TRY(encl_noise_handshake_write(s->handshake, ENCL_SLICE_NONE, in->out, err));
    ENCL_TRY(split_keys(s, err));
    return become_open(s, in->event, err);
}

/* ---- messages to the initiator ---- */

static encl_result verify_document(encl_session *s, const encl_msg *m, const input *in,
                                   encl_error *err) {
    encl_attestation *verified;

    ENCL_TRY(encl_attest_verify(m->payload, s->policy, ENCL_SLICE(s->hash, sizeof s->hash), in->now,
                                s->cache, &verified, err));
    encl_attestation_free(s->attestation);
    s->attestation = verified;
    return ENCL_OK;
}

static encl_code on_first_document(encl_session *s, const encl_msg *m, input *in, encl_error *err) {
    ENCL_TRY(verify_document(s, m, in, err));
    return become_open(s, in->event, err);
}

static encl_code on_fresh_document(encl_session *s, const encl_msg *m, input *in, encl_error *err) {
    ENCL_ENSURE(s->app->attestations_due != 0, err, ENCL_E_PROTOCOL,
                "expected an Attestation only where it was asked for, got one more");
    s->app->attestations_due--;
    ENCL_TRY(verify_document(s, m, in, err));
    in->event->type = ENCL_EV_ATTESTED;
    return ENCL_OK;
}

static void report(input *in, encl_event_type type, const encl_msg *m) {
    *in->event = (encl_event){.type = type, .id = m->id, .payload = m->payload, .half = m->half};
}

/* *entry is NULL where the message is late: its id was issued, and has been given up since. */
static encl_result find_issued(encl_session *s, const encl_msg *m, encl_id_entry **entry,
                               encl_error *err) {
    bool has_text = m->type == ENCL_MSG_ERROR;
    int shown = has_text ? (int)(m->payload.len < TEXT_SHOWN ? m->payload.len : TEXT_SHOWN) : 0;

    ENCL_ENSURE(m->id != 0 && m->id < s->app->next_id, err, ENCL_E_PROTOCOL,
                "expected an id between 1 and %llu, got %s for id %llu%s%.*s",
                (unsigned long long)(s->app->next_id - 1), encl_msg_type_name(m->type),
                (unsigned long long)m->id, has_text ? ": " : "", shown,
                shown == 0 ? "" : (const char *)m->payload.data);
    *entry = encl_table_find(&s->app->table, m->id);
    if (*entry != NULL && (*entry)->errored) {
        *entry = NULL;
    }
    return ENCL_OK;
}

static encl_result check_kind(const encl_msg *m, const encl_id_entry *entry, encl_id_kind kind,
                              encl_error *err) {
    ENCL_ENSURE(entry->kind == kind, err, ENCL_E_PROTOCOL, "expected %s for id %llu, a %s; got %s",
                kind == ENCL_ID_STREAM ? "Data or Error" : "StreamData, StreamClose or Error",
                (unsigned long long)m->id, kind == ENCL_ID_STREAM ? "one-shot request" : "stream",
                encl_msg_type_name(m->type));
    return ENCL_OK;
}

static void end_request(encl_session *s, const encl_msg *m, encl_event_type type, input *in) {
    report(in, type, m);
    encl_table_remove(&s->app->table, m->id);
}

static encl_code on_answer(encl_session *s, const encl_msg *m, input *in, encl_error *err) {
    encl_id_entry *entry = NULL;

    ENCL_TRY(find_issued(s, m, &entry, err));
    s->idle_records += entry == NULL;
    if (entry != NULL) {
        ENCL_TRY(check_kind(m, entry, ENCL_ID_ONE_SHOT, err));
        end_request(s, m, ENCL_EV_DATA, in);
    }
    return ENCL_OK;
}

static encl_result find_readable(encl_session *s, const encl_msg *m, encl_id_entry **entry,
                                 encl_error *err) {
    ENCL_TRY(find_issued(s, m, entry, err));
    if (*entry != NULL) {
        ENCL_TRY(check_kind(m, *entry, ENCL_ID_STREAM, err));
        ENCL_ENSURE(!(*entry)->peer_closed, err, ENCL_E_PROTOCOL,
                    "expected nothing more for stream %llu after its StreamClose, got %s",
                    (unsigned long long)m->id, encl_msg_type_name(m->type));
    }
    return ENCL_OK;
}

static encl_code on_stream_data(encl_session *s, const encl_msg *m, input *in, encl_error *err) {
    encl_id_entry *entry = NULL;

    ENCL_TRY(find_readable(s, m, &entry, err));
    s->idle_records += m->payload.len == 0;
    if (entry != NULL && m->payload.len != 0) {
        report(in, ENCL_EV_STREAM_DATA, m);
    }
    return ENCL_OK;
}

static encl_code on_stream_close(encl_session *s, const encl_msg *m, input *in, encl_error *err) {
    encl_id_entry *entry = NULL;

    ENCL_TRY(find_readable(s, m, &entry, err));
    s->idle_records += entry == NULL;
    if (entry != NULL) {
        entry->peer_closed = true;
        report(in, ENCL_EV_STREAM_CLOSED, m);
    }
    return ENCL_OK;
}

static encl_code on_error(encl_session *s, const encl_msg *m, input *in, encl_error *err) {
    encl_id_entry *entry = NULL;

    ENCL_TRY(find_issued(s, m, &entry, err));
    if (entry == NULL) {
        s->idle_records++;
        return ENCL_OK;
    }
    if (entry->kind == ENCL_ID_ONE_SHOT) {
        end_request(s, m, ENCL_EV_ERROR, in);
    } else {
        entry->errored = true;
        report(in, ENCL_EV_ERROR, m);
    }
    return ENCL_OK;
}

/* ---- messages to the responder ---- */

static encl_code on_attestation_request(encl_session *s, const encl_msg *m, input *in,
                                        encl_error *err) {
    (void)s;
    (void)err;
    report(in, ENCL_EV_ATTESTATION_REQUESTED, m);
    return ENCL_OK;
}

static encl_result accept_id(encl_session *s, const encl_msg *m, encl_id_kind kind,
                             encl_error *err) {
    encl_table *table = &s->app->table;

    ENCL_ENSURE(m->id != 0, err, ENCL_E_PROTOCOL, "expected ids from 1 on, got %s for id 0",
                encl_msg_type_name(m->type));
    ENCL_ENSURE(encl_table_find(table, m->id) == NULL, err, ENCL_E_PROTOCOL,
                "expected a new id, got %s for id %llu, open already", encl_msg_type_name(m->type),
                (unsigned long long)m->id);
    ENCL_ENSURE(!encl_table_full(table), err, ENCL_E_PROTOCOL,
                "expected at most %zu requests and streams open, got one more", table->capacity);
    return encl_table_add(table, m->id, kind, err);
}

static encl_code on_request(encl_session *s, const encl_msg *m, input *in, encl_error *err) {
    ENCL_TRY(accept_id(s, m, ENCL_ID_ONE_SHOT, err));
    report(in, ENCL_EV_REQUEST, m);
    return ENCL_OK;
}

static encl_code on_open_stream(encl_session *s, const encl_msg *m, input *in, encl_error *err) {
    ENCL_TRY(accept_id(s, m, ENCL_ID_STREAM, err));
    report(in, ENCL_EV_STREAM_OPENED, m);
    return ENCL_OK;
}

/* Unknown ids are reported too: the driver answers them as the reference does. */
static encl_code on_client_data(encl_session *s, const encl_msg *m, input *in, encl_error *err) {
    const encl_id_entry *entry = encl_table_find(&s->app->table, m->id);

    ENCL_ENSURE(entry == NULL || !entry->peer_closed, err, ENCL_E_PROTOCOL,
                "expected nothing more for stream %llu after its StreamClose Write, got StreamData",
                (unsigned long long)m->id);
    report(in, ENCL_EV_STREAM_DATA, m);
    return ENCL_OK;
}

static encl_code on_client_close(encl_session *s, const encl_msg *m, input *in, encl_error *err) {
    encl_id_entry *entry = encl_table_find(&s->app->table, m->id);

    (void)err;
    if (entry != NULL && entry->kind == ENCL_ID_STREAM) {
        entry->peer_closed = true;
        if (m->half == ENCL_HALF_BOTH) {
            encl_table_remove(&s->app->table, m->id);
        }
    }
    report(in, ENCL_EV_STREAM_CLOSED, m);
    return ENCL_OK;
}

/* ---- steering ---- */

/* What may arrive, and who takes it. Anything else ends the session. */
static const handler initiator_attesting[ENCL_MSG_COUNT_] = {
    [ENCL_MSG_ATTESTATION] = on_first_document,
};
static const handler initiator_open[ENCL_MSG_COUNT_] = {
    [ENCL_MSG_ATTESTATION] = on_fresh_document,
    [ENCL_MSG_DATA] = on_answer,
    [ENCL_MSG_STREAM_DATA] = on_stream_data,
    [ENCL_MSG_STREAM_CLOSE] = on_stream_close,
    [ENCL_MSG_ERROR] = on_error,
};
static const handler responder_open[ENCL_MSG_COUNT_] = {
    [ENCL_MSG_REQUEST_ATTESTATION] = on_attestation_request,
    [ENCL_MSG_DATA] = on_request,
    [ENCL_MSG_OPEN_STREAM] = on_open_stream,
    [ENCL_MSG_STREAM_DATA] = on_client_data,
    [ENCL_MSG_STREAM_CLOSE] = on_client_close,
};

static const handler *handlers_of(const encl_session *s) {
    if (s->role == ENCL_RESPONDER) {
        return responder_open;
    }
    return s->state == ENCL_SESSION_ATTESTING ? initiator_attesting : initiator_open;
}

static encl_code refuse_message(const encl_session *s, const encl_msg *m, encl_error *err) {
    bool has_text = m->type == ENCL_MSG_ERROR || m->type == ENCL_MSG_CONTROL_RESULT;
    int shown = has_text ? (int)(m->payload.len < TEXT_SHOWN ? m->payload.len : TEXT_SHOWN) : 0;

    return encl_fail(err, ENCL_E_PROTOCOL, "in state %s: expected %s, got %s%s%.*s",
                     encl_session_state_name(s->state),
                     s->state == ENCL_SESSION_ATTESTING ? "Attestation"
                                                        : "a message about a request or stream",
                     encl_msg_type_name(m->type), shown == 0 ? "" : ": ", shown,
                     shown == 0 ? "" : (const char *)m->payload.data);
}

static encl_result handle_message(encl_session *s, uint8_t *plain, size_t len, input *in,
                                  encl_error *err) {
    encl_direction direction = s->role == ENCL_INITIATOR ? ENCL_TO_CLIENT : ENCL_TO_SERVER;
    encl_msg m;
    handler take;

    ENCL_TRY(encl_wire_decode(plain, len, direction, &m, err));
    take = handlers_of(s)[m.type];
    return take == NULL ? refuse_message(s, &m, err) : take(s, &m, in, err);
}

static encl_code step_record(encl_session *s, input *in, encl_error *err) {
    uint8_t *record = NULL;
    size_t len = 0, plain_len = 0;

    ENCL_TRY(encl_gather_record(&s->in, in->block, in->len, &in->pos, &record, &len, err));
    if (record == NULL) {
        return ENCL_OK;
    }
    ENCL_TRY(encl_noise_open(s->transport, record, len, &plain_len, err));
    return handle_message(s, record, plain_len, in, err);
}

static encl_code step_refused(encl_session *s, input *in, encl_error *err) {
    (void)in;
    ENCL_ENSURE(s->state != ENCL_SESSION_CLOSED, err, ENCL_E_CLOSED, "the session is closed");
    return encl_fail(err, ENCL_E_STATE, "got bytes before the session was started");
}

static const step steps[] = {
    [ENCL_SESSION_NEW] = step_refused,      [ENCL_SESSION_HANDSHAKE] = step_handshake,
    [ENCL_SESSION_ATTESTING] = step_record, [ENCL_SESSION_OPEN] = step_record,
    [ENCL_SESSION_CLOSED] = step_refused,
};

static encl_result take_input(encl_session *s, input *in, encl_error *err) {
    if (steps[s->state] == step_refused) {
        return step_refused(s, in, err);
    }
    while (in->pos < in->len && in->event->type == ENCL_EV_NONE) {
        ENCL_TRY(steps[s->state](s, in, err));
    }
    return ENCL_OK;
}

encl_result encl_session_recv(encl_session *s, uint8_t *block, size_t len, size_t *consumed,
                              int64_t now, encl_buf *out, encl_event *event, encl_error *err) {
    input in = {.block = block, .len = len, .now = now, .out = out, .event = event};
    encl_code rc;

    memset(event, 0, sizeof *event);
    rc = take_input(s, &in, err);
    *consumed = in.pos;
    if (rc != ENCL_OK) {
        memset(event, 0, sizeof *event);
        encl_session_close(s);
    }
    return rc;
}

static void say_what_was_awaited(const encl_session *s, char *text, size_t size) {
    switch (s->state) {
    case ENCL_SESSION_NEW:
        (void)snprintf(text, size, "before the handshake began");
        break;
    case ENCL_SESSION_HANDSHAKE:
        (void)snprintf(text, size, "after %zu of %zu bytes of the handshake%s",
                       encl_gather_partial(&s->in), handshake_bytes_expected(s),
                       s->role == ENCL_INITIATOR ? " answer" : "");
        break;
    case ENCL_SESSION_ATTESTING:
        (void)snprintf(text, size, "before the attestation document was received");
        break;
    default:
        (void)snprintf(text, size, "with %zu in flight", encl_session_open_ids(s));
        break;
    }
}

static void say_what_was_lost(const encl_session *s, char *text, size_t size) {
    if (!encl_session_has_partial_record(s)) {
        text[0] = '\0';
    } else if (encl_gather_partial(&s->in) < ENCL_RECORD_HEAD) {
        (void)snprintf(text, size, ", after %zu of %d bytes of a record's length",
                       encl_gather_partial(&s->in), ENCL_RECORD_HEAD);
    } else {
        (void)snprintf(text, size, ", after %zu of %zu bytes of a record",
                       encl_gather_partial(&s->in), s->in.expected);
    }
}

void encl_session_eof(encl_session *s, encl_error *err) {
    char awaited[96], lost[96];

    if (s->state == ENCL_SESSION_CLOSED) {
        (void)encl_fail(err, ENCL_E_CLOSED, "the session is closed");
        return;
    }
    say_what_was_awaited(s, awaited, sizeof awaited);
    say_what_was_lost(s, lost, sizeof lost);
    (void)encl_fail(err, ENCL_E_CLOSED, "the connection closed %s%s", awaited, lost);
    encl_session_close(s);
}
