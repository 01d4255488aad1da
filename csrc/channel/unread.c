/* Bytes that were received and have not been read: whether the connection is read on, and which
 * reader has to go when those that do not read hold up others. Decides that only; settle.c pauses
 * and resumes, events.c ends the stream. Calls documents and watch, to know who waits; the
 * channel's lock is held. */
#include "channel/unread.h"

#include "channel/documents.h"

static size_t unread_bytes(const encl_channel *ch) ENCL_REQUIRES(ch->lock) {
    size_t n = 0;

    for (size_t i = 0; i < ch->transfer_count; i++) {
        n += ch->transfers[i]->ring.len;
    }
    return n;
}

/* A writer whose own unread bytes are over high water does not count: reading on would not help it,
 * as it has to read its own first. */
static bool waits(const transfer *t) {
    bool for_data = (t->readers != 0 || watches_armed(&t->on_readable)) && t->ring.len == 0;

    return for_data || (t->turn != 0 && !t->over_high_water);
}

/* Whether anybody waits for what is behind the bytes that nobody reads. */
static bool somebody_waits(const encl_channel *ch) ENCL_REQUIRES(ch->lock) {
    for (size_t i = 0; i < ch->transfer_count; i++) {
        if (waits(ch->transfers[i])) {
            return true;
        }
    }
    return counted(&ch->waiting) != 0 || documents_awaited(ch);
}

bool unread_should_pause(const encl_channel *ch) {
    return ch->over_high_water != 0 &&
           (unread_bytes(ch) >= ENCL_CHANNEL_UNREAD_MAX || !somebody_waits(ch));
}

bool unread_is_stalled(const encl_channel *ch) {
    return ch->over_high_water != 0 && unread_bytes(ch) >= ENCL_CHANNEL_UNREAD_MAX &&
           somebody_waits(ch);
}

transfer *unread_furthest_behind(const encl_channel *ch) {
    transfer *found = NULL;

    for (size_t i = 0; i < ch->transfer_count; i++) {
        transfer *t = ch->transfers[i];

        if (t->over_high_water && (found == NULL || t->ring.len > found->ring.len)) {
            found = t;
        }
    }
    return found;
}

/* For those who look without the lock. Released after the bytes it counts were put there. */
static void publish(transfer *t) {
    atomic_store_explicit(&t->unread, t->ring.len, memory_order_release);
}

void unread_grew(encl_channel *ch, transfer *t) {
    publish(t);
    if (t->ring.len > ENCL_STREAM_HIGH_WATER && !t->over_high_water) {
        t->over_high_water = true;
        ch->over_high_water++;
    }
}

void unread_shrank(encl_channel *ch, transfer *t) {
    publish(t);
    if (t->ring.len < ENCL_STREAM_LOW_WATER) {
        unread_leave(ch, t);
    }
}

void unread_leave(encl_channel *ch, transfer *t) {
    if (t->over_high_water) {
        t->over_high_water = false;
        ch->over_high_water--;
    }
}
