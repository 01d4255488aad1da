/* net: WebSockets and TCP over loopback, both ends in one process. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "net_sides.h"

static void echoes_many_bytes(void **state) {
    static uint8_t block[60000];
    server s;
    peer p;
    encl_loop *loop;
    encl_conn *conn;
    encl_error err;
    uint64_t sum = 0, sent = 0;
    encl_ws_target target;

    (void)state;
    server_start(&s, true);
    peer_init(&p);
    target = target_of(encl_listener_port(s.listener));
    assert_int_equal(encl_loop_new(&loop, &err), ENCL_OK);
    assert_int_equal(encl_conn_connect_ws(loop, &target, &events, &p, &conn, &err), ENCL_OK);
    WAIT_FOR(&p, p.open);
    for (int round = 0; round < 400; round++) {
        size_t len = 1 + (size_t)rand() % sizeof block;

        for (size_t i = 0; i < len; i++) {
            block[i] = (uint8_t)rand();
            sum = sum * 31 + block[i];
        }
        WAIT_FOR(&p, encl_conn_tx_pending(conn) < ENCL_CONN_HIGH_WATER);
        send_bytes(conn, block, len);
        sent += len;
        WAIT_FOR(&p, p.received + 1000000 > sent);
    }
    WAIT_FOR(&p, p.received == sent);
    assert_true(p.sum == sum);
    encl_conn_close(conn, 0, NULL);
    WAIT_FOR(&p, p.closed);
    assert_int_equal(p.why.code, ENCL_E_CLOSED);
    WAIT_FOR(&s.side, s.side.closed);
    assert_non_null(strstr(s.side.why.message, "1000"));
    encl_conn_release(conn);
    encl_loop_free(loop);
    server_stop(&s);
}

static void every_length_of_head_is_written(void **state) {
    static const size_t lengths[] = {1, 125, 126, 127, 65535, 65536, 65539, 200000};
    static uint8_t block[200000];
    server s;
    peer p;
    encl_loop *loop;
    encl_conn *conn;
    encl_error err;
    uint64_t sum = 0, sent = 0;
    encl_ws_target target;

    (void)state;
    server_start(&s, true);
    peer_init(&p);
    target = target_of(encl_listener_port(s.listener));
    assert_int_equal(encl_loop_new(&loop, &err), ENCL_OK);
    assert_int_equal(encl_conn_connect_ws(loop, &target, &events, &p, &conn, &err), ENCL_OK);
    WAIT_FOR(&p, p.open);
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        for (size_t k = 0; k < lengths[i]; k++) {
            block[k] = (uint8_t)rand();
            sum = sum * 31 + block[k];
        }
        send_bytes(conn, block, lengths[i]);
        sent += lengths[i];
    }
    WAIT_FOR(&p, p.received == sent);
    assert_true(p.sum == sum);
    encl_conn_abort(conn, false);
    WAIT_FOR(&p, p.closed);
    encl_conn_release(conn);
    encl_loop_free(loop);
    server_stop(&s);
}

static void a_paused_reader_stops_the_sender(void **state) {
    static uint8_t block[32768];
    server s;
    peer p;
    encl_loop *loop;
    encl_conn *conn;
    encl_error err;
    uint64_t sent = 0;
    encl_ws_target target;

    (void)state;
    server_start(&s, false);
    peer_init(&p);
    target = target_of(encl_listener_port(s.listener));
    assert_int_equal(encl_loop_new(&loop, &err), ENCL_OK);
    assert_int_equal(encl_conn_connect_ws(loop, &target, &events, &p, &conn, &err), ENCL_OK);
    WAIT_FOR(&p, p.open);
    WAIT_FOR(&s.side, s.side.open);
    encl_conn_pause(s.side.conn, true);
    usleep(20000);
    while (encl_conn_tx_pending(conn) < ENCL_CONN_HIGH_WATER && sent < 64u * 1024 * 1024) {
        send_bytes(conn, block, sizeof block);
        sent += sizeof block;
    }
    assert_true(sent < 64u * 1024 * 1024);
    WAIT_FOR(&p, p.drained == 0);
    encl_conn_pause(s.side.conn, false);
    WAIT_FOR(&s.side, s.side.received == sent);
    WAIT_FOR(&p, p.drained == 1);
    encl_conn_abort(conn, false);
    WAIT_FOR(&p, p.closed);
    WAIT_FOR(&s.side, s.side.closed);
    encl_conn_release(conn);
    encl_loop_free(loop);
    server_stop(&s);
}

static void refused_connections_say_so(void **state) {
    peer p;
    encl_loop *loop;
    encl_conn *conn;
    encl_error err;
    encl_ws_target target = target_of(1);

    (void)state;
    peer_init(&p);
    assert_int_equal(encl_loop_new(&loop, &err), ENCL_OK);
    assert_int_equal(encl_conn_connect_ws(loop, &target, &events, &p, &conn, &err), ENCL_OK);
    WAIT_FOR(&p, p.closed);
    print_message("%s\n", p.why.message);
    assert_int_equal(p.why.code, ENCL_E_CONNECT);
    assert_non_null(strstr(p.why.message, "no server listens there"));
    encl_conn_release(conn);

    peer_init(&p);
    target.host = "no-such-host.invalid";
    assert_int_equal(encl_conn_connect_ws(loop, &target, &events, &p, &conn, &err), ENCL_OK);
    WAIT_FOR(&p, p.closed);
    print_message("%s\n", p.why.message);
    assert_int_equal(p.why.code, ENCL_E_CONNECT);
    encl_conn_release(conn);

    peer_init(&p);
    assert_int_equal(encl_conn_connect_tcp(loop, "127.0.0.1", 1, &events, &p, &conn, &err),
                     ENCL_OK);
    WAIT_FOR(&p, p.closed);
    print_message("%s\n", p.why.message);
    assert_int_equal(p.why.code, ENCL_E_CONNECT);
    encl_conn_release(conn);
    encl_loop_free(loop);
}

static void expect_explained(const char *reason, const char *meaning, int code) {
    static net_target tried;
    char expected[200];

    (void)snprintf(expected, sizeof expected, "%s%s%s", meaning, code == 0 ? "" : ": ",
                   code == 0 ? "" : strerror(code));
    net_upgrade_note_failure(&tried, ENCL_SLICE(reason, strlen(reason)));
    assert_string_equal(tried.last_failure, expected);
}

/* Each version of libwebsockets gives others of these. */
static void the_number_of_an_error_is_said_in_words(void **state) {
    static const char unreached[] = "no server listens there, or none can be reached";
    static const char *const numberless[] = {"conn fail: sock accept", "conn fail: 0",
                                             "conn fail: ", "conn fail: 99999999999999999999", ""};
    static const struct {
        const char *before, *after, *meaning;
    } numbered[] = {
        {"conn fail: ", "", unreached},
        {"conn fail: errno ", ": 127.0.0.1:1", unreached},
        {"conn fail: skt creation: errno ", "", "no socket could be made"},
        {"conn fail: skt options: errno ", "", "no socket could be made"},
    };
    char reason[100];

    (void)state;
    expect_explained("Unable to connect", unreached, 0);
    for (size_t i = 0; i < sizeof numbered / sizeof numbered[0]; i++) {
        (void)snprintf(reason, sizeof reason, "%s%d%s", numbered[i].before, ECONNREFUSED,
                       numbered[i].after);
        expect_explained(reason, numbered[i].meaning, ECONNREFUSED);
    }
    for (size_t i = 0; i < sizeof numberless / sizeof numberless[0]; i++) {
        expect_explained(numberless[i], numberless[i], 0);
    }
}

/* What else can go wrong in a handshake may pass. */
static void only_what_is_no_tls_is_taken_for_that(void **state) {
    static const char reason[] = "Unable to connect";
    net_target tried = {.tls = true, .no_tls = true};

    (void)state;
    assert_true(net_upgrade_is_no_tls(0x0A00010B)); /* "wrong version number" */
    assert_false(net_upgrade_is_no_tls(0));
    assert_false(net_upgrade_is_no_tls(0x0A000126)); /* "unexpected eof while reading" */
    assert_false(net_upgrade_is_no_tls(0x0A00042E)); /* "tlsv1 alert protocol version" */
    assert_false(net_upgrade_is_no_tls(0x0A000102)); /* "unsupported protocol" */
    assert_false(net_upgrade_is_no_tls(0x0200010B)); /* another library's */
    /* Whatever another address failed with. */
    net_upgrade_note_failure(&tried, ENCL_SLICE(reason, strlen(reason)));
    assert_non_null(strstr(tried.last_failure, "is it ws://"));
}

static void bad_targets_are_refused_at_once(void **state) {
    static const encl_header injected[] = {{"X-A", "1\r\nX-B: 2"}}, blank[] = {{"X A", "1"}};
    static const encl_header behind_a_tab[] = {{"X-A", "1\t2\r\nX-B: 3"}};
    encl_loop *loop;
    encl_conn *conn;
    encl_error err;
    encl_ws_target target = target_of(1);

    (void)state;
    assert_int_equal(encl_loop_new(&loop, &err), ENCL_OK);
    target.headers = injected;
    target.header_count = 1;
    assert_int_equal(encl_conn_connect_ws(loop, &target, &events, NULL, &conn, &err),
                     ENCL_E_INVALID);
    target.headers = behind_a_tab;
    assert_int_equal(encl_conn_connect_ws(loop, &target, &events, NULL, &conn, &err),
                     ENCL_E_INVALID);
    target.headers = blank;
    assert_int_equal(encl_conn_connect_ws(loop, &target, &events, NULL, &conn, &err),
                     ENCL_E_INVALID);
    target.header_count = 0;
    target.proxy_host = "";
    assert_int_equal(encl_conn_connect_ws(loop, &target, &events, NULL, &conn, &err),
                     ENCL_E_INVALID);
    target.proxy_host = NULL;
    target.path = "nowhere";
    assert_int_equal(encl_conn_connect_ws(loop, &target, &events, NULL, &conn, &err),
                     ENCL_E_INVALID_URL);
    target.path = "/a b";
    assert_int_equal(encl_conn_connect_ws(loop, &target, &events, NULL, &conn, &err),
                     ENCL_E_INVALID_URL);
    target = target_of(1);
    target.tls = true;
    target.host = "::1";
    assert_int_equal(encl_conn_connect_ws(loop, &target, &events, NULL, &conn, &err),
                     ENCL_E_INVALID_URL);
    encl_loop_free(loop);
}

static int count_fds(void) {
    DIR *dir = opendir("/proc/self/fd");
    int n = 0;

    while (readdir(dir) != NULL) {
        n++;
    }
    closedir(dir);
    return n;
}

static void nothing_is_left_behind(void **state) {
    server s;
    encl_loop *loop;
    encl_error err;
    encl_ws_target target;
    int fds = -1;

    (void)state;
    server_start(&s, true);
    target = target_of(encl_listener_port(s.listener));
    assert_int_equal(encl_loop_new(&loop, &err), ENCL_OK);
    for (int i = 0; i < 200; i++) {
        peer p;
        encl_conn *conn;

        peer_init(&p);
        assert_int_equal(encl_conn_connect_ws(loop, &target, &events, &p, &conn, &err), ENCL_OK);
        if (i % 3 != 0) {
            WAIT_FOR(&p, p.open);
        }
        if (i % 2 == 0) {
            encl_conn_close(conn, 0, NULL);
        } else {
            encl_conn_abort(conn, i % 4 == 1);
        }
        WAIT_FOR(&p, p.closed);
        encl_conn_release(conn);
        if (i == 20) {
            usleep(300000);
            fds = count_fds();
        }
    }
    usleep(300000);
    assert_in_range(count_fds(), 1, fds + 1);
    encl_loop_free(loop);
    server_stop(&s);
}

/* ---- fork ---- */

static int listen_anywhere(uint16_t *port) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof at;
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    assert_int_equal(bind(fd, (struct sockaddr *)&at, sizeof at), 0);
    assert_int_equal(listen(fd, 8), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&at, &size), 0);
    *port = ntohs(at.sin_port);
    return fd;
}

static int connect_plain(uint32_t address, uint16_t port) {
    struct sockaddr_in at = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(address)};
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    if (connect(fd, (struct sockaddr *)&at, sizeof at) != 0) {
        close(fd);
        return -1;
    }
    return fd;
}

/* A child that lives, and does nothing, until it is told to end. */
static pid_t fork_idle(int *tell) {
    int ends[2];
    char byte = 0;
    pid_t child;

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
    child = fork();
    if (child == 0) {
        close(ends[1]);
        _exit(write(ends[0], &byte, 1) == 1 && read(ends[0], &byte, 1) == 0 ? 0 : 1);
    }
    assert_true(child > 0);
    close(ends[0]);
    assert_int_equal(read(ends[1], &byte, 1), 1); /* past its fork handlers */
    *tell = ends[1];
    return child;
}

static void end_idle(pid_t child, int tell) {
    int status;

    close(tell);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void a_child_keeps_no_connecting_socket(void **state) {
    struct timeval limit = {.tv_sec = 5};
    char request[4096];
    encl_loop *loop;
    encl_conn *conn;
    encl_error err;
    uint16_t port;
    int listening = listen_anywhere(&port), fd, tell;
    encl_ws_target target = target_of(port);
    pid_t child;
    peer p;

    (void)state;
    peer_init(&p);
    assert_int_equal(encl_loop_new(&loop, &err), ENCL_OK);
    assert_int_equal(encl_conn_connect_ws(loop, &target, &events, &p, &conn, &err), ENCL_OK);
    fd = accept(listening, NULL, NULL);
    assert_true(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) == 0);
    assert_true(recv(fd, request, sizeof request, 0) > 0);
    child = fork_idle(&tell);
    encl_conn_abort(conn, false);
    WAIT_FOR(&p, p.closed);
    assert_int_equal(recv(fd, request, sizeof request, 0), 0);
    end_idle(child, tell);
    close(fd);
    close(listening);
    encl_conn_release(conn);
    encl_loop_free(loop);
}

static void nothing_listens_elsewhere(void **state) {
    uint16_t port;
    server s;
    int fd;

    (void)state;
    server_start(&s, true);
    port = encl_listener_port(s.listener);
    fd = connect_plain(INADDR_LOOPBACK, port);
    assert_true(fd >= 0);
    close(fd);
    /* Another address of this machine. */
    assert_int_equal(connect_plain(INADDR_LOOPBACK + 1, port), -1);
    server_stop(&s);
}

static void a_child_keeps_no_listening_socket(void **state) {
    uint16_t port;
    server s;
    pid_t child;
    int tell;

    (void)state;
    server_start(&s, true);
    port = encl_listener_port(s.listener);
    child = fork_idle(&tell);
    server_stop(&s);
    assert_int_equal(connect_plain(INADDR_LOOPBACK, port), -1);
    end_idle(child, tell);
}

/* ---- ends that come at a bad time ---- */

static void an_upgrade_may_come_after_its_listener(void **state) {
    static const char first[] = "GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n",
                      rest[] = "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                               "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    struct timeval limit = {.tv_sec = 5};
    char answer[4096];
    server s;
    int fd;

    (void)state;
    server_start(&s, true);
    fd = connect_plain(INADDR_LOOPBACK, encl_listener_port(s.listener));
    assert_true(fd >= 0);
    assert_true(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) == 0);
    assert_int_equal(send(fd, first, sizeof first - 1, MSG_NOSIGNAL), sizeof first - 1);
    usleep(50000);
    encl_listener_free(s.listener);
    assert_int_equal(send(fd, rest, sizeof rest - 1, MSG_NOSIGNAL), sizeof rest - 1);
    while (recv(fd, answer, sizeof answer, 0) > 0) {
    }
    assert_false(s.side.open);
    close(fd);
    encl_loop_free(s.loop);
}

static void a_loop_ends_while_names_are_looked_up(void **state) {
    encl_ws_target target = target_of(1);

    (void)state;
    target.host = "no-such-host.invalid";
    for (int i = 0; i < 40; i++) {
        encl_loop *loop;
        encl_conn *conn;
        encl_error err;
        peer p;

        peer_init(&p);
        assert_int_equal(encl_loop_new(&loop, &err), ENCL_OK);
        assert_int_equal(encl_conn_connect_ws(loop, &target, &events, &p, &conn, &err), ENCL_OK);
        usleep((useconds_t)(i % 8) * 200);
        encl_loop_free(loop);
        assert_true(p.closed);
        encl_conn_release(conn);
    }
}

/* The process dies of SIGPIPE where this is wrong. */
static void writing_tls_to_a_gone_peer_raises_no_signal(void **state) {
    struct sigaction before, usual = {.sa_handler = SIG_DFL};
    SSL_CTX *ctx = SSL_CTX_new(TLS_client_method());
    SSL *ssl = SSL_new(ctx);
    encl_error err;
    int pair[2];

    (void)state;
    assert_int_equal(sigaction(SIGPIPE, &usual, &before), 0);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    assert_int_equal(SSL_set_fd(ssl, pair[0]), 1);
    assert_int_equal(net_tls_write_quietly(ssl, pair[0], &err), ENCL_OK);
    close(pair[1]);
    assert_true(SSL_connect(ssl) <= 0); /* sends the ClientHello */
    SSL_free(ssl);
    SSL_CTX_free(ctx);
    assert_int_equal(close(pair[0]), 0); /* still ours */
    assert_int_equal(sigaction(SIGPIPE, &before, NULL), 0);
}

static void signals_are_as_they_were(void **state) {
    struct sigaction usual = {.sa_handler = SIG_DFL}, before[NSIG], now;
    encl_loop *loop;
    encl_error err;

    (void)state;
    assert_int_equal(sigaction(SIGPIPE, &usual, NULL), 0);
    for (int i = 1; i < NSIG; i++) {
        (void)sigaction(i, NULL, &before[i]);
    }
    assert_int_equal(encl_loop_new(&loop, &err), ENCL_OK);
    for (int i = 1; i < NSIG; i++) {
        if (sigaction(i, NULL, &now) == 0) {
            assert_ptr_equal(now.sa_handler, before[i].sa_handler);
        }
    }
    encl_loop_free(loop);
}

/* ---- borrowed sockets ---- */

/* A connection that nothing but net_duplicate_close sees, and a pair of sockets, one of them its.
 */
typedef struct borrower {
    encl_loop loop;
    encl_conn conn;
    int ends[2];
} borrower;

static void borrow(borrower *b) {
    encl_error err;

    memset(b, 0, sizeof *b);
    assert_int_equal(encl_net_init(&err), ENCL_OK);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, b->ends), 0);
    b->loop.hung_up = -1;
    b->conn.loop = &b->loop;
    b->conn.socket.fd = b->conn.duplicate = -1;
    (void)encl_mutex_init(&b->conn.io);
    net_own(&b->conn.raw_owned, b->ends[0]);
}

static void give_back(borrower *b) {
    encl_lock(&b->conn.io);
    net_duplicate_close(&b->conn);
    encl_unlock(&b->conn.io);
    encl_mutex_destroy(&b->conn.io);
    assert_int_equal(b->conn.raw_owned.inode, 0);
}

static void expect_no_copy(const borrower *b) {
    char byte;

    assert_int_equal(recv(b->ends[1], &byte, 1, MSG_DONTWAIT), 0);
    close(b->ends[1]);
}

static void what_stands_in_for_a_borrowed_socket_is_closed_by_exec(void **state) {
    static borrower b;
    struct pollfd number;

    (void)state;
    borrow(&b);
    assert_true(net_duplicate_prepare(&b.loop));
    b.conn.socket.fd = b.ends[0];
    give_back(&b);
    expect_no_copy(&b);
    assert_int_equal(b.conn.socket.fd, -1);
    number = (struct pollfd){.fd = b.ends[0], .events = POLLIN};
    assert_int_equal(poll(&number, 1, 0), 1);
    assert_int_equal(number.revents, POLLHUP);
    assert_int_equal(fcntl(b.ends[0], F_GETFD), FD_CLOEXEC);
    close(b.ends[0]);
    close(b.loop.hung_up);
}

static void a_borrowed_socket_that_was_never_watched_is_closed_at_the_end(void **state) {
    static borrower b;

    (void)state;
    borrow(&b);
    b.conn.duplicate = b.ends[0];
    give_back(&b);
    expect_no_copy(&b);
    assert_int_equal(b.conn.duplicate, -1);
    assert_int_equal(fcntl(b.ends[0], F_GETFD), -1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(echoes_many_bytes),
        cmocka_unit_test(every_length_of_head_is_written),
        cmocka_unit_test(a_paused_reader_stops_the_sender),
        cmocka_unit_test(refused_connections_say_so),
        cmocka_unit_test(the_number_of_an_error_is_said_in_words),
        cmocka_unit_test(only_what_is_no_tls_is_taken_for_that),
        cmocka_unit_test(bad_targets_are_refused_at_once),
        cmocka_unit_test(nothing_is_left_behind),
        cmocka_unit_test(a_child_keeps_no_connecting_socket),
        cmocka_unit_test(nothing_listens_elsewhere),
        cmocka_unit_test(a_child_keeps_no_listening_socket),
        cmocka_unit_test(an_upgrade_may_come_after_its_listener),
        cmocka_unit_test(a_loop_ends_while_names_are_looked_up),
        cmocka_unit_test(writing_tls_to_a_gone_peer_raises_no_signal),
        cmocka_unit_test(signals_are_as_they_were),
        cmocka_unit_test(what_stands_in_for_a_borrowed_socket_is_closed_by_exec),
        cmocka_unit_test(a_borrowed_socket_that_was_never_watched_is_closed_at_the_end),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
