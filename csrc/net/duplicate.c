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

/* libwebsockets would shut the socket before it closes the descriptor, and may do both some time
 * later. So the number is made to mean something else at once, of which poll() says that it has
 * hung up, and which can be shut without consequences. */
void net_duplicate_close(encl_conn *conn) {
    if (conn->socket.fd >= 0) {
        net_disown(&conn->raw_owned);
        (void)dup2(conn->loop->hung_up, conn->socket.fd);
        conn->socket.fd = -1;
    }
}
