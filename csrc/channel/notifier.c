/* Announcements for event loops: a list of tokens, and a descriptor that is readable while there
 * are any, or a call where there are some at first. Decides nothing. It has a lock of its own,
 * which comes after every other and is not held during that call: it calls nothing of this folder,
 * and waits for nothing but that lock. */
#include "channel/channel.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/secmem.h"
#include "platform/platform.h"
#include "sync/lock.h"

struct encl_notifier {
    atomic_uint refs;
    uint64_t generation;
    encl_wakeup sign; /* set while there are tokens; without a descriptor where call is not NULL */
    atomic_bool woken;
    void (*call)(void *arg);
    void *arg;
    encl_mutex lock; /* guards everything below */
    uint64_t *tokens;
    size_t count, reserved, cap; /* count + reserved <= cap */
};

static void (*_Atomic on_wake)(void);

static encl_notifier *notifier_new(void) {
    encl_notifier *n = calloc(1, sizeof *n);

    if (n != NULL) {
        atomic_init(&n->refs, 1);
        n->generation = encl_fork_generation();
        n->sign.fd = -1;
        (void)encl_mutex_init(&n->lock);
    }
    return n;
}

static void notifier_free(encl_notifier *n) {
    encl_mutex_destroy(&n->lock);
    free(n->tokens);
    free(n);
}

encl_result encl_notifier_new(encl_notifier **out, encl_error *err) {
    encl_notifier *n = notifier_new();

    *out = NULL;
    ENCL_ENSURE(n != NULL, err, ENCL_E_NOMEM, "out of memory");
    if (!encl_wakeup_open(&n->sign)) {
        notifier_free(n);
        return encl_fail(err, ENCL_E_NOMEM, "no descriptor for a notifier: %s", strerror(errno));
    }
    *out = n;
    return ENCL_OK;
}

encl_result encl_notifier_new_calling(void (*call)(void *arg), void *arg, encl_notifier **out,
                                      encl_error *err) {
    encl_notifier *n = notifier_new();

    *out = n;
    ENCL_ENSURE(n != NULL, err, ENCL_E_NOMEM, "out of memory");
    n->call = call;
    n->arg = arg;
    return ENCL_OK;
}

void encl_notifier_retain(encl_notifier *n) {
    atomic_fetch_add_explicit(&n->refs, 1, memory_order_relaxed);
}

void encl_notifier_release(encl_notifier *n) {
    if (n == NULL || atomic_fetch_sub_explicit(&n->refs, 1, memory_order_acq_rel) != 1) {
        return;
    }
    if (n->call == NULL) {
        encl_wakeup_close(&n->sign);
    }
    notifier_free(n);
}

/* A forked child shares the descriptor's counter with its parent, whose announcements it must not
 * take; and its copy of the lock may be held by a thread that is not there. */
static bool is_forked(const encl_notifier *n) {
    return n->generation != encl_fork_generation();
}

int encl_notifier_fd(const encl_notifier *n) {
    return n->sign.fd;
}

void encl_notifier_wake(encl_notifier *n) {
    void (*call)(void) = on_wake;

    if (is_forked(n)) {
        return;
    }
    if (n->call != NULL) {
        n->call(n->arg);
        return;
    }
    encl_wakeup_set(&n->sign);
    if (call != NULL) {
        atomic_store(&n->woken, true); /* before the call, which may have it looked at */
        call();
    }
}

void encl_notifier_on_wake(void (*call)(void)) {
    on_wake = call;
}

bool encl_notifier_was_woken(encl_notifier *n) {
    return atomic_exchange(&n->woken, false);
}

static bool make_room(encl_notifier *n) ENCL_REQUIRES(n->lock) {
    size_t cap = n->cap == 0 ? 64 : n->cap * 2;
    uint64_t *tokens;

    if (n->count + n->reserved < n->cap) {
        return true;
    }
    tokens = realloc(n->tokens, cap * sizeof *tokens);
    if (tokens == NULL) {
        return false;
    }
    n->tokens = tokens;
    n->cap = cap;
    return true;
}

encl_result encl_notifier_reserve(encl_notifier *n, encl_error *err) {
    bool ok;

    ENCL_ENSURE(!is_forked(n), err, ENCL_E_FORKED, "this notifier belongs to the parent process");
    encl_lock(&n->lock);
    ok = make_room(n);
    n->reserved += ok;
    encl_unlock(&n->lock);
    ENCL_ENSURE(ok, err, ENCL_E_NOMEM, "out of memory for an announcement");
    return ENCL_OK;
}

void encl_notifier_unreserve(encl_notifier *n) {
    if (is_forked(n)) {
        return;
    }
    encl_lock(&n->lock);
    n->reserved--;
    encl_unlock(&n->lock);
}

void encl_notifier_post(encl_notifier *n, uint64_t token) {
    bool first;

    if (is_forked(n)) {
        return;
    }
    encl_lock(&n->lock);
    first = n->count == 0;
    n->tokens[n->count++] = token;
    n->reserved--;
    encl_unlock(&n->lock);
    if (first) {
        encl_notifier_wake(n);
    }
}

size_t encl_notifier_drain(encl_notifier *n, uint64_t *tokens, size_t max) {
    size_t taken;
    bool more;

    if (is_forked(n)) {
        return 0;
    }
    /* First the descriptor, then the list: what is posted in between leaves it readable. */
    if (n->call == NULL) {
        encl_wakeup_clear(&n->sign);
    }
    encl_lock(&n->lock);
    taken = n->count < max ? n->count : max;
    if (taken != 0) {
        memcpy(tokens, n->tokens, taken * sizeof *tokens);
        memmove(n->tokens, n->tokens + taken, (n->count - taken) * sizeof *tokens);
        n->count -= taken;
    }
    more = n->count != 0;
    encl_unlock(&n->lock);
    if (more) {
        encl_notifier_wake(n);
    }
    return taken;
}
