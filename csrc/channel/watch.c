/* Who wants to be told by a notifier: single watches, and lists of them. Calls the notifier
 * only, which calls nobody back. The lock of the channel is held throughout. */
#include "channel/watch.h"

#include <stdlib.h>

static void forget_notifier(watch *w) {
    encl_notifier_release(w->notifier);
    w->notifier = NULL;
}

void watch_clear(watch *w) {
    if (w->notifier != NULL) {
        encl_notifier_unreserve(w->notifier);
        forget_notifier(w);
    }
}

encl_result watch_set(watch *w, encl_notifier *n, uint64_t token, encl_error *err) {
    if (n != NULL) {
        ENCL_TRY(encl_notifier_reserve(n, err));
        encl_notifier_retain(n);
    }
    watch_clear(w);
    w->notifier = n;
    w->token = token;
    return ENCL_OK;
}

void watch_fire(watch *w) {
    if (w->notifier != NULL) {
        encl_notifier_post(w->notifier, w->token);
        forget_notifier(w);
    }
}

/* ---- lists ---- */

static watch_entry *find(watch_list *list, const encl_notifier *n, uint64_t token) {
    for (size_t i = 0; i < list->count; i++) {
        if (list->entries[i].notifier == n && list->entries[i].token == token) {
            return &list->entries[i];
        }
    }
    return NULL;
}

static encl_result make_room(watch_list *list, encl_error *err) {
    size_t cap = list->cap == 0 ? 2 : 2 * list->cap;
    watch_entry *entries;

    if (list->count < list->cap) {
        return ENCL_OK;
    }
    entries = realloc(list->entries, cap * sizeof *entries);
    ENCL_ENSURE(entries != NULL, err, ENCL_E_NOMEM, "out of memory for one more who waits");
    list->entries = entries;
    list->cap = cap;
    return ENCL_OK;
}

encl_result watches_add(watch_list *list, encl_notifier *n, uint64_t token, encl_error *err) {
    watch_entry *entry = find(list, n, token);

    if (entry != NULL && entry->armed) {
        return ENCL_OK;
    }
    if (entry == NULL) {
        ENCL_TRY(make_room(list, err));
    }
    ENCL_TRY(encl_notifier_reserve(n, err));
    if (entry == NULL) {
        encl_notifier_retain(n);
        entry = &list->entries[list->count++];
        *entry = (watch_entry){.notifier = n, .token = token};
    }
    entry->armed = true;
    return ENCL_OK;
}

void watches_fire(watch_list *list) {
    for (size_t i = 0; i < list->count; i++) {
        watch_entry *entry = &list->entries[i];

        if (entry->armed) {
            entry->armed = false;
            encl_notifier_post(entry->notifier, entry->token);
        }
    }
}

static void drop(watch_list *list, watch_entry *entry) {
    if (entry->armed) {
        encl_notifier_unreserve(entry->notifier);
    }
    encl_notifier_release(entry->notifier);
    *entry = list->entries[--list->count];
}

void watches_withdraw(watch_list *list, const encl_notifier *n, uint64_t token) {
    watch_entry *entry = find(list, n, token);

    if (entry != NULL) {
        drop(list, entry);
    }
}

bool watches_armed(const watch_list *list) {
    for (size_t i = 0; i < list->count; i++) {
        if (list->entries[i].armed) {
            return true;
        }
    }
    return false;
}

void watches_clear(watch_list *list) {
    while (list->count != 0) {
        drop(list, &list->entries[list->count - 1]);
    }
    free(list->entries);
    list->entries = NULL;
    list->cap = 0;
}
