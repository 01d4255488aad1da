/* conn: a connection's life, and what the owner of its WebSocket says and asks. The only file that
 * finishes one. Calls sender.c, loop.c and the user's callbacks, which are made without any lock.
 * conn->io guards the state. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/secmem.h"
#include "web/internal.h"

/* Delivered at once: a few records. */
#define BLOCK ((size_t)64 * 1024)

/* ---- memory ---- */

/* For messages alone. */
static char *name_of(const encl_ws_target *target) {
    size_t room = strlen(target->host) + sizeof "wss://[]:65535";
    char *name = malloc(room);

    if (name != NULL) {
        (void)snprintf(name, room, "%s://%s:%u", target->tls ? "wss" : "ws", target->host,
                       (unsigned)target->port);
    }
    return name;
}

/* What a page cannot ask its browser for. */
static encl_result check_target(const encl_ws_target *target, encl_error *err) {
    ENCL_ENSURE(target->header_count == 0, err, ENCL_E_INVALID,
                "headers: expected none, since a browser's WebSocket takes none, got %zu",
                target->header_count);
    ENCL_ENSURE(target->proxy_host == NULL, err, ENCL_E_INVALID,
                "proxy: expected none, since the browser chooses its own, got one");
    ENCL_ENSURE(target->ca_file == NULL, err, ENCL_E_INVALID,
                "ca_file: expected none, since the browser verifies certificates, got one");
    ENCL_ENSURE(!target->tls || target->verify, err, ENCL_E_INVALID,
                "verify: expected True, since the browser verifies certificates, got False");
    ENCL_ENSURE(target->keepalive_ms == 0, err, ENCL_E_INVALID,
                "keepalive_ms: expected 0, since a browser's WebSocket sends no pings, got %llu",
                (unsigned long long)target->keepalive_ms);
    return ENCL_OK;
}

encl_result encl_conn_connect_ws(encl_loop *loop, const encl_ws_target *target,
                                 const encl_conn_events *events, void *user, encl_conn **out,
                                 encl_error *err) {
    encl_conn *conn;

    *out = NULL;
    ENCL_TRY(check_target(target, err));
    conn = calloc(1, sizeof *conn);
    ENCL_ENSURE(conn != NULL, err, ENCL_E_NOMEM, "out of memory");
    conn->name = name_of(target);
    if (conn->name == NULL) {
        free(conn);
        return encl_fail(err, ENCL_E_NOMEM, "out of memory");
    }
    atomic_init(&conn->refs, 2); /* the caller's, and one until it is finished */
    conn->loop = loop;
    conn->events = *events;
    conn->user = user;
    (void)encl_mutex_init(&conn->io);
    encl_buf_init(&conn->queue, WEB_TX_LIMIT);
    web_loop_add(conn);
    *out = conn;
    return ENCL_OK;
}

void encl_conn_retain(encl_conn *conn) {
    atomic_fetch_add_explicit(&conn->refs, 1, memory_order_relaxed);
}

void encl_conn_release(encl_conn *conn) {
    if (conn == NULL || atomic_fetch_sub_explicit(&conn->refs, 1, memory_order_acq_rel) != 1) {
        return;
    }
    encl_buf_free(&conn->queue);
    encl_mutex_destroy(&conn->io);
    free(conn->name);
    free(conn);
}

uint64_t encl_conn_bytes_in(encl_conn *conn) {
    return atomic_load_explicit(&conn->bytes_in, memory_order_relaxed);
}

uint64_t encl_conn_bytes_out(encl_conn *conn) {
    return atomic_load_explicit(&conn->bytes_out, memory_order_relaxed);
}

static web_state state_of(encl_conn *conn) {
    web_state state;

    encl_lock(&conn->io);
    state = conn->state;
    encl_unlock(&conn->io);
    return state;
}

/* ---- the end ---- */

static void ask_to_close(encl_conn *conn, uint16_t code, const char *reason)
    ENCL_REQUIRES(conn->io) {
    if (conn->close_code == 0) {
        conn->close_code = code;
        (void)snprintf(conn->close_reason, sizeof conn->close_reason, "%s",
                       reason == NULL ? "" : reason);
    }
}

/* By the channel, which may hold its lock: it is told of the end when the owner says so. */
void encl_conn_close(encl_conn *conn, uint16_t code, const char *reason) {
    encl_lock(&conn->io);
    if (conn->state == WEB_CONNECTING || conn->state == WEB_OPEN) {
        conn->state = WEB_CLOSING;
        ask_to_close(conn, code == 0 ? WEB_CLOSE_NORMAL : code, reason);
        web_note(conn);
    }
    encl_unlock(&conn->io);
}

/* False where it was done before. */
static bool enter_finished(encl_conn *conn) {
    bool first;

    encl_lock(&conn->io);
    first = conn->state != WEB_FINISHED;
    conn->state = WEB_FINISHED;
    encl_buf_free(&conn->queue);
    conn->above_low_water = false;
    encl_unlock(&conn->io);
    return first;
}

static void finish(encl_conn *conn, const encl_error *why) {
    if (!enter_finished(conn)) {
        return;
    }
    web_loop_remove(conn);
    conn->events.closed(conn->user, conn, why);
    web_note(conn);
    encl_conn_release(conn);
}

/* The peer has broken a rule of WebSockets. */
static void refuse(encl_conn *conn, uint16_t code, const encl_error *why) {
    encl_lock(&conn->io);
    ask_to_close(conn, code, NULL);
    encl_unlock(&conn->io);
    finish(conn, why);
}

/* As much as a close frame can have. */
static int shown(encl_slice reason) {
    return (int)(reason.len < WEB_REASON_MAX ? reason.len : WEB_REASON_MAX);
}

/* 1006 is in no close frame (RFC 6455 section 7.4.1): a reason that comes with it is the owner's.
 */
static void explain_abnormal_end(encl_slice reason, encl_error *why) {
    if (reason.len == 0) {
        encl_fail(why, ENCL_E_CLOSED,
                  "the peer ended the connection without a WebSocket close frame");
    } else {
        encl_fail(why, ENCL_E_CLOSED, "the connection was ended on this side: %.*s", shown(reason),
                  (const char *)reason.data);
    }
}

static void explain_end(encl_conn *conn, uint16_t code, encl_slice reason, encl_error *why) {
    web_state state;
    bool ours;

    encl_lock(&conn->io);
    state = conn->state;
    ours = conn->close_code != 0;
    encl_unlock(&conn->io);
    if (ours) {
        encl_fail(why, ENCL_E_CLOSED, "the connection was closed on this side");
    } else if (state == WEB_CONNECTING) {
        encl_fail(why, ENCL_E_CONNECT,
                  "%s: expected the browser to open a WebSocket, got a failure that it does not "
                  "explain to programs: look at the browser's console, and check the address, the "
                  "certificate, the page's Content-Security-Policy (connect-src), and whether the "
                  "server takes this page's origin",
                  conn->name);
    } else if (code == WEB_CLOSE_ABNORMAL) {
        explain_abnormal_end(reason, why);
    } else {
        encl_fail(why, ENCL_E_CLOSED, "the peer closed the connection (WebSocket code %u%s%.*s)",
                  code, reason.len == 0 ? "" : ": ", shown(reason),
                  reason.len == 0 ? "" : (const char *)reason.data);
    }
}

void encl_web_closed(encl_conn *conn, uint16_t code, encl_slice reason) {
    encl_error why;

    explain_end(conn, code, reason, &why);
    finish(conn, &why);
}

bool encl_web_is_finished(encl_conn *conn, uint16_t *code, const char **reason) {
    bool finished;

    encl_lock(&conn->io);
    finished = conn->state == WEB_FINISHED ||
               (conn->state == WEB_CLOSING && encl_buf_readable(&conn->queue) == 0);
    *code = conn->close_code == 0 ? WEB_CLOSE_NORMAL : conn->close_code;
    *reason = conn->close_reason; /* written once, before it is finished */
    encl_unlock(&conn->io);
    return finished;
}

bool encl_web_is_closing(encl_conn *conn) {
    return state_of(conn) >= WEB_CLOSING;
}

/* ---- open, and received ---- */

void encl_web_opened(encl_conn *conn) {
    bool opened;

    encl_lock(&conn->io);
    opened = conn->state == WEB_CONNECTING;
    if (opened) {
        conn->state = WEB_OPEN;
    }
    encl_unlock(&conn->io);
    if (opened) {
        conn->events.opened(conn->user, conn);
    }
}

/* A few are passed over. They mean nothing in the protocol, but each of them costs time. */
static void charge_idle(encl_conn *conn) {
    encl_error why;

    conn->idle_messages++;
    if (encl_charge_for(&conn->idle, conn->idle_messages, 0, encl_now_ns)) {
        return;
    }
    encl_fail(&why, ENCL_E_PROTOCOL,
              "WebSocket: expected at most %d messages a second that carry nothing (text, empty "
              "ones), got more",
              ENCL_IDLE_PER_SECOND);
    refuse(conn, WEB_CLOSE_POLICY, &why);
}

void encl_web_received_text(encl_conn *conn) {
    if (state_of(conn) == WEB_OPEN) {
        charge_idle(conn);
    }
}

bool encl_web_wants_reading(encl_conn *conn) {
    bool wants;

    encl_lock(&conn->io);
    wants = !(conn->state == WEB_OPEN && conn->paused);
    encl_unlock(&conn->io);
    return wants;
}

/* In blocks, so that the user can pause in between. The user decrypts in place, so that each block
 * is wiped afterwards. */
static size_t deliver(encl_conn *conn, encl_slice bytes, uint8_t *block) {
    size_t done = 0;

    while (done != bytes.len && state_of(conn) == WEB_OPEN && encl_web_wants_reading(conn)) {
        size_t n = bytes.len - done < BLOCK ? bytes.len - done : BLOCK;

        memcpy(block, bytes.data + done, n);
        atomic_fetch_add_explicit(&conn->bytes_in, n, memory_order_relaxed);
        conn->events.received(conn->user, conn, block, n);
        encl_wipe(block, n);
        done += n;
    }
    return done;
}

static void out_of_memory(encl_conn *conn) {
    encl_error why;

    encl_fail(&why, ENCL_E_NOMEM, "out of memory for a received message");
    refuse(conn, WEB_CLOSE_INTERNAL, &why);
}

static bool is_too_big(encl_conn *conn, size_t len) {
    encl_error why;

    if (len <= ENCL_WEB_MESSAGE_MAX) {
        return false;
    }
    encl_fail(&why, ENCL_E_PROTOCOL, "WebSocket: expected messages of at most %zu bytes, got %zu",
              ENCL_WEB_MESSAGE_MAX, len);
    refuse(conn, WEB_CLOSE_TOO_BIG, &why);
    return true;
}

static size_t receive(encl_conn *conn, encl_slice bytes) {
    size_t room = bytes.len < BLOCK ? bytes.len : BLOCK;
    uint8_t *block = malloc(room);
    size_t done;

    if (block == NULL) {
        out_of_memory(conn);
        return bytes.len;
    }
    done = deliver(conn, bytes, block);
    free(block);
    /* What comes after the end is for nobody. */
    return state_of(conn) == WEB_OPEN ? done : bytes.len;
}

size_t encl_web_received(encl_conn *conn, encl_slice bytes) {
    size_t done = bytes.len;

    encl_conn_retain(conn); /* the user may let go in a callback */
    if (state_of(conn) == WEB_OPEN) {
        if (bytes.len == 0) {
            charge_idle(conn);
        } else if (!is_too_big(conn, bytes.len)) {
            done = receive(conn, bytes);
        }
    }
    encl_conn_release(conn);
    return done;
}

void encl_conn_pause(encl_conn *conn, bool paused) {
    bool changed;

    encl_lock(&conn->io);
    changed = conn->paused != paused;
    conn->paused = paused;
    if (changed) {
        web_note(conn);
    }
    encl_unlock(&conn->io);
}
