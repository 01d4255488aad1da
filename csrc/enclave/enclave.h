/* enclave: a local enclave for tests and demos. The responder's session behind net, in front of a
 * TCP workload, with the behaviour of the real server (slots, chunks, timeouts, one-shot limits)
 * and faults that can be switched on. */
#ifndef ENCL_ENCLAVE_ENCLAVE_H
#define ENCL_ENCLAVE_ENCLAVE_H

#include "attest/attest.h"
#include "base/buf.h"

typedef enum encl_enclave_mode {
    ENCL_ENCLAVE_PRODUCTION, /* documents signed with the given leaf */
    ENCL_ENCLAVE_DEBUG,      /* the self-signed form */
    ENCL_ENCLAVE_STUB,       /* the bare handshake hash */
} encl_enclave_mode;

typedef enum encl_fault {
    ENCL_FAULT_WRONG_NONCE = 1u << 0,
    ENCL_FAULT_WRONG_PCRS = 1u << 1,
    ENCL_FAULT_BAD_SIGNATURE = 1u << 2,
    ENCL_FAULT_GARBAGE_RECORD = 1u << 3,     /* right after opening: a record of noise */
    ENCL_FAULT_SPLIT = 1u << 4,              /* every answer in messages of split bytes */
    ENCL_FAULT_SILENT_HANDSHAKE = 1u << 5,   /* the handshake is never answered */
    ENCL_FAULT_SILENT_ATTESTATION = 1u << 6, /* RequestAttestation is never answered */
    ENCL_FAULT_SHORT_HANDSHAKE = 1u << 7,    /* 31 bytes, then close */
    ENCL_FAULT_LONG_HANDSHAKE = 1u << 8,     /* 49 bytes */
    ENCL_FAULT_ZERO_KEY = 1u << 9,           /* an all-zero ephemeral key */
    ENCL_FAULT_TEXT_ONLY = 1u << 10,         /* answers as text frames */
    ENCL_FAULT_CLOSE_ON_REQUEST =
        1u << 11, /* RST when a stream opens, is written to, or a request arrives */
    ENCL_FAULT_HALF_RECORD_LOST = 1u << 12,  /* an answer makes it drop a record read in part */
    ENCL_FAULT_SILENT_STREAMS = 1u << 13,    /* streams are taken, nothing is answered */
    ENCL_FAULT_RAW_RECORD_LENGTH = 1u << 14, /* right after opening: a head of record_length */
    ENCL_FAULT_UPGRADE_503 = 1u << 15,       /* the WebSocket upgrade is refused with status 503 */
    ENCL_FAULT_FULL = 1u << 16,              /* as if max_connections were there already */
    ENCL_FAULT_SLOW = 1u << 17,              /* what clients send is taken delay_ms late */
    ENCL_FAULT_TRUNCATED = 1u << 18, /* an answer ends truncated_after bytes into its body */
} encl_fault;

typedef struct encl_enclave_faults {
    uint32_t mask; /* of encl_fault */
    size_t split;
    uint32_t record_length;
    uint64_t delay_ms;
    size_t truncated_after;
    /* Plaintexts sent, sealed, instead of the attestation answer, or right after the first one. */
    encl_slice instead_of_attestation;
    encl_slice after_attestation;
} encl_enclave_faults;

typedef struct encl_enclave_config {
    encl_enclave_mode mode;
    uint16_t port; /* 0: any free one */
    const char *workload_host;
    uint16_t workload_port;
    encl_doc_template document; /* nonce, user_data and timestamp are filled in per request */
    encl_slice leaf_key;        /* PKCS#8 DER; PRODUCTION only */
    uint64_t idle_timeout_ms, grace_ms, one_shot_timeout_ms;
    size_t max_connections;
    const char *tls_cert_file, *tls_key_file; /* NULL: ws:// */
    encl_enclave_faults faults;
} encl_enclave_config;

typedef struct encl_enclave_stats {
    uint64_t connections_total, connections_open;
    uint64_t slots_open; /* over all connections, as the server counts them */
    uint64_t streams_total, requests_total, attestations_total;
    uint64_t bytes_from_workload, bytes_to_workload;
    uint64_t protocol_errors; /* connections ended because the client broke the contract */
} encl_enclave_stats;

typedef struct encl_enclave encl_enclave;

/* Copies everything; listens when it returns. The enclave has a loop of its own. */
encl_result encl_enclave_start(const encl_enclave_config *config, encl_enclave **out,
                               encl_error *err);
uint16_t encl_enclave_port(const encl_enclave *enclave);
encl_result encl_enclave_set_faults(encl_enclave *enclave, const encl_enclave_faults *faults,
                                    encl_error *err);
/* From now on: another identity, as after an upgrade of the image. Open connections stay. */
encl_result encl_enclave_set_document(encl_enclave *enclave, const encl_doc_template *document,
                                      encl_slice leaf_key, encl_error *err);
void encl_enclave_get_stats(encl_enclave *enclave, encl_enclave_stats *stats);
/* Ends every connection at once (RST when reset), keeps listening. */
void encl_enclave_drop_connections(encl_enclave *enclave, bool reset);
void encl_enclave_stop(encl_enclave *enclave);

#endif
