/* places: the at most 64 streams and one-shot requests that one client has open, and the one more
 * that waits for a place. Service thread only. */
#ifndef ENCL_ENCLAVE_PLACES_H
#define ENCL_ENCLAVE_PLACES_H

#include "enclave/workload.h"

typedef struct encl_place {
    struct encl_places *all;
    encl_workload *workload; /* owned; NULL: the place is free */
    bool full;               /* counted in all->full */
    bool mute;               /* of the fault SILENT_STREAMS: nothing passes in either direction */
    /* Of the fault TRUNCATED: */
    unsigned head_end; /* how many bytes of the empty line behind an answer's head were seen */
    size_t body_sent;  /* bytes of the answer's body that were passed on */
    bool cut;          /* the client was told that the answer has ended; the rest is dropped */
} encl_place;

typedef struct encl_places {
    encl_enclave *enclave;
    void *owner; /* for those who get a place in an event */
    encl_place each[ENCL_MAX_OPEN];
    size_t taken;
    size_t streams_open; /* not yet closed by the client */
    size_t full;         /* of those taken: their workload's queue is above high water */
    bool paused;         /* nothing is read from the workloads */
    encl_event held;     /* the 65th; type NONE where there is none */
    encl_buf held_payload;
} encl_places;

void encl_places_init(encl_places *s, encl_enclave *e, void *owner);
/* Frees every workload and what is held. s can be used again, and freed again. */
void encl_places_drop(encl_places *s);

/* Nothing more may be read from the client. */
bool encl_places_blocked(const encl_places *s);
/* The place of a stream that the client can still name; NULL where there is none. */
encl_place *encl_places_find(encl_places *s, uint64_t id);

/* Makes the workload of a request or an opened stream, not yet started. Its events get the place as
 * user. ENCL_E_STATE where no place is free. */
encl_result encl_places_take(encl_places *s, const encl_event *event,
                             const encl_workload_events *events, encl_place **out, encl_error *err);
/* Frees the workload too. */
void encl_places_give_back(encl_place *place);
/* Counts anew whether the workload's queue is full. */
void encl_places_weigh(encl_place *place);
/* The client closed a half or all of it. Returns whether the workload is over by that. */
bool encl_places_close(encl_place *place, encl_half half);
/* The client wrote: what the workload sends next begins another answer. */
void encl_places_expect_answer(encl_place *place);
/* A fault: how many of these bytes of an HTTP answer may be passed on, where it is to end `after`
 * bytes into its body. Fewer than all: it ends there, and place->cut is set. */
size_t encl_places_truncate(encl_place *place, encl_slice bytes, size_t after);
/* Stops or resumes reading from all workloads, and from those to come. */
void encl_places_pause(encl_places *s, bool paused);

/* Copies the event, which waits for a place. One at a time: what is held blocks. */
encl_result encl_places_hold(encl_places *s, const encl_event *event, encl_error *err);
/* Where a place is free for what is held, takes it out: payload is the caller's to free, and the
 * event points into it. */
bool encl_places_take_held(encl_places *s, encl_event *event, encl_buf *payload);

#endif
