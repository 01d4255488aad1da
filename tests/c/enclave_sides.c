#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <arpa/inet.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "enclave_sides.h"

static void *echo(void *arg) {
    int fd = (int)(intptr_t)arg;
    uint8_t block[65536];
    ssize_t n;

    while ((n = recv(fd, block, sizeof block, 0)) > 0) {
        if (block[0] == '*') {
            static const uint8_t much[MUCH];

            (void)!send(fd, much, sizeof much, MSG_NOSIGNAL);
            break;
        }
        /* A request that begins with '!' is answered once, then the connection ends. */
        if (send(fd, block, (size_t)n, MSG_NOSIGNAL) != n || block[0] == '!') {
            break;
        }
    }
    close(fd);
    return NULL;
}

static void *accept_all(void *arg) {
    workload *w = arg;
    int fd;

    while ((fd = accept(w->listener, NULL, NULL)) >= 0) {
        pthread_t thread;

        if (pthread_create(&thread, NULL, echo, (void *)(intptr_t)fd) == 0) {
            pthread_detach(thread);
        }
    }
    return NULL;
}

void workload_start_at(workload *w, uint16_t port) {
    struct sockaddr_in at = {
        .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons(port)};
    socklen_t len = sizeof at;

    w->listener = socket(AF_INET, SOCK_STREAM, 0);
    assert_true(w->listener >= 0);
    assert_int_equal(bind(w->listener, (struct sockaddr *)&at, sizeof at), 0);
    assert_int_equal(listen(w->listener, 256), 0);
    assert_int_equal(getsockname(w->listener, (struct sockaddr *)&at, &len), 0);
    w->port = ntohs(at.sin_port);
    assert_int_equal(pthread_create(&w->thread, NULL, accept_all, w), 0);
}

void workload_start(workload *w) {
    workload_start_at(w, 0);
}

void workload_stop(workload *w) {
    shutdown(w->listener, SHUT_RDWR);
    pthread_join(w->thread, NULL);
    close(w->listener);
}

static void note(peer *p, const encl_event *event) {
    seen *s = &p->events[p->count];

    p->bytes += event->payload.len;
    p->longest = event->payload.len > p->longest ? event->payload.len : p->longest;
    if (p->count == EVENTS_MAX) {
        return;
    }
    *s = (seen){.type = event->type, .id = event->id, .len = event->payload.len};
    if (event->payload.len != 0) {
        size_t n =
            event->payload.len < sizeof s->text - 1 ? event->payload.len : sizeof s->text - 1;

        s->first = event->payload.data[0];
        memcpy(s->text, event->payload.data, n);
    }
    p->count++;
}

static void send_buf(peer *p, const encl_buf *bytes) {
    encl_error err;
    encl_buf *tx;

    if (encl_buf_readable(bytes) != 0 && encl_conn_tx_begin(p->conn, &tx, &err) == ENCL_OK) {
        (void)!encl_buf_write(tx, encl_buf_peek(bytes), &err);
        encl_conn_tx_end(p->conn);
    }
}

static void on_opened(void *user, encl_conn *conn) {
    peer *p = user;
    encl_error err;
    encl_buf out;

    encl_buf_init(&out, ENCL_RECORD_MAX);
    (void)conn;
    pthread_mutex_lock(&p->lock);
    if (encl_session_start(p->session, &out, &err) == ENCL_OK) {
        send_buf(p, &out);
    }
    pthread_mutex_unlock(&p->lock);
    encl_buf_free(&out);
}

static bool take_one(peer *p, uint8_t **block, size_t *len) {
    encl_event event;
    encl_error err;
    encl_buf out;
    size_t used = 0;
    bool good;

    encl_buf_init(&out, ENCL_RECORD_MAX);
    good = encl_session_recv(p->session, *block, *len, &used, (int64_t)time(NULL), &out, &event,
                             &err) == ENCL_OK;
    if (good) {
        send_buf(p, &out);
        if (event.type != ENCL_EV_NONE) {
            note(p, &event);
        }
    } else {
        p->why = err;
    }
    encl_buf_free(&out);
    *block += used;
    *len -= used;
    return good && event.type != ENCL_EV_NONE;
}

static void on_received(void *user, encl_conn *conn, uint8_t *block, size_t len) {
    peer *p = user;

    (void)conn;
    pthread_mutex_lock(&p->lock);
    while (encl_session_get_state(p->session) != ENCL_SESSION_CLOSED && take_one(p, &block, &len)) {
    }
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->lock);
}

static void on_closed(void *user, encl_conn *conn, const encl_error *why) {
    peer *p = user;

    (void)conn;
    pthread_mutex_lock(&p->lock);
    p->closed = true;
    if (p->why.code == ENCL_OK) {
        p->why = *why;
    }
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->lock);
}

static const encl_conn_events peer_events = {
    .opened = on_opened,
    .received = on_received,
    .closed = on_closed,
};

bool has_closed(const peer *p, uint64_t arg) {
    (void)arg;
    return p->closed;
}

bool has_count(const peer *p, uint64_t arg) {
    return p->count >= arg;
}

bool has_bytes(const peer *p, uint64_t arg) {
    return p->bytes >= arg;
}

encl_code why_of(peer *p) {
    encl_code code;

    pthread_mutex_lock(&p->lock);
    code = p->why.code;
    pthread_mutex_unlock(&p->lock);
    return code;
}

bool wait_for(peer *p, condition ready, uint64_t arg, double seconds) {
    struct timespec until;
    bool met;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += (time_t)seconds;
    until.tv_nsec += (long)((seconds - (double)(time_t)seconds) * 1e9);
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    pthread_mutex_lock(&p->lock);
    while (!(met = ready(p, arg)) && pthread_cond_timedwait(&p->changed, &p->lock, &until) == 0) {
    }
    pthread_mutex_unlock(&p->lock);
    return met;
}

void peer_start(peer *p, uint16_t port) {
    encl_ws_target target = {
        .host = "127.0.0.1", .port = port, .path = "/", .authority = "127.0.0.1"};
    encl_session_config config = {.role = ENCL_INITIATOR};
    encl_error err;
    encl_code rc;

    memset(p, 0, sizeof *p);
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->changed, NULL);
    assert_int_equal(encl_policy_init(&p->policy, NULL, 0, ENCL_SLICE_NONE, true, true, &err),
                     ENCL_OK);
    config.policy = &p->policy;
    assert_int_equal(encl_session_new(&config, &p->session, &err), ENCL_OK);
    assert_int_equal(encl_loop_new(&p->loop, &err), ENCL_OK);
    pthread_mutex_lock(&p->lock); /* callbacks use conn */
    rc = encl_conn_connect_ws(p->loop, &target, &peer_events, p, &p->conn, &err);
    pthread_mutex_unlock(&p->lock);
    assert_int_equal(rc, ENCL_OK);
}

void peer_open(peer *p, uint16_t port) {
    peer_start(p, port);
    if (!wait_for(p, has_count, 1, WAIT_S)) {
        fail_msg("not open: %s", p->why.message);
    }
    assert_int_equal(p->events[0].type, ENCL_EV_OPEN);
}

void peer_stop(peer *p) {
    encl_loop_free(p->loop);
    encl_conn_release(p->conn);
    encl_session_free(p->session);
    encl_policy_free(&p->policy);
    pthread_cond_destroy(&p->changed);
    pthread_mutex_destroy(&p->lock);
}

encl_code make_open(encl_app *app, uint64_t *id, encl_slice payload, encl_half half, encl_buf *out,
                    encl_error *err) {
    (void)half;
    return encl_app_open_stream(app, payload, id, out, err);
}

encl_code make_data(encl_app *app, uint64_t *id, encl_slice payload, encl_half half, encl_buf *out,
                    encl_error *err) {
    (void)half;
    return encl_app_stream_data(app, *id, payload, out, err);
}

encl_code make_close(encl_app *app, uint64_t *id, encl_slice payload, encl_half half, encl_buf *out,
                     encl_error *err) {
    (void)payload;
    return encl_app_stream_close(app, *id, half, out, err);
}

encl_code make_request(encl_app *app, uint64_t *id, encl_slice payload, encl_half half,
                       encl_buf *out, encl_error *err) {
    (void)half;
    return encl_app_request(app, payload, id, out, err);
}

uint64_t ask(peer *p, maker make, uint64_t id, encl_slice payload, encl_half half) {
    encl_error err = {0};
    encl_buf out;
    encl_code rc;

    encl_buf_init(&out, ENCL_RECORD_MAX);
    pthread_mutex_lock(&p->lock);
    rc = make(encl_session_app(p->session), &id, payload, half, &out, &err);
    send_buf(p, &out);
    pthread_mutex_unlock(&p->lock);
    encl_buf_free(&out);
    if (rc != ENCL_OK) {
        fail_msg("%s", err.message);
    }
    return id;
}

encl_enclave_config config_for(const fixture *f) {
    static const uint8_t certificate[64];
    encl_enclave_config config = {
        .mode = ENCL_ENCLAVE_DEBUG,
        .workload_host = "127.0.0.1",
        .workload_port = f->workload.port,
        .idle_timeout_ms = 30000,
        .grace_ms = 2000,
        .one_shot_timeout_ms = 5000,
        .max_connections = 4,
    };

    config.document.module_id = TEXT("i-test");
    config.document.certificate = ENCL_SLICE(certificate, sizeof certificate);
    config.document.cabundle[0] = config.document.certificate;
    config.document.cabundle_len = 1;
    for (size_t i = 0; i < ENCL_PINNED_PCRS; i++) {
        config.document.pcrs[i].len = 48;
    }
    return config;
}

int setup(void **state) {
    fixture *f = calloc(1, sizeof *f);
    encl_enclave_config config;
    encl_error err;

    workload_start(&f->workload);
    config = config_for(f);
    if (encl_enclave_start(&config, &f->enclave, &err) != ENCL_OK) {
        fail_msg("%s", err.message);
    }
    *state = f;
    return 0;
}

int teardown(void **state) {
    fixture *f = *state;

    encl_enclave_stop(f->enclave);
    workload_stop(&f->workload);
    free(f);
    return 0;
}

encl_enclave_stats stats_of(const fixture *f) {
    encl_enclave_stats stats;

    encl_enclave_get_stats(f->enclave, &stats);
    return stats;
}

bool slots_reach(const fixture *f, uint64_t expected) {
    for (int i = 0; i < WAIT_S * 100; i++) {
        if (stats_of(f).slots_open == expected) {
            return true;
        }
        usleep(10000);
    }
    return false;
}

void set_faults(const fixture *f, encl_enclave_faults faults) {
    encl_error err;

    assert_int_equal(encl_enclave_set_faults(f->enclave, &faults, &err), ENCL_OK);
}
