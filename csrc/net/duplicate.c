/* duplicate: what is watched of a socket that is somebody else's: a descriptor of our own for it.
 * Decides how it ends without anything happening to the socket, which its owner goes on with. Calls
 * registry.c and platform. Service thread only; conn->io is held where it is said. */
#include <unistd.h>

#include "net/internal.h"

bool net_duplicate_prepare(encl_loop *loop) {
    if (loop->hung_up < 0) {
        loop->hung_up = encl_hung_up_open();
    }
    return loop->hung_up >= 0;
}

static void close_unwatched(encl_conn *conn) {
    net_disown(&conn->raw_owned);
    (void)close(conn->duplicate);
    conn->duplicate = -1;
}

/* libwebsockets would shut the socket before it closes the descriptor, and may do both some time
 * later. So the number is made to mean something else at once, of which poll() says that it has
 * hung up, and which can be shut without consequences. */
static void close_watched(encl_conn *conn) ENCL_REQUIRES(conn->io) {
    net_disown(&conn->raw_owned);
    encl_descriptor_replace(conn->socket.fd, conn->loop->hung_up);
    conn->socket.fd = -1;
}

void net_duplicate_close(encl_conn *conn) {
    if (conn->duplicate >= 0) {
        close_unwatched(conn);
    } else if (conn->socket.fd >= 0) {
        close_watched(conn);
    }
}
