/* listen: WebSocket servers on 127.0.0.1, for local enclaves. Decides which listener an upgraded
 * connection belongs to, and drops those that nobody takes. Calls vhost.c, registry.c, loop.c and
 * conn.c. Service thread only, but for what net.h says; no lock. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>

#include "net/internal.h"

struct encl_listener {
    encl_loop *loop;
    struct lws_vhost *vhost;
    encl_accepted accepted;
    void *user;
    uint16_t port;
    atomic_int refused;     /* the HTTP status that upgrades are refused with; 0: they are not */
    net_owned owned;        /* the listening socket */
    encl_link link;         /* loop->listeners */
    const char *cert, *key; /* only while being created */
};

static void make_vhost(encl_listener *l) {
    struct lws_context_creation_info info;

    net_vhost_info(l->loop, "enclave", &info);
    info.port = l->port;
    info.iface = "127.0.0.1";
    info.alpn = "http/1.1"; /* not HTTP/2, whose streams have no socket of their own to take over */
    /* With IPv6 it would take the address for no address, and listen on all there are. */
    info.options |= LWS_SERVER_OPTION_FAIL_UPON_UNABLE_TO_BIND | LWS_SERVER_OPTION_DISABLE_IPV6;
    if (l->cert != NULL) {
        info.options |= LWS_SERVER_OPTION_DO_SSL_GLOBAL_INIT;
        info.ssl_cert_filepath = l->cert;
        info.ssl_private_key_filepath = l->key;
    }
    l->vhost = lws_create_vhost(l->loop->context, &info);
}

/* arg: the port, a uint16_t. */
static bool listens_on(int fd, void *arg) {
    const uint16_t *port = arg;
    struct sockaddr_in at;
    socklen_t size = sizeof at, flag_size = sizeof(int);
    int listens = 0;

    return getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &flag_size) == 0 && listens != 0 &&
           getsockname(fd, (struct sockaddr *)&at, &size) == 0 && at.sin_family == AF_INET &&
           at.sin_port == htons(*port) && at.sin_addr.s_addr == htonl(INADDR_LOOPBACK);
}

static void task_listen(void *arg) {
    encl_listener *l = arg;

    make_vhost(l);
    if (l->vhost == NULL) {
        return;
    }
    l->port = (uint16_t)lws_get_vhost_listen_port(l->vhost);
    /* libwebsockets does not say which descriptor it listens on. */
    net_own(&l->owned, encl_descriptor_find(listens_on, &l->port));
    encl_list_prepend(&l->loop->listeners, &l->link);
}

static void task_unlisten(void *arg) {
    encl_listener *l = arg;

    encl_link_remove(&l->link);
    net_disown(&l->owned);
    lws_vhost_destroy(l->vhost);
}

encl_result encl_listen(encl_loop *loop, uint16_t port, const char *tls_cert_file,
                        const char *tls_key_file, encl_accepted accepted, void *user,
                        encl_listener **out, encl_error *err) {
    encl_listener *l = calloc(1, sizeof *l);
    encl_code rc;

    *out = NULL;
    ENCL_ENSURE(l != NULL, err, ENCL_E_NOMEM, "out of memory");
    l->loop = loop;
    l->accepted = accepted;
    l->user = user;
    l->port = port;
    l->cert = tls_cert_file;
    l->key = tls_key_file;
    ENCL_ENSURE_GOTO(encl_loop_run(loop, task_listen, l), fail, err, ENCL_E_CLOSED,
                     "the service thread has ended");
    ENCL_ENSURE_GOTO(l->vhost != NULL, fail, err, ENCL_E_CONNECT,
                     "could not listen on 127.0.0.1 port %u%s", port,
                     tls_cert_file == NULL ? "" : ", or its TLS certificate could not be used");
    *out = l;
    return ENCL_OK;
fail:
    free(l);
    return rc;
}

void encl_listener_refuse(encl_listener *listener, int status) {
    atomic_store(&listener->refused, status);
}

uint16_t encl_listener_port(const encl_listener *listener) {
    return listener->port;
}

void encl_listener_free(encl_listener *listener) {
    if (listener != NULL && encl_loop_run(listener->loop, task_unlisten, listener)) {
        free(listener);
    }
}

/* NULL where it was freed: its vhost lives on for a moment, and what was half upgraded with it. */
static encl_listener *find_listener(encl_loop *loop, const struct lws_vhost *vhost) {
    for (encl_link *at = encl_list_first(&loop->listeners); at != NULL;
         at = encl_list_next(&loop->listeners, at)) {
        encl_listener *l = ENCL_OWNER(at, encl_listener, link);

        if (l->vhost == vhost) {
            return l;
        }
    }
    return NULL;
}

/* Two arguments: the bytes, and how many. */
#define TEXT_OF(literal) (const unsigned char *)(literal), (int)sizeof(literal) - 1

#define PLAIN_TEXT                                                                                 \
    "expected a WebSocket: HTTP reaches this enclave through a verified channel only, so use "     \
    "enclavia.Client\n"

/* A request that asks for no WebSocket, by a browser, a health check or an HTTP client that was
 * given the wrong URL. libwebsockets would leave it without an answer for a minute. RFC 9110,
 * section 15.5.22: 426 names what to ask for. To HEAD there is no body (section 9.3.2). */
int net_server_plain_request(struct lws *wsi) {
    static const char text[] = PLAIN_TEXT;
    unsigned char block[LWS_PRE + 512];
    unsigned char *start = block + LWS_PRE, *at = start, *end = block + sizeof block - 1;

    _Static_assert(sizeof text <= sizeof block - LWS_PRE, "the text fits the block");
    if (lws_add_http_common_headers(wsi, 426, "text/plain", sizeof text - 1, &at, end) != 0 ||
        lws_add_http_header_by_token(wsi, WSI_TOKEN_UPGRADE, TEXT_OF("websocket"), &at, end) != 0 ||
        lws_add_http_header_by_token(wsi, WSI_TOKEN_CONNECTION, TEXT_OF("upgrade, close"), &at,
                                     end) != 0 ||
        lws_finalize_write_http_header(wsi, start, &at, end) != 0) {
        return -1;
    }
    if (lws_hdr_total_length(wsi, WSI_TOKEN_HEAD_URI) == 0) {
        memcpy(start, text, sizeof text - 1);
        (void)lws_write(wsi, start, sizeof text - 1, LWS_WRITE_HTTP_FINAL);
    }
    return -1; /* ends the connection, once this was sent */
}

/* CONNECT, for which libwebsockets makes the connection one of raw bytes, and sets no limit to how
 * long it stays. It has no request any more by then, so the answer is written as it is. */
int net_server_raw_bytes(struct lws *wsi) {
    static const char head[] = "HTTP/1.1 426 Upgrade Required\r\nupgrade: websocket\r\n"
                               "connection: upgrade, close\r\ncontent-type: text/plain\r\n";
    char block[LWS_PRE + 512];
    int size = snprintf(block + LWS_PRE, sizeof block - LWS_PRE, "%scontent-length: %zu\r\n\r\n%s",
                        head, sizeof PLAIN_TEXT - 1, PLAIN_TEXT);

    if (size > 0 && (size_t)size < sizeof block - LWS_PRE) {
        (void)lws_write(wsi, (unsigned char *)block + LWS_PRE, (size_t)size, LWS_WRITE_RAW);
    }
    return -1;
}

/* RFC 6455, section 4.2.1. libwebsockets would also upgrade a POST, or to HTTP/2 without TLS, and
 * would end a connection without the key and say nothing. */
static bool asks_for_websocket(struct lws *wsi) {
    char to[sizeof "websocket"];

    return lws_hdr_copy(wsi, to, sizeof to, WSI_TOKEN_UPGRADE) > 0 &&
           strcasecmp(to, "websocket") == 0 && lws_hdr_total_length(wsi, WSI_TOKEN_GET_URI) != 0 &&
           lws_hdr_total_length(wsi, WSI_TOKEN_KEY) != 0;
}

int net_server_confirm_upgrade(struct lws *wsi) {
    encl_listener *l = find_listener(lws_context_user(lws_get_context(wsi)), lws_get_vhost(wsi));
    int status = l == NULL ? 0 : atomic_load(&l->refused);

    if (!asks_for_websocket(wsi)) {
        return net_server_plain_request(wsi);
    }
    if (status == 0) {
        return 0;
    }
    return lws_return_http_status(wsi, (unsigned)status, NULL) < 0 ? -1 : 1;
}

static void offer(encl_listener *l, encl_conn *conn) {
    encl_error err;

    encl_conn_retain(conn); /* for the time of the call */
    l->accepted(l->user, conn);
    if (conn->events.received == NULL) {
        encl_fail(&err, ENCL_E_CLOSED, "nobody took the connection");
        net_conn_finish(conn, &err);
    } else {
        net_conn_opened(conn);
    }
    encl_conn_release(conn);
}

int net_server_established(struct lws *wsi) {
    encl_loop *loop = lws_context_user(lws_get_context(wsi));
    encl_listener *l = find_listener(loop, lws_get_vhost(wsi));
    encl_conn *conn;
    encl_error err;

    if (l == NULL || net_conn_new(loop, true, ENCL_WS_SERVER, NULL, NULL, &conn, &err) != ENCL_OK) {
        return -1;
    }
    net_conn_link(conn);
    conn->ws_wsi = wsi;
    lws_set_opaque_user_data(wsi, conn);
    encl_conn_retain(conn); /* ws_wsi's */
    conn->wsi_refs++;
    if (net_conn_take_over(conn, wsi, &err) == ENCL_OK) {
        offer(l, conn);
    } else {
        net_conn_finish(conn, &err);
    }
    return 0;
}
