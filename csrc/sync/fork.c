/* fork: the handlers of fork(), and who holds it back. Decides who waits for whom. Calls the C
 * library, workers' wake functions with its lock held, and what a child and an ending thread are to
 * do.
 *
 * fork_lock guards the state, and is held from the moment at which nobody holds fork() back any
 * more until the child is made. */
#include "sync/fork.h"

#include <stdatomic.h>
#include <stdint.h>

#include "sync/lock.h"

#define NS_PER_MS ((int64_t)1000000)

static encl_mutex fork_lock = ENCL_MUTEX_INITIALIZER;
static pthread_cond_t changed =
    PTHREAD_COND_INITIALIZER; /* with the right clock once init is over */

static struct {
    unsigned holders; /* threads that are no workers, and hold fork() back */
    unsigned workers; /* that do not pause */
    unsigned brief;   /* threads for which fork() does not wait for long */
    uint64_t forks;   /* how often a thread has come back from fork() */
    encl_fork_worker *listed;
} state ENCL_GUARDED_BY(fork_lock);

/* A thread is in fork(). Written with fork_lock held. */
static atomic_bool asked;

/* How often the calling thread holds fork() back. It is counted up before fork_lock is taken, and
 * down after that was let go: the handler of a signal that comes in between may call fork(), and
 * must not wait for the thread that it has interrupted. */
static _Thread_local unsigned depth;

static void (*_Atomic in_child)(void);

static pthread_once_t once = PTHREAD_ONCE_INIT;
static int handlers_rc = -1; /* written under once */

/* ---- fork() ---- */

static void wake_workers(void) ENCL_REQUIRES(fork_lock) {
    for (encl_fork_worker *at = state.listed; at != NULL; at = at->next) {
        at->wake(at->arg);
    }
}

static bool is_held_back(int64_t patient_until) ENCL_REQUIRES(fork_lock) {
    return state.holders + state.workers != 0 ||
           (state.brief != 0 && encl_now_ns() < patient_until);
}

static void wait_for_all(void) ENCL_REQUIRES(fork_lock) {
    int64_t patient_until = encl_now_ns() + ENCL_FORK_PATIENCE_MS * NS_PER_MS;

    while (is_held_back(patient_until)) {
        if (state.holders + state.workers != 0) {
            encl_cond_wait(&changed, &fork_lock);
        } else {
            encl_cond_wait_until(&changed, &fork_lock, patient_until);
        }
    }
}

/* What these three hold spans fork(), which the analysis cannot see. */

ENCL_LOCK_UNCHECKED static void before_fork(void) {
    /* In a signal's handler: the child may find what that has interrupted, and nothing else. */
    if (depth != 0) {
        return;
    }
    encl_lock(&fork_lock);
    while (asked) {
        encl_cond_wait(&changed, &fork_lock); /* for another thread's fork() */
    }
    asked = true;
    wake_workers();
    wait_for_all();
}

ENCL_LOCK_UNCHECKED static void after_fork_in_parent(void) {
    if (depth != 0) {
        return;
    }
    asked = false;
    state.forks++;
    pthread_cond_broadcast(&changed);
    encl_unlock(&fork_lock);
}

/* This is the only thread. What others waited for here, they waited for in the parent. */
ENCL_LOCK_UNCHECKED static void after_fork_in_child(void) {
    void (*call)(void) = in_child;

    (void)encl_mutex_init(&fork_lock);
    encl_cond_init(&changed);
    asked = false;
    state.holders = depth != 0 ? 1 : 0;
    state.workers = state.brief = 0;
    state.listed = NULL;
    if (call != NULL) {
        call();
    }
}

static void set_handlers(void) {
    encl_cond_init(&changed);
    handlers_rc = pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}

bool encl_fork_init(void) {
    return pthread_once(&once, set_handlers) == 0 && handlers_rc == 0;
}

void encl_fork_in_child(void (*call)(void)) {
    in_child = call;
}

/* ---- threads that end ---- */

static void (*_Atomic at_thread_end)(void);
static _Thread_local bool noted; /* that something is to be called when this thread ends */

static void clean_up(void *unused) {
    void (*call)(void) = at_thread_end;

    (void)unused;
    encl_fork_hold();
    call();
    encl_fork_let_go();
}

void encl_fork_at_thread_end(void (*call)(void)) {
    at_thread_end = call;
}

static void note_thread(void) {
    if (!noted && at_thread_end != NULL) {
        noted = true;
        encl_thread_at_exit(clean_up);
    }
}

/* ---- holding it back ---- */

/* A thread that has waited for one fork() does not wait for the next: where there is always one,
 * everybody else gets a turn between two. */
static void wait_for_fork(void) ENCL_REQUIRES(fork_lock) {
    uint64_t forks = state.forks;

    while (asked && state.workers == 0 && state.forks == forks) {
        encl_cond_wait(&changed, &fork_lock);
    }
}

static void tell_fork(void) ENCL_REQUIRES(fork_lock) {
    if (asked) {
        pthread_cond_broadcast(&changed);
    }
}

void encl_fork_hold(void) {
    if (depth++ != 0) {
        return;
    }
    note_thread();
    encl_lock(&fork_lock);
    wait_for_fork();
    state.holders++;
    encl_unlock(&fork_lock);
}

void encl_fork_let_go(void) {
    if (depth == 1) {
        encl_lock(&fork_lock);
        state.holders--;
        tell_fork();
        encl_unlock(&fork_lock);
    }
    depth--;
}

void encl_fork_hold_briefly(void) {
    encl_lock(&fork_lock);
    wait_for_fork();
    state.brief++;
    encl_unlock(&fork_lock);
}

void encl_fork_let_go_briefly(void) {
    encl_lock(&fork_lock);
    state.brief--;
    tell_fork();
    encl_unlock(&fork_lock);
}

/* ---- workers ---- */

void encl_fork_worker_expect(void) {
    encl_lock(&fork_lock);
    state.workers++;
    encl_unlock(&fork_lock);
}

void encl_fork_worker_forgo(void) {
    encl_lock(&fork_lock);
    state.workers--;
    tell_fork();
    encl_unlock(&fork_lock);
}

void encl_fork_worker_begin(void) {
    depth = 1;
}

void encl_fork_worker_end(void) {
    encl_fork_worker_forgo();
    depth = 0;
}

void encl_fork_worker_list(encl_fork_worker *worker) {
    encl_lock(&fork_lock);
    worker->next = state.listed;
    state.listed = worker;
    encl_unlock(&fork_lock);
}

void encl_fork_worker_unlist(encl_fork_worker *worker) {
    encl_fork_worker **at;

    encl_lock(&fork_lock);
    at = &state.listed;
    while (*at != NULL && *at != worker) {
        at = &(*at)->next;
    }
    if (*at == worker) {
        *at = worker->next;
    }
    encl_unlock(&fork_lock);
}

void encl_fork_worker_pause(void) {
    uint64_t forks;

    if (!asked) {
        return;
    }
    encl_lock(&fork_lock);
    state.workers--;
    pthread_cond_broadcast(&changed);
    forks = state.forks;
    while (asked && state.forks == forks) {
        encl_cond_wait(&changed, &fork_lock);
    }
    state.workers++;
    encl_unlock(&fork_lock);
}
