/* sync/fork: no child is made while another thread holds fork() back, nobody waits in a circle, and
 * everybody gets a turn. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sync/fork.h"
#include "sync/lock.h"

#define FORKS   200
#define THREADS 3

static atomic_int inside; /* threads that hold fork() back, by their own count */
static atomic_bool stop;

/* ThreadSanitizer's _exit() would miss the parent's threads. */
static void leave(int status) {
    (void)syscall(SYS_exit_group, status);
}

/* What the child finds of `inside`. */
static int fork_and_look(void) {
    pid_t child = fork();
    int status;

    if (child == 0) {
        leave(inside);
    }
    assert_true(child > 0);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static void work(void) {
    atomic_fetch_add(&inside, 1);
    usleep(50);
    atomic_fetch_sub(&inside, 1);
}

static void *hold_again_and_again(void *times) {
    while (!stop) {
        encl_fork_hold();
        encl_fork_hold();
        work();
        encl_fork_let_go();
        work(); /* the outer one still holds */
        encl_fork_let_go();
        if (times != NULL) {
            atomic_fetch_add((atomic_int *)times, 1);
        }
    }
    return NULL;
}

static void a_child_is_made_between_two_holds(void **state) {
    pthread_t threads[THREADS];

    (void)state;
    assert_true(encl_fork_init());
    stop = false;
    for (int i = 0; i < THREADS; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, hold_again_and_again, NULL), 0);
    }
    for (int i = 0; i < FORKS; i++) {
        assert_int_equal(fork_and_look(), 0);
    }
    stop = true;
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
    }
}

static void *fork_again_and_again(void *unused) {
    while (!stop) {
        (void)fork_and_look();
    }
    return unused;
}

static void who_holds_gets_a_turn_between_two_forks(void **state) {
    pthread_t forkers[2], holder;
    atomic_int times = 0;

    (void)state;
    assert_true(encl_fork_init());
    stop = false;
    assert_int_equal(pthread_create(&forkers[0], NULL, fork_again_and_again, NULL), 0);
    assert_int_equal(pthread_create(&forkers[1], NULL, fork_again_and_again, NULL), 0);
    assert_int_equal(pthread_create(&holder, NULL, hold_again_and_again, &times), 0);
    while (times < 50) {
        usleep(1000);
    }
    stop = true;
    pthread_join(forkers[0], NULL);
    pthread_join(forkers[1], NULL);
    pthread_join(holder, NULL);
}

/* ---- workers ---- */

typedef struct sleeper {
    encl_fork_worker worker;
    pthread_t thread;
    int ends[2]; /* of a pipe: it sleeps until there is a byte */
    atomic_int turns;
} sleeper;

static void wake(void *arg) {
    sleeper *s = arg;

    assert_int_equal(write(s->ends[1], "", 1), 1);
}

static void *sleep_and_work(void *arg) {
    sleeper *s = arg;
    char byte;

    encl_fork_worker_begin();
    encl_fork_worker_list(&s->worker);
    atomic_fetch_add(&inside, 1);
    while (!stop) {
        atomic_fetch_sub(&inside, 1);
        encl_fork_worker_pause();
        atomic_fetch_add(&inside, 1);
        /* It sleeps with fork() held back, as within a library. */
        assert_int_equal(read(s->ends[0], &byte, 1), 1);
        atomic_fetch_add(&s->turns, 1);
    }
    atomic_fetch_sub(&inside, 1);
    encl_fork_worker_unlist(&s->worker);
    encl_fork_worker_end();
    return NULL;
}

static void start(sleeper *s) {
    memset(s, 0, sizeof *s);
    s->worker = (encl_fork_worker){.wake = wake, .arg = s};
    stop = false;
    assert_int_equal(pipe(s->ends), 0);
    encl_fork_hold();
    encl_fork_worker_expect();
    assert_int_equal(pthread_create(&s->thread, NULL, sleep_and_work, s), 0);
    encl_fork_let_go();
}

static void end(sleeper *s) {
    stop = true;
    wake(s);
    pthread_join(s->thread, NULL);
    close(s->ends[0]);
    close(s->ends[1]);
}

static void a_worker_that_sleeps_is_woken_and_pauses(void **state) {
    sleeper a, b;

    (void)state;
    assert_true(encl_fork_init());
    start(&a);
    start(&b);
    for (int i = 0; i < FORKS; i++) {
        assert_int_equal(fork_and_look(), 0);
    }
    assert_true(a.turns > 0 && b.turns > 0);
    end(&a);
    end(&b);
    assert_int_equal(fork_and_look(), 0);
}

static void a_worker_that_never_came_is_not_waited_for(void **state) {
    (void)state;
    assert_true(encl_fork_init());
    encl_fork_hold();
    encl_fork_worker_expect();
    encl_fork_worker_forgo();
    encl_fork_let_go();
    assert_int_equal(fork_and_look(), 0);
}

/* A worker waits for a lock, its owner is about to hold fork() back, and fork() waits for the
 * worker. */
typedef struct triangle {
    encl_mutex lock;
    encl_fork_worker worker;
    atomic_bool listed, fork_waits, worker_waits;
} triangle;

static void note_fork(void *arg) {
    ((triangle *)arg)->fork_waits = true;
}

static void *wait_for_owner(void *arg) {
    triangle *t = arg;

    encl_fork_worker_begin();
    encl_fork_worker_list(&t->worker);
    t->listed = true;
    while (!t->fork_waits) {
        usleep(100);
    }
    t->worker_waits = true;
    encl_lock(&t->lock);
    encl_unlock(&t->lock);
    encl_fork_worker_unlist(&t->worker);
    encl_fork_worker_end();
    return NULL;
}

static void *fork_once(void *unused) {
    (void)fork_and_look();
    return unused;
}

static void who_holds_a_lock_may_hold_fork_back(void **state) {
    triangle t = {.lock = ENCL_MUTEX_INITIALIZER, .worker = {.wake = note_fork, .arg = &t}};
    pthread_t worker, forker;

    (void)state;
    assert_true(encl_fork_init());
    encl_lock(&t.lock);
    encl_fork_worker_expect();
    assert_int_equal(pthread_create(&worker, NULL, wait_for_owner, &t), 0);
    while (!t.listed) {
        usleep(100);
    }
    assert_int_equal(pthread_create(&forker, NULL, fork_once, NULL), 0);
    while (!t.worker_waits) {
        usleep(100);
    }
    encl_fork_hold();
    encl_fork_let_go();
    encl_unlock(&t.lock);
    pthread_join(worker, NULL);
    pthread_join(forker, NULL);
}

/* ---- what may wait for somebody ---- */

static atomic_bool over;

static void *hold_until_over(void *unused) {
    encl_fork_hold_briefly();
    inside = 1;
    while (!over) {
        usleep(100);
    }
    inside = 0;
    encl_fork_let_go_briefly();
    return unused;
}

static void *hold_briefly_again_and_again(void *unused) {
    while (!stop) {
        encl_fork_hold_briefly();
        work();
        encl_fork_let_go_briefly();
    }
    return unused;
}

static void fork_does_not_wait_for_long_where_somebody_waits(void **state) {
    pthread_t slow, quick;
    int between = 0;

    (void)state;
    assert_true(encl_fork_init());
    over = stop = false;
    assert_int_equal(pthread_create(&quick, NULL, hold_briefly_again_and_again, NULL), 0);
    for (int i = 0; i < FORKS; i++) {
        between += fork_and_look() == 0 ? 1 : 0;
    }
    stop = true;
    pthread_join(quick, NULL);
    assert_true(between > FORKS / 2); /* on a machine that stands still, fork() may lose patience */
    assert_int_equal(pthread_create(&slow, NULL, hold_until_over, NULL), 0);
    while (inside == 0) {
        usleep(100);
    }
    assert_int_equal(fork_and_look(), 1); /* it comes back although that one still holds */
    over = true;
    pthread_join(slow, NULL);
}

/* ---- threads that end ---- */

static atomic_int cleaned;

static void clean_up(void) {
    work();
    atomic_fetch_add(&cleaned, 1);
}

static void *hold_twice(void *unused) {
    encl_fork_hold();
    encl_fork_let_go();
    encl_fork_hold();
    encl_fork_let_go();
    return unused;
}

static void fork_is_held_back_while_a_thread_is_cleaned_up(void **state) {
    pthread_t thread, never;

    (void)state;
    assert_true(encl_fork_init());
    encl_fork_at_thread_end(clean_up);
    for (int i = 1; i <= FORKS; i++) {
        assert_int_equal(pthread_create(&thread, NULL, hold_twice, NULL), 0);
        assert_int_equal(fork_and_look(), 0);
        pthread_join(thread, NULL);
        assert_int_equal(cleaned, i);
    }
    assert_int_equal(pthread_create(&never, NULL, fork_once, NULL), 0);
    pthread_join(never, NULL);
    assert_int_equal(cleaned, FORKS);
}

/* ---- children, and handlers of signals ---- */

static void a_child_holds_fork_back_for_itself(void **state) {
    pid_t child;
    int status;

    (void)state;
    assert_true(encl_fork_init());
    child = fork();
    if (child == 0) {
        encl_fork_hold();
        encl_fork_let_go();
        leave(fork_and_look());
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static volatile sig_atomic_t child_status = -1;

static void fork_in_handler(int number) {
    pid_t child = fork();
    int status;

    (void)number;
    if (child == 0) {
        encl_fork_let_go(); /* of what the signal interrupted */
        leave(0);
    }
    if (waitpid(child, &status, 0) == child && WIFEXITED(status)) {
        child_status = WEXITSTATUS(status);
    }
}

static void a_handler_may_fork_where_its_thread_holds_fork_back(void **state) {
    struct sigaction action = {.sa_handler = fork_in_handler};

    (void)state;
    assert_true(encl_fork_init());
    assert_int_equal(sigaction(SIGUSR1, &action, NULL), 0);
    encl_fork_hold();
    assert_int_equal(raise(SIGUSR1), 0);
    encl_fork_let_go();
    assert_int_equal(child_status, 0);
    assert_int_equal(fork_and_look(), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_child_is_made_between_two_holds),
        cmocka_unit_test(who_holds_gets_a_turn_between_two_forks),
        cmocka_unit_test(a_worker_that_sleeps_is_woken_and_pauses),
        cmocka_unit_test(a_worker_that_never_came_is_not_waited_for),
        cmocka_unit_test(who_holds_a_lock_may_hold_fork_back),
        cmocka_unit_test(fork_does_not_wait_for_long_where_somebody_waits),
        cmocka_unit_test(fork_is_held_back_while_a_thread_is_cleaned_up),
        cmocka_unit_test(a_child_holds_fork_back_for_itself),
        cmocka_unit_test(a_handler_may_fork_where_its_thread_holds_fork_back),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
