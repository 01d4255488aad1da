/* together: each piece once, by as many threads as there are processors, or by the caller alone. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "platform/platform.h"
#include "sync/together.h"

#define PIECES_MAX 64

typedef struct record {
    atomic_int calls[PIECES_MAX];
    pthread_t by[PIECES_MAX];
    bool quiet[PIECES_MAX]; /* that no signal is delivered there */
    atomic_size_t inside;
    size_t wait_for; /* how many have to be inside before one leaves */
} record;

static void note(void *arg, size_t i) {
    record *r = arg;
    sigset_t blocked;

    (void)pthread_sigmask(SIG_SETMASK, NULL, &blocked);
    r->quiet[i] = sigismember(&blocked, SIGUSR1) == 1;
    r->by[i] = pthread_self();
    atomic_fetch_add(&r->calls[i], 1);
    atomic_fetch_add(&r->inside, 1);
    while (atomic_load(&r->inside) < r->wait_for) {
        sched_yield();
    }
}

static void assert_each_once(const record *r, size_t count) {
    for (size_t i = 0; i < PIECES_MAX; i++) {
        assert_int_equal(atomic_load(&r->calls[i]), i < count ? 1 : 0);
    }
}

static void each_piece_is_done_once(void **state) {
    (void)state;
    for (size_t count = 0; count <= PIECES_MAX; count++) {
        record r = {.wait_for = 0};

        encl_together(note, &r, count);
        assert_each_once(&r, count);
    }
}

static size_t least(size_t a, size_t b) {
    return a < b ? a : b;
}

/* Each of the first pieces waits for the others, so it has a thread of its own. */
static void pieces_are_done_at_the_same_time(void **state) {
    size_t threads = least(encl_processors(), ENCL_TOGETHER_MAX);
    record r = {.wait_for = threads};

    (void)state;
    encl_together(note, &r, PIECES_MAX);
    assert_each_once(&r, PIECES_MAX);
}

static void the_other_threads_get_no_signals(void **state) {
    record r = {.wait_for = least(encl_processors(), 2)};

    (void)state;
    encl_together(note, &r, 2);
    for (size_t i = 0; i < 2; i++) {
        assert_true(r.quiet[i] == !pthread_equal(r.by[i], pthread_self()));
    }
}

static void the_callers_signal_mask_stays(void **state) {
    sigset_t mine, after;
    record r = {.wait_for = 0};

    (void)state;
    sigemptyset(&mine);
    sigaddset(&mine, SIGUSR2);
    assert_int_equal(pthread_sigmask(SIG_SETMASK, &mine, NULL), 0);
    encl_together(note, &r, 4);
    assert_int_equal(pthread_sigmask(SIG_SETMASK, NULL, &after), 0);
    assert_int_equal(sigismember(&after, SIGUSR2), 1);
    assert_int_equal(sigismember(&after, SIGUSR1), 0);
    sigemptyset(&mine);
    assert_int_equal(pthread_sigmask(SIG_SETMASK, &mine, NULL), 0);
}

static bool all_mine(const record *r, size_t count) {
    for (size_t i = 0; i < count; i++) {
        if (atomic_load(&r->calls[i]) != 1 || !pthread_equal(r->by[i], pthread_self())) {
            return false;
        }
    }
    return true;
}

/* The child's exit status: 0 where it did all the pieces itself. */
static int alone_in_a_child(bool (*limit)(void)) {
    pid_t child = fork();
    int status = -1;

    if (child == 0) {
        record r = {.wait_for = 0};

        if (!limit()) {
            _exit(77);
        }
        encl_together(note, &r, 8);
        _exit(all_mine(&r, 8) ? 0 : 1);
    }
    assert_true(child > 0);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

/* The system's limit does not hold for root. */
static bool no_more_threads(void) {
    const struct rlimit none = {1, 1};

    return (geteuid() != 0 || setuid(65534) == 0) && setrlimit(RLIMIT_NPROC, &none) == 0;
}

static void without_threads_the_caller_does_all(void **state) {
    (void)state;
    assert_int_equal(alone_in_a_child(no_more_threads), 0);
}

#ifdef __linux__
static bool one_processor(void) {
    cpu_set_t mine, one;

    if (sched_getaffinity(0, sizeof mine, &mine) != 0) {
        return false;
    }
    CPU_ZERO(&one);
    for (size_t i = 0; i < CPU_SETSIZE; i++) {
        if (CPU_ISSET(i, &mine)) {
            CPU_SET(i, &one);
            break;
        }
    }
    return sched_setaffinity(0, sizeof one, &one) == 0 && encl_processors() == 1;
}

static void one_processor_is_worth_no_thread(void **state) {
    (void)state;
    assert_int_equal(alone_in_a_child(one_processor), 0);
}
#endif

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_piece_is_done_once),
        cmocka_unit_test(pieces_are_done_at_the_same_time),
        cmocka_unit_test(the_other_threads_get_no_signals),
        cmocka_unit_test(the_callers_signal_mask_stays),
        cmocka_unit_test(without_threads_the_caller_does_all),
#ifdef __linux__
        cmocka_unit_test(one_processor_is_worth_no_thread),
#endif
    };

    return cmocka_run_group_tests_name("together", tests, NULL, NULL);
}
