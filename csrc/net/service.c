/* service: the service thread, from its start to its end, and where libwebsockets' events go. The
 * top of net: calls nearly every file here, and none calls it. Decides when the thread sleeps.
 *
 * No lock, but for what loop.c, registry.c and fork.c take. */
#include <openssl/crypto.h>
#include <signal.h>
#include <unistd.h>

#include "net/internal.h"

enum {
    WATCHED_MAX = 4096,
    WATCHED_EXTRA = 8, /* libwebsockets adds to what it is told: two, and one for each resolver */
};

/* ---- the process ---- */

static pthread_once_t quiet_once = PTHREAD_ONCE_INIT;

static void make_quiet(void) {
    lws_set_log_level(0, NULL);
}

/* The handlers of fork() are registered before it is held back, as fork.h has it. A child that was
 * made within this pthread_once would find it begun, and by nobody. */
encl_result encl_net_init(encl_error *err) {
    bool quiet;

    ENCL_ENSURE(encl_fork_init(), err, ENCL_E_NOMEM, "the fork handlers could not be set up");
    ENCL_TRY(encl_base_init(err));
    encl_fork_hold();
    net_registry_init();
    quiet = pthread_once(&quiet_once, make_quiet) == 0;
    encl_fork_let_go();
    ENCL_ENSURE(quiet, err, ENCL_E_INTERNAL, "libwebsockets' log could not be switched off");
    return ENCL_OK;
}

/* ---- libwebsockets' events ---- */

static void alarm_event(encl_loop *loop, enum lws_callback_reasons reason) {
    if (reason == LWS_CALLBACK_RAW_RX_FILE) {
        net_timers_fire(&loop->timers);
    } else if (reason == LWS_CALLBACK_RAW_CLOSE_FILE) {
        net_timers_set_alarm(&loop->timers, -1);
        loop->alarm = NULL;
    }
}

static void raw_event(encl_loop *loop, struct lws *wsi, enum lws_callback_reasons reason) {
    encl_conn *conn = lws_get_opaque_user_data(wsi);

    if (wsi == loop->alarm) {
        alarm_event(loop, reason);
    } else if (conn == NULL || conn->raw_wsi != wsi) {
        return;
    } else if (reason == LWS_CALLBACK_RAW_RX_FILE) {
        net_conn_readable(conn);
    } else if (reason == LWS_CALLBACK_RAW_WRITEABLE_FILE) {
        net_conn_writable(conn);
    } else {
        net_conn_raw_closed(conn);
    }
}

/* libwebsockets has returned from poll() and returns to serve() before it sleeps again. That is not
 * so for a descriptor's end, which it may also find while it gets ready to sleep. */
static void awake_event(encl_loop *loop, struct lws *wsi, enum lws_callback_reasons reason) {
    bool before = loop->awake;

    loop->awake = true;
    raw_event(loop, wsi, reason);
    loop->awake = before;
}

static int dispatch(struct lws *wsi, enum lws_callback_reasons reason, void *user, void *in,
                    size_t len) {
    encl_conn *conn;

    if (wsi == NULL) {
        return 0;
    }
    switch (reason) {
    case LWS_CALLBACK_RAW_RX_FILE:
    case LWS_CALLBACK_RAW_WRITEABLE_FILE:
        awake_event(lws_context_user(lws_get_context(wsi)), wsi, reason);
        return 0;
    case LWS_CALLBACK_RAW_CLOSE_FILE:
        raw_event(lws_context_user(lws_get_context(wsi)), wsi, reason);
        return 0;
    case LWS_CALLBACK_HTTP_CONFIRM_UPGRADE:
        return net_server_confirm_upgrade(wsi);
    case LWS_CALLBACK_HTTP:
        return net_server_plain_request(wsi);
    case LWS_CALLBACK_RAW_RX:
        return net_server_raw_bytes(wsi);
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
    case LWS_CALLBACK_WSI_CREATE:
        net_adopt_note_wsi(lws_context_user(lws_get_context(wsi)), wsi);
        return 0;
    case LWS_CALLBACK_OPENSSL_LOAD_EXTRA_CLIENT_VERIFY_CERTS:
        net_vhost_note_ctx(lws_get_vhost(wsi), user);
        net_client_watch_tls(lws_context_user(lws_get_context(wsi)), user);
        return 0;
    default:
        return 0;
    }
}

/* ---- the thread's start ---- */

/* libwebsockets has SIGPIPE ignored in the whole process, which is for the program to decide: it is
 * put back. Nothing here needs it: what we write ourselves raises no signal, and the service
 * thread, in which libwebsockets writes, has all signals blocked. fork() waits for this thread, so
 * no child is made in between and keeps what libwebsockets had set. */
static struct lws_context *create_context(const struct lws_context_creation_info *info) {
    struct sigaction before, after;
    struct lws_context *context;
    bool known;

    known = sigaction(SIGPIPE, NULL, &before) == 0;
    context = lws_create_context(info);
    if (known && sigaction(SIGPIPE, NULL, &after) == 0 && after.sa_handler == SIG_IGN) {
        (void)sigaction(SIGPIPE, &before, NULL);
    }
    return context;
}

/* How many descriptors libwebsockets watches in one loop: fewer than the process may open at this
 * moment. It then keeps them in a table that it searches. Otherwise it uses a descriptor's number
 * as an index into the table, and libwebsockets 4.1 and 4.3 write behind the table when they close
 * a descriptor whose number is too high for it, as a program has that raises its limit later. */
static unsigned most_watched(void) {
    long limit = sysconf(_SC_OPEN_MAX);

    if (limit < 0 || limit - WATCHED_EXTRA > WATCHED_MAX) {
        return WATCHED_MAX;
    }
    return limit > WATCHED_EXTRA ? (unsigned)(limit - WATCHED_EXTRA) : 1;
}

static bool make_context(encl_loop *loop) {
    struct lws_context_creation_info info = {
        .port = CONTEXT_PORT_NO_LISTEN,
        .options = LWS_SERVER_OPTION_EXPLICIT_VHOSTS,
        .user = loop,
        .fd_limit_per_thread = most_watched(),
        .pt_serv_buf_size = 32 * 1024,
        .timeout_secs = 60,
        .connect_timeout_secs = 60,
        .retry_and_idle_policy = &net_no_idle_policy,
    };

    loop->protocols[0] =
        (struct lws_protocols){.name = NET_PROTOCOL, .callback = dispatch, .rx_buffer_size = 4096};
    loop->context = create_context(&info);
    return loop->context != NULL;
}

static bool make_raw_vhost(encl_loop *loop) {
    struct lws_context_creation_info info;

    net_vhost_info(loop, "raw", &info);
    loop->raw_vhost = lws_create_vhost(loop->context, &info);
    return loop->raw_vhost != NULL;
}

static bool adopt_alarm(encl_loop *loop) {
    int fd = encl_alarm_open();

    if (fd < 0) {
        return false;
    }
    loop->alarm = net_adopt(loop, fd);
    if (loop->alarm == NULL) {
        return false;
    }
    net_timers_set_alarm(&loop->timers, fd);
    return true;
}

static bool start(encl_loop *loop) {
    if (!make_context(loop)) {
        return false;
    }
    if (!make_raw_vhost(loop) || !adopt_alarm(loop)) {
        lws_context_destroy(loop->context);
        return false;
    }
    return true;
}

/* Signals belong to the threads of the program that uses this library. */
static void block_signals(void) {
    sigset_t all;

    sigfillset(&all);
    (void)pthread_sigmask(SIG_BLOCK, &all, NULL);
}

/* ---- turns ---- */

static void run_jobs(encl_loop *loop) {
    loop->awake = true;
    net_loop_run_jobs(loop);
    loop->awake = false;
}

/* fork() waits while this thread runs, since libwebsockets calls OpenSSL. Poll() is called in
 * there, too: so fork() wakes the thread up, which pauses before its next turn. */
static void wake(void *arg) {
    encl_loop *loop = arg;

    lws_cancel_service(loop->context);
}

static void turn_until_end(encl_loop *loop) {
    net_turn turn;

    while ((turn = net_loop_next_turn(loop)) != NET_TURN_END) {
        encl_fork_worker_pause();
        /* Below 0: it looks without sleeping. */
        if (lws_service(loop->context, turn == NET_TURN_LOOK ? -1 : 0) < 0) {
            break;
        }
        atomic_fetch_add_explicit(&loop->turns, 1, memory_order_relaxed);
        run_jobs(loop);
    }
}

static void serve(encl_loop *loop) {
    loop->worker = (encl_fork_worker){.wake = wake, .arg = loop};
    encl_fork_worker_list(&loop->worker);
    turn_until_end(loop);
    encl_fork_worker_unlist(&loop->worker);
}

/* A job that is posted after the last look would never run, and what it holds would never be given
 * back: so jobs are refused before that. */
static void end(encl_loop *loop) {
    run_jobs(loop);
    net_conn_finish_all(loop);
    net_loop_enter(loop, NET_STOPPED);
    run_jobs(loop);
    net_conn_finish_all(loop); /* what those jobs began to connect */
    lws_context_destroy(loop->context);
    net_client_settle_owed(loop);
    net_vhosts_free(loop);
}

static void live(encl_loop *loop) {
    if (!start(loop)) {
        net_loop_enter(loop, NET_STOPPED);
        return;
    }
    net_loop_enter(loop, NET_RUNNING);
    serve(loop);
    end(loop);
}

static void *run(void *arg) {
    encl_fork_worker_begin();
    block_signals();
    encl_thread_name("enclavia-net");
    live(arg);
    OPENSSL_thread_stop(); /* it would do so itself, but after fork() is let go */
    encl_fork_worker_end();
    return NULL;
}

/* Waits until it has started, which it does even while a fork() waits. */
static encl_result start_thread(encl_loop *loop, encl_error *err) {
    bool made;

    encl_fork_hold();
    encl_fork_worker_expect();
    made = pthread_create(&loop->thread, NULL, run, loop) == 0;
    if (made) {
        (void)net_loop_wait_started(loop);
    } else {
        encl_fork_worker_forgo();
    }
    encl_fork_let_go();
    ENCL_ENSURE(made, err, ENCL_E_NOMEM, "the service thread could not be started");
    return ENCL_OK;
}

encl_result encl_loop_new(encl_loop **out, encl_error *err) {
    encl_loop *loop;
    encl_code rc;

    *out = NULL;
    ENCL_TRY(encl_net_init(err));
    ENCL_TRY(net_loop_new(&loop, err));
    ENCL_TRY_GOTO(start_thread(loop, err), fail);
    if (net_loop_wait_started(loop) == NET_STOPPED) {
        pthread_join(loop->thread, NULL);
        rc = encl_fail(err, ENCL_E_INTERNAL, "libwebsockets could not create its context");
        goto fail;
    }
    *out = loop;
    return ENCL_OK;
fail:
    net_loop_release(loop);
    return rc;
}

void encl_loop_free(encl_loop *loop) {
    if (loop == NULL || loop->generation != encl_fork_generation()) {
        return; /* a child has neither the thread nor the right to this context */
    }
    net_loop_stop(loop);
    pthread_join(loop->thread, NULL);
    net_loop_release(loop);
}
