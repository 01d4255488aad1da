#include "net/net_internal.h"

#include <errno.h>
#include <openssl/err.h>
#include <openssl/x509_vfy.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define CLIENT_VHOST "client" /* its user is a net_vhost */

/* Every loop of the process, its connections and listeners, so that a forked child can close its
 * copies of their sockets. registry, and every loop's two lists, are changed under registry_lock,
 * which is also held across fork(): the child finds them whole. */
static pthread_mutex_t registry_lock = PTHREAD_MUTEX_INITIALIZER;
static encl_loop *registry;

static pthread_once_t process_once = PTHREAD_ONCE_INIT;
static int process_rc = -1; /* written under process_once */

void net_lock_registry(void) {
    pthread_mutex_lock(&registry_lock);
}

void net_unlock_registry(void) {
    pthread_mutex_unlock(&registry_lock);
}

int64_t net_now_ns(void) {
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

uintmax_t net_inode(int fd) {
    struct stat file;

    return fd >= 0 && fstat(fd, &file) == 0 ? file.st_ino : 0;
}

void net_close_in_child(int fd, uintmax_t inode) {
    if (inode != 0 && net_inode(fd) == inode) {
        (void)close(fd);
    }
}

/* The parent's peers would otherwise not see its sockets end while a child holds copies. Only
 * close: a shutdown would act on the parent's connection. */
static void after_fork_in_child(void) {
    for (encl_loop *loop = registry; loop != NULL; loop = loop->registry_next) {
        for (encl_conn *conn = loop->conns; conn != NULL; conn = conn->next) {
            net_conn_close_descriptors_in_child(conn);
        }
        net_listeners_close_in_child(loop);
    }
    registry = NULL;
    pthread_mutex_unlock(&registry_lock);
}

static void init_process(void) {
    lws_set_log_level(0, NULL);
    process_rc = pthread_atfork(net_lock_registry, net_unlock_registry, after_fork_in_child);
}

encl_result encl_net_init(encl_error *err) {
    ENCL_TRY(encl_base_init(err));
    ENCL_ENSURE(pthread_once(&process_once, init_process) == 0 && process_rc == 0, err,
                ENCL_E_INTERNAL, "the fork handlers could not be set up");
    return ENCL_OK;
}

void net_link_conn(encl_conn *conn) {
    encl_loop *loop = conn->loop;

    pthread_mutex_lock(&registry_lock);
    conn->next = loop->conns;
    conn->prev_next = &loop->conns;
    if (loop->conns != NULL) {
        loop->conns->prev_next = &conn->next;
    }
    loop->conns = conn;
    pthread_mutex_unlock(&registry_lock);
}

void net_unlink_conn(encl_conn *conn) {
    pthread_mutex_lock(&registry_lock);
    *conn->prev_next = conn->next;
    if (conn->next != NULL) {
        conn->next->prev_next = conn->prev_next;
    }
    conn->prev_next = NULL;
    pthread_mutex_unlock(&registry_lock);
}

static void register_loop(encl_loop *loop) {
    pthread_mutex_lock(&registry_lock);
    loop->registry_next = registry;
    registry = loop;
    pthread_mutex_unlock(&registry_lock);
}

static void unregister_loop(encl_loop *loop) {
    pthread_mutex_lock(&registry_lock);
    for (encl_loop **at = &registry; *at != NULL; at = &(*at)->registry_next) {
        if (*at == loop) {
            *at = loop->registry_next;
            break;
        }
    }
    pthread_mutex_unlock(&registry_lock);
}

/* Called while a vhost is made; nothing else says where its TLS settings are. */
static void note_ctx(struct lws_vhost *vhost, SSL_CTX *ctx) {
    if (strcmp(lws_get_vhost_name(vhost), CLIENT_VHOST) == 0) {
        net_vhost *entry = lws_vhost_user(vhost);

        entry->ctx = ctx;
    }
}

/* The descriptor of the timers has no connection. */
static int timer_event(encl_loop *loop, enum lws_callback_reasons reason) {
    if (reason == LWS_CALLBACK_RAW_RX_FILE) {
        net_timers_fire(loop);
    } else if (reason == LWS_CALLBACK_RAW_CLOSE_FILE) {
        net_timers_closed(loop);
    }
    return 0;
}

int net_callback(struct lws *wsi, enum lws_callback_reasons reason, void *user, void *in,
                 size_t len) {
    encl_conn *conn;
    encl_loop *loop;

    if (wsi == NULL) {
        return 0;
    }
    switch (reason) {
    case LWS_CALLBACK_RAW_RX_FILE:
    case LWS_CALLBACK_RAW_WRITEABLE_FILE:
    case LWS_CALLBACK_RAW_CLOSE_FILE:
        loop = lws_context_user(lws_get_context(wsi));
        if (wsi == loop->timers.wsi) {
            return timer_event(loop, reason);
        }
        conn = lws_get_opaque_user_data(wsi);
        if (conn == NULL || conn->raw_wsi != wsi) {
            return 0;
        }
        if (reason == LWS_CALLBACK_RAW_RX_FILE) {
            net_conn_readable(conn);
        } else if (reason == LWS_CALLBACK_RAW_WRITEABLE_FILE) {
            net_conn_writable(conn);
        } else {
            net_conn_raw_closed(conn);
        }
        return 0;
    case LWS_CALLBACK_ESTABLISHED:
        return net_server_established(wsi);
    case LWS_CALLBACK_CLIENT_APPEND_HANDSHAKE_HEADER:
    case LWS_CALLBACK_ESTABLISHED_CLIENT_HTTP:
    case LWS_CALLBACK_RECEIVE_CLIENT_HTTP_READ:
    case LWS_CALLBACK_CLIENT_ESTABLISHED:
    case LWS_CALLBACK_CLIENT_CONNECTION_ERROR:
    case LWS_CALLBACK_CLIENT_CLOSED:
    case LWS_CALLBACK_CLOSED:
    case LWS_CALLBACK_WSI_DESTROY:
        conn = lws_get_opaque_user_data(wsi);
        return conn == NULL ? 0 : net_client_event(conn, wsi, reason, in, len);
    case LWS_CALLBACK_OPENSSL_LOAD_EXTRA_CLIENT_VERIFY_CERTS:
        note_ctx(lws_get_vhost(wsi), user);
        return 0;
    default:
        return 0;
    }
}

static const struct lws_protocols protocols[] = {
    {.name = NET_PROTOCOL, .callback = net_callback, .rx_buffer_size = 4096},
    {.name = NULL},
};

/* libwebsockets' own liveness checks would see no reads on a socket that we read, and hang up. */
static const lws_retry_bo_t no_idle_policy = {
    .secs_since_valid_ping = 0,
    .secs_since_valid_hangup = 0,
};

/* libwebsockets has SIGPIPE ignored in the whole process, which is for the program to decide: it is
 * put back. Nothing here needs it: what we write ourselves raises no signal, and the service
 * thread, in which libwebsockets writes, has all signals blocked. Under registry_lock, which fork()
 * takes, so that no child is made in between and keeps what libwebsockets had set. */
static struct lws_context *create_context(const struct lws_context_creation_info *info) {
    struct sigaction before, after;
    struct lws_context *context;
    bool known;

    net_lock_registry();
    known = sigaction(SIGPIPE, NULL, &before) == 0;
    context = lws_create_context(info);
    if (known && sigaction(SIGPIPE, NULL, &after) == 0 && after.sa_handler == SIG_IGN) {
        (void)sigaction(SIGPIPE, &before, NULL);
    }
    net_unlock_registry();
    return context;
}

static struct lws_context *make_context(encl_loop *loop) {
    struct lws_context_creation_info info;

    memset(&info, 0, sizeof info);
    info.port = CONTEXT_PORT_NO_LISTEN;
    info.options = LWS_SERVER_OPTION_EXPLICIT_VHOSTS;
    info.user = loop;
    info.fd_limit_per_thread = 4096;
    info.pt_serv_buf_size = 32 * 1024;
    info.timeout_secs = 60;
    info.connect_timeout_secs = 60;
    info.retry_and_idle_policy = &no_idle_policy;
    return create_context(&info);
}

static struct lws_vhost *make_vhost(encl_loop *loop, const char *name, const net_target *target,
                                    net_vhost *entry) {
    struct lws_context_creation_info info;
    struct lws_vhost *vhost;

    memset(&info, 0, sizeof info);
    info.port = CONTEXT_PORT_NO_LISTEN;
    info.vhost_name = name;
    info.user = entry;
    info.protocols = protocols;
    info.timeout_secs = 60;
    info.connect_timeout_secs = 60;
    info.retry_and_idle_policy = &no_idle_policy;
    /* "" and not NULL: NULL would make libwebsockets take the environment's http_proxy. */
    info.http_proxy_address = "";
#ifdef LWS_WITH_SOCKS5
    info.socks_proxy_address = ""; /* likewise: of the environment's socks_proxy */
#endif
#ifdef LWS_SERVER_OPTION_DISABLE_TLS_SESSION_CACHE
    /* From 4.2 on it resumes sessions, and a resumed one shows no certificate: what is trusted now
     * (verify, a CA file that was changed) would not be asked. */
    info.options |= LWS_SERVER_OPTION_DISABLE_TLS_SESSION_CACHE;
#endif
    if (target != NULL && target->tls) {
        info.options |= LWS_SERVER_OPTION_DO_SSL_GLOBAL_INIT;
        info.ssl_client_options_set = SSL_OP_NO_SSLv3 | SSL_OP_NO_TLSv1 | SSL_OP_NO_TLSv1_1;
        if (target->ca_file != NULL) {
            info.options |= LWS_SERVER_OPTION_DISABLE_OS_CA_CERTS;
            info.client_ssl_ca_filepath = target->ca_file;
        }
    }
    vhost = lws_create_vhost(loop->context, &info);
    if (vhost != NULL && target != NULL && target->proxy_host != NULL) {
        char proxy[512];
        int n = snprintf(
            proxy, sizeof proxy, "%s%s%s:%u", target->proxy_auth == NULL ? "" : target->proxy_auth,
            target->proxy_auth == NULL ? "" : "@", target->proxy_host, target->proxy_port);

        if (n < 0 || (size_t)n >= sizeof proxy || lws_set_proxy(vhost, proxy) != 0) {
            lws_vhost_destroy(vhost);
            vhost = NULL;
        }
        encl_wipe(proxy, sizeof proxy);
    }
    return vhost;
}

/* The parts that may hold any character come last or with their lengths, so that no two targets
 * have one key. */
static encl_result vhost_key(const net_target *target, char **key, encl_error *err) {
    const char *ca = target->ca_file == NULL ? "" : target->ca_file;
    const char *host = target->proxy_host == NULL ? "" : target->proxy_host;
    int n = asprintf(key, "%d|%d|%u|%zu|%zu|%s|%s|%s", target->tls, target->verify,
                     target->proxy_port, strlen(ca), strlen(host), ca, host,
                     target->proxy_auth == NULL ? "" : target->proxy_auth);

    ENCL_ENSURE(n >= 0, err, ENCL_E_NOMEM, "out of memory");
    return ENCL_OK;
}

static void free_key(char *key) {
    encl_wipe(key, strlen(key));
    free(key);
}

static encl_result identify(const char *path, net_file_id *id, encl_error *err) {
    struct stat file;

    if (stat(path, &file) != 0) {
        (void)encl_fail(err, ENCL_E_CONNECT, "TLS: the CA file '%.300s' cannot be read: %s", path,
                        strerror(errno));
        err->retryable = false;
        return err->code;
    }
    *id = (net_file_id){
        .inode = file.st_ino,
        .size = file.st_size,
        .seconds = file.st_mtim.tv_sec,
        .nanoseconds = file.st_mtim.tv_nsec,
    };
    return ENCL_OK;
}

static bool is_same_file(const net_file_id *a, const net_file_id *b) {
    return a->inode == b->inode && a->size == b->size && a->seconds == b->seconds &&
           a->nanoseconds == b->nanoseconds;
}

static encl_result load_store(const char *path, X509_STORE **out, encl_error *err) {
    *out = X509_STORE_new();
    ENCL_ENSURE(*out != NULL, err, ENCL_E_NOMEM, "out of memory");
    ERR_clear_error();
    if (X509_STORE_load_locations(*out, path, NULL) != 1) {
        ERR_clear_error();
        X509_STORE_free(*out);
        (void)encl_fail(err, ENCL_E_CONNECT,
                        "TLS: expected a PEM file of CA certificates, got '%.300s', which has none "
                        "that can be read",
                        path);
        err->retryable = false;
        return err->code;
    }
    return ENCL_OK;
}

/* libwebsockets reads a CA file once for each path, and only logs one that it cannot read. Here a
 * file that was changed counts from the next connection on. */
static encl_result trust_file(encl_loop *loop, net_vhost *entry, const net_target *target,
                              encl_error *err) {
    net_file_id id;
    X509_STORE *store = NULL;

    if (!target->tls || target->ca_file == NULL) {
        return ENCL_OK;
    }
    ENCL_TRY(identify(target->ca_file, &id, err));
    if (is_same_file(&id, &entry->ca)) {
        return ENCL_OK;
    }
    ENCL_ENSURE(entry->ctx != NULL, err, ENCL_E_INTERNAL, "TLS settings without an SSL_CTX");
    ENCL_TRY(load_store(target->ca_file, &store, err));
    SSL_CTX_set_cert_store(entry->ctx, store);
    for (net_vhost *at = loop->vhosts; at != NULL; at = at->next) {
        if (at->ctx == entry->ctx) {
            at->ca = id;
        }
    }
    return ENCL_OK;
}

static encl_result add_vhost(encl_loop *loop, const net_target *target, char *key, net_vhost **out,
                             encl_error *err) {
    net_vhost *entry = calloc(1, sizeof *entry);

    ENCL_ENSURE(entry != NULL, err, ENCL_E_NOMEM, "out of memory");
    entry->vhost = make_vhost(loop, CLIENT_VHOST, target, entry);
    if (entry->vhost == NULL) {
        free(entry);
        return encl_fail(err, ENCL_E_CONNECT,
                         "the connection's TLS or proxy settings could not be set up");
    }
    entry->key = key;
    entry->next = loop->vhosts;
    loop->vhosts = entry;
    *out = entry;
    return ENCL_OK;
}

encl_result net_vhost_for(encl_loop *loop, const net_target *target, struct lws_vhost **out,
                          encl_error *err) {
    net_vhost *entry = loop->vhosts;
    char *key = NULL;
    encl_code rc;

    ENCL_TRY(vhost_key(target, &key, err));
    while (entry != NULL && strcmp(entry->key, key) != 0) {
        entry = entry->next;
    }
    if (entry != NULL) {
        free_key(key);
    } else {
        rc = add_vhost(loop, target, key, &entry, err);
        if (rc != ENCL_OK) {
            free_key(key);
            return rc;
        }
    }
    ENCL_TRY(trust_file(loop, entry, target, err));
    *out = entry->vhost;
    return ENCL_OK;
}

static encl_job *take_jobs(encl_loop *loop) {
    encl_job *jobs;

    pthread_mutex_lock(&loop->lock);
    jobs = loop->jobs_head;
    loop->jobs_head = loop->jobs_tail = NULL;
    pthread_mutex_unlock(&loop->lock);
    return jobs;
}

static void run_jobs(encl_loop *loop) {
    encl_job *jobs = take_jobs(loop);

    while (jobs != NULL) {
        encl_job *job = jobs;

        jobs = job->next; /* running it may post it again, or free it */
        job->run(job->arg);
    }
}

static void rearm_writers(encl_loop *loop) {
    while (loop->rearm_conns != NULL) {
        encl_conn *conn = loop->rearm_conns;

        loop->rearm_conns = conn->rearm_next;
        conn->in_rearm = false;
        net_conn_rearm(conn);
        encl_conn_release(conn);
    }
}

static bool is_stopping(encl_loop *loop) {
    bool stopping;

    pthread_mutex_lock(&loop->lock);
    stopping = loop->stopping;
    pthread_mutex_unlock(&loop->lock);
    return stopping;
}

/* A job that came later would never run, and what it holds would never be given back. */
static void refuse_jobs(encl_loop *loop) {
    pthread_mutex_lock(&loop->lock);
    loop->stopped = true;
    pthread_mutex_unlock(&loop->lock);
}

static void finish_all(encl_loop *loop) {
    encl_error why;

    encl_fail(&why, ENCL_E_CLOSED, "the connection was closed on this side");
    while (loop->conns != NULL) {
        net_conn_finish(loop->conns, &why);
    }
}

static void block_signals(void) {
    sigset_t all;

    sigfillset(&all);
    /* Signals belong to the threads of the program that uses this library. */
    (void)pthread_sigmask(SIG_BLOCK, &all, NULL);
}

static void announce(encl_loop *loop) {
    pthread_mutex_lock(&loop->lock);
    loop->ready = true;
    pthread_cond_broadcast(&loop->changed);
    pthread_mutex_unlock(&loop->lock);
}

static void *service(void *arg) {
    encl_loop *loop = arg;

    block_signals();
    (void)pthread_setname_np(pthread_self(), "enclavia-net");
    loop->context = make_context(loop);
    if (loop->context != NULL) {
        encl_error err;

        loop->raw_vhost = make_vhost(loop, "raw", NULL, NULL);
        if (loop->raw_vhost == NULL || net_timers_open(loop, &err) != ENCL_OK) {
            lws_context_destroy(loop->context);
            loop->context = NULL;
        }
    }
    announce(loop);
    if (loop->context == NULL) {
        return NULL;
    }
    while (!is_stopping(loop)) {
        if (lws_service(loop->context, 0) < 0) {
            break;
        }
        atomic_fetch_add_explicit(&loop->turns, 1, memory_order_relaxed);
        run_jobs(loop);
        rearm_writers(loop);
    }
    run_jobs(loop);
    finish_all(loop);
    rearm_writers(loop);
    refuse_jobs(loop);
    run_jobs(loop);
    finish_all(loop); /* what those jobs began to connect */
    lws_context_destroy(loop->context);
    rearm_writers(loop); /* gives back what the end has put there */
    return NULL;
}

static void free_members(encl_loop *loop) {
    while (loop->vhosts != NULL) {
        net_vhost *entry = loop->vhosts;

        loop->vhosts = entry->next;
        free_key(entry->key);
        free(entry);
    }
    pthread_cond_destroy(&loop->changed);
    pthread_mutex_destroy(&loop->timers.lock);
    pthread_mutex_destroy(&loop->lock);
    free(loop->rx);
    free(loop);
}

void net_loop_retain(encl_loop *loop) {
    atomic_fetch_add_explicit(&loop->refs, 1, memory_order_relaxed);
}

void net_loop_release(encl_loop *loop) {
    if (atomic_fetch_sub_explicit(&loop->refs, 1, memory_order_acq_rel) == 1) {
        free_members(loop);
    }
}

encl_result encl_loop_new(encl_loop **out, encl_error *err) {
    encl_loop *loop;
    encl_code rc;

    *out = NULL;
    ENCL_TRY(encl_net_init(err));
    loop = calloc(1, sizeof *loop);
    ENCL_ENSURE(loop != NULL, err, ENCL_E_NOMEM, "out of memory");
    atomic_init(&loop->refs, 1);
    pthread_mutex_init(&loop->lock, NULL);
    pthread_mutex_init(&loop->timers.lock, NULL);
    loop->timers.fd = -1;
    pthread_cond_init(&loop->changed, NULL);
    loop->generation = encl_fork_generation();
    loop->rx = malloc(NET_RX_BLOCK);
    ENCL_ENSURE_GOTO(loop->rx != NULL, fail, err, ENCL_E_NOMEM, "out of memory");
    ENCL_ENSURE_GOTO(pthread_create(&loop->thread, NULL, service, loop) == 0, fail, err,
                     ENCL_E_NOMEM, "the service thread could not be started");
    pthread_mutex_lock(&loop->lock);
    while (!loop->ready) {
        pthread_cond_wait(&loop->changed, &loop->lock);
    }
    pthread_mutex_unlock(&loop->lock);
    if (loop->context == NULL) {
        pthread_join(loop->thread, NULL);
        rc = encl_fail(err, ENCL_E_INTERNAL, "libwebsockets could not create its context");
        goto fail;
    }
    register_loop(loop);
    *out = loop;
    return ENCL_OK;
fail:
    free_members(loop);
    return rc;
}

void encl_loop_free(encl_loop *loop) {
    if (loop == NULL || loop->generation != encl_fork_generation()) {
        return; /* a child has neither the thread nor the right to this context */
    }
    unregister_loop(loop);
    pthread_mutex_lock(&loop->lock);
    loop->stopping = true;
    /* Under the lock: once it is seen, the thread destroys the context. */
    lws_cancel_service(loop->context);
    pthread_mutex_unlock(&loop->lock);
    pthread_join(loop->thread, NULL);
    net_loop_release(loop);
}

bool encl_loop_is_current(const encl_loop *loop) {
    return pthread_equal(pthread_self(), loop->thread) != 0;
}

uint64_t encl_loop_turns(const encl_loop *loop) {
    return atomic_load_explicit(&loop->turns, memory_order_relaxed);
}

/* lock is held. */
static void append_job(encl_loop *loop, encl_job *job) {
    bool wake = loop->jobs_head == NULL;

    job->next = NULL;
    if (wake) {
        loop->jobs_head = job;
    } else {
        loop->jobs_tail->next = job;
    }
    loop->jobs_tail = job;
    if (wake) {
        /* Under the lock: as soon as it is let go, the loop may end, and its context with it. */
        lws_cancel_service(loop->context);
    }
}

bool encl_loop_post(encl_loop *loop, encl_job *job) {
    bool stopped;

    if (loop->generation != encl_fork_generation()) {
        return false;
    }
    pthread_mutex_lock(&loop->lock);
    stopped = loop->stopped;
    if (!stopped) {
        append_job(loop, job);
    }
    pthread_mutex_unlock(&loop->lock);
    return !stopped;
}
