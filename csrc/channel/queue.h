/* The queue for slots. Inside channel/ only; the channel's lock is held. */
#ifndef ENCL_CHANNEL_QUEUE_H
#define ENCL_CHANNEL_QUEUE_H

#include "channel/state.h"

void queue_add(encl_channel *ch, encl_slot *slot) ENCL_REQUIRES(ch->lock);
/* Whose turn it is while a place is free; NULL where nobody waits or none is. */
encl_slot *queue_next(encl_channel *ch) ENCL_REQUIRES(ch->lock);
/* Tells whoever waits for it. */
void queue_grant(encl_channel *ch, encl_slot *slot) ENCL_REQUIRES(ch->lock);
/* The opening record has been sent: nothing is promised any more. The place is the transfer's. */
void queue_use(encl_channel *ch, encl_slot *slot) ENCL_REQUIRES(ch->lock);
void queue_give_up(encl_channel *ch, encl_slot *slot) ENCL_REQUIRES(ch->lock);
/* What had a place has ended. */
void queue_free_place(encl_channel *ch) ENCL_REQUIRES(ch->lock);
/* The channel has ended: whoever waits looks at why. */
void queue_tell_all(encl_channel *ch) ENCL_REQUIRES(ch->lock);

#endif
