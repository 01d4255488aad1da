/* loop: timers, and who is told that there is something to do. There is no thread: a timer fires
 * when an owner of a WebSocket asks (encl_web_tick), and its task runs there, without any lock.
 * Calls platform alone; loop->lock is taken here. */
#include <stdlib.h>

#include "base/secmem.h"
#include "sync/fork.h"
#include "web/internal.h"

#define NS_PER_MS ((int64_t)1000000)

encl_result encl_net_init(encl_error *err) {
    ENCL_ENSURE(encl_fork_init(), err, ENCL_E_NOMEM, "the fork handlers could not be set up");
    return encl_base_init(err);
}

encl_result encl_loop_new(encl_loop **out, encl_error *err) {
    encl_loop *loop = calloc(1, sizeof *loop);

    *out = loop;
    ENCL_ENSURE(loop != NULL, err, ENCL_E_NOMEM, "out of memory");
    (void)encl_mutex_init(&loop->lock);
    encl_list_init(&loop->due);
    encl_list_init(&loop->conns);
    return ENCL_OK;
}

void encl_loop_free(encl_loop *loop) {
    if (loop != NULL) {
        encl_mutex_destroy(&loop->lock);
        free(loop);
    }
}

/* ---- notes ---- */

static void (*_Atomic on_work)(void);

void encl_web_on_work(void (*call)(void)) {
    on_work = call;
}

void web_note(encl_conn *conn) {
    void (*call)(void) = on_work;

    atomic_store(&conn->work, true); /* before the call, which may have it looked at */
    if (call != NULL) {
        call();
    }
}

bool encl_web_had_work(encl_conn *conn) {
    return atomic_exchange(&conn->work, false);
}

/* Any of them may be the one whose owner keeps time. */
static void note_all(encl_loop *loop) ENCL_REQUIRES(loop->lock) {
    encl_link *at = encl_list_first(&loop->conns);

    while (at != NULL) {
        web_note(ENCL_OWNER(at, encl_conn, link));
        at = encl_list_next(&loop->conns, at);
    }
}

void web_loop_add(encl_conn *conn) {
    encl_lock(&conn->loop->lock);
    encl_list_append(&conn->loop->conns, &conn->link);
    encl_unlock(&conn->loop->lock);
}

void web_loop_remove(encl_conn *conn) {
    encl_lock(&conn->loop->lock);
    encl_link_remove(&conn->link);
    encl_unlock(&conn->loop->lock);
}

/* ---- timers ---- */

encl_result encl_timer_new(encl_loop *loop, encl_task task, void *arg, encl_timer **out,
                           encl_error *err) {
    encl_timer *timer = calloc(1, sizeof *timer);

    *out = timer;
    ENCL_ENSURE(timer != NULL, err, ENCL_E_NOMEM, "out of memory");
    timer->loop = loop;
    timer->task = task;
    timer->arg = arg;
    return ENCL_OK;
}

static encl_timer *first_due(const encl_loop *loop) ENCL_REQUIRES(loop->lock) {
    return ENCL_OWNER(encl_list_first(&loop->due), encl_timer, link);
}

/* Behind those of the same time; there are two for each connection. */
static void insert(encl_loop *loop, encl_timer *timer) ENCL_REQUIRES(loop->lock) {
    encl_link *at = encl_list_first(&loop->due);

    while (at != NULL && ENCL_OWNER(at, encl_timer, link)->at <= timer->at) {
        at = encl_list_next(&loop->due, at);
    }
    encl_link_before(at == NULL ? &loop->due.ends : at, &timer->link);
}

void encl_timer_set(encl_timer *timer, uint64_t after_ms) {
    encl_loop *loop = timer->loop;
    int64_t now = encl_now_ns();
    uint64_t longest = (uint64_t)((INT64_MAX - now) / NS_PER_MS);

    encl_lock(&loop->lock);
    encl_link_remove(&timer->link);
    timer->at = after_ms < longest ? now + (int64_t)after_ms * NS_PER_MS : INT64_MAX;
    insert(loop, timer);
    if (first_due(loop) == timer) {
        note_all(loop);
    }
    encl_unlock(&loop->lock);
}

void encl_timer_stop(encl_timer *timer) {
    encl_lock(&timer->loop->lock);
    encl_link_remove(&timer->link);
    encl_unlock(&timer->loop->lock);
}

void encl_timer_free(encl_timer *timer) {
    if (timer != NULL) {
        encl_timer_stop(timer);
        free(timer);
    }
}

/* The first timer that is due, taken out; NULL where there is none, and how long that stays so. */
static encl_timer *take_due(encl_loop *loop, int64_t *wait) {
    int64_t now = encl_now_ns();
    encl_timer *first;

    encl_lock(&loop->lock);
    first = first_due(loop);
    *wait = first == NULL ? -1 : first->at - now;
    if (first != NULL && first->at <= now) {
        encl_link_remove(&first->link);
    } else {
        first = NULL;
    }
    encl_unlock(&loop->lock);
    return first;
}

int64_t encl_web_tick(encl_conn *conn) {
    encl_loop *loop = conn->loop;
    encl_timer *due;
    int64_t wait;

    while ((due = take_due(loop, &wait)) != NULL) {
        due->task(due->arg); /* may free the timer, and set any */
    }
    return wait;
}
