/* slots: the at most 64 streams and one-shot requests that one client has open, and the one more
 * that waits for a place. Service thread only. */
#ifndef ENCL_ENCLAVE_SLOTS_H
#define ENCL_ENCLAVE_SLOTS_H

#include "enclave/workload.h"

typedef struct encl_slot {
    struct encl_slots *all;
    encl_workload *workload; /* owned; NULL: the slot is free */
    bool full;               /* counted in all->full */
} encl_slot;

typedef struct encl_slots {
    encl_enclave *enclave;
    void *owner; /* for those who get a slot in an event */
    encl_slot each[ENCL_MAX_OPEN];
    size_t taken;
    size_t streams_open; /* not yet closed by the client */
    size_t full;         /* of those taken: their workload's queue is above high water */
    bool paused;         /* nothing is read from the workloads */
    encl_event held;     /* the 65th; type NONE where there is none */
    encl_buf held_payload;
} encl_slots;

void encl_slots_init(encl_slots *s, encl_enclave *e, void *owner);
/* Frees every workload and what is held. s can be used again, and freed again. */
void encl_slots_drop(encl_slots *s);

/* Nothing more may be read from the client. */
bool encl_slots_blocked(const encl_slots *s);
/* The slot of a stream that the client can still name; NULL where there is none. */
encl_slot *encl_slots_find(encl_slots *s, uint64_t id);

/* Makes the workload of a request or an opened stream, not yet started. Its events get the slot as
 * user. ENCL_E_STATE where no slot is free. */
encl_result encl_slots_take(encl_slots *s, const encl_event *event,
                            const encl_workload_events *events, encl_slot **out, encl_error *err);
/* Frees the workload too. */
void encl_slots_give_back(encl_slot *slot);
/* Counts anew whether the workload's queue is full. */
void encl_slots_weigh(encl_slot *slot);
/* The client closed a half or all of it. Returns whether the workload is over by that. */
bool encl_slots_close(encl_slot *slot, encl_half half);
/* Stops or resumes reading from all workloads, and from those to come. */
void encl_slots_pause(encl_slots *s, bool paused);

/* Copies the event, which waits for a slot. One at a time: what is held blocks. */
encl_result encl_slots_hold(encl_slots *s, const encl_event *event, encl_error *err);
/* Where a slot is free for what is held, takes it out: payload is the caller's to free, and the
 * event points into it. */
bool encl_slots_take_held(encl_slots *s, encl_event *event, encl_buf *payload);

#endif
