#include "net/net_internal.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

struct encl_listener {
    encl_loop *loop;
    encl_job job;
    struct lws_vhost *vhost;
    encl_accepted accepted;
    void *user;
    uint16_t port;
    int fd; /* the listening socket, -1 where it was not found */
    uintmax_t inode;
    encl_listener *next;
    const char *cert, *key; /* only while being created */
    pthread_mutex_t lock;   /* guards done, error */
    pthread_cond_t changed;
    bool done;
    encl_error error;
};

static const struct lws_protocols server_protocols[] = {
    {.name = NET_PROTOCOL, .callback = net_callback, .rx_buffer_size = 4096},
    {.name = NULL},
};

static const lws_retry_bo_t no_idle_policy = {
    .secs_since_valid_ping = 0,
    .secs_since_valid_hangup = 0,
};

static void make_vhost(encl_listener *l) {
    struct lws_context_creation_info info;

    memset(&info, 0, sizeof info);
    info.port = l->port;
    info.iface = "127.0.0.1";
    info.vhost_name = "enclave";
    info.protocols = server_protocols;
    info.timeout_secs = 60;
    info.retry_and_idle_policy = &no_idle_policy;
    info.http_proxy_address = "";
    /* With IPv6 it would take the address for no address, and listen on all there are. */
    info.options = LWS_SERVER_OPTION_FAIL_UPON_UNABLE_TO_BIND | LWS_SERVER_OPTION_DISABLE_IPV6;
    if (l->cert != NULL) {
        info.options |= LWS_SERVER_OPTION_DO_SSL_GLOBAL_INIT;
        info.ssl_cert_filepath = l->cert;
        info.ssl_private_key_filepath = l->key;
    }
    l->vhost = lws_create_vhost(l->loop->context, &info);
    if (l->vhost != NULL) {
        l->port = (uint16_t)lws_get_vhost_listen_port(l->vhost);
    }
}

static bool listens_on(int fd, uint16_t port) {
    struct sockaddr_in at;
    socklen_t size = sizeof at, flag_size = sizeof(int);
    int listens = 0;

    return getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &flag_size) == 0 && listens != 0 &&
           getsockname(fd, (struct sockaddr *)&at, &size) == 0 && at.sin_family == AF_INET &&
           at.sin_port == htons(port) && at.sin_addr.s_addr == htonl(INADDR_LOOPBACK);
}

/* libwebsockets does not say which descriptor it listens on. */
static int find_listening(uint16_t port) {
    DIR *dir = opendir("/proc/self/fd");
    struct dirent *at;
    int found = -1;

    while (dir != NULL && found < 0 && (at = readdir(dir)) != NULL) {
        int fd = (int)strtol(at->d_name, NULL, 10);

        if (at->d_name[0] != '.' && listens_on(fd, port)) {
            found = fd;
        }
    }
    if (dir != NULL) {
        closedir(dir);
    }
    return found;
}

static void link_listener(encl_listener *l) {
    l->fd = find_listening(l->port);
    net_lock_registry();
    l->inode = net_inode(l->fd);
    l->next = l->loop->listeners;
    l->loop->listeners = l;
    net_unlock_registry();
}

static void unlink_listener(const encl_listener *l) {
    encl_listener **at = &l->loop->listeners;

    net_lock_registry();
    while (*at != l) {
        at = &(*at)->next;
    }
    *at = l->next;
    net_unlock_registry();
}

void net_listeners_close_in_child(encl_loop *loop) {
    for (const encl_listener *l = loop->listeners; l != NULL; l = l->next) {
        net_close_in_child(l->fd, l->inode);
    }
}

static void task_listen(void *arg) {
    encl_listener *l = arg;

    make_vhost(l);
    if (l->vhost != NULL) {
        link_listener(l);
    }
    pthread_mutex_lock(&l->lock);
    l->done = true;
    pthread_cond_signal(&l->changed);
    pthread_mutex_unlock(&l->lock);
}

static void task_unlisten(void *arg) {
    encl_listener *l = arg;

    unlink_listener(l);
    lws_vhost_destroy(l->vhost);
    pthread_mutex_lock(&l->lock);
    l->done = true;
    pthread_cond_signal(&l->changed);
    pthread_mutex_unlock(&l->lock);
}

static encl_result run_and_wait(encl_listener *l, encl_task task, encl_error *err) {
    l->done = false;
    l->job = (encl_job){.run = task, .arg = l};
    ENCL_ENSURE(encl_loop_post(l->loop, &l->job), err, ENCL_E_CLOSED,
                "the service thread has ended");
    pthread_mutex_lock(&l->lock);
    while (!l->done) {
        pthread_cond_wait(&l->changed, &l->lock);
    }
    pthread_mutex_unlock(&l->lock);
    return ENCL_OK;
}

static void destroy(encl_listener *l) {
    pthread_cond_destroy(&l->changed);
    pthread_mutex_destroy(&l->lock);
    free(l);
}

encl_result encl_listen(encl_loop *loop, uint16_t port, const char *tls_cert_file,
                        const char *tls_key_file, encl_accepted accepted, void *user,
                        encl_listener **out, encl_error *err) {
    encl_listener *l = calloc(1, sizeof *l);
    encl_code rc;

    *out = NULL;
    ENCL_ENSURE(l != NULL, err, ENCL_E_NOMEM, "out of memory");
    pthread_mutex_init(&l->lock, NULL);
    pthread_cond_init(&l->changed, NULL);
    l->loop = loop;
    l->accepted = accepted;
    l->user = user;
    l->port = port;
    l->cert = tls_cert_file;
    l->key = tls_key_file;
    ENCL_TRY_GOTO(run_and_wait(l, task_listen, err), fail);
    ENCL_ENSURE_GOTO(l->vhost != NULL, fail, err, ENCL_E_CONNECT,
                     "could not listen on 127.0.0.1 port %u%s", port,
                     tls_cert_file == NULL ? "" : ", or its TLS certificate could not be used");
    *out = l;
    return ENCL_OK;
fail:
    destroy(l);
    return rc;
}

uint16_t encl_listener_port(const encl_listener *listener) {
    return listener->port;
}

void encl_listener_free(encl_listener *listener) {
    encl_error err;

    if (listener == NULL) {
        return;
    }
    if (run_and_wait(listener, task_unlisten, &err) == ENCL_OK) {
        destroy(listener);
    }
}

/* NULL where it was freed: its vhost lives on for a moment, and what was half upgraded with it. */
static encl_listener *find_listener(encl_loop *loop, const struct lws_vhost *vhost) {
    encl_listener *l = loop->listeners;

    while (l != NULL && l->vhost != vhost) {
        l = l->next;
    }
    return l;
}

int net_server_established(struct lws *wsi) {
    encl_loop *loop = lws_context_user(lws_get_context(wsi));
    encl_listener *l = find_listener(loop, lws_get_vhost(wsi));
    encl_conn *conn;
    encl_error err;

    if (l == NULL) {
        return -1;
    }
    if (net_conn_new(l->loop, true, ENCL_WS_SERVER, NULL, NULL, &conn, &err) != ENCL_OK) {
        return -1;
    }
    net_link_conn(conn);
    conn->ws_wsi = wsi;
    lws_set_opaque_user_data(wsi, conn);
    encl_conn_retain(conn); /* ws_wsi's */
    conn->wsi_refs++;
    if (net_conn_take_over(conn, wsi, &err) != ENCL_OK) {
        net_conn_finish(conn, &err);
        return 0;
    }
    encl_conn_retain(conn); /* for the time of the call */
    l->accepted(l->user, conn);
    if (conn->events.received == NULL) {
        encl_fail(&err, ENCL_E_CLOSED, "nobody took the connection");
        net_conn_finish(conn, &err);
    } else {
        net_conn_opened(conn);
    }
    encl_conn_release(conn);
    return 0;
}

void encl_conn_accept(encl_conn *conn, const encl_conn_events *events, void *user) {
    conn->events = *events;
    conn->user = user;
    encl_conn_retain(conn);
}
