/* The queue for slots: first come, first served among max_in_flight places. Decides whose turn it
 * is; settle.c grants. Calls watch only; the channel's lock is held. */
#include "channel/queue.h"

void queue_add(encl_channel *ch, encl_slot *slot) {
    slot->state = SLOT_WAITING;
    encl_list_append(&ch->queue, &slot->link);
    count_up(&ch->waiting);
    ch->look = true;
}

static void take_out(encl_channel *ch, encl_slot *slot) ENCL_REQUIRES(ch->lock) {
    encl_link_remove(&slot->link);
    count_down(&ch->waiting);
}

encl_slot *queue_next(encl_channel *ch) {
    if (counted(&ch->in_use) >= ch->max_in_flight) {
        return NULL;
    }
    return ENCL_OWNER(encl_list_first(&ch->queue), encl_slot, link);
}

void queue_grant(encl_channel *ch, encl_slot *slot) {
    take_out(ch, slot);
    slot->state = SLOT_GRANTED;
    count_up(&ch->in_use);
    ch->promised++;
    pthread_cond_broadcast(&slot->changed);
    watch_fire(&slot->granted);
}

void queue_use(encl_channel *ch, encl_slot *slot) {
    slot->state = SLOT_USED;
    ch->promised--;
    ch->look = true;
}

void queue_give_up(encl_channel *ch, encl_slot *slot) {
    watch_clear(&slot->granted);
    if (slot->state == SLOT_WAITING) {
        take_out(ch, slot);
        slot->state = SLOT_GIVEN_UP;
        pthread_cond_broadcast(&slot->changed);
    } else if (slot->state == SLOT_GRANTED) {
        slot->state = SLOT_GIVEN_UP;
        ch->promised--;
        queue_free_place(ch);
    }
}

void queue_free_place(encl_channel *ch) {
    count_down(&ch->in_use);
    ch->look = true;
}

void queue_tell_all(encl_channel *ch) {
    for (encl_link *at = encl_list_first(&ch->queue); at != NULL;
         at = encl_list_next(&ch->queue, at)) {
        encl_slot *slot = ENCL_OWNER(at, encl_slot, link);

        pthread_cond_broadcast(&slot->changed);
        watch_fire(&slot->granted);
    }
}
