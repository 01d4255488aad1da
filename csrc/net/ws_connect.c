/* ws_connect: the client's way to an open WebSocket: the name is resolved, one address after the
 * other is tried, libwebsockets does TCP, TLS, the proxy and the upgrade, and conn.c takes the
 * socket over. Decides what each of libwebsockets' events means for that. Calls resolve.c, vhost.c,
 * upgrade.c, target.c and conn.c.
 *
 * Service thread only, but for encl_conn_connect_ws; no lock. */
#include <errno.h>
#include <openssl/err.h>
#include <stdio.h>
#include <string.h>

#include "net/internal.h"

/* ---- how far it has come ---- */

static void reached(encl_conn *conn, encl_conn_stage stage) {
    if (conn->state == NET_CONNECTING && conn->events.reached != NULL) {
        conn->events.reached(conn->user, conn, stage);
    }
}

static encl_conn *connecting_with(const encl_loop *loop, const SSL *ssl) {
    for (encl_link *link = encl_list_first(&loop->conns); link != NULL;
         link = encl_list_next(&loop->conns, link)) {
        encl_conn *conn = ENCL_OWNER(link, encl_conn, link);

        if (conn->state == NET_CONNECTING && conn->ws_wsi != NULL &&
            lws_get_ssl(conn->ws_wsi) == ssl) {
            return conn;
        }
    }
    return NULL;
}

/* libwebsockets tells nothing between the beginning of a TCP connect and the end of TLS. */
static void tls_event(const SSL *ssl, int where, int value) {
    bool begins = (where & SSL_CB_HANDSHAKE_START) != 0;
    bool fails = (where & SSL_CB_EXIT) != 0 && value <= 0;
    encl_conn *conn;

    if (!begins && !fails) {
        return;
    }
    conn = connecting_with(SSL_CTX_get_app_data(SSL_get_SSL_CTX(ssl)), ssl);
    if (conn == NULL) {
        return;
    }
    if (begins) {
        reached(conn, ENCL_CONN_CONNECTED);
    } else if (net_upgrade_is_no_tls(ERR_peek_error())) {
        conn->target->no_tls = true; /* not every libwebsockets tells OpenSSL's error */
    }
}

void net_client_watch_tls(encl_loop *loop, SSL_CTX *ctx) {
    SSL_CTX_set_app_data(ctx, loop);
    SSL_CTX_set_info_callback(ctx, tls_event);
}

/* The request for the upgrade is about to be written. */
static int upgrade_begins(encl_conn *conn, struct lws *wsi, void *in, size_t len) {
    reached(conn, conn->target->tls ? ENCL_CONN_SECURED : ENCL_CONN_CONNECTED);
    /* It need not be the first socket: libwebsockets may have made another. */
    net_own(&conn->ws_owned, lws_get_socket_fd(wsi));
    return net_upgrade_append_headers(conn->target, in, len);
}

/* ---- one address after the other ---- */

static struct lws *connect_to(encl_conn *conn, struct lws_vhost *vhost, const char *address) {
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
    why.retryable = why.retryable && !t->no_tls;
    net_conn_finish(conn, &why);
}

/* False where libwebsockets refuses at once. It then reports the failure within the call, or not at
 * all; the next address is tried by the caller in either case, so that one call never stands in
 * another.
 *
 * Where it refuses and has destroyed no wsi within the call, it may have made none, or it may keep
 * one that it destroys when a timeout of its own is over: both look alike. So the wsi's reference
 * to the connection stays until that wsi is destroyed or, at the latest, until the loop has ended.
 */
static bool try_address(encl_conn *conn, struct lws_vhost *vhost, const char *address) {
    unsigned refs_before = conn->wsi_refs;
    struct lws *made;

    conn->ws_wsi = NULL;
    encl_conn_retain(conn); /* ws_wsi's, given back when it is destroyed */
    conn->wsi_refs++;
    conn->target->trying = true;
    made = connect_to(conn, vhost, address);
    conn->target->trying = false;
    if (made != NULL) {
        net_own(&conn->ws_owned, lws_get_socket_fd(conn->ws_wsi));
        return true;
    }
    conn->ws_wsi = NULL;
    if (conn->wsi_refs != refs_before && !encl_link_is_linked(&conn->owed)) {
        encl_list_append(&conn->loop->owed, &conn->owed);
    }
    return false;
}

/* Behind a proxy it is the proxy that finds the host's address, and it is the proxy's address that
 * was looked up: libwebsockets would do so once more, and hold up all other connections. */
static bool try_proxy(encl_conn *conn, struct lws_vhost *vhost, const char *address) {
    net_target *t = conn->target;
    bool v6 = strchr(t->host, ':') != NULL;
    char host[NET_ADDRESS_TEXT * 2 + 3]; /* as CONNECT has it (RFC 9110 section 9.3.6) */
    int n = snprintf(host, sizeof host, "%s%s%s", v6 ? "[" : "", t->host, v6 ? "]" : "");

    if (n < 0 || (size_t)n >= sizeof host || !net_vhost_use_proxy(vhost, t, address)) {
        (void)snprintf(t->last_failure, sizeof t->last_failure,
                       "the proxy's address %s cannot be used", address);
        return false;
    }
    return try_address(conn, vhost, host);
}

static void connect_next(encl_conn *conn) {
    net_target *t = conn->target;
    struct lws_vhost *vhost;
    encl_error err;

    if (net_vhost_for(conn->loop, t, &vhost, &err) != ENCL_OK) {
        net_conn_finish(conn, &err);
        return;
    }
    while (t->next_address < t->addresses.count) {
        const char *address = t->addresses.text[t->next_address++];

        if ((t->proxy_host != NULL ? try_proxy(conn, vhost, address)
                                   : try_address(conn, vhost, address)) ||
            conn->state == NET_FINISHED) {
            return;
        }
        if (t->last_failure[0] == '\0') {
            (void)snprintf(t->last_failure, sizeof t->last_failure, "%s", strerror(errno));
        }
    }
    no_address_left(conn);
}

static void resolved(void *arg, const net_addresses *found, const encl_error *why) {
    encl_conn *conn = arg;

    if (conn->state != NET_CONNECTING) {
        return;
    }
    if (found == NULL) {
        net_conn_finish(conn, why);
        return;
    }
    conn->target->addresses = *found;
    reached(conn, ENCL_CONN_RESOLVED);
    connect_next(conn);
}

static void let_go(void *arg) {
    encl_conn_release(arg);
}

static encl_result begin(encl_conn *conn, encl_error *err) {
    const net_target *t = conn->target;
    net_asker asker = {.told = resolved, .let_go = let_go, .arg = conn};

    encl_conn_retain(conn); /* the asker's */
    return net_resolve(conn->loop, t->proxy_host != NULL ? t->proxy_host : t->host, asker, err);
}

encl_result encl_conn_connect_ws(encl_loop *loop, const encl_ws_target *target,
                                 const encl_conn_events *events, void *user, encl_conn **out,
                                 encl_error *err) {
    net_target *copy;
    encl_conn *conn;
    encl_code rc;

    *out = NULL;
    ENCL_TRY(net_target_new(target, &copy, err));
    rc = net_conn_new(loop, true, ENCL_WS_CLIENT, events, user, &conn, err);
    if (rc != ENCL_OK) {
        net_target_free(copy);
        return rc;
    }
    conn->target = copy;
    rc = net_conn_start(conn, begin, err);
    if (rc != ENCL_OK) {
        encl_conn_release(conn);
        return rc;
    }
    *out = conn;
    return ENCL_OK;
}

/* ---- libwebsockets' events ---- */

static int reply_arrived(encl_conn *conn, struct lws *wsi) {
    return net_upgrade_check_reply(wsi, &conn->rejected) == ENCL_OK ? 0 : -1;
}

static int keep_early(encl_conn *conn, encl_slice bytes) {
    encl_error err;

    return encl_buf_write(&conn->receiver.early, bytes, &err) == ENCL_OK ? 0 : -1;
}

static void established(encl_conn *conn, struct lws *wsi) {
    encl_error err;

    if (conn->state != NET_CONNECTING) {
        return;
    }
    if (net_upgrade_check_certificate(conn->target, lws_get_ssl(wsi), &err) != ENCL_OK ||
        net_conn_take_over(conn, wsi, &err) != ENCL_OK) {
        net_conn_finish(conn, &err);
        return;
    }
    net_conn_opened(conn);
}

static void connect_failed(encl_conn *conn, struct lws *wsi, encl_slice text) {
    encl_error why;

    if (conn->state != NET_CONNECTING) {
        return;
    }
    if (conn->rejected.code != ENCL_OK) {
        net_conn_finish(conn, &conn->rejected);
        return;
    }
    if (net_upgrade_explain(conn->target, lws_get_ssl(wsi), text, &why)) {
        net_conn_finish(conn, &why);
        return;
    }
    net_upgrade_note_failure(conn->target, text);
    net_conn_forget_ws(conn); /* on its way out; its destruction gives the reference back */
    if (!conn->target->trying) {
        connect_next(conn);
    }
}

static void destroyed(encl_conn *conn, struct lws *wsi) {
    encl_error why;

    if (conn->ws_wsi == wsi) {
        conn->ws_wsi = NULL;
        encl_fail(&why, conn->state == NET_CONNECTING ? ENCL_E_CONNECT : ENCL_E_CLOSED,
                  "the connection ended");
        net_conn_finish(conn, &why);
        net_conn_forget_ws(conn);
    }
    lws_set_opaque_user_data(wsi, NULL);
    if (--conn->wsi_refs == 0) {
        encl_link_remove(&conn->owed);
    }
    encl_conn_release(conn);
}

void net_client_settle_owed(encl_loop *loop) {
    encl_link *link;

    while ((link = encl_list_first(&loop->owed)) != NULL) {
        encl_conn *conn = ENCL_OWNER(link, encl_conn, owed);

        encl_link_remove(link);
        for (unsigned owed = conn->wsi_refs; owed > 0; owed--) {
            encl_conn_release(conn);
        }
    }
}

/* libwebsockets saw the socket end before our own descriptor was asked. */
static void socket_ended(encl_conn *conn) {
    encl_error why;

    net_conn_readable(conn);
    encl_fail(&why, ENCL_E_CLOSED, "the peer reset the connection");
    conn->ws_wsi = NULL;
    net_conn_finish(conn, &why);
    net_conn_forget_ws(conn);
}

int net_client_event(encl_conn *conn, struct lws *wsi, enum lws_callback_reasons reason, void *in,
                     size_t len) {
    switch (reason) {
    case LWS_CALLBACK_CLIENT_APPEND_HANDSHAKE_HEADER:
        return upgrade_begins(conn, wsi, in, len);
    case LWS_CALLBACK_ESTABLISHED_CLIENT_HTTP:
        return reply_arrived(conn, wsi);
    case LWS_CALLBACK_RECEIVE_CLIENT_HTTP_READ:
        return keep_early(conn, ENCL_SLICE(in, len));
    case LWS_CALLBACK_CLIENT_ESTABLISHED:
        established(conn, wsi);
        return 0;
    case LWS_CALLBACK_CLIENT_CONNECTION_ERROR:
        connect_failed(conn, wsi, ENCL_SLICE(in, in == NULL ? 0 : len));
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
