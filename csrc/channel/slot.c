#include <stdlib.h>

#include "channel/internal.h"

static void append(encl_channel *ch, encl_slot *slot) {
    slot->prev = ch->waiting_tail;
    if (ch->waiting_tail != NULL) {
        ch->waiting_tail->next = slot;
    } else {
        ch->waiting_head = slot;
    }
    ch->waiting_tail = slot;
    count_up(&ch->waiting);
}

static void unlink_slot(encl_channel *ch, encl_slot *slot) {
    if (slot->prev != NULL) {
        slot->prev->next = slot->next;
    } else {
        ch->waiting_head = slot->next;
    }
    if (slot->next != NULL) {
        slot->next->prev = slot->prev;
    } else {
        ch->waiting_tail = slot->prev;
    }
    slot->next = slot->prev = NULL;
    count_down(&ch->waiting);
}

static void grant(encl_channel *ch, encl_slot *slot) {
    slot->state = SLOT_GRANTED;
    count_up(&ch->in_use);
    ch->promised++;
    pthread_cond_broadcast(&slot->changed);
    watch_fire(&slot->granted);
}

void slot_grant_more(encl_channel *ch) {
    while (ch->waiting_head != NULL && counted(&ch->in_use) < ch->max_in_flight &&
           ch_may_send(ch, NULL)) {
        encl_slot *slot = ch->waiting_head;

        unlink_slot(ch, slot);
        grant(ch, slot);
    }
}

void slot_free_one(encl_channel *ch) {
    count_down(&ch->in_use);
    slot_grant_more(ch);
}

void slot_fail_all(encl_channel *ch) {
    for (encl_slot *slot = ch->waiting_head; slot != NULL; slot = slot->next) {
        pthread_cond_broadcast(&slot->changed);
        watch_fire(&slot->granted);
    }
}

encl_result encl_channel_reserve(encl_channel *ch, encl_notifier *n, uint64_t token,
                                 encl_slot **out, encl_error *err) {
    encl_slot *slot;
    encl_code rc;

    *out = NULL;
    ENCL_TRY(ch_check(ch, err));
    slot = calloc(1, sizeof *slot);
    ENCL_ENSURE(slot != NULL, err, ENCL_E_NOMEM, "out of memory");
    encl_cond_init(&slot->changed);
    slot->ch = ch;
    ch_retain(ch);
    encl_lock(&ch->lock);
    rc = watch_set(&slot->granted, n, token, err);
    slot->state = rc == ENCL_OK ? SLOT_WAITING : SLOT_GIVEN_UP;
    if (rc == ENCL_OK) {
        append(ch, slot);
        slot_grant_more(ch);
        if (ch->state == ENCL_CHANNEL_CLOSED) {
            watch_fire(&slot->granted);
        }
    }
    encl_unlock(&ch->lock);
    if (rc != ENCL_OK) {
        encl_slot_release(slot);
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

encl_result encl_slot_wait(encl_slot *slot, int64_t until, encl_error *err) {
    encl_channel *ch = slot->ch;
    encl_code rc = ENCL_OK;

    ENCL_TRY(ch_check(ch, err));
    encl_lock(&ch->lock);
    for (;;) {
        if (ch->state == ENCL_CHANNEL_CLOSED) {
            *err = ch->why;
            rc = err->code;
            break;
        }
        if (slot->state != SLOT_WAITING) {
            break;
        }
        if (!ch_wait(ch, &slot->changed, until)) {
            rc = encl_fail(err, ENCL_E_POOL_TIMEOUT,
                           "no free place for another request in time: %zu of %zu are in flight, "
                           "%zu wait",
                           counted(&ch->in_use), ch->max_in_flight, counted(&ch->waiting));
            break;
        }
    }
    if (rc == ENCL_OK && slot->state != SLOT_GRANTED) {
        rc = encl_fail(err, ENCL_E_STATE, "this slot was used or given up before");
    }
    encl_unlock(&ch->lock);
    return rc;
}

void encl_slot_give_up(encl_slot *slot) {
    encl_channel *ch = slot->ch;

    if (encl_channel_is_forked(ch)) {
        return;
    }
    encl_lock(&ch->lock);
    watch_clear(&slot->granted);
    if (slot->state == SLOT_WAITING) {
        unlink_slot(ch, slot);
        slot->state = SLOT_GIVEN_UP;
        pthread_cond_broadcast(&slot->changed);
    } else if (slot->state == SLOT_GRANTED) {
        slot->state = SLOT_GIVEN_UP;
        ch->promised--;
        slot_free_one(ch);
    }
    encl_unlock(&ch->lock);
}

void encl_slot_release(encl_slot *slot) {
    if (slot == NULL || encl_channel_is_forked(slot->ch)) {
        return; /* in a child its lock may be held for ever by a thread that is not there */
    }
    encl_slot_give_up(slot);
    encl_channel_release(slot->ch);
    pthread_cond_destroy(&slot->changed);
    free(slot);
}
