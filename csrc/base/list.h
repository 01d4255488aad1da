/* Doubly linked lists whose links are members of what is listed: linking needs no memory and cannot
 * fail, unlinking needs no search. Who may change a list is said where the list is. */
#ifndef ENCL_BASE_LIST_H
#define ENCL_BASE_LIST_H

#include <stdbool.h>
#include <stddef.h>

/* All zero: in no list. */
typedef struct encl_link {
    struct encl_link *next, *prev;
} encl_link;

/* A ring through `ends`, which is in no entry. */
typedef struct encl_list {
    encl_link ends;
} encl_list;

/* For lists with static storage; others are given to encl_list_init. */
#define ENCL_LIST_EMPTY(name)                                                                      \
    {                                                                                              \
        { &(name).ends, &(name).ends }                                                             \
    }

static inline void encl_list_init(encl_list *list) {
    list->ends.next = list->ends.prev = &list->ends;
}

static inline bool encl_list_is_empty(const encl_list *list) {
    return list->ends.next == &list->ends;
}

static inline bool encl_link_is_linked(const encl_link *link) {
    return link->next != NULL;
}

/* link is in no list so far; at is, or is the `ends` of one. */
static inline void encl_link_before(encl_link *at, encl_link *link) {
    link->next = at;
    link->prev = at->prev;
    at->prev->next = link;
    at->prev = link;
}

static inline void encl_list_append(encl_list *list, encl_link *link) {
    encl_link_before(&list->ends, link);
}

static inline void encl_list_prepend(encl_list *list, encl_link *link) {
    encl_link_before(list->ends.next, link);
}

/* Nothing happens where it is in no list. */
static inline void encl_link_remove(encl_link *link) {
    if (encl_link_is_linked(link)) {
        link->prev->next = link->next;
        link->next->prev = link->prev;
        link->next = link->prev = NULL;
    }
}

/* NULL where there is none (more). */
static inline encl_link *encl_list_first(const encl_list *list) {
    return encl_list_is_empty(list) ? NULL : list->ends.next;
}

static inline encl_link *encl_list_next(const encl_list *list, const encl_link *link) {
    return link->next == &list->ends ? NULL : link->next;
}

static inline void *encl_link_owner(encl_link *link, size_t offset) {
    return link == NULL ? NULL : (char *)link - offset;
}

/* What link is a member of; NULL for NULL. */
#define ENCL_OWNER(link, type, member) ((type *)encl_link_owner((link), offsetof(type, member)))

#endif
