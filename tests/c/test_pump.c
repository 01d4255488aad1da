/* pump: what goes between a stream and a socket, and how both are left when it stops. The workload
 * echoes; the test has the other end of the socket, and is the pump's owner as well. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "channel/pump.h"
#include "channel/state.h"
#include "local.h"
#include "streams.h"

#define TOKEN 7
#define MUCH  ((size_t)16 * 1024 * 1024)

typedef struct fixture {
    encl_channel *ch;
    encl_stream *st;
    encl_notifier *told;
    encl_pump *pump;
    int ours, theirs; /* the owner's end, which the pump has borrowed, and the client's */
} fixture;

/* ---- sockets ---- */

static void set_blocking(int fd, bool blocking) {
    int flags = fcntl(fd, F_GETFL);

    assert_int_equal(fcntl(fd, F_SETFL, blocking ? flags & ~O_NONBLOCK : flags | O_NONBLOCK), 0);
}

static void unix_pair(fixture *f) {
    struct timeval patience = {.tv_sec = 30};
    int ends[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
    f->ours = ends[0];
    f->theirs = ends[1];
    set_blocking(f->ours, false);
    assert_int_equal(setsockopt(f->theirs, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience), 0);
}

static void tcp_pair(fixture *f) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    socklen_t size = sizeof at;

    assert_int_equal(bind(listener, (struct sockaddr *)&at, sizeof at), 0);
    assert_int_equal(listen(listener, 1), 0);
    assert_int_equal(getsockname(listener, (struct sockaddr *)&at, &size), 0);
    f->theirs = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(connect(f->theirs, (struct sockaddr *)&at, sizeof at), 0);
    f->ours = accept(listener, NULL, NULL);
    assert_true(f->ours >= 0);
    set_blocking(f->ours, false);
    close(listener);
}

static void say(int fd, const char *text) {
    assert_int_equal(send(fd, text, strlen(text), MSG_NOSIGNAL), (ssize_t)strlen(text));
}

static void expect(int fd, const char *text) {
    char got[64];

    assert_true(strlen(text) < sizeof got);
    assert_int_equal(recv(fd, got, strlen(text), MSG_WAITALL), (ssize_t)strlen(text));
    assert_memory_equal(got, text, strlen(text));
}

/* Neither bytes nor an end. */
static void expect_silence(int fd) {
    char byte;

    assert_int_equal(recv(fd, &byte, 1, MSG_DONTWAIT), -1);
    assert_true(errno == EAGAIN || errno == EWOULDBLOCK);
}

/* A byte of the sequence by which it is seen that nothing is lost, doubled or out of order. */
static uint8_t byte_at(size_t i) {
    return (uint8_t)(i * 2654435761U >> 13);
}

static void fill(uint8_t *block, size_t from, size_t n) {
    for (size_t i = 0; i < n; i++) {
        block[i] = byte_at(from + i);
    }
}

static void check(const uint8_t *block, size_t from, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (block[i] != byte_at(from + i)) {
            fail_msg("byte %zu is another one", from + i);
        }
    }
}

/* ---- the pump ---- */

static void start(fixture *f, void (*pair)(fixture *f)) {
    encl_error err;

    memset(f, 0, sizeof *f);
    pair(f);
    f->ch = open_channel(64);
    f->st = open_stream(f->ch, "");
    assert_int_equal(encl_notifier_new(&f->told, &err), ENCL_OK);
    assert_int_equal(encl_pump_start(f->st, f->ours, f->told, TOKEN, &f->pump, &err), ENCL_OK);
}

static encl_pump_state wait_stopped(fixture *f) {
    struct pollfd told = {.fd = encl_notifier_fd(f->told), .events = POLLIN};
    uint64_t token;

    assert_int_equal(poll(&told, 1, 30000), 1);
    assert_int_equal(encl_notifier_drain(f->told, &token, 1), 1);
    assert_int_equal(token, TOKEN);
    assert_int_not_equal(encl_pump_get_state(f->pump), ENCL_PUMP_MOVES);
    return encl_pump_get_state(f->pump);
}

static void end(fixture *f) {
    encl_pump_release(f->pump);
    encl_stream_release(f->st);
    encl_notifier_release(f->told);
    assert_all_slots_come_free(f->ch);
    done_with(f->ch);
    close(f->ours);
    if (f->theirs >= 0) {
        close(f->theirs);
    }
}

static encl_pump_stats stats_of(fixture *f) {
    encl_pump_stats stats;

    encl_pump_get_stats(f->pump, &stats);
    return stats;
}

/* ---- both ways ---- */

static void bytes_go_both_ways(void **state) {
    fixture f;
    encl_pump_stats stats;

    (void)state;
    start(&f, unix_pair);
    for (int i = 0; i < 100; i++) {
        say(f.theirs, "there and back");
        expect(f.theirs, "there and back");
    }
    do { /* the last ones are counted after they were sent */
        usleep(1000);
        stats = stats_of(&f);
    } while (stats.bytes_out < 1400);
    assert_int_equal(stats.bytes_in, 1400);
    assert_int_equal(stats.bytes_out, 1400);
    assert_true(stats.answered);
    assert_false(stats.pending);
    assert_true(stats.asked_at != 0 && stats.touched_at >= stats.asked_at);
    assert_int_equal(encl_pump_get_state(f.pump), ENCL_PUMP_MOVES);
    end(&f);
}

static void what_is_there_already_is_moved(void **state) {
    fixture f;
    encl_error err;
    size_t put;

    (void)state;
    memset(&f, 0, sizeof f);
    unix_pair(&f);
    f.ch = open_channel(64);
    f.st = open_stream(f.ch, "first");
    say(f.theirs, "second");
    while (encl_stream_buffered(f.st) == 0) {
        usleep(1000);
    }
    assert_int_equal(encl_stream_write(f.st, ENCL_SLICE("", 0), ENCL_POLL, &put, &err), ENCL_OK);
    assert_int_equal(encl_notifier_new(&f.told, &err), ENCL_OK);
    assert_int_equal(encl_pump_start(f.st, f.ours, f.told, TOKEN, &f.pump, &err), ENCL_OK);
    expect(f.theirs, "firstsecond");
    end(&f);
}

typedef struct flood {
    int fd;
    size_t total;
    pthread_t thread;
} flood;

static void *send_all(void *arg) {
    flood *to = arg;
    uint8_t block[65536];

    for (size_t at = 0; at < to->total;) {
        size_t n = to->total - at < sizeof block ? to->total - at : sizeof block;
        ssize_t put;

        fill(block, at, n);
        put = send(to->fd, block, n, MSG_NOSIGNAL);
        if (put <= 0) {
            break; /* the test has closed it */
        }
        at += (size_t)put;
    }
    return NULL;
}

/* From the client, in a thread of its own, until all is taken or the socket has ended. */
static void begin_flood(flood *all, const fixture *f, size_t total) {
    *all = (flood){.fd = f->theirs, .total = total};
    assert_int_equal(pthread_create(&all->thread, NULL, send_all, all), 0);
}

static void end_flood(const flood *all) {
    assert_int_equal(pthread_join(all->thread, NULL), 0);
}

static void read_all(int fd, size_t from, size_t total) {
    uint8_t block[65536];

    while (from < total) {
        ssize_t got = recv(fd, block, sizeof block, 0);

        assert_true(got > 0);
        check(block, from, (size_t)got);
        from += (size_t)got;
    }
}

static void much_goes_both_ways_in_order(void **state) {
    fixture f;
    flood all;

    (void)state;
    start(&f, unix_pair);
    begin_flood(&all, &f, MUCH);
    read_all(f.theirs, 0, MUCH);
    end_flood(&all);
    assert_int_equal(stats_of(&f).bytes_in, MUCH);
    end(&f);
}

/* ---- one side does not read ---- */

static size_t buffered(fixture *f) {
    return encl_stream_buffered(f->st) + encl_conn_tx_pending(f->ch->conn);
}

/* Fills every buffer from the client to the workload and back, until nothing moves any more. */
static void fill_up(fixture *f) {
    uint64_t before;
    int quiet = 0;

    do {
        before = stats_of(f).bytes_in + stats_of(f).bytes_out + buffered(f);
        usleep(50000);
        quiet =
            stats_of(f).bytes_in + stats_of(f).bytes_out + buffered(f) == before ? quiet + 1 : 0;
    } while (quiet < 6);
}

static void a_client_that_does_not_read_is_waited_for(void **state) {
    fixture f;
    flood all;

    (void)state;
    start(&f, unix_pair);
    begin_flood(&all, &f, 4 * MUCH);
    fill_up(&f);
    assert_true(stats_of(&f).pending);
    assert_in_range(encl_stream_buffered(f.st), 0, ENCL_STREAM_HIGH_WATER + 512 * 1024);
    assert_int_equal(encl_pump_get_state(f.pump), ENCL_PUMP_MOVES);
    read_all(f.theirs, 0, all.total);
    end_flood(&all);
    end(&f);
}

/* It is told although nothing is read of its socket for now. */
static void a_client_that_leaves_meanwhile_is_gone(void **state) {
    fixture f;
    flood all;

    (void)state;
    start(&f, unix_pair);
    begin_flood(&all, &f, 4 * MUCH);
    fill_up(&f);
    shutdown(f.theirs, SHUT_RDWR);
    end_flood(&all);
    assert_int_equal(wait_stopped(&f), ENCL_PUMP_GONE);
    end(&f);
}

/* ---- ends: the socket and the stream are left as they are ---- */

static void a_half_closed_client_is_its_owners(void **state) {
    fixture f;
    char byte;

    (void)state;
    start(&f, unix_pair);
    say(f.theirs, "last");
    expect(f.theirs, "last");
    assert_int_equal(shutdown(f.theirs, SHUT_WR), 0);
    assert_int_equal(wait_stopped(&f), ENCL_PUMP_STOPPED);
    assert_int_equal(encl_pump_rest_in(f.pump).len, 0);
    assert_int_equal(encl_pump_rest_out(f.pump).len, 0);
    expect_silence(f.theirs);
    assert_int_equal(recv(f.ours, &byte, 1, 0), 0); /* the end is there for its owner to see */
    say(f.ours, "more");
    expect(f.theirs, "more");
    assert_false(encl_stream_is_closed(f.st));
    end(&f);
}

static void so_is_one_whose_workload_has_ended(void (*pair)(fixture *f)) {
    fixture f;

    start(&f, pair);
    say(f.theirs, CLOSING);
    expect(f.theirs, CLOSING);
    assert_int_equal(wait_stopped(&f), ENCL_PUMP_STOPPED);
    assert_true(encl_stream_at_eof(f.st));
    /* Nothing has happened to the socket, nor does anything later. */
    usleep(100000);
    expect_silence(f.theirs);
    say(f.theirs, "and");
    expect(f.ours, "and");
    say(f.ours, "back");
    expect(f.theirs, "back");
    end(&f);
}

static void over_a_unix_socket_too(void **state) {
    (void)state;
    so_is_one_whose_workload_has_ended(unix_pair);
}

static void and_over_tcp(void **state) {
    (void)state;
    so_is_one_whose_workload_has_ended(tcp_pair);
}

static void a_client_that_is_closed_is_gone(void **state) {
    fixture f;

    (void)state;
    start(&f, unix_pair);
    say(f.theirs, "hello");
    expect(f.theirs, "hello");
    close(f.theirs);
    f.theirs = -1;
    /* An end of both directions may be seen as the end of one first: then the owner looks. */
    (void)wait_stopped(&f);
    end(&f);
}

static void a_client_that_resets_is_gone(void **state) {
    struct linger at_once = {.l_onoff = 1};
    fixture f;

    (void)state;
    start(&f, tcp_pair);
    say(f.theirs, "hello");
    expect(f.theirs, "hello");
    assert_int_equal(setsockopt(f.theirs, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once), 0);
    close(f.theirs);
    f.theirs = -1;
    assert_int_equal(wait_stopped(&f), ENCL_PUMP_GONE);
    end(&f);
}

static void a_lost_channel_stops_it(void **state) {
    fixture f;

    (void)state;
    start(&f, unix_pair);
    say(f.theirs, "hello");
    expect(f.theirs, "hello");
    encl_channel_close(f.ch, NULL);
    assert_int_equal(wait_stopped(&f), ENCL_PUMP_STOPPED);
    expect_silence(f.theirs);
    end(&f);
}

/* A reset of the owner's reaches the client: no duplicate keeps the connection. */
static void its_owner_may_reset(void **state) {
    struct linger at_once = {.l_onoff = 1};
    fixture f;
    char byte;

    (void)state;
    start(&f, tcp_pair);
    say(f.theirs, "hello");
    expect(f.theirs, "hello");
    encl_stream_close(f.st);
    assert_int_equal(wait_stopped(&f), ENCL_PUMP_STOPPED);
    assert_int_equal(setsockopt(f.ours, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once), 0);
    close(f.ours);
    assert_int_equal(recv(f.theirs, &byte, 1, 0), -1);
    assert_int_equal(errno, ECONNRESET);
    f.ours = dup(f.theirs); /* for end */
    end(&f);
}

/* ---- stopped in the middle ---- */

/* In a thread beside the test's, where cmocka's own cannot fail. */
static void demand(bool holds) {
    if (!holds) {
        abort();
    }
}

static void put_all(int fd, encl_slice bytes) {
    while (bytes.len != 0) {
        ssize_t put = send(fd, bytes.data, bytes.len, MSG_NOSIGNAL);

        demand(put > 0);
        bytes = ENCL_SLICE(bytes.data + put, bytes.len - (size_t)put);
    }
}

typedef struct owner {
    fixture *f;
    size_t total;
} owner;

/* Goes on with what the pump had taken, and then as it did, a block at a time. */
static void *go_on_to_client(void *arg) {
    owner *o = arg;
    size_t passed = stats_of(o->f).bytes_out + encl_pump_rest_out(o->f->pump).len;
    static uint8_t block[65536];

    put_all(o->f->ours, encl_pump_rest_out(o->f->pump));
    while (passed < o->total) {
        encl_error err;
        size_t got;

        demand(encl_stream_read(o->f->st, block, sizeof block, encl_now_ns() + 30 * SECOND, &got,
                                &err) == ENCL_OK);
        put_all(o->f->ours, ENCL_SLICE(block, got));
        passed += got;
    }
    return NULL;
}

static void *go_on_to_stream(void *arg) {
    owner *o = arg;
    size_t passed = stats_of(o->f).bytes_in;
    encl_slice rest = encl_pump_rest_in(o->f->pump);
    static uint8_t block[65536];

    while (passed < o->total) {
        encl_error err;
        size_t put;

        if (rest.len == 0) {
            ssize_t got = recv(o->f->ours, block, sizeof block, 0);

            demand(got > 0);
            rest = ENCL_SLICE(block, (size_t)got);
        }
        demand(encl_stream_write(o->f->st, rest, encl_now_ns() + 30 * SECOND, &put, &err) ==
               ENCL_OK);
        passed += put;
        rest = ENCL_SLICE_NONE;
    }
    return NULL;
}

static void what_it_had_taken_is_its_owners(void **state) {
    fixture f;
    owner o = {&f, MUCH};
    flood all;
    pthread_t there, back;

    (void)state;
    start(&f, unix_pair);
    begin_flood(&all, &f, MUCH);
    fill_up(&f);
    encl_pump_stop(f.pump);
    assert_int_equal(wait_stopped(&f), ENCL_PUMP_STOPPED);
    assert_int_not_equal(encl_pump_rest_out(f.pump).len, 0);
    set_blocking(f.ours, true);
    assert_int_equal(pthread_create(&there, NULL, go_on_to_stream, &o), 0);
    assert_int_equal(pthread_create(&back, NULL, go_on_to_client, &o), 0);
    read_all(f.theirs, 0, MUCH);
    end_flood(&all);
    pthread_join(there, NULL);
    pthread_join(back, NULL);
    end(&f);
}

static void it_may_be_let_go_at_any_moment(void **state) {
    fixture f;

    (void)state;
    for (int i = 0; i < 60; i++) {
        flood all;

        start(&f, unix_pair);
        begin_flood(&all, &f, MUCH);
        usleep((useconds_t)(i * 37 % 900));
        if (i % 3 == 0) {
            encl_channel_close(f.ch, NULL);
        } else if (i % 3 == 1) {
            encl_stream_close(f.st);
        }
        encl_pump_release(f.pump);
        f.pump = NULL;
        shutdown(f.theirs, SHUT_RDWR);
        end_flood(&all);
        end(&f);
    }
}

static void without_a_descriptor_there_is_none(void **state) {
    struct rlimit before, none;
    fixture f;
    encl_error err;
    uint8_t byte;

    (void)state;
    memset(&f, 0, sizeof f);
    unix_pair(&f);
    f.ch = open_channel(64);
    f.st = open_stream(f.ch, "x");
    read_exactly(f.st, &byte, 1); /* the workload has its descriptor */
    assert_int_equal(encl_notifier_new(&f.told, &err), ENCL_OK);
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    none = before;
    none.rlim_cur = 3;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
    assert_int_equal(encl_pump_start(f.st, f.ours, f.told, TOKEN, &f.pump, &err), ENCL_E_CONNECT);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
    assert_null(f.pump);
    say(f.theirs, "untouched");
    expect(f.ours, "untouched");
    end(&f);
}

/* ---- libwebsockets' table of descriptors is full ---- */

#define WATCHED 60
#define CROWD   40

/* How many descriptors the loop of all channels watches is decided when it is made, by the limit at
 * that moment. */
static int set_up_with_little_room(void **state) {
    struct rlimit before, little;
    int rc = set_up(state);

    if (rc != 0 || getrlimit(RLIMIT_NOFILE, &before) != 0) {
        return -1;
    }
    little = before;
    little.rlim_cur = WATCHED;
    if (setrlimit(RLIMIT_NOFILE, &little) != 0) {
        return -1;
    }
    done_with(open_channel(1));
    return setrlimit(RLIMIT_NOFILE, &before);
}

static bool eventually_moves_or_stops(fixture *f) {
    for (int i = 0; i < 3000; i++) {
        if (encl_pump_get_state(f->pump) != ENCL_PUMP_MOVES || stats_of(f).bytes_in != 0) {
            break;
        }
        usleep(1000);
    }
    return encl_pump_get_state(f->pump) == ENCL_PUMP_MOVES;
}

/* Its owner has the socket as it was. */
static void where_there_is_no_room_it_stops_before_it_begins(void **state) {
    static fixture crowd[2 * CROWD];
    int turned_away = 0;

    (void)state;
    for (int i = 0; i < 2 * CROWD; i++) {
        fixture *f = &crowd[i];
        encl_error err;

        memset(f, 0, sizeof *f);
        unix_pair(f);
        f->ch = i % CROWD == 0 ? open_channel(CROWD) : crowd[i - 1].ch;
        f->st = open_stream(f->ch, "");
        assert_int_equal(encl_notifier_new(&f->told, &err), ENCL_OK);
        say(f->theirs, "hello");
        assert_int_equal(encl_pump_start(f->st, f->ours, f->told, TOKEN, &f->pump, &err), ENCL_OK);
    }
    for (int i = 0; i < 2 * CROWD; i++) {
        fixture *f = &crowd[i];

        if (eventually_moves_or_stops(f)) {
            expect(f->theirs, "hello");
        } else {
            assert_int_equal(wait_stopped(f), ENCL_PUMP_STOPPED);
            assert_int_equal(encl_pump_rest_in(f->pump).len, 0);
            expect(f->ours, "hello");
            say(f->ours, "by hand");
            expect(f->theirs, "by hand");
            turned_away++;
        }
    }
    assert_in_range(turned_away, 2 * CROWD - WATCHED, 2 * CROWD - 1);
    for (int i = 0; i < 2 * CROWD; i++) {
        fixture *f = &crowd[i];

        encl_pump_release(f->pump);
        encl_stream_release(f->st);
        encl_notifier_release(f->told);
        close(f->ours);
        close(f->theirs);
        if (i % CROWD == CROWD - 1) {
            assert_all_slots_come_free(f->ch);
            done_with(f->ch);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bytes_go_both_ways),
        cmocka_unit_test(what_is_there_already_is_moved),
        cmocka_unit_test(much_goes_both_ways_in_order),
        cmocka_unit_test(a_client_that_does_not_read_is_waited_for),
        cmocka_unit_test(a_client_that_leaves_meanwhile_is_gone),
        cmocka_unit_test(a_half_closed_client_is_its_owners),
        cmocka_unit_test(over_a_unix_socket_too),
        cmocka_unit_test(and_over_tcp),
        cmocka_unit_test(a_client_that_is_closed_is_gone),
        cmocka_unit_test(a_client_that_resets_is_gone),
        cmocka_unit_test(a_lost_channel_stops_it),
        cmocka_unit_test(its_owner_may_reset),
        cmocka_unit_test(what_it_had_taken_is_its_owners),
        cmocka_unit_test(it_may_be_let_go_at_any_moment),
        cmocka_unit_test(without_a_descriptor_there_is_none),
        cmocka_unit_test(where_there_is_no_room_it_stops_before_it_begins),
    };

    return cmocka_run_group_tests_name("pump", tests, set_up_with_little_room, tear_down);
}
