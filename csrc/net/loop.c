/* loop: how other threads get the service thread to do something: a queue of jobs, and waiting for
 * one of them. Decides when it has to be woken for that. Calls timer.c and libwebsockets'
 * lws_cancel_service alone; the thread itself is in service.c.
 *
 * loop->lock guards the queue and the phase; jobs run without it. */
#include <stdlib.h>
#include <unistd.h>

#include "net/internal.h"

encl_result net_loop_new(encl_loop **out, encl_error *err) {
    encl_loop *loop = calloc(1, sizeof *loop);

    *out = NULL;
    ENCL_ENSURE(loop != NULL, err, ENCL_E_NOMEM, "out of memory");
    loop->hung_up = -1;
    loop->rx = malloc(NET_RX_BLOCK);
    if (loop->rx == NULL) {
        free(loop);
        return encl_fail(err, ENCL_E_NOMEM, "out of memory");
    }
    atomic_init(&loop->refs, 1);
    loop->generation = encl_fork_generation();
    (void)encl_mutex_init(&loop->lock);
    encl_cond_init(&loop->changed);
    net_timers_init(&loop->timers);
    encl_list_init(&loop->conns);
    encl_list_init(&loop->listeners);
    encl_list_init(&loop->owed);
    *out = loop;
    return ENCL_OK;
}

void net_loop_retain(encl_loop *loop) {
    atomic_fetch_add_explicit(&loop->refs, 1, memory_order_relaxed);
}

void net_loop_release(encl_loop *loop) {
    if (atomic_fetch_sub_explicit(&loop->refs, 1, memory_order_acq_rel) != 1) {
        return;
    }
    net_timers_destroy(&loop->timers);
    pthread_cond_destroy(&loop->changed);
    encl_mutex_destroy(&loop->lock);
    if (loop->hung_up >= 0) {
        (void)close(loop->hung_up);
    }
    free(loop->rx);
    free(loop);
}

bool encl_loop_is_current(const encl_loop *loop) {
    return pthread_equal(pthread_self(), loop->thread) != 0;
}

uint64_t encl_loop_turns(const encl_loop *loop) {
    return atomic_load_explicit(&loop->turns, memory_order_relaxed);
}

/* ---- phases ---- */

void net_loop_enter(encl_loop *loop, net_phase phase) {
    encl_lock(&loop->lock);
    loop->phase = phase;
    pthread_cond_broadcast(&loop->changed);
    encl_unlock(&loop->lock);
}

net_phase net_loop_wait_started(encl_loop *loop) {
    net_phase phase;

    encl_lock(&loop->lock);
    while (loop->phase == NET_STARTING) {
        encl_cond_wait(&loop->changed, &loop->lock);
    }
    phase = loop->phase;
    encl_unlock(&loop->lock);
    return phase;
}

void net_loop_stop(encl_loop *loop) {
    encl_lock(&loop->lock);
    if (loop->phase == NET_RUNNING) {
        loop->phase = NET_STOPPING;
        /* Under the lock: once it sees the phase, the service thread destroys the context. */
        lws_cancel_service(loop->context);
    }
    encl_unlock(&loop->lock);
}

net_turn net_loop_next_turn(encl_loop *loop) {
    net_turn turn = NET_TURN_SLEEP;

    encl_lock(&loop->lock);
    if (loop->phase != NET_RUNNING) {
        turn = NET_TURN_END;
    } else if (loop->jobs_head != NULL) {
        turn = NET_TURN_LOOK;
    }
    encl_unlock(&loop->lock);
    return turn;
}

/* ---- jobs ---- */

/* A queue that is not empty has its wake-up on the way already. */
static void append(encl_loop *loop, encl_job *job) ENCL_REQUIRES(loop->lock) {
    bool was_empty = loop->jobs_head == NULL;

    job->next = NULL;
    if (was_empty) {
        loop->jobs_head = job;
    } else {
        loop->jobs_tail->next = job;
    }
    loop->jobs_tail = job;
    if (was_empty && !(encl_loop_is_current(loop) && loop->awake)) {
        /* Under the lock: as soon as it is let go, the loop may end, and its context with it. */
        lws_cancel_service(loop->context);
    }
}

bool encl_loop_post(encl_loop *loop, encl_job *job) {
    bool taken;

    if (loop->generation != encl_fork_generation()) {
        return false;
    }
    encl_lock(&loop->lock);
    taken = loop->phase != NET_STOPPED;
    if (taken) {
        append(loop, job);
    }
    encl_unlock(&loop->lock);
    return taken;
}

static encl_job *take_jobs(encl_loop *loop) {
    encl_job *jobs;

    encl_lock(&loop->lock);
    jobs = loop->jobs_head;
    loop->jobs_head = loop->jobs_tail = NULL;
    encl_unlock(&loop->lock);
    return jobs;
}

void net_loop_run_jobs(encl_loop *loop) {
    encl_job *jobs = take_jobs(loop);

    while (jobs != NULL) {
        encl_job *job = jobs;

        jobs = job->next; /* running it may post it again, or free it */
        job->run(job->arg);
    }
}

/* ---- run and wait ---- */

typedef struct errand {
    encl_job job;
    encl_task task;
    void *arg;
    encl_mutex lock; /* guards done */
    pthread_cond_t ended;
    bool done;
} errand;

static void run_errand(void *arg) {
    errand *e = arg;

    e->task(e->arg);
    encl_lock(&e->lock);
    e->done = true;
    pthread_cond_signal(&e->ended);
    encl_unlock(&e->lock);
}

static void await_errand(errand *e) {
    encl_lock(&e->lock);
    while (!e->done) {
        encl_cond_wait(&e->ended, &e->lock);
    }
    encl_unlock(&e->lock);
}

bool encl_loop_run(encl_loop *loop, encl_task task, void *arg) {
    errand e = {.task = task,
                .arg = arg,
                .lock = ENCL_MUTEX_INITIALIZER,
                .ended = PTHREAD_COND_INITIALIZER};
    bool posted;

    if (encl_loop_is_current(loop)) {
        task(arg);
        return true;
    }
    e.job = (encl_job){.run = run_errand, .arg = &e};
    posted = encl_loop_post(loop, &e.job);
    if (posted) {
        await_errand(&e);
    }
    pthread_cond_destroy(&e.ended);
    encl_mutex_destroy(&e.lock);
    return posted;
}
