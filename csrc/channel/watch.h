/* Who wants to be told by a notifier, as event loops do. Inside channel/ only; every function is
 * called with the lock of the channel that the watch belongs to. All that an announcement needs is
 * taken when somebody asks for it: announcing cannot fail. */
#ifndef ENCL_CHANNEL_WATCH_H
#define ENCL_CHANNEL_WATCH_H

#include "channel/channel.h"

/* Someone who wants to be told once. It is part of what is waited for (a slot, a question for a
 * document) and ends with it. */
typedef struct watch {
    encl_notifier *notifier; /* a reference; NULL where nobody wants to be told */
    uint64_t token;
} watch;

/* n may be NULL. */
encl_result watch_set(watch *w, encl_notifier *n, uint64_t token, encl_error *err);
void watch_fire(watch *w);
void watch_clear(watch *w);

/* All who want to be told about one thing. An entry belongs to whoever asked, and is known by
 * notifier and token: it stays, told or not, until its owner withdraws it. */
typedef struct watch_entry {
    encl_notifier *notifier; /* a reference */
    uint64_t token;
    bool armed; /* not told yet; a place is reserved with the notifier */
} watch_entry;

typedef struct watch_list {
    watch_entry *entries;
    size_t count, cap;
} watch_list;

/* Adds an entry, or arms the one that is there. */
encl_result watches_add(watch_list *list, encl_notifier *n, uint64_t token, encl_error *err);
/* Tells all who are armed. */
void watches_fire(watch_list *list);
void watches_withdraw(watch_list *list, const encl_notifier *n, uint64_t token);
/* Whether anybody has not been told yet. */
bool watches_armed(const watch_list *list);
void watches_clear(watch_list *list);

#endif
