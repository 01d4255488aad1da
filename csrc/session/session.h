/* session: the protocol as a pure state machine, both roles. Ciphertext in, events out; commands
 * in, ciphertext out. No sockets, no threads, no clock of its own, no Python.
 *
 *   initiator:  NEW --start--> HANDSHAKE --answer--> ATTESTING --document verified--> OPEN
 *   responder:  HANDSHAKE --first message--> OPEN
 *   any failure, and encl_session_close: CLOSED, from which nothing leads away
 *
 * Application messages can only be encoded through an encl_app, and an encl_app exists only in the
 * state OPEN: there is no function that takes an encl_session and application bytes. */
#ifndef ENCL_SESSION_SESSION_H
#define ENCL_SESSION_SESSION_H

#include "attest/attest.h"
#include "base/buf.h"
#include "noise/noise.h"
#include "wire/wire.h"

#define ENCL_MAX_OPEN    64 /* ids in flight on one connection: the server's limit */
#define ENCL_RECORD_HEAD 4  /* u32 big-endian: length of what follows */
#define ENCL_RECORD_MAX  (ENCL_RECORD_HEAD + ENCL_NOISE_MAX_MESSAGE)
/* Payload of one stream record, the opening one included: its encoding, at most twice as long,
 * stays within the 32 KiB that the path writes at a time, WebSocket and record framing included. */
#define ENCL_STREAM_CHUNK 16320

typedef enum encl_session_state {
    ENCL_SESSION_NEW,
    ENCL_SESSION_HANDSHAKE,
    ENCL_SESSION_ATTESTING,
    ENCL_SESSION_OPEN,
    ENCL_SESSION_CLOSED,
} encl_session_state;

typedef enum encl_event_type {
    ENCL_EV_NONE,          /* all input taken, nothing to report */
    ENCL_EV_OPEN,          /* initiator: the document verified. responder: the handshake is done */
    ENCL_EV_ATTESTED,      /* initiator: a fresh document, asked for while open, verified */
    ENCL_EV_DATA,          /* initiator: one-shot answer; the id is free again */
    ENCL_EV_STREAM_DATA,   /* both */
    ENCL_EV_STREAM_CLOSED, /* initiator: the workload closed. responder: half says what */
    ENCL_EV_ERROR,         /* initiator: that request or stream failed; payload: text */
    ENCL_EV_ATTESTATION_REQUESTED, /* responder from here on */
    ENCL_EV_REQUEST,               /* one-shot request */
    ENCL_EV_STREAM_OPENED,         /* payload: first bytes for the workload */
} encl_event_type;

typedef struct encl_event {
    encl_event_type type;
    uint64_t id;
    /* Into the block given to recv, or into the session. Valid until the next call. */
    encl_slice payload;
    encl_half half;
} encl_event;

typedef struct encl_session_config {
    encl_role role;
    const encl_policy *policy;      /* initiator: must outlive the session */
    encl_link_cache *cache;         /* initiator: may be NULL */
    size_t max_open;                /* 1..ENCL_MAX_OPEN; 0: ENCL_MAX_OPEN */
    const uint8_t *fixed_ephemeral; /* NULL; tests give 32 bytes */
} encl_session_config;

typedef struct encl_session encl_session;
typedef struct encl_app encl_app;

encl_result encl_session_new(const encl_session_config *config, encl_session **out,
                             encl_error *err);
void encl_session_free(encl_session *s);
encl_session_state encl_session_get_state(const encl_session *s);
const char *encl_session_state_name(encl_session_state state);

/* Initiator: appends the first handshake message to out. */
encl_result encl_session_start(encl_session *s, encl_buf *out, encl_error *err);

/* Takes bytes from block[0..len), overwriting them, until one event is there or all are taken.
 * Whole records are decrypted where they lie; only split ones are gathered inside. What must be
 * answered by the machine itself (RequestAttestation after the handshake) is appended to out.
 * now: Unix seconds, for the certificates. A failure is final: the state is CLOSED. */
encl_result encl_session_recv(encl_session *s, uint8_t *block, size_t len, size_t *consumed,
                              int64_t now, encl_buf *out, encl_event *event, encl_error *err);

/* The peer closed the connection: a record received in part is lost. err says what was waited for.
 */
void encl_session_eof(encl_session *s, encl_error *err);
void encl_session_close(encl_session *s);

/* Initiator: what was verified last, which is the caller's from then on; NULL before, and where it
 * was taken already. */
encl_attestation *encl_session_take_attestation(encl_session *s);
/* 32 bytes; all zero before the handshake is complete. */
const uint8_t *encl_session_handshake_hash(const encl_session *s);
size_t encl_session_open_ids(const encl_session *s);
/* How many records were received that carried nothing: empty ones, and ends of what had ended
 * before. */
uint64_t encl_session_idle_records(const encl_session *s);
/* Responder, test enclaves only: forgets the received part of a record, as a server does that
 * drops what it read when it stops waiting for the rest. Returns whether there was one. */
bool encl_session_forget_partial_record(encl_session *s);
/* Whether a record has been received in part. */
bool encl_session_has_partial_record(const encl_session *s);

#ifdef ENCL_TESTING
/* What take would give, left where it is. */
const encl_attestation *encl_session_attestation(const encl_session *s);
#endif

/* NULL in every state but OPEN. */
encl_app *encl_session_app(encl_session *s);

/* Every call below appends exactly one record to out, or fails and leaves out, the counters and
 * the table as they were. Ids count up from 1 and are never reused. ENCL_E_POOL_TIMEOUT is never
 * given here: a full table is ENCL_E_STATE, the caller waits for a slot before it asks. */
encl_result encl_app_open_stream(encl_app *app, encl_slice payload, uint64_t *id, encl_buf *out,
                                 encl_error *err);
/* ENCL_E_INVALID when the request does not fit one record. */
encl_result encl_app_request(encl_app *app, encl_slice payload, uint64_t *id, encl_buf *out,
                             encl_error *err);
/* Both roles. ENCL_E_STATE where the id is not open for our writing. */
encl_result encl_app_stream_data(encl_app *app, uint64_t id, encl_slice payload, encl_buf *out,
                                 encl_error *err);
/* Initiator: WRITE shuts down our direction; BOTH ends the stream and frees its slot, also after
 * the workload closed or an Error was received. Responder: half is ignored; the workload closed. */
encl_result encl_app_stream_close(encl_app *app, uint64_t id, encl_half half, encl_buf *out,
                                  encl_error *err);
/* Initiator: a fresh document for this channel; answered by ENCL_EV_ATTESTED. */
encl_result encl_app_request_attestation(encl_app *app, encl_buf *out, encl_error *err);

/* Responder. attestation may be sent before anything else; reply answers a one-shot request
 * (ENCL_E_INVALID when it does not fit one record: the reference drops the connection then). */
encl_result encl_app_attestation(encl_app *app, encl_slice document, const uint8_t *control_nonce,
                                 encl_buf *out, encl_error *err);
encl_result encl_app_reply(encl_app *app, uint64_t id, encl_slice payload, encl_buf *out,
                           encl_error *err);
/* A failed request or stream: its entry is removed. Also for ids that are not open, as the
 * reference answers "unknown stream id". */
encl_result encl_app_error(encl_app *app, uint64_t id, encl_slice text, encl_buf *out,
                           encl_error *err);
/* Responder, test enclaves only: seals any plaintext, to play a hostile server. */
encl_result encl_app_raw(encl_app *app, encl_slice plaintext, encl_buf *out, encl_error *err);

#endif
