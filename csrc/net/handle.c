/* handle: a connection as memory that several threads hold: made, referenced, freed, counted. What
 * a connection does is in sender.c, receiver.c and conn.c. Calls target.c and registry.c; no lock,
 * but for io where it is said. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "net/internal.h"

encl_result net_conn_alloc(encl_loop *loop, bool framed, encl_ws_side side, encl_conn **out,
                           encl_error *err) {
    encl_conn *conn = calloc(1, sizeof *conn);

    *out = conn;
    ENCL_ENSURE(conn != NULL, err, ENCL_E_NOMEM, "out of memory");
    atomic_init(&conn->refs, 1);
    conn->loop = loop;
    conn->framed = framed;
    conn->side = side;
    conn->socket.fd = conn->raw_owned.fd = conn->ws_owned.fd = conn->duplicate = -1;
    (void)encl_mutex_init(&conn->io);
    encl_buf_init(&conn->sender.queue, NET_TX_LIMIT);
    encl_buf_init(&conn->receiver.early, NET_EARLY_MAX);
    encl_ws_decoder_init(&conn->receiver.decoder, side, NET_MAX_FRAME);
    return ENCL_OK;
}

void encl_conn_retain(encl_conn *conn) {
    atomic_fetch_add_explicit(&conn->refs, 1, memory_order_relaxed);
}

void encl_conn_release(encl_conn *conn) {
    if (conn == NULL || atomic_fetch_sub_explicit(&conn->refs, 1, memory_order_acq_rel) != 1) {
        return;
    }
    net_disown(&conn->raw_owned);
    net_disown(&conn->ws_owned);
    if (conn->duplicate >= 0) {
        (void)close(conn->duplicate);
    }
    encl_buf_free(&conn->sender.queue);
    encl_buf_free(&conn->receiver.early);
    net_target_free(conn->target);
    encl_mutex_destroy(&conn->io);
    free(conn);
}

uint64_t encl_conn_bytes_in(encl_conn *conn) {
    return atomic_load_explicit(&conn->bytes_in, memory_order_relaxed);
}

uint64_t encl_conn_bytes_out(encl_conn *conn) {
    return atomic_load_explicit(&conn->bytes_out, memory_order_relaxed);
}

bool net_conn_has_failed(const encl_conn *conn) {
    return conn->failure.code != ENCL_OK;
}

void net_conn_note_break(encl_conn *conn, const char *what) {
    if (!net_conn_has_failed(conn)) {
        encl_fail(&conn->failure, ENCL_E_CLOSED, "the connection broke while %s: %s", what,
                  conn->socket.ssl != NULL ? "TLS error" : strerror(errno));
    }
}

void net_closed_here(encl_error *why) {
    encl_fail(why, ENCL_E_CLOSED, "the connection was closed on this side");
}
