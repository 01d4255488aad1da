/* borrow: connections over a socket that is connected already and stays its owner's. Calls
 * duplicate.c and conn.c. encl_conn_borrow is for any thread, the rest for the service thread; no
 * lock. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "net/internal.h"

static encl_result begin(encl_conn *conn, encl_error *err) {
    int fd = conn->duplicate;

    ENCL_ENSURE(net_duplicate_prepare(conn->loop), err, ENCL_E_NOMEM,
                "no descriptor for a borrowed socket: %s", strerror(errno));
    conn->duplicate = -1;
    ENCL_TRY(net_conn_adopt_fd(conn, fd, err));
    net_conn_opened(conn);
    return ENCL_OK;
}

/* One that blocks would hold up every connection of the loop. */
static encl_result expect_non_blocking(int fd, encl_error *err) {
    int flags = fcntl(fd, F_GETFL);

    ENCL_ENSURE(flags >= 0, err, ENCL_E_INVALID, "expected an open socket, got descriptor %d: %s",
                fd, strerror(errno));
    ENCL_ENSURE((flags & O_NONBLOCK) != 0, err, ENCL_E_INVALID,
                "expected a socket that does not block, got descriptor %d, which does", fd);
    return ENCL_OK;
}

/* fork() is held back until a child knows that it has to close its copy. */
static encl_result duplicate(encl_conn *conn, int fd, encl_error *err) {
    encl_fork_hold();
    conn->duplicate = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (conn->duplicate >= 0) {
        net_own(&conn->raw_owned, conn->duplicate);
    }
    encl_fork_let_go();
    ENCL_ENSURE(conn->duplicate >= 0, err, ENCL_E_CONNECT, "the socket could not be duplicated: %s",
                strerror(errno));
    return ENCL_OK;
}

encl_result encl_conn_borrow(encl_loop *loop, int fd, const encl_conn_events *events, void *user,
                             encl_conn **out, encl_error *err) {
    encl_conn *conn;
    encl_code rc;

    *out = NULL;
    ENCL_TRY(expect_non_blocking(fd, err));
    ENCL_TRY(net_conn_new(loop, false, ENCL_WS_CLIENT, events, user, &conn, err));
    conn->borrowed = true;
    ENCL_TRY_GOTO(duplicate(conn, fd, err), fail);
    *out = conn; /* the service thread may call before this returns */
    ENCL_TRY_GOTO(net_conn_start(conn, begin, err), fail);
    return ENCL_OK;
fail:
    *out = NULL;
    encl_conn_release(conn);
    return rc;
}
