/* enclave, inside: what its files share. Everything runs in the loop's service thread, which is
 * why connections and workloads need no lock; what other threads may touch is behind
 * encl_enclave.lock, which is never taken while a connection's send buffer is held. */
#ifndef ENCL_ENCLAVE_INTERNAL_H
#define ENCL_ENCLAVE_INTERNAL_H

#include <pthread.h>

#include "enclave/enclave.h"
#include "net/net.h"
#include "session/session.h"

#define ENCL_WORKLOAD_CHUNK   ((size_t)16384) /* what the real server reads at a time */
#define ENCL_DIAL_INTERVAL_MS 250

typedef struct encl_client encl_client;
typedef struct encl_workload encl_workload;

/* What attestation documents are made of. The template's slices point into block. */
typedef struct encl_identity {
    encl_doc_template document;
    encl_slice leaf_key;
    uint8_t *block;
    size_t block_len;
} encl_identity;

struct encl_enclave {
    /* Set before the first connection, then only read. */
    uint64_t generation;
    encl_loop *loop;
    encl_listener *listener;
    encl_enclave_mode mode;
    char *workload_host;
    uint16_t workload_port;
    uint64_t idle_timeout_ms, grace_ms, one_shot_timeout_ms;
    size_t max_connections;
    uint8_t control_nonce[ENCL_CONTROL_NONCE_BYTES];

    /* Service thread only. */
    encl_client *clients;
    size_t client_count;
    bool workload_seen_up;

    pthread_mutex_t lock; /* guards identity, faults and stats */
    encl_identity identity;
    encl_enclave_faults faults; /* owns its two plaintexts */
    encl_enclave_stats stats;
};

/* ---- enclave.c */
void encl_stat_add(encl_enclave *e, uint64_t *field, uint64_t n);
void encl_stat_sub(encl_enclave *e, uint64_t *field, uint64_t n);
uint64_t encl_monotonic_ms(void);

/* ---- identity.c */
encl_result encl_identity_copy(const encl_doc_template *document, encl_slice leaf_key,
                               encl_enclave_mode mode, encl_identity *out, encl_error *err);
void encl_identity_free(encl_identity *identity);
/* Appends a document for this handshake hash, with the faults that are switched on. */
encl_result encl_identity_document(encl_enclave *e, encl_slice handshake_hash, encl_buf *out,
                                   encl_error *err);

/* ---- faults.c */
encl_result encl_faults_copy(const encl_enclave_faults *faults, encl_enclave_faults *out,
                             encl_error *err);
void encl_faults_free(encl_enclave_faults *faults);
bool encl_fault_on(encl_enclave *e, encl_fault fault);
size_t encl_fault_split(encl_enclave *e);
typedef enum encl_hostile { ENCL_INSTEAD_OF_ATTESTATION, ENCL_AFTER_ATTESTATION } encl_hostile;
/* Appends the plaintext to out; leaves it empty where none is set. */
encl_result encl_fault_plaintext(encl_enclave *e, encl_hostile which, encl_buf *out,
                                 encl_error *err);
/* Rewrites the answer to the handshake; *silent: it is not sent at all; *close: nothing follows. */
encl_result encl_fault_handshake(encl_enclave *e, encl_buf *answer, bool *silent, bool *close,
                                 encl_error *err);
/* Appends what follows the handshake at once: noise or a bare record head. */
encl_result encl_fault_after_handshake(encl_enclave *e, encl_buf *out, encl_error *err);

/* ---- client_conn.c: one client connection, its session, its slots, its idle timer */
void encl_client_accept(encl_enclave *e, encl_conn *conn);
void encl_client_abort(encl_client *c, bool reset);
encl_client *encl_client_next(const encl_client *c);

/* What workloads report. The client may be ending by the time these return, but it stays allocated
 * until its connection's closed callback. */
void encl_client_stream_data(encl_client *c, uint64_t id, encl_slice bytes);
void encl_client_stream_eof(encl_client *c, uint64_t id);
void encl_client_reply(encl_client *c, uint64_t id, encl_slice answer);
void encl_client_reply_too_long(encl_client *c, uint64_t id);
void encl_client_failed(encl_client *c, uint64_t id, const char *text);
bool encl_client_full(const encl_client *c);
/* A workload's queue rose above high water, or fell again. */
void encl_client_workload_full(encl_client *c, bool full);
/* The slot of w is free; full: w had said that its queue is. */
void encl_client_free_slot(encl_client *c, const encl_workload *w, bool full);

/* ---- workload.c: one stream or one-shot request to the workload */
typedef enum encl_workload_kind {
    ENCL_WORKLOAD_STREAM,
    ENCL_WORKLOAD_ONE_SHOT,
} encl_workload_kind;

encl_result encl_workload_new(encl_enclave *e, encl_client *c, encl_workload_kind kind, bool silent,
                              uint64_t id, encl_workload **out, encl_error *err);
/* May report failure to the client, and free w, before it returns. */
void encl_workload_start(encl_workload *w, encl_slice payload);
uint64_t encl_workload_id(const encl_workload *w);
/* The client can still name it: a stream that it has not closed. */
bool encl_workload_addressable(const encl_workload *w);
/* These three may free w. */
void encl_workload_write(encl_workload *w, encl_slice bytes);
void encl_workload_close(encl_workload *w, encl_half half);
void encl_workload_abandon(encl_workload *w);
void encl_workload_pause(encl_workload *w, bool paused);

#endif
