#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <pthread.h>
#include <string.h>

#include "net_sides.h"

void peer_init(peer *p) {
    memset(p, 0, sizeof *p);
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->changed, NULL);
}

static void on_open(void *user, encl_conn *conn) {
    peer *p = user;

    pthread_mutex_lock(&p->lock);
    p->open = true;
    p->conn = conn;
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->lock);
}

void send_bytes(encl_conn *conn, const uint8_t *bytes, size_t len) {
    encl_error err;
    encl_buf *out;

    if (encl_conn_tx_begin(conn, &out, &err) == ENCL_OK) {
        assert_int_equal(encl_buf_write(out, ENCL_SLICE(bytes, len), &err), ENCL_OK);
        encl_conn_tx_end(conn);
    }
}

static void on_received(void *user, encl_conn *conn, uint8_t *block, size_t len) {
    peer *p = user;

    if (p->echo) {
        for (size_t at = 0; at < len; at += 32768) {
            send_bytes(conn, block + at, len - at < 32768 ? len - at : 32768);
        }
    }
    pthread_mutex_lock(&p->lock);
    p->received += len;
    for (size_t i = 0; i < len; i++) {
        p->sum = p->sum * 31 + block[i];
    }
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->lock);
}

static void on_eof(void *user, encl_conn *conn) {
    peer *p = user;

    (void)conn;
    pthread_mutex_lock(&p->lock);
    p->eof = true;
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->lock);
}

static void on_drained(void *user, encl_conn *conn) {
    peer *p = user;

    (void)conn;
    pthread_mutex_lock(&p->lock);
    p->drained++;
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->lock);
}

static void on_closed(void *user, encl_conn *conn, const encl_error *why) {
    peer *p = user;

    (void)conn;
    pthread_mutex_lock(&p->lock);
    p->closed = true;
    p->why = *why;
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->lock);
}

const encl_conn_events events = {
    .opened = on_open,
    .received = on_received,
    .received_eof = on_eof,
    .drained = on_drained,
    .closed = on_closed,
};

static void on_server_closed(void *user, encl_conn *conn, const encl_error *why) {
    peer *p = user;

    on_closed(user, conn, why);
    pthread_mutex_lock(&p->lock);
    p->conn = NULL;
    pthread_mutex_unlock(&p->lock);
    encl_conn_release(conn);
}

static const encl_conn_events server_events = {
    .opened = on_open,
    .received = on_received,
    .received_eof = on_eof,
    .drained = on_drained,
    .closed = on_server_closed,
};

static void accepted(void *user, encl_conn *conn) {
    encl_conn_accept(conn, &server_events, user);
}

void server_start(server *s, bool echo) {
    encl_error err;

    peer_init(&s->side);
    s->side.echo = echo;
    assert_int_equal(encl_loop_new(&s->loop, &err), ENCL_OK);
    assert_int_equal(encl_listen(s->loop, 0, NULL, NULL, accepted, &s->side, &s->listener, &err),
                     ENCL_OK);
    assert_int_not_equal(encl_listener_port(s->listener), 0);
}

void server_stop(server *s) {
    encl_listener_free(s->listener);
    encl_loop_free(s->loop);
}

encl_ws_target target_of(uint16_t port) {
    return (encl_ws_target){
        .host = "127.0.0.1", .port = port, .path = "/", .authority = "localhost", .verify = true};
}
