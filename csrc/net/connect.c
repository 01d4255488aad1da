#include "net/net_internal.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* libwebsockets cuts the name it checks certificates for at 127 bytes. */
#define HOST_MAX    127
#define HEADERS_MAX ((size_t)16 * 1024)
/* Its room for them, in base64. */
#define PROXY_AUTH_MAX 93

/* ---- the target ---- */

static void wipe_free(char *text) {
    if (text != NULL) {
        encl_wipe(text, strlen(text));
        free(text);
    }
}

void net_target_free(net_target *target) {
    if (target == NULL) {
        return;
    }
    for (size_t i = 0; i < target->header_count; i++) {
        free((char *)(uintptr_t)target->headers[i].name);
        wipe_free((char *)(uintptr_t)target->headers[i].value);
    }
    free(target->headers);
    free(target->host);
    free(target->path);
    free(target->authority);
    free(target->ca_file);
    free(target->proxy_host);
    wipe_free(target->proxy_auth);
    free(target);
}

static bool is_token(const char *text) {
    if (*text == '\0') {
        return false;
    }
    for (; *text != '\0'; text++) {
        if (!isalnum((unsigned char)*text) && strchr("!#$%&'*+-.^_`|~", *text) == NULL) {
            return false;
        }
    }
    return true;
}

static bool is_printable(const char *text, bool spaces) {
    for (; *text != '\0'; text++) {
        unsigned char c = (unsigned char)*text;

        if (c < (spaces ? 0x20 : 0x21) || c == 0x7f) {
            return spaces && c == '\t';
        }
    }
    return true;
}

static bool is_numeric_v6(const char *host) {
    struct in6_addr address;

    return inet_pton(AF_INET6, host, &address) == 1;
}

static encl_result check_target(const encl_ws_target *t, encl_error *err) {
    size_t total = 0;

    ENCL_ENSURE(t->host != NULL && *t->host != '\0' && strlen(t->host) <= HOST_MAX &&
                    is_printable(t->host, false),
                err, ENCL_E_INVALID_URL, "expected a host name of 1 to %d bytes", HOST_MAX);
    ENCL_ENSURE(!t->tls || !t->verify || !is_numeric_v6(t->host), err, ENCL_E_INVALID_URL,
                "wss:// to an IPv6 address is not possible: its certificate cannot be checked; "
                "use a host name");
    ENCL_ENSURE(t->path != NULL && t->path[0] == '/' && strlen(t->path) < 8192 &&
                    is_printable(t->path, false),
                err, ENCL_E_INVALID_URL, "expected a path that begins with '/'");
    ENCL_ENSURE(t->authority != NULL && is_printable(t->authority, false), err, ENCL_E_INVALID_URL,
                "expected a Host header without blanks");
    ENCL_ENSURE(t->proxy_host == NULL || strlen(t->proxy_host) <= HOST_MAX, err, ENCL_E_INVALID,
                "proxy: expected a host name of 1 to %d bytes", HOST_MAX);
    ENCL_ENSURE(t->proxy_auth == NULL || strlen(t->proxy_auth) <= PROXY_AUTH_MAX, err,
                ENCL_E_INVALID, "proxy: expected a user name and password of at most %d bytes",
                PROXY_AUTH_MAX);
    for (size_t i = 0; i < t->header_count; i++) {
        ENCL_ENSURE(is_token(t->headers[i].name), err, ENCL_E_INVALID,
                    "upgrade header %zu: expected a header name (RFC 9110 token)", i + 1);
        ENCL_ENSURE(is_printable(t->headers[i].value, true), err, ENCL_E_INVALID,
                    "upgrade header '%s': its value has control characters", t->headers[i].name);
        total += strlen(t->headers[i].name) + strlen(t->headers[i].value) + 4;
    }
    ENCL_ENSURE(total <= HEADERS_MAX, err, ENCL_E_INVALID,
                "upgrade headers: expected at most %zu bytes, got %zu", HEADERS_MAX, total);
    return ENCL_OK;
}

static char *copy(const char *text, bool *ok) {
    char *made = text == NULL ? NULL : strdup(text);

    *ok = *ok && (text == NULL || made != NULL);
    return made;
}

static encl_result copy_target(const encl_ws_target *t, net_target **out, encl_error *err) {
    net_target *made = calloc(1, sizeof *made);
    bool ok = made != NULL;

    *out = NULL;
    ENCL_ENSURE(ok, err, ENCL_E_NOMEM, "out of memory");
    made->host = copy(t->host, &ok);
    made->path = copy(t->path, &ok);
    made->authority = copy(t->authority, &ok);
    made->ca_file = copy(t->ca_file, &ok);
    made->proxy_host = copy(t->proxy_host, &ok);
    made->proxy_auth = copy(t->proxy_auth, &ok);
    made->port = t->port;
    made->proxy_port = t->proxy_port;
    made->keepalive_ms = t->keepalive_ms;
    made->tls = t->tls;
    made->verify = t->verify;
    made->headers = calloc(t->header_count + 1, sizeof *made->headers);
    ok = ok && made->headers != NULL;
    for (size_t i = 0; ok && i < t->header_count; i++) {
        made->headers[i].name = copy(t->headers[i].name, &ok);
        made->headers[i].value = copy(t->headers[i].value, &ok);
        made->header_count = i + 1;
    }
    if (!ok) {
        net_target_free(made);
        return encl_fail(err, ENCL_E_NOMEM, "out of memory");
    }
    *out = made;
    return ENCL_OK;
}

/* ---- names to addresses ---- */

typedef struct resolution {
    encl_conn *conn; /* a reference */
    encl_loop *loop; /* another: the loop may be freed while a name is looked up */
    encl_job answer;
    char *name;
    bool any_family;
    int rc;
    char addresses[NET_ADDRESSES_MAX][NET_ADDRESS_TEXT];
    size_t count;
} resolution;

static void resolution_free(resolution *r) {
    encl_conn_release(r->conn);
    net_loop_release(r->loop);
    free(r->name);
    free(r);
}

static void lookup(resolution *r, int flags) {
    struct addrinfo hints, *found = NULL;

    memset(&hints, 0, sizeof hints);
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = flags;
    r->rc = getaddrinfo(r->name, NULL, &hints, &found);
    for (struct addrinfo *at = found; at != NULL && r->count < NET_ADDRESSES_MAX;
         at = at->ai_next) {
        if (getnameinfo(at->ai_addr, at->ai_addrlen, r->addresses[r->count], NET_ADDRESS_TEXT, NULL,
                        0, NI_NUMERICHOST) == 0) {
            r->count++;
        }
    }
    if (found != NULL) {
        freeaddrinfo(found);
    }
}

static void task_resolved(void *arg) {
    resolution *r = arg;
    encl_conn *conn = r->conn;
    encl_error why;

    if (conn->state == NET_CONNECTING) {
        if (r->count == 0) {
            encl_fail(&why, ENCL_E_CONNECT, "no address for the host name '%s': %s", r->name,
                      r->rc == 0 ? "none found" : gai_strerror(r->rc));
            /* A name server that does not answer may do so later; one that knows of no such name
               will not. */
            why.retryable = r->rc != EAI_NONAME;
            net_conn_finish(conn, &why);
        } else {
            memcpy(conn->target->addresses, r->addresses, sizeof r->addresses);
            conn->target->address_count = r->count;
            net_connect_next(conn);
        }
    }
    resolution_free(r);
}

static void *resolve(void *arg) {
    resolution *r = arg;

    lookup(r, AI_ADDRCONFIG);
    r->answer = (encl_job){.run = task_resolved, .arg = r};
    if (!encl_loop_post(r->loop, &r->answer)) {
        resolution_free(r);
    }
    return NULL;
}

/* getaddrinfo may block for as long as it likes, which the service thread must not. A thread that
 * ends with its answer; one that is no longer wanted finds the connection finished. */
static encl_result start_resolving(encl_conn *conn, const char *name, encl_error *err) {
    resolution *r = calloc(1, sizeof *r);
    pthread_attr_t attr;
    pthread_t thread;
    int rc;

    ENCL_ENSURE(r != NULL, err, ENCL_E_NOMEM, "out of memory");
    encl_conn_retain(conn);
    net_loop_retain(conn->loop);
    r->conn = conn;
    r->loop = conn->loop;
    r->name = strdup(name);
    if (r->name == NULL) {
        resolution_free(r);
        return encl_fail(err, ENCL_E_NOMEM, "out of memory");
    }
    lookup(r, AI_NUMERICHOST);
    if (r->count != 0) {
        task_resolved(r);
        return ENCL_OK;
    }
    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    rc = pthread_create(&thread, &attr, resolve, r);
    pthread_attr_destroy(&attr);
    if (rc != 0) {
        resolution_free(r);
        return encl_fail(err, ENCL_E_NOMEM, "the resolver thread could not be started");
    }
    return ENCL_OK;
}

/* ---- the client's WebSocket ---- */

static struct lws *begin_connect(encl_conn *conn, struct lws_vhost *vhost, const char *address) {
    struct lws_client_connect_info info;
    const net_target *t = conn->target;

    memset(&info, 0, sizeof info);
    info.context = conn->loop->context;
    info.vhost = vhost;
    info.address = address;
    info.port = t->port;
    info.path = t->path;
    info.host = t->authority;
    info.local_protocol_name = NET_PROTOCOL;
    info.opaque_user_data = conn;
    info.pwsi = &conn->ws_wsi;
    info.alpn = "http/1.1";
    info.ssl_connection = LCCSCF_HTTP_NO_FOLLOW_REDIRECT;
    if (t->tls) {
        info.ssl_connection |= LCCSCF_USE_SSL;
    }
    if (t->tls && !t->verify) {
        info.ssl_connection |= LCCSCF_ALLOW_SELFSIGNED | LCCSCF_SKIP_SERVER_CERT_HOSTNAME_CHECK |
                               LCCSCF_ALLOW_EXPIRED | LCCSCF_ALLOW_INSECURE;
    }
    return lws_client_connect_via_info(&info);
}

static void no_address_left(encl_conn *conn) {
    net_target *t = conn->target;
    const char *failure = t->last_failure[0] == '\0' ? "libwebsockets refused" : t->last_failure;
    encl_error why;

    if (t->proxy_host == NULL) {
        encl_fail(&why, ENCL_E_CONNECT, "no connection to %s port %u: %s", t->host, t->port,
                  failure);
    } else {
        encl_fail(&why, ENCL_E_CONNECT,
                  "no connection to %s port %u through the proxy %s port %u: %s", t->host, t->port,
                  t->proxy_host, t->proxy_port, failure);
    }
    net_conn_finish(conn, &why);
}

void net_connect_next(encl_conn *conn) {
    net_target *t = conn->target;
    struct lws_vhost *vhost;
    encl_error err;

    if (net_vhost_for(conn->loop, t, &vhost, &err) != ENCL_OK) {
        net_conn_finish(conn, &err);
        return;
    }
    while (t->next_address < t->address_count) {
        const char *address = t->addresses[t->next_address++];

        unsigned refs_before = conn->wsi_refs;

        conn->ws_wsi = NULL;
        encl_conn_retain(conn); /* ws_wsi's, given back when it is destroyed */
        conn->wsi_refs++;
        /* Behind a proxy it is the proxy that finds the address. */
        if (begin_connect(conn, vhost, t->proxy_host != NULL ? t->host : address) != NULL) {
            net_conn_note_socket(conn, lws_get_socket_fd(conn->ws_wsi));
            return;
        }
        conn->ws_wsi = NULL;
        if (conn->wsi_refs != refs_before) {
            /* It failed so early that there was nothing to destroy. */
            conn->wsi_refs--;
            encl_conn_release(conn);
        }
        if (conn->state == NET_FINISHED) {
            return;
        }
        if (t->last_failure[0] == '\0') {
            (void)snprintf(t->last_failure, sizeof t->last_failure, "%s", strerror(errno));
        }
    }
    no_address_left(conn);
}

static int append_headers(encl_conn *conn, unsigned char **at, size_t room) {
    const net_target *t = conn->target;

    for (size_t i = 0; i < t->header_count; i++) {
        int n = snprintf((char *)*at, room, "%s: %s\r\n", t->headers[i].name, t->headers[i].value);

        if (n < 0 || (size_t)n >= room) {
            return -1;
        }
        *at += n;
        room -= (size_t)n;
    }
    return 0;
}

static bool worth_a_retry(int status) {
    return status == 408 || status == 429 || (status >= 500 && status <= 599);
}

/* libwebsockets has parsed the head and thrown its bytes away: written again from the parts. */
static void rebuild_head(struct lws *wsi, int status, encl_error *err) {
    uint8_t *head = err->detail.upgrade.head;
    size_t room = sizeof err->detail.upgrade.head, used;
    char value[256];
    int n = snprintf((char *)head, room, "HTTP/1.1 %d\r\n", status);

    used = n > 0 ? (size_t)n : 0;
    for (int token = 0; token < WSI_TOKEN_COUNT; token++) {
        const char *name = (const char *)lws_token_to_string((enum lws_token_indexes)token);

        if (name == NULL || name[0] == '\0' || name[strlen(name) - 1] != ':' || name[0] == ':' ||
            lws_hdr_copy(wsi, value, sizeof value, (enum lws_token_indexes)token) <= 0) {
            continue;
        }
        n = snprintf((char *)head + used, room - used, "%s %s\r\n", name, value);
        if (n < 0 || (size_t)n >= room - used) {
            break;
        }
        used += (size_t)n;
    }
    err->detail.upgrade.head_len = used;
}

static void remember_rejection(encl_conn *conn, struct lws *wsi, int status) {
    conn->status = status;
    encl_fail(&conn->rejected, ENCL_E_UPGRADE_REJECTED,
              "the WebSocket upgrade was refused: expected HTTP status 101, got %d", status);
    conn->rejected.retryable = worth_a_retry(status);
    conn->rejected.detail.upgrade.status = status;
    rebuild_head(wsi, status, &conn->rejected);
}

static int reject(encl_conn *conn, encl_code code, const char *why) {
    conn->status = -1;
    encl_fail(&conn->rejected, code, "%s", why);
    return -1;
}

/* What the server sent together with its 101 sits in libwebsockets' buffer, where only this call
 * reaches it; it comes back as RECEIVE_CLIENT_HTTP_READ. Once only: the buffer holds one block, and
 * a call that finds it empty would read the socket, and throw all away where that has ended. */
static int drain_early(encl_conn *conn, struct lws *wsi) {
    char *at = NULL;
    int room = 0;

    if (lws_hdr_total_length(wsi, WSI_TOKEN_HTTP_TRANSFER_ENCODING) > 0 ||
        lws_hdr_total_length(wsi, WSI_TOKEN_HTTP_CONTENT_LENGTH) > 0) {
        return reject(conn, ENCL_E_PROTOCOL,
                      "the WebSocket upgrade was answered 101 with a body, which HTTP forbids");
    }
    if (lws_http_client_read(wsi, &at, &room) != 0) {
        return reject(conn, ENCL_E_CLOSED,
                      "the peer ended the connection right after the WebSocket upgrade");
    }
    return 0;
}

/* libwebsockets looks at the other lines of a 101, but not at this one. */
static bool upgrades_connection(struct lws *wsi) {
    char value[128];

    return lws_hdr_copy(wsi, value, sizeof value, WSI_TOKEN_CONNECTION) > 0 &&
           strcasestr(value, "upgrade") != NULL;
}

static int reply_came(encl_conn *conn, struct lws *wsi) {
    int status = (int)lws_http_client_http_response(wsi);

    if (status != 101) {
        remember_rejection(conn, wsi, status);
        return -1;
    }
    if (!upgrades_connection(wsi)) {
        return reject(conn, ENCL_E_PROTOCOL,
                      "the WebSocket upgrade was answered 101: expected the header 'Connection: "
                      "Upgrade', got none or another");
    }
    return drain_early(conn, wsi);
}

/* A second look at what libwebsockets has checked, with the whole name. */
static encl_result check_certificate(const encl_conn *conn, SSL *ssl, encl_error *err) {
    const net_target *t = conn->target;
    struct in_addr v4;
    X509 *certificate;
    bool matches;

    if (!t->tls || !t->verify) {
        return ENCL_OK;
    }
    certificate = ssl == NULL ? NULL : SSL_get1_peer_certificate(ssl);
    matches = certificate != NULL && SSL_get_verify_result(ssl) == X509_V_OK &&
              (inet_pton(AF_INET, t->host, &v4) == 1
                   ? X509_check_ip_asc(certificate, t->host, 0) == 1
                   : X509_check_host(certificate, t->host, strlen(t->host), 0, NULL) == 1);
    X509_free(certificate);
    if (!matches) {
        (void)encl_fail(err, ENCL_E_CONNECT,
                        "TLS: expected a trusted certificate for '%s', got another", t->host);
        err->retryable = false;
        return err->code;
    }
    return ENCL_OK;
}

static void established(encl_conn *conn, struct lws *wsi) {
    encl_error err;

    if (conn->state != NET_CONNECTING) {
        return;
    }
    if (check_certificate(conn, lws_get_ssl(wsi), &err) != ENCL_OK ||
        net_conn_take_over(conn, wsi, &err) != ENCL_OK) {
        net_conn_finish(conn, &err);
        return;
    }
    net_conn_opened(conn);
}

/* libwebsockets' reasons are short, and written for its own developers. */
static const char *explain(const char *reason) {
    static const char *const words[][2] = {
        {"read failed",
         "expected a whole HTTP answer to the WebSocket upgrade, got the end of the connection"},
        {"Peer hung up",
         "expected a whole HTTP answer to the WebSocket upgrade, got the end of the connection"},
        {"Unable to connect", "no server listens there, or none can be reached"},
        {"proxy conn dead", "expected an answer of the proxy to CONNECT, it hung up"},
        {"proxy read err", "expected an answer of the proxy to CONNECT, it hung up"},
    };

    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++) {
        if (strcmp(reason, words[i][0]) == 0) {
            return words[i][1];
        }
    }
    return reason;
}

/* Failures that another address of the same name would not mend. */
static bool is_final(const char *reason, encl_error *why) {
    if (strncmp(reason, "HS: ", 4) == 0) {
        encl_fail(why, ENCL_E_PROTOCOL,
                  "the WebSocket upgrade: expected an answer 101 of RFC 6455, got one with a wrong "
                  "header (%.100s)",
                  reason + 4);
    } else if (strcmp(reason, "problems parsing header") == 0) {
        encl_fail(
            why, ENCL_E_PROTOCOL,
            "the WebSocket upgrade: expected an HTTP answer with a head of a few KiB at most, "
            "got something else");
    } else if (strcmp(reason, "proxy not h1") == 0) {
        encl_fail(why, ENCL_E_CONNECT,
                  "the proxy refused: expected HTTP status 200 to CONNECT, got another answer");
        why->retryable = false;
    } else {
        return false;
    }
    return true;
}

static void note_failure(net_target *t, const char *reason) {
    bool in_tls = strncmp(reason, "connect SSL err", strlen("connect SSL err")) == 0;

    (void)snprintf(t->last_failure, sizeof t->last_failure, "%s%s",
                   in_tls ? "the TLS handshake failed; expected a server with TLS, as wss:// says "
                            "(a local enclave without tls=True is ws://): "
                          : "",
                   explain(reason));
}

static void connect_failed(encl_conn *conn, struct lws *wsi, const char *text, size_t len) {
    SSL *ssl = lws_get_ssl(wsi);
    char reason[201];
    encl_error why;

    if (conn->state != NET_CONNECTING) {
        return;
    }
    if (conn->status != 0) {
        net_conn_finish(conn, &conn->rejected);
        return;
    }
    if (ssl != NULL && conn->target->verify && SSL_get_verify_result(ssl) != X509_V_OK) {
        encl_fail(&why, ENCL_E_CONNECT, "TLS: the certificate of '%s' was refused: %s",
                  conn->target->host, X509_verify_cert_error_string(SSL_get_verify_result(ssl)));
        why.retryable = false;
        net_conn_finish(conn, &why);
        return;
    }
    (void)snprintf(reason, sizeof reason, "%.*s", (int)(len < 200 ? len : 200),
                   text == NULL ? "" : text);
    if (is_final(reason, &why)) {
        net_conn_finish(conn, &why);
        return;
    }
    note_failure(conn->target, reason);
    conn->ws_wsi = NULL; /* on its way out; its destruction gives the reference back */
    net_conn_note_socket(conn, -1);
    net_connect_next(conn);
}

static void destroyed(encl_conn *conn, struct lws *wsi) {
    encl_error why;

    if (conn->ws_wsi == wsi) {
        conn->ws_wsi = NULL;
        if (conn->state != NET_FINISHED) {
            encl_fail(&why, conn->state == NET_CONNECTING ? ENCL_E_CONNECT : ENCL_E_CLOSED,
                      "the connection ended");
            net_conn_finish(conn, &why);
        }
        pthread_mutex_lock(&conn->io);
        conn->ssl = NULL;
        conn->lws_fd = -1;
        pthread_mutex_unlock(&conn->io);
    }
    lws_set_opaque_user_data(wsi, NULL);
    conn->wsi_refs--;
    encl_conn_release(conn);
}

/* libwebsockets saw the socket end before our own descriptor was asked. */
static void socket_ended(encl_conn *conn) {
    encl_error why;

    net_conn_readable(conn);
    encl_fail(&why, ENCL_E_CLOSED, "the peer reset the connection");
    conn->ws_wsi = NULL;
    net_conn_finish(conn, &why);
    pthread_mutex_lock(&conn->io);
    conn->ssl = NULL;
    conn->lws_fd = -1;
    pthread_mutex_unlock(&conn->io);
}

int net_client_event(encl_conn *conn, struct lws *wsi, enum lws_callback_reasons reason, void *in,
                     size_t len) {
    encl_error err;

    switch (reason) {
    case LWS_CALLBACK_CLIENT_APPEND_HANDSHAKE_HEADER:
        /* Behind a proxy with several addresses it need not be the first socket. */
        net_conn_note_socket(conn, lws_get_socket_fd(wsi));
        return append_headers(conn, in, len);
    case LWS_CALLBACK_ESTABLISHED_CLIENT_HTTP:
        return reply_came(conn, wsi);
    case LWS_CALLBACK_RECEIVE_CLIENT_HTTP_READ:
        return encl_buf_write(&conn->early, ENCL_SLICE(in, len), &err) == ENCL_OK ? 0 : -1;
    case LWS_CALLBACK_CLIENT_ESTABLISHED:
        established(conn, wsi);
        return 0;
    case LWS_CALLBACK_CLIENT_CONNECTION_ERROR:
        connect_failed(conn, wsi, in, in == NULL ? 0 : len);
        return 0;
    case LWS_CALLBACK_CLIENT_CLOSED:
    case LWS_CALLBACK_CLOSED:
        if (conn->ws_wsi == wsi) {
            socket_ended(conn);
        }
        return 0;
    case LWS_CALLBACK_WSI_DESTROY:
        if (conn->raw_wsi != wsi) {
            destroyed(conn, wsi);
        }
        return 0;
    default:
        return 0;
    }
}

/* Gives the caller a reference beside the loop's. */
static encl_result start(encl_conn *conn, encl_task task, encl_error *err) {
    ENCL_ENSURE(conn->loop->generation == encl_fork_generation(), err, ENCL_E_FORKED,
                "this connection's loop belongs to the parent process");
    conn->connect = (encl_job){.run = task, .arg = conn};
    encl_conn_retain(conn);
    if (!encl_loop_post(conn->loop, &conn->connect)) {
        encl_conn_release(conn);
        return encl_fail(err, ENCL_E_CLOSED, "the service thread has ended");
    }
    return ENCL_OK;
}

static void task_connect_ws(void *arg) {
    encl_conn *conn = arg;
    encl_error err;
    encl_code rc;

    net_link_conn(conn);
    if (conn->close_asked) {
        encl_fail(&err, ENCL_E_CLOSED, "the connection was closed on this side");
        rc = err.code;
    } else {
        rc = start_resolving(
            conn, conn->target->proxy_host != NULL ? conn->target->proxy_host : conn->target->host,
            &err);
    }
    if (rc != ENCL_OK) {
        net_conn_finish(conn, &err);
    }
}

encl_result encl_conn_connect_ws(encl_loop *loop, const encl_ws_target *target,
                                 const encl_conn_events *events, void *user, encl_conn **out,
                                 encl_error *err) {
    encl_conn *conn;
    encl_code rc;

    *out = NULL;
    ENCL_TRY(check_target(target, err));
    ENCL_TRY(net_conn_new(loop, true, ENCL_WS_CLIENT, events, user, &conn, err));
    ENCL_TRY_GOTO(copy_target(target, &conn->target, err), fail);
    rc = start(conn, task_connect_ws, err);
    if (rc != ENCL_OK) {
        goto fail;
    }
    *out = conn;
    return ENCL_OK;
fail:
    encl_conn_release(conn);
    return rc;
}

/* ---- TCP ---- */

static encl_result start_tcp(encl_conn *conn, encl_error *err) {
    struct addrinfo hints, *found = NULL;
    char port[8];
    int fd = -1, one = 1, rc;
    encl_code code = ENCL_OK;

    memset(&hints, 0, sizeof hints);
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
    (void)snprintf(port, sizeof port, "%u", conn->target->port);
    rc = getaddrinfo(conn->target->host, port, &hints, &found);
    ENCL_ENSURE(rc == 0, err, ENCL_E_INVALID, "expected a numeric address, got '%s'",
                conn->target->host);
    fd = socket(found->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        code = encl_fail(err, ENCL_E_CONNECT, "no socket: %s", strerror(errno));
    } else {
        (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        if (connect(fd, found->ai_addr, found->ai_addrlen) != 0 && errno != EINPROGRESS) {
            code = encl_fail(err, ENCL_E_CONNECT, "TCP connect failed: %s", strerror(errno));
            (void)close(fd);
        }
    }
    freeaddrinfo(found);
    ENCL_TRY(code);
    ENCL_TRY(net_conn_adopt_fd(conn, fd, err));
    lws_callback_on_writable(conn->raw_wsi);
    return ENCL_OK;
}

static void task_connect_tcp(void *arg) {
    encl_conn *conn = arg;
    encl_error err;

    net_link_conn(conn);
    if (conn->close_asked) {
        encl_fail(&err, ENCL_E_CLOSED, "the connection was closed on this side");
        net_conn_finish(conn, &err);
    } else if (start_tcp(conn, &err) != ENCL_OK) {
        net_conn_finish(conn, &err);
    }
}

encl_result encl_conn_connect_tcp(encl_loop *loop, const char *address, uint16_t port,
                                  const encl_conn_events *events, void *user, encl_conn **out,
                                  encl_error *err) {
    encl_conn *conn;
    encl_code rc;

    *out = NULL;
    ENCL_TRY(net_conn_new(loop, false, ENCL_WS_CLIENT, events, user, &conn, err));
    conn->target = calloc(1, sizeof *conn->target);
    ENCL_ENSURE_GOTO(conn->target != NULL, fail, err, ENCL_E_NOMEM, "out of memory");
    conn->target->host = strdup(address);
    conn->target->port = port;
    ENCL_ENSURE_GOTO(conn->target->host != NULL, fail, err, ENCL_E_NOMEM, "out of memory");
    rc = start(conn, task_connect_tcp, err);
    if (rc != ENCL_OK) {
        goto fail;
    }
    *out = conn;
    return ENCL_OK;
fail:
    encl_conn_release(conn);
    return rc;
}
