#include "session_model.h"

void model_init(model *m, encl_role role) {
    memset(m, 0, sizeof *m);
    m->role = role;
}

/* NULL where it is not open. */
static model_id *find(model *m, uint64_t id) {
    for (size_t i = 0; i < m->count; i++) {
        if (m->ids[i].id == id) {
            return &m->ids[i];
        }
    }
    return NULL;
}

static model_id *open_entry(model *m, uint64_t id, bool stream) {
    model_id *entry = find(m, id);

    REQUIRE(entry != NULL && entry->stream == stream);
    return entry;
}

static void close_entry(model *m, model_id *entry) {
    *entry = m->ids[--m->count];
}

static void open_new(model *m, uint64_t id, bool stream) {
    REQUIRE(id != 0 && find(m, id) == NULL && m->count < MODEL_IDS);
    m->ids[m->count++] = (model_id){.id = id, .stream = stream};
}

void model_check_count(const model *m, size_t open_ids) {
    REQUIRE(open_ids == m->count);
    /* A responder takes one id beyond the limit, to see a client that breaks it. */
    REQUIRE(open_ids <= ENCL_MAX_OPEN + (m->role == ENCL_RESPONDER ? 1 : 0));
}

/* ---- the initiator ---- */

static void initiator_sent(model *m, const encl_msg *msg) {
    model_id *entry;

    /* The promise itself: before the peer is verified nothing leaves but the question. */
    REQUIRE(m->open || (msg->type == ENCL_MSG_REQUEST_ATTESTATION && m->asked == 0));
    switch (msg->type) {
    case ENCL_MSG_REQUEST_ATTESTATION:
        m->asked++;
        return;
    case ENCL_MSG_DATA:
    case ENCL_MSG_OPEN_STREAM:
        REQUIRE(msg->id == m->last_id + 1);
        m->last_id = msg->id;
        open_new(m, msg->id, msg->type == ENCL_MSG_OPEN_STREAM);
        return;
    case ENCL_MSG_STREAM_DATA:
        entry = open_entry(m, msg->id, true);
        REQUIRE(!entry->we_closed && !entry->peer_closed && !entry->errored);
        return;
    case ENCL_MSG_STREAM_CLOSE:
        entry = open_entry(m, msg->id, true);
        if (msg->half == ENCL_HALF_BOTH) {
            close_entry(m, entry);
        } else {
            REQUIRE(!entry->we_closed && !entry->peer_closed && !entry->errored);
            entry->we_closed = true;
        }
        return;
    default:
        REQUIRE(false && "a client sends no such message");
    }
}

static void initiator_failed_id(model *m, uint64_t id) {
    model_id *entry = find(m, id);

    REQUIRE(entry != NULL && !entry->errored);
    if (entry->stream) {
        entry->errored = true;
    } else {
        close_entry(m, entry);
    }
}

static void initiator_event(model *m, const encl_event *event) {
    model_id *entry;

    REQUIRE(event->type == ENCL_EV_NONE || event->type == ENCL_EV_OPEN || m->open);
    switch (event->type) {
    case ENCL_EV_NONE:
        return;
    case ENCL_EV_OPEN:
        REQUIRE(!m->open && m->asked == 1);
        m->open = true;
        m->answered++;
        return;
    case ENCL_EV_ATTESTED:
        m->answered++;
        REQUIRE(m->answered <= m->asked);
        return;
    case ENCL_EV_DATA:
        entry = open_entry(m, event->id, false);
        close_entry(m, entry);
        return;
    case ENCL_EV_STREAM_DATA:
    case ENCL_EV_STREAM_CLOSED:
        entry = open_entry(m, event->id, true);
        REQUIRE(!entry->peer_closed && !entry->errored);
        entry->peer_closed = event->type == ENCL_EV_STREAM_CLOSED;
        return;
    case ENCL_EV_ERROR:
        initiator_failed_id(m, event->id);
        return;
    default:
        REQUIRE(false && "a client is told no such thing");
    }
}

/* ---- the responder ---- */

static void responder_sent(model *m, const encl_msg *msg) {
    model_id *entry;

    REQUIRE(m->open);
    switch (msg->type) {
    case ENCL_MSG_ATTESTATION:
        return;
    case ENCL_MSG_DATA:
        close_entry(m, open_entry(m, msg->id, false));
        return;
    case ENCL_MSG_ERROR:
        entry = find(m, msg->id);
        if (entry != NULL) { /* an unknown id is answered so */
            close_entry(m, entry);
        }
        return;
    case ENCL_MSG_STREAM_DATA:
    case ENCL_MSG_STREAM_CLOSE:
        entry = open_entry(m, msg->id, true);
        REQUIRE(!entry->we_closed);
        entry->we_closed = msg->type == ENCL_MSG_STREAM_CLOSE;
        return;
    default:
        REQUIRE(false && "a server sends no such message");
    }
}

static void responder_event(model *m, const encl_event *event) {
    model_id *entry = find(m, event->id);

    switch (event->type) {
    case ENCL_EV_NONE:
    case ENCL_EV_ATTESTATION_REQUESTED:
        return;
    case ENCL_EV_OPEN:
        REQUIRE(!m->open);
        m->open = true;
        return;
    case ENCL_EV_REQUEST:
    case ENCL_EV_STREAM_OPENED:
        REQUIRE(m->open);
        open_new(m, event->id, event->type == ENCL_EV_STREAM_OPENED);
        return;
    case ENCL_EV_STREAM_DATA:
        REQUIRE(m->open && (entry == NULL || !entry->peer_closed));
        return;
    case ENCL_EV_STREAM_CLOSED:
        if (entry != NULL && entry->stream) {
            entry->peer_closed = true;
            if (event->half == ENCL_HALF_BOTH) {
                close_entry(m, entry);
            }
        }
        return;
    default:
        REQUIRE(false && "a server is told no such thing");
    }
}

void model_sent(model *m, const encl_msg *msg) {
    (m->role == ENCL_INITIATOR ? initiator_sent : responder_sent)(m, msg);
}

void model_event(model *m, const encl_event *event) {
    (m->role == ENCL_INITIATOR ? initiator_event : responder_event)(m, event);
}
