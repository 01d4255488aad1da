/* Records to the connection, and when another one may go. Inside channel/ only; the channel's lock
 * is held. */
#ifndef ENCL_CHANNEL_SENDING_H
#define ENCL_CHANNEL_SENDING_H

#include "channel/state.h"

/* Begin and end of one record, which is appended to *out in between. ENCL_E_CLOSED where the
 * connection is closing: then there is nothing to end. */
encl_result sending_begin(encl_channel *ch, encl_buf **out, encl_error *err)
    ENCL_REQUIRES(ch->lock);
/* id: what the record is about, or 0. t: its transfer, or NULL where it has none yet. */
void sending_end(encl_channel *ch, uint64_t id, const transfer *t) ENCL_REQUIRES(ch->lock);
/* What the session has to say of itself (the handshake): not paced. */
encl_result sending_own(encl_channel *ch, const encl_buf *bytes, encl_error *err)
    ENCL_REQUIRES(ch->lock);
/* Whether another record may go now, of t or, where that is NULL, of a new id, when so many more
 * than have been promised to slots are about to. */
bool sending_has_room(encl_channel *ch, const transfer *t, size_t more) ENCL_REQUIRES(ch->lock);
/* Something was received for this id (0: for none): a sign that the server has read. */
void sending_heard(encl_channel *ch, uint64_t id) ENCL_REQUIRES(ch->lock);
/* In how many milliseconds to look again where there was no room; 0 where no timer is needed, since
 * the connection says when its queue has drained. */
uint64_t sending_look_again_ms(const encl_channel *ch) ENCL_REQUIRES(ch->lock);

#endif
