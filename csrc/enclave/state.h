/* state: what the files of this folder share about one local enclave. Connections, their places and
 * their workloads belong to the loop's service thread and need no lock; what other threads may
 * touch stands behind the enclave's lock, which is never held while a call of net is made. */
#ifndef ENCL_ENCLAVE_STATE_H
#define ENCL_ENCLAVE_STATE_H

#include "base/list.h"
#include "enclave/enclave.h"
#include "net/net.h"
#include "session/session.h"
#include "sync/lock.h"

/* What attestation documents are made of. The template's slices point into block. */
typedef struct encl_identity {
    encl_doc_template document;
    encl_signing_key *leaf_key; /* NULL: signs nothing */
    uint8_t *block;
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
    encl_list clients; /* of encl_client */
    size_t client_count;
    bool workload_seen_up;

    encl_mutex lock; /* guards identity, faults and stats */
    encl_identity identity;
    encl_enclave_faults faults; /* owns its two plaintexts */
    encl_enclave_stats stats;
};

/* Add to or subtract from a field of e->stats. Any thread. */
void encl_stat_add(encl_enclave *e, uint64_t *field, uint64_t n) ENCL_EXCLUDES(e->lock);
void encl_stat_sub(encl_enclave *e, uint64_t *field, uint64_t n) ENCL_EXCLUDES(e->lock);

#endif
