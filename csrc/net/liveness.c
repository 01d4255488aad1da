/* liveness: whether the peer of an open WebSocket is still there. Looks at the connection when its
 * timer fires, asks for a sign of life by a ping, and says when there was none for too long;
 * keepalive.c has the rules. Calls keepalive.c, peer.c, timer.c and sender.c.
 *
 * Service thread only; conn->io is taken for the socket and for sending. */
#include "net/internal.h"

static void set_timer(encl_conn *conn, int64_t now) {
    int64_t wait = encl_keepalive_next(&conn->keep) - now;

    encl_timer_set(&conn->keep_timer, wait <= 0 ? 1 : (uint64_t)(wait / 1000000 + 1));
}

void net_liveness_start(encl_conn *conn) {
    int64_t now = encl_now_ns();

    if (conn->framed && conn->target != NULL && conn->target->keepalive_ms != 0) {
        encl_keepalive_start(&conn->keep, (int64_t)conn->target->keepalive_ms * 1000000, now);
        set_timer(conn, now);
    }
}

static void describe(const encl_keepalive *keep, int64_t now, encl_error *why) {
    encl_fail(why, ENCL_E_CLOSED,
              "the connection leads nowhere any more: expected a sign of life within %g s of a "
              "WebSocket ping (keepalive), got not one byte for %.3g s; connect again",
              (double)keep->interval / 1e9, (double)(now - keep->quiet_since) / 1e9);
}

static void ping(encl_conn *conn) {
    encl_lock(&conn->io);
    net_sender_control(conn, ENCL_WS_PING, ENCL_SLICE_NONE);
    encl_unlock(&conn->io);
}

/* What we do not read cannot be asked for, and what the peer takes of ours shows that it is there:
 * a ping waits behind all that was sent before it. */
static bool is_excused(encl_conn *conn) {
    bool takes;

    encl_lock(&conn->io);
    takes = net_peer_takes(conn->socket.fd, &conn->peer);
    encl_unlock(&conn->io);
    return takes || atomic_load(&conn->paused);
}

net_outcome net_liveness_look(encl_conn *conn, encl_error *why) {
    bool excused = is_excused(conn);
    int64_t now = encl_now_ns();

    switch (encl_keepalive_look(&conn->keep, conn->receiver.heard_at, excused, now)) {
    case ENCL_KEEPALIVE_DEAD:
        describe(&conn->keep, now, why);
        return NET_OVER;
    case ENCL_KEEPALIVE_PING:
        ping(conn);
        break;
    case ENCL_KEEPALIVE_WAIT:
        break;
    }
    set_timer(conn, now);
    return NET_GO_ON;
}
