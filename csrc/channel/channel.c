#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "channel/internal.h"

#define LINK_CACHE_ENTRIES 256

/* The process's one client loop and what its service thread alone uses. Made on first use, kept
 * until the process ends; a forked child makes its own. Guarded by shared_lock. */
static encl_mutex shared_lock = ENCL_MUTEX_INITIALIZER;
static struct {
    uint64_t generation;
    encl_loop *loop;
    encl_link_cache *links; /* used by the service thread only: no lock */
} shared;

static pthread_once_t fork_once = PTHREAD_ONCE_INIT;

static void shared_before_fork(void) ENCL_ACQUIRES(shared_lock) {
    encl_lock(&shared_lock);
}

static void shared_after_fork(void) ENCL_RELEASES(shared_lock) {
    encl_unlock(&shared_lock);
}

static void register_fork(void) {
    (void)pthread_atfork(shared_before_fork, shared_after_fork, shared_after_fork);
}

static encl_result shared_get(encl_loop **loop, encl_link_cache **links, encl_error *err) {
    encl_code rc = ENCL_OK;

    ENCL_TRY(encl_net_init(err));
    (void)pthread_once(&fork_once, register_fork);
    encl_lock(&shared_lock);
    if (shared.loop == NULL || shared.generation != encl_fork_generation()) {
        encl_loop *made = NULL;
        encl_link_cache *cache = NULL;

        rc = encl_link_cache_new(LINK_CACHE_ENTRIES, &cache, err);
        if (rc == ENCL_OK) {
            rc = encl_loop_new(&made, err);
        }
        if (rc == ENCL_OK) {
            shared.loop = made;
            shared.links = cache;
            shared.generation = encl_fork_generation();
        } else {
            encl_link_cache_free(cache);
        }
    }
    *loop = shared.loop;
    *links = shared.links;
    encl_unlock(&shared_lock);
    return rc;
}

/* ---- time and waiting ---- */

bool ch_wait(encl_channel *ch, pthread_cond_t *cond, int64_t until) {
    if (until == ENCL_FOREVER) {
        encl_cond_wait(cond, &ch->lock);
        return true;
    }
    if (until <= encl_now_ns()) {
        return false;
    }
    encl_cond_wait_until(cond, &ch->lock, until);
    /* The caller looks at what it waits for once more; the next call finds the deadline passed. */
    return true;
}

/* ---- documents ---- */

const encl_attestation *encl_doc_get(const encl_doc *doc) {
    return doc->attestation;
}

void encl_doc_release(encl_doc *doc) {
    if (doc != NULL && atomic_fetch_sub(&doc->refs, 1) == 1) {
        encl_attestation_free(doc->attestation);
        free(doc);
    }
}

static encl_doc *doc_retain(encl_doc *doc) {
    atomic_fetch_add(&doc->refs, 1);
    return doc;
}

/* NULL without memory; the session then keeps its document. */
static encl_doc *doc_take(encl_session *session) {
    encl_doc *doc = calloc(1, sizeof *doc);

    if (doc != NULL) {
        atomic_init(&doc->refs, 1);
        doc->attestation = encl_session_take_attestation(session);
    }
    return doc;
}

/* ---- lifetime ---- */

void ch_retain(encl_channel *ch) {
    atomic_fetch_add_explicit(&ch->refs, 1, memory_order_relaxed);
}

static void destroy(encl_channel *ch) {
    encl_session_free(ch->session);
    encl_policy_free(&ch->policy);
    encl_doc_release(ch->verified);
    for (size_t i = 0; i < ch->attest_count; i++) {
        watch_clear(&ch->attests[i].came);
        encl_doc_release(ch->attests[i].doc);
    }
    watches_clear(&ch->opened);
    encl_conn_release(ch->conn);
    pthread_cond_destroy(&ch->changed);
    encl_mutex_destroy(&ch->lock);
    free(ch);
}

static void unref(encl_channel *ch) {
    if (atomic_fetch_sub_explicit(&ch->refs, 1, memory_order_acq_rel) == 1) {
        destroy(ch);
    }
}

void encl_channel_release(encl_channel *ch) {
    if (ch == NULL || encl_channel_is_forked(ch)) {
        return; /* a child has no right to the parent's keys, nor a way to wait for its locks */
    }
    unref(ch);
}

bool encl_channel_is_forked(const encl_channel *ch) {
    return ch->generation != encl_fork_generation();
}

encl_result ch_check(encl_channel *ch, encl_error *err) {
    ENCL_ENSURE(!encl_channel_is_forked(ch), err, ENCL_E_FORKED,
                "this channel was opened by the parent process: the same key with the same nonce "
                "in two processes would give both away; open a new one in this process");
    return ENCL_OK;
}

encl_result ch_need_open(encl_channel *ch, encl_error *err) {
    if (ch->state == ENCL_CHANNEL_CLOSED) {
        *err = ch->why;
        return err->code;
    }
    ENCL_ENSURE(ch->state == ENCL_CHANNEL_OPEN && ch->app != NULL, err, ENCL_E_STATE,
                "the channel is not verified yet");
    return ENCL_OK;
}

/* ---- failing and closing ---- */

void ch_fail(encl_channel *ch, const encl_error *why) {
    if (ch->state == ENCL_CHANNEL_CLOSED) {
        return;
    }
    ch->state = ENCL_CHANNEL_CLOSED;
    ch->why = *why;
    ch->app = NULL;
    encl_session_close(ch->session);
    while (ch->flow_count != 0) {
        flow *f = ch->flows[ch->flow_count - 1];

        flow_fail(f, why);
        flow_forget(f);
    }
    slot_fail_all(ch);
    for (size_t i = 0; i < ch->attest_count; i++) {
        watch_fire(&ch->attests[i].came);
    }
    watches_fire(&ch->opened);
    pthread_cond_broadcast(&ch->changed);
}

void encl_channel_close(encl_channel *ch, const encl_error *why) {
    encl_error closed;
    encl_conn *conn;

    if (encl_channel_is_forked(ch)) {
        return;
    }
    encl_fail(&closed, ENCL_E_CLOSED, "the channel was closed by its user");
    closed.retryable = false;
    encl_lock(&ch->lock);
    ch_fail(ch, why == NULL ? &closed : why);
    conn = ch->conn;
    if (conn != NULL) {
        encl_conn_retain(conn);
    }
    encl_unlock(&ch->lock);
    if (conn != NULL) {
        encl_conn_close(conn, 1000, NULL);
        encl_conn_release(conn);
    }
}

bool encl_channel_wait_closed(encl_channel *ch, int64_t until) {
    bool gone;

    if (encl_channel_is_forked(ch)) {
        return true;
    }
    encl_lock(&ch->lock);
    while (!ch->gone && ch_wait(ch, &ch->changed, until)) {
    }
    gone = ch->gone;
    encl_unlock(&ch->lock);
    return gone;
}

/* ---- sending ---- */

/* Nobody else's answer can become ready while a record of f is on its way. */
static bool is_alone(const encl_channel *ch, const flow *f, int64_t now) {
    return ch->expecting == (f != NULL && f->expects) &&
           ch->wanting == (f != NULL && f->wants != 0) && ch->waiting_head == NULL &&
           ch->promised == 0 && encl_pace_is_quiet(&ch->pace, f == NULL ? 0 : f->id, now);
}

encl_result ch_tx_begin(encl_channel *ch, encl_buf **out, encl_error *err) {
    ENCL_TRY(encl_conn_tx_begin(ch->conn, out, err));
    ch->tx = *out;
    ch->tx_mark = encl_buf_readable(*out);
    return ENCL_OK;
}

void ch_tx_end(encl_channel *ch, uint64_t id, const flow *f) {
    size_t bytes = encl_buf_readable(ch->tx) - ch->tx_mark;

    if (bytes != 0) {
        int64_t now = encl_now_ns();

        count_up(&ch->records_out);
        encl_pace_sent(&ch->pace, id, bytes, is_alone(ch, f, now), now);
    }
    ch->tx = NULL;
    encl_conn_tx_end(ch->conn);
}

/* ---- pacing ---- */

void ch_room(encl_channel *ch) {
    slot_grant_more(ch);
    flow_room(ch);
    pthread_cond_broadcast(&ch->changed);
}

static void pace_elapsed(void *arg) {
    encl_channel *ch = arg;

    encl_lock(&ch->lock);
    ch->pace_armed = false;
    ch_room(ch);
    encl_unlock(&ch->lock);
}

static void hold_elapsed(void *arg) {
    encl_channel *ch = arg;

    encl_lock(&ch->lock);
    backlog_look(ch, encl_now_ns());
    encl_unlock(&ch->lock);
}

void ch_arm(encl_channel *ch) {
    int64_t wait;

    if (ch->pace_armed || ch->pace_timer == NULL || ch->state != ENCL_CHANNEL_OPEN ||
        encl_conn_tx_pending(ch->conn) >= ENCL_CONN_HIGH_WATER) {
        return; /* where too much is queued, on_drained comes as soon as it is not */
    }
    ch->pace_armed = true;
    wait = encl_pace_next(&ch->pace) - encl_now_ns();
    if (wait > ENCL_PACE_SLACK_NS) {
        wait = ENCL_PACE_SLACK_NS;
    }
    encl_timer_set(ch->pace_timer, wait <= 0 ? 1 : (uint64_t)(wait / 1000000 + 1));
}

bool ch_has_room(encl_channel *ch, const flow *f, size_t promised) {
    int64_t now;

    if (ch->conn == NULL) {
        return true;
    }
    if (encl_conn_tx_pending(ch->conn) >= ENCL_CONN_HIGH_WATER) {
        return false;
    }
    now = encl_now_ns();
    return is_alone(ch, f, now) ||
           encl_pace_may_send(&ch->pace, f == NULL ? 0 : f->id, ch->promised + promised, now);
}

bool ch_may_send(encl_channel *ch, flow *f) {
    if (ch_has_room(ch, f, 0)) {
        return true;
    }
    if (f != NULL) {
        flow_wants(f, true);
    }
    ch_arm(ch);
    return false;
}

/* What the machine itself has to say: the handshake, RequestAttestation. */
static encl_result send_own(encl_channel *ch, const encl_buf *bytes, encl_error *err) {
    encl_buf *out;
    encl_code rc;

    if (encl_buf_readable(bytes) == 0) {
        return ENCL_OK;
    }
    ENCL_TRY(encl_conn_tx_begin(ch->conn, &out, err));
    rc = encl_buf_write(out, encl_buf_peek(bytes), err);
    encl_conn_tx_end(ch->conn);
    return rc;
}

/* ---- what comes in: service thread ---- */

static void broken(encl_channel *ch, encl_conn *conn, const encl_error *why) {
    ch_fail(ch, why);
    encl_conn_close(conn, 1002, NULL);
}

static void on_opened(void *user, encl_conn *conn) {
    encl_channel *ch = user;
    encl_buf out;
    encl_error err;

    encl_buf_init(&out, ENCL_RECORD_MAX);
    encl_lock(&ch->lock);
    if (ch->state == ENCL_CHANNEL_CONNECTING) {
        if (encl_timer_new(ch->loop, pace_elapsed, ch, &ch->pace_timer, &err) != ENCL_OK ||
            encl_timer_new(ch->loop, hold_elapsed, ch, &ch->hold_timer, &err) != ENCL_OK ||
            encl_session_start(ch->session, &out, &err) != ENCL_OK ||
            send_own(ch, &out, &err) != ENCL_OK) {
            broken(ch, conn, &err);
        }
    }
    encl_unlock(&ch->lock);
    encl_buf_free(&out);
}

static encl_result became_open(encl_channel *ch, encl_error *err) {
    ch->verified = doc_take(ch->session);
    ENCL_ENSURE(ch->verified != NULL, err, ENCL_E_NOMEM, "out of memory");
    ch->app = encl_session_app(ch->session);
    ENCL_ENSURE(ch->app != NULL, err, ENCL_E_INTERNAL, "an open session without a handle");
    memcpy(ch->handshake_hash, encl_session_handshake_hash(ch->session), 32);
    ch->state = ENCL_CHANNEL_OPEN;
    (void)encl_pace_heard(&ch->pace, 0, encl_now_ns());
    watches_fire(&ch->opened);
    /* Also for slots asked for earlier: until now no timer would have looked at them again. */
    ch_room(ch);
    return ENCL_OK;
}

static attest_ask *find_ask(encl_channel *ch, uint64_t number) {
    for (size_t i = 0; i < ch->attest_count; i++) {
        if (ch->attests[i].number == number) {
            return &ch->attests[i];
        }
    }
    return NULL;
}

static void drop_ask(encl_channel *ch, attest_ask *ask) {
    size_t at = (size_t)(ask - ch->attests);

    watch_clear(&ask->came);
    encl_doc_release(ask->doc);
    memmove(ask, ask + 1, (ch->attest_count - at - 1) * sizeof *ask);
    ch->attest_count--;
}

static attest_ask *first_unanswered(encl_channel *ch) {
    for (size_t i = 0; i < ch->attest_count; i++) {
        if (ch->attests[i].doc == NULL) {
            return &ch->attests[i];
        }
    }
    return NULL;
}

static encl_result attested_again(encl_channel *ch, encl_error *err) {
    encl_doc *doc = doc_take(ch->session);
    attest_ask *ask = first_unanswered(ch);

    ENCL_ENSURE(doc != NULL, err, ENCL_E_NOMEM, "out of memory");
    if (ask != NULL && ask->abandoned) {
        drop_ask(ch, ask);
    } else if (ask != NULL) {
        ask->doc = doc_retain(doc);
        watch_fire(&ask->came);
    }
    encl_doc_release(ch->verified);
    ch->verified = doc;
    pthread_cond_broadcast(&ch->changed);
    return ENCL_OK;
}

static void server_error(flow *f, encl_slice text) {
    encl_error why;

    encl_fail(&why, ENCL_E_SERVER, "the enclave answered with an error: %.*s",
              (int)(text.len < 400 ? text.len : 400), (const char *)text.data);
    why.detail.server.id = f->id;
    flow_fail(f, &why);
    if (!f->is_stream) {
        flow_forget(f);
    }
}

static encl_result handle(encl_channel *ch, const encl_event *event, encl_error *err) {
    flow *f;

    switch (event->type) {
    case ENCL_EV_OPEN:
        return became_open(ch, err);
    case ENCL_EV_ATTESTED:
        (void)encl_pace_heard(&ch->pace, 0, encl_now_ns());
        return attested_again(ch, err);
    default:
        break;
    }
    f = flow_find(ch, event->id);
    if (f != NULL) {
        flow_expects(f, false);
    }
    if (encl_pace_heard(&ch->pace, event->id, encl_now_ns()) && ch->pace_armed) {
        ch_room(ch);
        f = flow_find(ch, event->id); /* what waited to be closed is gone */
    }
    if (f == NULL) {
        return ENCL_OK; /* the session lets through what is open; an abandoned one may be gone */
    }
    switch (event->type) {
    case ENCL_EV_DATA:
        flow_answered(f, event->payload);
        break;
    case ENCL_EV_STREAM_DATA:
        flow_received(f, event->payload);
        break;
    case ENCL_EV_STREAM_CLOSED:
        flow_ended(f);
        break;
    case ENCL_EV_ERROR:
        server_error(f, event->payload);
        break;
    default:
        break;
    }
    return ENCL_OK;
}

/* An honest server says at most one such thing for each record it is sent: that an end crossed
 * ours, or that it does not know the id any more. So many are free; a workload that closes every
 * connection, thousands of times a second, is no attack. */
static encl_result charge_idle(encl_channel *ch, encl_error *err) {
    ENCL_ENSURE(encl_charge_for(&ch->idle, encl_session_idle_records(ch->session),
                                counted(&ch->records_out), encl_now_ns),
                err, ENCL_E_PROTOCOL,
                "expected at most %d records a second that carry nothing (empty ones, and ends of "
                "what had ended), got more",
                ENCL_IDLE_PER_SECOND);
    return ENCL_OK;
}

static encl_result digest(encl_channel *ch, uint8_t *block, size_t len, encl_buf *out,
                          encl_error *err) {
    int64_t now = (int64_t)time(NULL);

    while (len != 0 && ch->state != ENCL_CHANNEL_CLOSED) {
        encl_event event;
        size_t taken;

        ENCL_TRY(encl_session_recv(ch->session, block, len, &taken, now, out, &event, err));
        ENCL_TRY(charge_idle(ch, err));
        ENCL_TRY(send_own(ch, out, err));
        encl_buf_clear(out);
        if (event.type != ENCL_EV_NONE) {
            count_up(&ch->records_in);
            ENCL_TRY(handle(ch, &event, err));
        }
        block += taken;
        len -= taken;
    }
    return ENCL_OK;
}

static void on_received(void *user, encl_conn *conn, uint8_t *block, size_t len) {
    encl_channel *ch = user;
    encl_buf out;
    encl_error err;

    encl_buf_init(&out, ENCL_RECORD_MAX);
    encl_lock(&ch->lock);
    if (ch->state != ENCL_CHANNEL_CLOSED && digest(ch, block, len, &out, &err) != ENCL_OK) {
        broken(ch, conn, &err);
    }
    encl_unlock(&ch->lock);
    encl_buf_free(&out);
}

static void on_drained(void *user, encl_conn *conn) {
    encl_channel *ch = user;

    (void)conn;
    encl_lock(&ch->lock);
    ch_room(ch);
    encl_unlock(&ch->lock);
}

/* An enclave takes about two connections for each of its cores, and ends further ones without a
 * word before it answers the handshake. */
static const char *hint_of_early_end(const encl_channel *ch) {
    encl_session_state state = encl_session_get_state(ch->session);

    return state != ENCL_SESSION_NEW && state != ENCL_SESSION_HANDSHAKE
               ? ""
               : "; an enclave that has all the connections it takes (about two for each of its "
                 "cores) "
                 "ends further ones like this: share one client among threads and tasks, close "
                 "clients and channels that are not used any more, or try again later";
}

static void on_closed(void *user, encl_conn *conn, const encl_error *why) {
    encl_channel *ch = user;
    encl_error err = *why;

    (void)conn;
    encl_lock(&ch->lock);
    if (ch->state == ENCL_CHANNEL_CONNECTING && why->code == ENCL_E_CLOSED) {
        encl_error waiting;

        /* Says what of the handshake was missing; what the connection said comes behind. */
        const char *hint = hint_of_early_end(ch);

        encl_session_eof(ch->session, &waiting);
        encl_fail(&err, ENCL_E_CLOSED, "%.200s (%.150s)%s", waiting.message, why->message, hint);
    }
    ch_fail(ch, &err);
    ch->gone = true;
    encl_timer_free(ch->pace_timer);
    encl_timer_free(ch->hold_timer);
    ch->pace_timer = ch->hold_timer = NULL;
    pthread_cond_broadcast(&ch->changed);
    encl_unlock(&ch->lock);
    unref(ch); /* the connection's */
}

static const encl_conn_events conn_events = {
    .opened = on_opened,
    .received = on_received,
    .drained = on_drained,
    .closed = on_closed,
};

/* ---- opening ---- */

static encl_result make_session(encl_channel *ch, encl_link_cache *links, encl_error *err) {
    encl_session_config config = {
        .role = ENCL_INITIATOR,
        .policy = &ch->policy,
        .cache = links,
        .max_open = ch->max_in_flight,
    };

    return encl_session_new(&config, &ch->session, err);
}

encl_result encl_channel_new(const encl_channel_config *config, encl_channel **out,
                             encl_error *err) {
    encl_channel *ch;
    encl_loop *loop;
    encl_link_cache *links;
    encl_conn *conn = NULL;
    encl_code rc;

    *out = NULL;
    ENCL_ENSURE(config->max_in_flight >= 1 && config->max_in_flight <= ENCL_MAX_OPEN, err,
                ENCL_E_INVALID, "max_in_flight: expected 1 to %d, got %zu", ENCL_MAX_OPEN,
                config->max_in_flight);
    ENCL_TRY(shared_get(&loop, &links, err));
    ch = calloc(1, sizeof *ch);
    ENCL_ENSURE(ch != NULL, err, ENCL_E_NOMEM, "out of memory");
    atomic_init(&ch->refs, 1);
    ch->generation = encl_fork_generation();
    ch->loop = loop;
    ch->max_in_flight = config->max_in_flight;
    (void)encl_mutex_init(&ch->lock);
    encl_cond_init(&ch->changed);
    ENCL_TRY_GOTO(encl_policy_copy(&ch->policy, config->policy, err), fail);
    ENCL_TRY_GOTO(make_session(ch, links, err), fail);
    ch_retain(ch); /* the connection's, given back in on_closed */
    encl_lock(&ch->lock);
    rc = encl_conn_connect_ws(loop, &config->target, &conn_events, ch, &conn, err);
    ch->conn = conn;
    encl_unlock(&ch->lock);
    if (rc != ENCL_OK) {
        unref(ch);
        goto fail;
    }
    *out = ch;
    return ENCL_OK;
fail:
    unref(ch);
    return rc;
}

encl_channel_state encl_channel_get_state(encl_channel *ch) {
    if (encl_channel_is_forked(ch)) {
        return ENCL_CHANNEL_CLOSED;
    }
    /* Whoever sees "open" or "closed" then takes the lock for what goes with it. */
    return atomic_load_explicit(&ch->state, memory_order_acquire);
}

bool encl_channel_why(encl_channel *ch, encl_error *why) {
    bool closed;

    if (ch_check(ch, why) != ENCL_OK) {
        return true;
    }
    encl_lock(&ch->lock);
    closed = ch->state == ENCL_CHANNEL_CLOSED;
    if (closed) {
        *why = ch->why;
    }
    encl_unlock(&ch->lock);
    return closed;
}

static const char *awaited(const encl_channel *ch) {
    switch (encl_session_get_state(ch->session)) {
    case ENCL_SESSION_NEW:
        return "a connection and the answer to the WebSocket upgrade";
    case ENCL_SESSION_HANDSHAKE:
        return "the answer to the Noise handshake";
    default:
        return "the attestation document";
    }
}

encl_result encl_channel_wait_open(encl_channel *ch, int64_t until, encl_error *err) {
    encl_code rc = ENCL_OK;

    ENCL_TRY(ch_check(ch, err));
    encl_lock(&ch->lock);
    while (ch->state == ENCL_CHANNEL_CONNECTING) {
        if (!ch_wait(ch, &ch->changed, until)) {
            rc = encl_fail(err, ENCL_E_CONNECT_TIMEOUT,
                           "not connected and verified in time: expected %s, nothing came",
                           awaited(ch));
            break;
        }
    }
    if (rc == ENCL_OK && ch->state == ENCL_CHANNEL_CLOSED) {
        *err = ch->why;
        rc = err->code;
    }
    encl_unlock(&ch->lock);
    return rc;
}

encl_result encl_channel_notify_open(encl_channel *ch, encl_notifier *n, uint64_t token,
                                     encl_error *err) {
    encl_code rc;

    ENCL_TRY(ch_check(ch, err));
    encl_lock(&ch->lock);
    rc = watches_add(&ch->opened, n, token, err);
    if (rc == ENCL_OK && ch->state != ENCL_CHANNEL_CONNECTING) {
        watches_fire(&ch->opened);
    }
    encl_unlock(&ch->lock);
    return rc;
}

void encl_channel_withdraw(encl_channel *ch, const encl_notifier *n, uint64_t token) {
    if (encl_channel_is_forked(ch)) {
        return;
    }
    encl_lock(&ch->lock);
    watches_withdraw(&ch->opened, n, token);
    encl_unlock(&ch->lock);
}

encl_result encl_channel_attestation(encl_channel *ch, encl_doc **out, encl_error *err) {
    encl_code rc = ENCL_OK;

    *out = NULL;
    ENCL_TRY(ch_check(ch, err));
    encl_lock(&ch->lock);
    if (ch->verified == NULL) {
        rc = encl_fail(err, ENCL_E_STATE, "nothing has been verified on this channel");
    } else {
        *out = doc_retain(ch->verified);
    }
    encl_unlock(&ch->lock);
    return rc;
}

encl_result encl_channel_handshake_hash(encl_channel *ch, uint8_t hash[32], encl_error *err) {
    encl_code rc = ENCL_OK;

    ENCL_TRY(ch_check(ch, err));
    encl_lock(&ch->lock);
    if (ch->verified == NULL) {
        rc = encl_fail(err, ENCL_E_STATE, "the channel is not verified yet");
    } else {
        memcpy(hash, ch->handshake_hash, 32);
    }
    encl_unlock(&ch->lock);
    return rc;
}

void encl_channel_get_stats(encl_channel *ch, encl_channel_stats *stats) {
    memset(stats, 0, sizeof *stats);
    if (encl_channel_is_forked(ch)) {
        return;
    }
    stats->bytes_in = encl_conn_bytes_in(ch->conn);
    stats->bytes_out = encl_conn_bytes_out(ch->conn);
    stats->records_in = counted(&ch->records_in);
    stats->records_out = counted(&ch->records_out);
    stats->streams_total = counted(&ch->streams_total);
    stats->streams_open = counted(&ch->streams_open);
    stats->slots_in_use = counted(&ch->in_use);
    stats->slots_waiting = counted(&ch->waiting);
}

/* ---- fresh documents ---- */

encl_result encl_channel_start_attest(encl_channel *ch, encl_notifier *n, uint64_t token,
                                      uint64_t *number, encl_error *err) {
    watch came = {.notifier = NULL};
    encl_buf *out;
    encl_code rc;

    ENCL_TRY(ch_check(ch, err));
    encl_lock(&ch->lock);
    ENCL_TRY_GOTO(ch_need_open(ch, err), done);
    ENCL_ENSURE_GOTO(ch->attest_count < ATTESTS_MAX, done, err, ENCL_E_STATE,
                     "%d fresh documents are asked for already, and have not come", ATTESTS_MAX);
    ENCL_TRY_GOTO(watch_set(&came, n, token, err), done);
    ENCL_TRY_GOTO(ch_tx_begin(ch, &out, err), done);
    rc = encl_app_request_attestation(ch->app, out, err);
    ch_tx_end(ch, 0, NULL);
    if (rc == ENCL_OK) {
        attest_ask *ask = &ch->attests[ch->attest_count++];

        *ask = (attest_ask){.number = ++ch->attest_next, .came = came};
        came.notifier = NULL;
        *number = ask->number;
        backlog_somebody_waits(ch);
    }
done:
    watch_clear(&came);
    encl_unlock(&ch->lock);
    return rc;
}

encl_result encl_channel_finish_attest(encl_channel *ch, uint64_t number, int64_t until,
                                       encl_doc **out, encl_error *err) {
    attest_ask *ask;
    encl_code rc = ENCL_OK;

    *out = NULL;
    ENCL_TRY(ch_check(ch, err));
    encl_lock(&ch->lock);
    for (;;) {
        ask = find_ask(ch, number);
        if (ask == NULL) {
            rc = encl_fail(err, ENCL_E_STATE, "no such question");
            break;
        }
        if (ask->doc != NULL) {
            *out = doc_retain(ask->doc);
            drop_ask(ch, ask);
            break;
        }
        if (ch->state == ENCL_CHANNEL_CLOSED) {
            *err = ch->why;
            rc = err->code;
            break;
        }
        if (!ch_wait(ch, &ch->changed, until)) {
            rc = encl_fail(err, ENCL_E_READ_TIMEOUT,
                           "expected an attestation document in time, got none");
            break;
        }
    }
    encl_unlock(&ch->lock);
    return rc;
}

void encl_channel_abandon_attest(encl_channel *ch, uint64_t number) {
    attest_ask *ask;

    if (encl_channel_is_forked(ch)) {
        return;
    }
    encl_lock(&ch->lock);
    ask = find_ask(ch, number);
    if (ask != NULL && (ask->doc != NULL || ch->state == ENCL_CHANNEL_CLOSED)) {
        drop_ask(ch, ask);
    } else if (ask != NULL) {
        ask->abandoned = true;
        watch_clear(&ask->came);
    }
    encl_unlock(&ch->lock);
}
