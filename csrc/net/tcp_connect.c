/* tcp_connect: plain TCP connections to a numeric address, for the workload of a local enclave.
 * Calls target.c and conn.c, which finds out how connecting ended. Service thread only, but for
 * encl_conn_connect_tcp; no lock. */
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "net/internal.h"

static encl_result parse(const net_target *t, struct addrinfo **out, encl_error *err) {
    struct addrinfo hints;
    char port[8];

    memset(&hints, 0, sizeof hints);
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
    (void)snprintf(port, sizeof port, "%u", t->port);
    ENCL_ENSURE(getaddrinfo(t->host, port, &hints, out) == 0, err, ENCL_E_INVALID,
                "expected a numeric address, got '%s'", t->host);
    return ENCL_OK;
}

static encl_result open_socket(const struct addrinfo *to, int *out, encl_error *err) {
    int fd = encl_socket_tcp(to->ai_family), one = 1;

    ENCL_ENSURE(fd >= 0, err, ENCL_E_CONNECT, "no socket: %s", strerror(errno));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(fd, to->ai_addr, to->ai_addrlen) != 0 && errno != EINPROGRESS) {
        (void)encl_fail(err, ENCL_E_CONNECT, "TCP connect failed: %s", strerror(errno));
        (void)close(fd);
        return err->code;
    }
    *out = fd;
    return ENCL_OK;
}

static encl_result begin(encl_conn *conn, encl_error *err) {
    struct addrinfo *to = NULL;
    encl_code rc;
    int fd = -1;

    ENCL_TRY(parse(conn->target, &to, err));
    rc = open_socket(to, &fd, err);
    freeaddrinfo(to);
    ENCL_TRY(rc);
    ENCL_TRY(net_conn_adopt_fd(conn, fd, err));
    lws_callback_on_writable(conn->raw_wsi);
    return ENCL_OK;
}

encl_result encl_conn_connect_tcp(encl_loop *loop, const char *address, uint16_t port,
                                  const encl_conn_events *events, void *user, encl_conn **out,
                                  encl_error *err) {
    encl_conn *conn;
    encl_code rc;

    *out = NULL;
    ENCL_TRY(net_conn_new(loop, false, ENCL_WS_CLIENT, events, user, &conn, err));
    ENCL_TRY_GOTO(net_target_new_tcp(address, port, &conn->target, err), fail);
    rc = net_conn_start(conn, begin, err);
    if (rc != ENCL_OK) {
        goto fail;
    }
    *out = conn;
    return ENCL_OK;
fail:
    encl_conn_release(conn);
    return rc;
}
