/* ask: what any thread wants of a connection's service thread. Decides whether a job is queued for
 * it already. Calls loop.c and handle.c; no lock is needed, and io may be held. conn.c carries out
 * what was asked. */
#include "net/internal.h"

/* The job owns a reference. */
void net_conn_ask(encl_conn *conn, net_ask what) {
    if (atomic_fetch_or(&conn->asked, what) != 0) {
        return; /* in the queue already */
    }
    encl_conn_retain(conn);
    if (!encl_loop_post(conn->loop, &conn->job)) {
        encl_conn_release(conn);
    }
}
