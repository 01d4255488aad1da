/* platform: what platform.h promises, on the system that this is run on. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "platform/platform.h"

static bool is_readable(int fd) {
    struct pollfd at = {.fd = fd, .events = POLLIN};

    return poll(&at, 1, 0) == 1;
}

static void await_readable(int fd) {
    struct pollfd at = {.fd = fd, .events = POLLIN};

    assert_int_equal(poll(&at, 1, 60000), 1);
}

static bool ends_at_exec(int fd) {
    return (fcntl(fd, F_GETFD) & FD_CLOEXEC) != 0;
}

static void a_wakeup_set_twice_is_cleared_once(void **state) {
    encl_wakeup w;

    (void)state;
    assert_true(encl_wakeup_open(&w));
    assert_true(ends_at_exec(w.fd) && ends_at_exec(w.sender));
    assert_false(is_readable(w.fd));
    encl_wakeup_clear(&w); /* does not wait */
    encl_wakeup_set(&w);
    encl_wakeup_set(&w);
    assert_true(is_readable(w.fd));
    encl_wakeup_clear(&w);
    assert_false(is_readable(w.fd));
    encl_wakeup_set(&w);
    assert_true(is_readable(w.fd));
    encl_wakeup_close(&w);
}

static void an_alarm_becomes_readable_at_its_time(void **state) {
    const int64_t hour = 3600 * (int64_t)1000000000;
    int64_t start = encl_now_ns();
    int fd = encl_alarm_open();

    (void)state;
    assert_true(fd >= 0 && ends_at_exec(fd));
    encl_alarm_clear(fd); /* does not wait */
    encl_alarm_set(fd, start + hour);
    assert_false(is_readable(fd));
    encl_alarm_set(fd, start + 5000000);
    await_readable(fd);
    assert_true(encl_now_ns() >= start + 5000000);
    encl_alarm_set(fd, start + hour); /* makes it unreadable as well */
    assert_false(is_readable(fd));
    encl_alarm_set(fd, 1); /* in the past */
    await_readable(fd);
    encl_alarm_clear(fd);
    assert_false(is_readable(fd));
    (void)close(fd);
}

static void a_condition_is_waited_for_up_to_its_deadline(void **state) {
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    int64_t until = encl_now_ns() + 3000000;
    pthread_cond_t cond;

    (void)state;
    encl_platform_cond_init(&cond);
    pthread_mutex_lock(&lock);
    while (encl_now_ns() < until) {
        encl_platform_cond_wait(&cond, &lock, until);
    }
    encl_platform_cond_wait(&cond, &lock, 1); /* long ago: returns */
    pthread_mutex_unlock(&lock);
    pthread_cond_destroy(&cond);
}

/* A connection over loopback: pair[0] is made by encl_socket_tcp. */
static void connect_pair(int pair[2]) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    socklen_t size = sizeof at;

    assert_int_equal(bind(listener, (struct sockaddr *)&at, size), 0);
    assert_int_equal(listen(listener, 1), 0);
    assert_int_equal(getsockname(listener, (struct sockaddr *)&at, &size), 0);
    pair[0] = encl_socket_tcp(AF_INET);
    assert_true(pair[0] >= 0 && ends_at_exec(pair[0]));
    assert_true((fcntl(pair[0], F_GETFL) & O_NONBLOCK) != 0);
    if (connect(pair[0], (struct sockaddr *)&at, size) != 0) {
        assert_int_equal(errno, EINPROGRESS);
    }
    pair[1] = accept(listener, NULL, NULL);
    assert_true(pair[1] >= 0);
    (void)close(listener);
    encl_socket_prepare(pair[0]);
    encl_socket_prepare(pair[1]);
}

/* The process dies of SIGPIPE where this is wrong. */
static void sending_to_a_gone_peer_raises_no_signal(void **state) {
    struct sigaction before, usual = {.sa_handler = SIG_DFL};
    ssize_t n = 0;
    int pair[2];

    (void)state;
    assert_int_equal(sigaction(SIGPIPE, &usual, &before), 0);
    connect_pair(pair);
    assert_int_equal(encl_socket_send(pair[1], "x", 1), 1);
    encl_socket_reset(pair[0]);
    (void)close(pair[0]);
    for (int i = 0; i < 1000 && n >= 0; i++) {
        n = encl_socket_send(pair[1], "x", 1);
    }
    assert_true(n < 0);
    assert_int_equal(encl_socket_send(pair[1], "x", 1), -1);
    assert_int_equal(errno, EPIPE);
    (void)close(pair[1]);
    assert_int_equal(sigaction(SIGPIPE, &before, NULL), 0);
}

static void a_reset_is_no_orderly_end(void **state) {
    char byte;
    int pair[2];

    (void)state;
    connect_pair(pair);
    encl_socket_reset(pair[0]);
    (void)close(pair[0]);
    await_readable(pair[1]);
    assert_int_equal(recv(pair[1], &byte, 1, 0), -1);
    assert_int_equal(errno, ECONNRESET);
    (void)close(pair[1]);
}

static void progress_is_what_the_peer_acknowledges(void **state) {
    encl_socket_progress before, after;
    int pair[2], pipe_ends[2];

    (void)state;
    connect_pair(pair);
    assert_true(encl_socket_get_progress(pair[1], &before));
    assert_int_equal(encl_socket_send(pair[1], "hello", 5), 5);
    do {
        assert_true(encl_socket_get_progress(pair[1], &after));
    } while (after.backlog);
    assert_int_equal(after.acknowledged - before.acknowledged, 5);
    assert_false(after.stalled);
    assert_int_equal(pipe(pipe_ends), 0);
    assert_false(encl_socket_get_progress(pipe_ends[0], &after));
    (void)close(pipe_ends[0]);
    (void)close(pipe_ends[1]);
    (void)close(pair[0]);
    (void)close(pair[1]);
}

static bool is_number(int fd, void *arg) {
    return fd == *(int *)arg;
}

static void descriptors_are_found(void **state) {
    int fd = dup(0), none = -5;

    (void)state;
    assert_true(fd >= 0);
    assert_int_equal(encl_descriptor_find(is_number, &fd), fd);
    assert_int_equal(encl_descriptor_find(is_number, &none), -1);
    (void)close(fd);
}

static void a_changed_file_is_another_one(void **state) {
    char path[] = "/tmp/encl-file-XXXXXX";
    encl_file_id first, second;
    int fd = mkstemp(path);

    (void)state;
    assert_true(fd >= 0);
    assert_true(encl_file_identify(path, &first));
    assert_int_equal(write(fd, "x", 1), 1);
    assert_true(encl_file_identify(path, &second));
    assert_int_equal(first.inode, second.inode);
    assert_int_equal(second.size - first.size, 1);
    (void)close(fd);
    (void)unlink(path);
    assert_false(encl_file_identify(path, &second));
    assert_int_equal(errno, ENOENT);
}

static atomic_int ended;

static void note_end(void *unused) {
    (void)unused;
    atomic_fetch_add(&ended, 1);
}

static void *end_noted(void *unused) {
    encl_thread_at_exit(note_end);
    return unused;
}

static void a_threads_end_is_noted(void **state) {
    pthread_t thread;

    (void)state;
    for (int i = 1; i <= 3; i++) {
        assert_int_equal(pthread_create(&thread, NULL, end_noted, NULL), 0);
        pthread_join(thread, NULL);
        assert_int_equal(ended, i);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_wakeup_set_twice_is_cleared_once),
        cmocka_unit_test(an_alarm_becomes_readable_at_its_time),
        cmocka_unit_test(a_condition_is_waited_for_up_to_its_deadline),
        cmocka_unit_test(sending_to_a_gone_peer_raises_no_signal),
        cmocka_unit_test(a_reset_is_no_orderly_end),
        cmocka_unit_test(progress_is_what_the_peer_acknowledges),
        cmocka_unit_test(descriptors_are_found),
        cmocka_unit_test(a_changed_file_is_another_one),
        cmocka_unit_test(a_threads_end_is_noted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
