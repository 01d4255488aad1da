/* The state of a channel as a whole: references, whether it is open, how it ends. Calls
 * documents and watch (to free what they keep) and the layers below. A channel is ended with its
 * lock held; references and the state that others ask for are atomics, read without it. */
#include "channel/state.h"

#include <stdlib.h>

#include "base/secmem.h"
#include "channel/documents.h"
#include "sync/fork.h"

/* ---- lifetime ---- */

void ch_retain(encl_channel *ch) {
    atomic_fetch_add_explicit(&ch->refs, 1, memory_order_relaxed);
}

/* Nobody else has the channel any more, so there is nobody to lock out. */
ENCL_LOCK_UNCHECKED static void destroy(encl_channel *ch) {
    encl_fork_hold();
    encl_session_free(ch->session);
    encl_policy_free(&ch->policy);
    encl_fork_let_go();
    documents_free(ch);
    watches_clear(&ch->opened);
    watches_clear(&ch->progressed);
    encl_conn_release(ch->conn);
    pthread_cond_destroy(&ch->changed);
    encl_mutex_destroy(&ch->lock);
    free(ch);
}

void ch_release(encl_channel *ch) {
    if (atomic_fetch_sub_explicit(&ch->refs, 1, memory_order_acq_rel) == 1) {
        destroy(ch);
    }
}

void encl_channel_release(encl_channel *ch) {
    if (ch == NULL || encl_channel_is_forked(ch)) {
        return; /* a child has no right to the parent's keys, nor a way to wait for its locks */
    }
    ch_release(ch);
}

/* ---- the fork check ---- */

bool encl_channel_is_forked(const encl_channel *ch) {
    return ch->generation != encl_fork_generation();
}

encl_code ch_forked(encl_error *err) {
    return encl_fail(err, ENCL_E_FORKED,
                     "this channel was opened by the parent process: the same key with the same "
                     "nonce in two processes would give both away; open a new one in this process");
}

/* ---- open, closed ---- */

encl_channel_state encl_channel_get_state(encl_channel *ch) {
    if (encl_channel_is_forked(ch)) {
        return ENCL_CHANNEL_CLOSED;
    }
    /* Whoever sees "open" or "closed" then takes the lock for what goes with it. */
    return atomic_load_explicit(&ch->state, memory_order_acquire);
}

encl_result ch_need_open(encl_channel *ch, encl_error *err) {
    if (ch->state == ENCL_CHANNEL_CLOSED) {
        *err = ch->why;
        return err->code;
    }
    ENCL_ENSURE(ch->state == ENCL_CHANNEL_OPEN && ch->app != NULL, err, ENCL_E_STATE,
                "the channel is not verified yet");
    return ENCL_OK;
}

void ch_reached(encl_channel *ch, encl_channel_stage stage) {
    if (atomic_load_explicit(&ch->reached[stage], memory_order_relaxed) == 0) {
        atomic_store_explicit(&ch->reached[stage], encl_now_ns(), memory_order_relaxed);
        watches_fire(&ch->progressed);
    }
}

void ch_end(encl_channel *ch, const encl_error *why) {
    if (ch->state == ENCL_CHANNEL_CLOSED) {
        return;
    }
    ch->state = ENCL_CHANNEL_CLOSED;
    ch->why = *why;
    ch->app = NULL;
    encl_session_close(ch->session);
}
