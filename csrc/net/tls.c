/* tls: an SSL object that writes to a socket without raising SIGPIPE. Calls platform and OpenSSL;
 * no lock, but for the one-time making of its method. */
#include <errno.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/ssl.h>

#include "net/internal.h"

/* OpenSSL's own socket BIO calls write(), which raises SIGPIPE where the peer is gone; callers'
 * threads call SSL_write, and what SIGPIPE does is the program's decision. This one differs in
 * nothing but encl_socket_send. */
static BIO_METHOD *method; /* made once, under method_once, and kept for the process */
static pthread_once_t method_once = PTHREAD_ONCE_INIT;

static int quiet_write(BIO *bio, const char *data, int len) {
    int fd = (int)(intptr_t)BIO_get_data(bio);
    ssize_t n;

    BIO_clear_retry_flags(bio);
    n = encl_socket_send(fd, data, len < 0 ? 0 : (size_t)len);
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) {
        BIO_set_retry_write(bio);
    }
    return (int)n;
}

static long quiet_ctrl(BIO *bio, int command, long number, void *pointer) {
    (void)bio;
    (void)number;
    (void)pointer;
    return command == BIO_CTRL_FLUSH; /* nothing is kept back here; nothing else is needed */
}

static void make_method(void) {
    int type = BIO_get_new_index();

    method = type < 0 ? NULL : BIO_meth_new(type | BIO_TYPE_SOURCE_SINK, "socket without SIGPIPE");
    if (method != NULL && (BIO_meth_set_write(method, quiet_write) != 1 ||
                           BIO_meth_set_ctrl(method, quiet_ctrl) != 1)) {
        BIO_meth_free(method);
        method = NULL;
    }
}

encl_result net_tls_write_quietly(SSL *ssl, int fd, encl_error *err) {
    BIO *bio = NULL;

    if (pthread_once(&method_once, make_method) == 0 && method != NULL) {
        bio = BIO_new(method);
    }
    ERR_clear_error();
    ENCL_ENSURE(bio != NULL, err, ENCL_E_NOMEM, "out of memory for a TLS connection");
    BIO_set_data(bio, (void *)(intptr_t)fd);
    BIO_set_init(bio, 1);
    SSL_set0_wbio(ssl, bio);
    return ENCL_OK;
}
