/* socket: bytes in and out of a connected socket, plain or through TLS, and its ends. Decides what
 * of errno and of OpenSSL's answers means waiting, an end, or a break. Calls platform and OpenSSL;
 * the connection's io lock is held. */
#include <errno.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <sys/socket.h>

#include "net/internal.h"

static net_io of_tls(SSL *ssl, int n) {
    switch (SSL_get_error(ssl, n)) {
    case SSL_ERROR_WANT_READ:
    case SSL_ERROR_WANT_WRITE:
        return NET_IO_WAIT;
    case SSL_ERROR_ZERO_RETURN:
        return NET_IO_EOF;
    default:
        return NET_IO_BROKEN;
    }
}

static net_io of_errno(void) {
    return errno == EAGAIN || errno == EWOULDBLOCK ? NET_IO_WAIT : NET_IO_BROKEN;
}

static net_io tls_read(SSL *ssl, uint8_t *block, size_t cap, size_t *got) {
    int n;

    ERR_clear_error();
    n = SSL_read(ssl, block, (int)cap);
    if (n <= 0) {
        return of_tls(ssl, n);
    }
    *got = (size_t)n;
    return NET_IO_DONE;
}

net_io net_socket_read(const net_socket *s, uint8_t *block, size_t cap, size_t *got) {
    ssize_t n;

    *got = 0;
    if (s->fd < 0) {
        return NET_IO_EOF;
    }
    if (s->ssl != NULL) {
        return tls_read(s->ssl, block, cap, got);
    }
    do {
        n = recv(s->fd, block, cap, 0);
    } while (n < 0 && errno == EINTR);
    if (n < 0) {
        return of_errno();
    }
    *got = (size_t)n;
    return n == 0 ? NET_IO_EOF : NET_IO_DONE;
}

static net_io tls_write_held(SSL *ssl, encl_slice bytes, size_t *put) {
    int n;

    ERR_clear_error();
    n = SSL_write(ssl, bytes.data, (int)bytes.len);
    if (n <= 0) {
        return of_tls(ssl, n);
    }
    *put = (size_t)n;
    return NET_IO_DONE;
}

/* All else here that calls OpenSSL runs in the service thread. */
static net_io tls_write(SSL *ssl, encl_slice bytes, size_t *put) {
    net_io rc;

    encl_fork_hold();
    rc = tls_write_held(ssl, bytes, put);
    encl_fork_let_go();
    return rc;
}

net_io net_socket_write(const net_socket *s, encl_slice bytes, size_t *put) {
    ssize_t n;

    *put = 0;
    if (s->fd < 0) {
        return NET_IO_BROKEN;
    }
    if (s->ssl != NULL) {
        return tls_write(s->ssl, bytes, put);
    }
    do {
        n = encl_socket_send(s->fd, bytes.data, bytes.len);
    } while (n < 0 && errno == EINTR);
    if (n < 0) {
        return of_errno();
    }
    *put = (size_t)n;
    return NET_IO_DONE;
}

void net_socket_shut_writing(const net_socket *s) {
    (void)shutdown(s->fd, SHUT_WR);
}

void net_socket_shut(const net_socket *s, bool broken) {
    if (s->fd < 0) {
        return;
    }
    if (s->ssl != NULL && !broken) {
        ERR_clear_error();
        (void)SSL_shutdown(s->ssl);
    }
    (void)shutdown(s->fd, SHUT_RDWR);
}

int net_socket_error(const net_socket *s) {
    int code = 0;
    socklen_t size = sizeof code;

    return getsockopt(s->fd, SOL_SOCKET, SO_ERROR, &code, &size) == 0 ? code : errno;
}
