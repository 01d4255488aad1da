/* timer: one list of timers for each loop, and an alarm: a descriptor that becomes readable at the
 * time of the first. libwebsockets has timers too, but its loop hands poll() whole milliseconds,
 * rounded down: for the last fraction of one it would call poll() again and again without sleeping.
 * And any thread can set the alarm without waking the service thread.
 *
 * Calls platform alone. timers->lock is taken here, and tasks run without it. */
#include <stdlib.h>

#include "net/internal.h"

#define NS_PER_MS ((int64_t)1000000)

static encl_timer *first_due(const net_timers *timers) ENCL_REQUIRES(timers->lock) {
    return ENCL_OWNER(encl_list_first(&timers->due), encl_timer, link);
}

/* The alarm may be set for an earlier time than needed: then it becomes readable too
 * early once, finds nothing due, and is set again. */
static void aim(net_timers *timers) ENCL_REQUIRES(timers->lock) {
    const encl_timer *first = first_due(timers);

    if (first == NULL || timers->fd < 0 ||
        (timers->aimed_at != 0 && timers->aimed_at <= first->at)) {
        return;
    }
    timers->aimed_at = first->at;
    encl_alarm_set(timers->fd, first->at);
}

/* Behind those of the same time; there are a few for each connection. */
static void insert(net_timers *timers, encl_timer *timer) ENCL_REQUIRES(timers->lock) {
    encl_link *at = encl_list_first(&timers->due);

    while (at != NULL && ENCL_OWNER(at, encl_timer, link)->at <= timer->at) {
        at = encl_list_next(&timers->due, at);
    }
    encl_link_before(at == NULL ? &timers->due.ends : at, &timer->link);
}

/* The first timer that is due, taken out; NULL where there is none. */
static encl_timer *take_due(net_timers *timers) {
    int64_t now = encl_now_ns();
    encl_timer *first;

    encl_lock(&timers->lock);
    first = first_due(timers);
    if (first != NULL && first->at <= now) {
        encl_link_remove(&first->link);
    } else {
        first = NULL;
    }
    encl_unlock(&timers->lock);
    return first;
}

void net_timers_fire(net_timers *timers) {
    encl_timer *due;

    encl_lock(&timers->lock);
    timers->aimed_at = 0;
    encl_unlock(&timers->lock);
    while ((due = take_due(timers)) != NULL) {
        due->task(due->arg); /* may free the timer, and set any */
    }
    encl_lock(&timers->lock);
    aim(timers);
    if (timers->aimed_at == 0) {
        encl_alarm_clear(timers->fd); /* setting it would have made it unreadable as well */
    }
    encl_unlock(&timers->lock);
}

void net_timers_init(net_timers *timers) {
    (void)encl_mutex_init(&timers->lock);
    encl_list_init(&timers->due);
    timers->fd = -1;
    timers->aimed_at = 0;
}

void net_timers_destroy(net_timers *timers) {
    encl_mutex_destroy(&timers->lock);
}

void net_timers_set_alarm(net_timers *timers, int fd) {
    encl_lock(&timers->lock);
    timers->fd = fd;
    aim(timers);
    encl_unlock(&timers->lock);
}

void net_timer_init(encl_timer *timer, net_timers *timers, encl_task task, void *arg) {
    *timer = (encl_timer){.timers = timers, .task = task, .arg = arg};
}

encl_result encl_timer_new(encl_loop *loop, encl_task task, void *arg, encl_timer **out,
                           encl_error *err) {
    encl_timer *timer = malloc(sizeof *timer);

    *out = timer;
    ENCL_ENSURE(timer != NULL, err, ENCL_E_NOMEM, "out of memory");
    net_timer_init(timer, &loop->timers, task, arg);
    return ENCL_OK;
}

void encl_timer_set(encl_timer *timer, uint64_t after_ms) {
    net_timers *timers = timer->timers;
    int64_t now = encl_now_ns();
    uint64_t longest = (uint64_t)((INT64_MAX - now) / NS_PER_MS);

    encl_lock(&timers->lock);
    encl_link_remove(&timer->link);
    timer->at = after_ms < longest ? now + (int64_t)after_ms * NS_PER_MS : INT64_MAX;
    insert(timers, timer);
    aim(timers);
    encl_unlock(&timers->lock);
}

void encl_timer_stop(encl_timer *timer) {
    encl_lock(&timer->timers->lock);
    encl_link_remove(&timer->link);
    encl_unlock(&timer->timers->lock);
}

void encl_timer_free(encl_timer *timer) {
    if (timer != NULL) {
        encl_timer_stop(timer);
        free(timer);
    }
}
