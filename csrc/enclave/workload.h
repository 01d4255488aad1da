/* workload: one stream or one-shot request to the workload behind the enclave, as a TCP connection.
 * It knows no clients: what happens to it is reported to its owner. Service thread only. */
#ifndef ENCL_ENCLAVE_WORKLOAD_H
#define ENCL_ENCLAVE_WORKLOAD_H

#include "enclave/state.h"

#define ENCL_WORKLOAD_CHUNK   ((size_t)16384) /* what the real server reads at a time */
#define ENCL_DIAL_INTERVAL_MS 250

typedef struct encl_workload encl_workload;

typedef enum encl_workload_kind {
    ENCL_WORKLOAD_STREAM,
    ENCL_WORKLOAD_ONE_SHOT,
} encl_workload_kind;

/* All are made from callbacks of net and from timers, never from within a call of this header. An
 * owner may free the workload in any of them. After answered or ended no other follows. */
typedef struct encl_workload_events {
    /* Streams: at most ENCL_WORKLOAD_CHUNK bytes. */
    void (*data)(void *user, encl_workload *w, encl_slice bytes);
    void (*eof)(void *user, encl_workload *w); /* streams: the workload shut down its direction */
    /* One-shot: the whole answer. One that is longer than ENCL_NOISE_MAX_PLAIN is cut one byte
     * behind that. */
    void (*answered)(void *user, encl_workload *w, encl_slice answer);
    void (*weight)(void *user, encl_workload *w); /* encl_workload_full tells another thing now */
    /* why is NULL where the client had closed it and all is written. */
    void (*ended)(void *user, encl_workload *w, const char *why);
} encl_workload_events;

/* The caller owns *out until encl_workload_free. silent: a fault; it takes everything, connects to
 * nothing and answers nothing. */
encl_result encl_workload_new(encl_enclave *e, encl_workload_kind kind, bool silent, uint64_t id,
                              const encl_workload_events *events, void *user, encl_workload **out,
                              encl_error *err);
/* Nothing is reported any more; the connection, if there is one, ends. */
void encl_workload_free(encl_workload *w);

uint64_t encl_workload_id(const encl_workload *w);
/* The client can still name it: a stream that it has not closed. */
bool encl_workload_addressable(const encl_workload *w);
/* More than high water waits to be written to the workload. */
bool encl_workload_full(const encl_workload *w);

/* Once. Where these two fail nothing more can be done with the workload but to free it; err says
 * what its client is to be told. */
encl_result encl_workload_start(encl_workload *w, encl_slice payload, encl_error *err);
encl_result encl_workload_write(encl_workload *w, encl_slice bytes, encl_error *err);
/* Returns whether the workload is over by that; otherwise ended tells when it is. */
bool encl_workload_close(encl_workload *w, encl_half half);
/* Stops or resumes reading from the workload. */
void encl_workload_pause(encl_workload *w, bool paused);

#endif
