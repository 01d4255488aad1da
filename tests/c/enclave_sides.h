/* What a local enclave stands between: a workload that echoes or says much, and a client made of an
 * initiator's session over net. enclave_sides.c has the functions. */
#ifndef ENCL_TESTS_ENCLAVE_SIDES_H
#define ENCL_TESTS_ENCLAVE_SIDES_H

#include <pthread.h>

#include "enclave/enclave.h"
#include "net/net.h"
#include "session/session.h"

#define WAIT_S     10
#define EVENTS_MAX 512

/* ---- a workload: echoes until end of file, or says much; each connection has a thread */

#define MUCH ((size_t)1024 * 1024)

typedef struct workload {
    int listener;
    uint16_t port;
    pthread_t thread;
} workload;

/* port 0: any free one. */
void workload_start_at(workload *w, uint16_t port);

void workload_start(workload *w);
void workload_stop(workload *w);

/* ---- a client */

typedef struct seen {
    encl_event_type type;
    uint64_t id;
    size_t len;
    uint8_t first;
    char text[64];
} seen;

typedef struct peer {
    encl_loop *loop;
    encl_conn *conn;
    encl_policy policy;
    pthread_mutex_t lock; /* guards all below */
    pthread_cond_t changed;
    encl_session *session;
    seen events[EVENTS_MAX];
    size_t count, bytes, longest;
    bool closed;
    encl_error why;
} peer;

typedef bool (*condition)(const peer *p, uint64_t arg);
bool has_closed(const peer *p, uint64_t arg);
bool has_count(const peer *p, uint64_t arg);
bool has_bytes(const peer *p, uint64_t arg);
encl_code why_of(peer *p);
bool wait_for(peer *p, condition ready, uint64_t arg, double seconds);
void peer_start(peer *p, uint16_t port);

/* Connected, attested: events[0] is OPEN. */
void peer_open(peer *p, uint16_t port);

void peer_stop(peer *p);

typedef encl_code (*maker)(encl_app *app, uint64_t *id, encl_slice payload, encl_half half,
                           encl_buf *out, encl_error *err);

encl_code make_open(encl_app *app, uint64_t *id, encl_slice payload, encl_half half, encl_buf *out,
                    encl_error *err);
encl_code make_data(encl_app *app, uint64_t *id, encl_slice payload, encl_half half, encl_buf *out,
                    encl_error *err);
encl_code make_close(encl_app *app, uint64_t *id, encl_slice payload, encl_half half, encl_buf *out,
                     encl_error *err);
encl_code make_request(encl_app *app, uint64_t *id, encl_slice payload, encl_half half,
                       encl_buf *out, encl_error *err);
uint64_t ask(peer *p, maker make, uint64_t id, encl_slice payload, encl_half half);

#define TEXT(s) ENCL_SLICE((s), strlen(s))

/* ---- the enclave under test */

typedef struct fixture {
    workload workload;
    encl_enclave *enclave;
} fixture;

encl_enclave_config config_for(const fixture *f);
int setup(void **state);
int teardown(void **state);
encl_enclave_stats stats_of(const fixture *f);
bool slots_reach(const fixture *f, uint64_t expected);
void set_faults(const fixture *f, encl_enclave_faults faults);

#endif
