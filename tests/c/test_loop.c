/* net: the service thread, its timers and its jobs: when it wakes up, and in which order it acts.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dlfcn.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

#include "net_sides.h"

#define FIRINGS 40

static atomic_uint_fast64_t polls;

/* libwebsockets' poll() is this one: a shared library asks the program first. */
int poll(struct pollfd *fds, nfds_t count, int timeout_ms) {
    struct timespec limit = {.tv_sec = timeout_ms / 1000,
                             .tv_nsec = (long)(timeout_ms % 1000) * 1000000};

    atomic_fetch_add(&polls, 1);
    return ppoll(fds, count, timeout_ms < 0 ? NULL : &limit, NULL);
}

typedef struct ticker {
    encl_loop *loop;
    encl_timer *timer;
    encl_job start;
    pthread_mutex_t lock; /* guards fired */
    pthread_cond_t changed;
    int fired;
} ticker;

static void tick(void *arg) {
    ticker *t = arg;

    pthread_mutex_lock(&t->lock);
    if (++t->fired < FIRINGS) {
        encl_timer_set(t->timer, 7);
        usleep(300); /* what is left to wait is no whole number of milliseconds any more */
    }
    pthread_cond_broadcast(&t->changed);
    pthread_mutex_unlock(&t->lock);
}

static void start_ticking(void *arg) {
    ticker *t = arg;

    encl_timer_set(t->timer, 7);
}

/* A loop that looks at the time until a timer is due wakes up hundreds of times for each. */
static void the_loop_sleeps_until_its_timer(void **state) {
    ticker t = {.fired = 0};
    encl_error err;
    uint64_t before, turns, polls_before;

    (void)state;
    pthread_mutex_init(&t.lock, NULL);
    pthread_cond_init(&t.changed, NULL);
    assert_int_equal(encl_loop_new(&t.loop, &err), ENCL_OK);
    assert_int_equal(encl_timer_new(t.loop, tick, &t, &t.timer, &err), ENCL_OK);
    before = encl_loop_turns(t.loop);
    polls_before = polls;
    t.start = (encl_job){.run = start_ticking, .arg = &t};
    assert_true(encl_loop_post(t.loop, &t.start));
    WAIT_FOR(&t, t.fired == FIRINGS);
    turns = encl_loop_turns(t.loop) - before;
    print_message("%d timers took %llu turns\n", FIRINGS, (unsigned long long)turns);
    assert_true(turns > 0); /* two timers may be due in one turn */
    assert_true(turns <= 3 * FIRINGS + 20);
    print_message("%llu calls of poll()\n", (unsigned long long)(polls - polls_before));
    assert_true(polls - polls_before > 0);
    assert_true(polls - polls_before <= 3 * FIRINGS + 20);
    encl_timer_free(t.timer);
    encl_loop_free(t.loop);
}

typedef struct order {
    encl_loop *loop;
    encl_timer *timers[6];
    encl_job job;
    pthread_mutex_t lock; /* guards fired, count, ran */
    pthread_cond_t changed;
    int fired[8], count;
    bool ran;
} order;

typedef struct place {
    order *o;
    int number;
} place;

static void note_firing(void *arg) {
    place *p = arg;
    order *o = p->o;

    pthread_mutex_lock(&o->lock);
    o->fired[o->count++] = p->number;
    if (p->number == 2) {
        encl_timer_stop(o->timers[3]); /* which is due a moment later */
    }
    pthread_cond_broadcast(&o->changed);
    pthread_mutex_unlock(&o->lock);
}

static void set_in_disorder(void *arg) {
    order *o = arg;

    encl_timer_set(o->timers[4], 60);
    encl_timer_set(o->timers[0], 5000); /* moved below */
    encl_timer_set(o->timers[3], 40);
    encl_timer_set(o->timers[2], 20);
    encl_timer_set(o->timers[1], 10);
    encl_timer_set(o->timers[0], 1);
    encl_timer_set(o->timers[5], UINT64_MAX); /* never */
}

static void free_timers(void *arg) {
    order *o = arg;

    for (int i = 0; i < 6; i++) {
        encl_timer_free(o->timers[i]);
    }
    pthread_mutex_lock(&o->lock);
    o->ran = true;
    pthread_cond_broadcast(&o->changed);
    pthread_mutex_unlock(&o->lock);
}

static void timers_fire_in_the_order_of_their_times(void **state) {
    static const int expected[] = {0, 1, 2, 4};
    order o = {.count = 0};
    place places[6];
    encl_error err;

    (void)state;
    pthread_mutex_init(&o.lock, NULL);
    pthread_cond_init(&o.changed, NULL);
    assert_int_equal(encl_loop_new(&o.loop, &err), ENCL_OK);
    for (int i = 0; i < 6; i++) {
        places[i] = (place){.o = &o, .number = i};
        assert_int_equal(encl_timer_new(o.loop, note_firing, &places[i], &o.timers[i], &err),
                         ENCL_OK);
    }
    o.job = (encl_job){.run = set_in_disorder, .arg = &o};
    assert_true(encl_loop_post(o.loop, &o.job));
    WAIT_FOR(&o, o.count == 4);
    assert_memory_equal(o.fired, expected, sizeof expected);
    o.job = (encl_job){.run = free_timers, .arg = &o};
    assert_true(encl_loop_post(o.loop, &o.job));
    WAIT_FOR(&o, o.ran);
    assert_int_equal(o.count, 4);
    encl_loop_free(o.loop);
}

static atomic_uint_fast64_t wake_ups;

/* In place of libwebsockets', which is then called: how often the service thread is woken. */
void lws_cancel_service(struct lws_context *context) {
    static void (*original)(struct lws_context *);

    if (original == NULL) {
        original =
            (void (*)(struct lws_context *))(uintptr_t)dlsym(RTLD_NEXT, "lws_cancel_service");
    }
    atomic_fetch_add(&wake_ups, 1);
    original(context);
}

typedef struct chain {
    encl_loop *loop;
    encl_timer *timer;
    encl_job job;
    pthread_mutex_t lock; /* guards left */
    pthread_cond_t changed;
    int left;
    bool by_timer;
} chain;

/* Every step is posted in the service thread: from a job, or from a timer that a job has set. */
static void next_step(void *arg) {
    chain *c = arg;
    int left;

    pthread_mutex_lock(&c->lock);
    left = --c->left;
    pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->lock);
    if (left > 0 && c->by_timer) {
        encl_timer_set(c->timer, 1);
    } else if (left > 0) {
        assert_true(encl_loop_post(c->loop, &c->job));
    }
}

static void timer_posts(void *arg) {
    chain *c = arg;

    assert_true(encl_loop_post(c->loop, &c->job));
}

static void jobs_of_the_service_thread_need_no_wake_up(void **state) {
    chain c = {.left = 0};
    uint64_t before, wakes;
    encl_error err;

    (void)state;
    pthread_mutex_init(&c.lock, NULL);
    pthread_cond_init(&c.changed, NULL);
    assert_int_equal(encl_loop_new(&c.loop, &err), ENCL_OK);
    assert_int_equal(encl_timer_new(c.loop, timer_posts, &c, &c.timer, &err), ENCL_OK);
    c.job = (encl_job){.run = next_step, .arg = &c};
    for (int by_timer = 0; by_timer < 2; by_timer++) {
        c.left = 50;
        c.by_timer = by_timer != 0;
        before = wake_ups;
        assert_true(encl_loop_post(c.loop, &c.job));
        WAIT_FOR(&c, c.left == 0);
        wakes = wake_ups - before;
        print_message("%llu wake-ups\n", (unsigned long long)wakes);
        assert_int_equal(wakes, 1);
    }
    encl_timer_free(c.timer);
    encl_loop_free(c.loop);
}

typedef struct errand_seen {
    encl_loop *loop;
    bool inside, nested;
} errand_seen;

static void see_nested(void *arg) {
    errand_seen *seen = arg;

    seen->nested = true;
}

static void see(void *arg) {
    errand_seen *seen = arg;

    seen->inside = encl_loop_is_current(seen->loop);
    assert_true(encl_loop_run(seen->loop, see_nested, seen)); /* would wait for itself */
}

static void what_is_run_has_been_done(void **state) {
    errand_seen seen = {.inside = false};
    encl_error err;

    (void)state;
    assert_int_equal(encl_loop_new(&seen.loop, &err), ENCL_OK);
    assert_true(encl_loop_run(seen.loop, see, &seen));
    assert_true(seen.inside && seen.nested);
    assert_false(encl_loop_is_current(seen.loop));
    encl_loop_free(seen.loop);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_loop_sleeps_until_its_timer),
        cmocka_unit_test(timers_fire_in_the_order_of_their_times),
        cmocka_unit_test(jobs_of_the_service_thread_need_no_wake_up),
        cmocka_unit_test(what_is_run_has_been_done),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
