/* Slots as their users have them: ask for one, wait for it, use it or give it up. Each function
 * enters, changes the queue, and leaves; settle.c grants. */
#include "channel/slot.h"

#include <stdlib.h>

#include "channel/queue.h"
#include "channel/sending.h"
#include "channel/settle.h"
#include "channel/transfer.h"

static encl_slot *slot_new(encl_channel *ch) {
    encl_slot *slot = calloc(1, sizeof *slot);

    if (slot != NULL) {
        slot->state = SLOT_GIVEN_UP;
        encl_cond_init(&slot->changed);
        slot->ch = ch;
        ch_retain(ch);
    }
    return slot;
}

static void slot_free(encl_slot *slot) {
    encl_channel *ch = slot->ch;

    pthread_cond_destroy(&slot->changed);
    free(slot);
    encl_channel_release(ch);
}

encl_result encl_channel_reserve(encl_channel *ch, encl_notifier *n, uint64_t token,
                                 encl_slot **out, encl_error *err) {
    encl_slot *slot;
    encl_code rc;

    *out = NULL;
    if (encl_channel_is_forked(ch)) {
        return ch_forked(err);
    }
    slot = slot_new(ch);
    ENCL_ENSURE(slot != NULL, err, ENCL_E_NOMEM, "out of memory");
    if (!ch_enter(ch)) {
        slot_free(slot);
        return ch_forked(err);
    }
    rc = watch_set(&slot->granted, n, token, err);
    if (rc == ENCL_OK) {
        queue_add(ch, slot);
        if (ch->state == ENCL_CHANNEL_CLOSED) {
            watch_fire(&slot->granted);
        }
    }
    ch_leave(ch);
    if (rc != ENCL_OK) {
        slot_free(slot);
        return rc;
    }
    *out = slot;
    return ENCL_OK;
}

bool encl_slot_granted(encl_slot *slot) {
    /* Using it takes the lock, and looks again. */
    return !encl_channel_is_forked(slot->ch) &&
           atomic_load_explicit(&slot->state, memory_order_acquire) == SLOT_GRANTED;
}

static encl_result wait_for_turn(encl_channel *ch, encl_slot *slot, int64_t until, encl_error *err)
    ENCL_REQUIRES(ch->lock) {
    while (ch->state != ENCL_CHANNEL_CLOSED && slot->state == SLOT_WAITING) {
        ENCL_ENSURE(ch_wait(ch, &slot->changed, until), err, ENCL_E_POOL_TIMEOUT,
                    "%zu of %zu requests are in flight and %zu wait: expected a free place, got "
                    "none",
                    counted(&ch->in_use), ch->max_in_flight, counted(&ch->waiting));
    }
    if (ch->state == ENCL_CHANNEL_CLOSED) {
        *err = ch->why;
        return err->code;
    }
    ENCL_ENSURE(slot->state == SLOT_GRANTED, err, ENCL_E_STATE,
                "this slot was used or given up before");
    return ENCL_OK;
}

encl_result encl_slot_wait(encl_slot *slot, int64_t until, encl_error *err) {
    encl_channel *ch = slot->ch;
    encl_code rc;

    if (!ch_enter(ch)) {
        return ch_forked(err);
    }
    rc = wait_for_turn(ch, slot, until, err);
    ch_leave(ch);
    return rc;
}

void encl_slot_give_up(encl_slot *slot) {
    encl_channel *ch = slot->ch;

    if (ch_enter(ch)) {
        queue_give_up(ch, slot);
        ch_leave(ch);
    }
}

void encl_slot_release(encl_slot *slot) {
    if (slot == NULL || encl_channel_is_forked(slot->ch)) {
        return; /* in a child its lock may be held for ever by a thread that is not there */
    }
    encl_slot_give_up(slot);
    slot_free(slot);
}

/* ---- use ---- */

static encl_result send_opening(encl_channel *ch, transfer *t, encl_slice payload, encl_error *err)
    ENCL_REQUIRES(ch->lock) {
    encl_buf *out;
    encl_code rc;

    ENCL_TRY(sending_begin(ch, &out, err));
    rc = t->is_stream ? encl_app_open_stream(ch->app, payload, &t->id, out, err)
                      : encl_app_request(ch->app, payload, &t->id, out, err);
    sending_end(ch, t->id, t);
    return rc;
}

encl_result slot_use(encl_slot *slot, transfer *t, encl_slice payload, encl_error *err) {
    encl_channel *ch = slot->ch;
    encl_code rc;

    if (!ch_enter(ch)) {
        return ch_forked(err);
    }
    ENCL_TRY_GOTO(ch_need_open(ch, err), done);
    ENCL_ENSURE_GOTO(slot->state == SLOT_GRANTED, done, err, ENCL_E_STATE,
                     "expected a granted slot that was not used before");
    ENCL_TRY_GOTO(send_opening(ch, t, payload, err), done);
    queue_use(ch, slot);
    transfer_add(ch, t);
done:
    ch_leave(ch);
    return rc;
}
