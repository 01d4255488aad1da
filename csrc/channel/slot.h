/* Slots, for streams and requests. Inside channel/ only. */
#ifndef ENCL_CHANNEL_SLOT_H
#define ENCL_CHANNEL_SLOT_H

#include "channel/state.h"

/* Uses a granted slot for a new transfer: sends its opening record with the payload. Takes the
 * lock. */
encl_result slot_use(encl_slot *slot, transfer *t, encl_slice payload, encl_error *err)
    ENCL_EXCLUDES(slot->ch->lock);

#endif
