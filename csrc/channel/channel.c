/* Channels as their users have them: connect, wait until one is open, ask how it is, close it. Each
 * function enters, changes, and leaves; one that says so takes no lock. Calls events (for the
 * connection), process and settle. */
#include <stdlib.h>
#include <string.h>

#include "base/secmem.h"
#include "channel/events.h"
#include "channel/process.h"
#include "channel/settle.h"
#include "sync/fork.h"

/* ---- connect ---- */

static encl_result make_session(encl_channel *ch, encl_link_cache *links, encl_error *err) {
    encl_session_config config = {
        .role = ENCL_INITIATOR,
        .policy = &ch->policy,
        .cache = links,
        .max_open = ch->max_in_flight,
    };

    return encl_session_new(&config, &ch->session, err);
}

/* What the channel has of OpenSSL's. */
static encl_result make_crypto(encl_channel *ch, const encl_policy *policy, encl_link_cache *links,
                               encl_error *err) {
    encl_code rc;

    encl_fork_hold();
    rc = encl_policy_copy(&ch->policy, policy, err);
    if (rc == ENCL_OK) {
        rc = make_session(ch, links, err);
    }
    encl_fork_let_go();
    return rc;
}

/* The lock keeps the first callback waiting until the connection is in its place. */
static encl_result connect_to(encl_channel *ch, const encl_ws_target *target, encl_error *err) {
    encl_conn *conn = NULL;
    encl_code rc;

    ch_retain(ch); /* the connection's, given back in its last callback */
    encl_lock(&ch->lock);
    rc = encl_conn_connect_ws(ch->loop, target, &channel_events, ch, &conn, err);
    ch->conn = conn;
    encl_unlock(&ch->lock);
    if (rc != ENCL_OK) {
        ch_release(ch);
    }
    return rc;
}

encl_result encl_channel_new(const encl_channel_config *config, encl_channel **out,
                             encl_error *err) {
    encl_channel *ch;
    encl_loop *loop;
    encl_link_cache *links;
    encl_code rc;

    *out = NULL;
    ENCL_ENSURE(config->max_in_flight >= 1 && config->max_in_flight <= ENCL_MAX_OPEN, err,
                ENCL_E_INVALID, "max_in_flight: expected 1 to %d, got %zu", ENCL_MAX_OPEN,
                config->max_in_flight);
    ENCL_TRY(process_shared(&loop, &links, err));
    ch = calloc(1, sizeof *ch);
    ENCL_ENSURE(ch != NULL, err, ENCL_E_NOMEM, "out of memory");
    atomic_init(&ch->refs, 1);
    ch->generation = encl_fork_generation();
    ch->loop = loop;
    ch->max_in_flight = config->max_in_flight;
    encl_list_init(&ch->queue);
    (void)encl_mutex_init(&ch->lock);
    encl_cond_init(&ch->changed);
    ENCL_TRY_GOTO(make_crypto(ch, config->policy, links, err), fail);
    ENCL_TRY_GOTO(connect_to(ch, &config->target, err), fail);
    *out = ch;
    return ENCL_OK;
fail:
    ch_release(ch);
    return rc;
}

/* ---- open ---- */

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

static encl_result wait_while_connecting(encl_channel *ch, int64_t until, encl_error *err)
    ENCL_REQUIRES(ch->lock) {
    while (ch->state == ENCL_CHANNEL_CONNECTING) {
        ENCL_ENSURE(ch_wait(ch, &ch->changed, until), err, ENCL_E_CONNECT_TIMEOUT,
                    "not connected and verified: expected %s, got nothing", awaited(ch));
    }
    if (ch->state == ENCL_CHANNEL_CLOSED) {
        *err = ch->why;
        return err->code;
    }
    return ENCL_OK;
}

encl_result encl_channel_wait_open(encl_channel *ch, int64_t until, encl_error *err) {
    encl_code rc;

    if (!ch_enter(ch)) {
        return ch_forked(err);
    }
    rc = wait_while_connecting(ch, until, err);
    ch_leave(ch);
    return rc;
}

encl_result encl_channel_notify_open(encl_channel *ch, encl_notifier *n, uint64_t token,
                                     encl_error *err) {
    encl_code rc;

    if (!ch_enter(ch)) {
        return ch_forked(err);
    }
    rc = watches_add(&ch->opened, n, token, err);
    if (rc == ENCL_OK && ch->state != ENCL_CHANNEL_CONNECTING) {
        watches_fire(&ch->opened);
    }
    ch_leave(ch);
    return rc;
}

void encl_channel_get_stages(const encl_channel *ch, int64_t at[ENCL_STAGES]) {
    for (int stage = 0; stage < ENCL_STAGES; stage++) {
        at[stage] = atomic_load_explicit(&ch->reached[stage], memory_order_relaxed);
    }
}

static int stages_reached(const encl_channel *ch) {
    int64_t at[ENCL_STAGES];
    int count = 0;

    encl_channel_get_stages(ch, at);
    for (int stage = 0; stage < ENCL_STAGES; stage++) {
        count += at[stage] != 0;
    }
    return count;
}

encl_result encl_channel_notify_stage(encl_channel *ch, int seen, encl_notifier *n, uint64_t token,
                                      encl_error *err) {
    encl_code rc;

    if (!ch_enter(ch)) {
        return ch_forked(err);
    }
    rc = watches_add(&ch->progressed, n, token, err);
    if (rc == ENCL_OK && (ch->state != ENCL_CHANNEL_CONNECTING || stages_reached(ch) > seen)) {
        watches_fire(&ch->progressed);
    }
    ch_leave(ch);
    return rc;
}

void encl_channel_withdraw(encl_channel *ch, const encl_notifier *n, uint64_t token) {
    if (ch_enter(ch)) {
        watches_withdraw(&ch->opened, n, token);
        watches_withdraw(&ch->progressed, n, token);
        ch_leave(ch);
    }
}

/* ---- how it is ---- */

bool encl_channel_why(encl_channel *ch, encl_error *why) {
    bool closed;

    if (!ch_enter(ch)) {
        (void)ch_forked(why);
        return true;
    }
    closed = ch->state == ENCL_CHANNEL_CLOSED;
    if (closed) {
        *why = ch->why;
    }
    ch_leave(ch);
    return closed;
}

encl_conn *encl_channel_connection(const encl_channel *ch) {
    return ch->conn;
}

/* Takes no lock: asked by threads that must not wait for one. */
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

/* ---- close ---- */

void encl_channel_close(encl_channel *ch, const encl_error *why) {
    encl_error closed;

    if (!ch_enter(ch)) {
        return;
    }
    encl_fail(&closed, ENCL_E_CLOSED, "the channel was closed by its user");
    closed.retryable = false;
    ch_end(ch, why == NULL ? &closed : why);
    encl_conn_close(ch->conn, 1000, NULL);
    ch_leave(ch);
}

bool encl_channel_wait_closed(encl_channel *ch, int64_t until) {
    bool gone;

    if (!ch_enter(ch)) {
        return true;
    }
    while (!ch->gone && ch_wait(ch, &ch->changed, until)) {
    }
    gone = ch->gone;
    ch_leave(ch);
    return gone;
}
