/* One session with the bytes that it wants sent, and a hostile peer for it: made of the layers
 * below and not of a session, so that it can say anything. session_sides.c has the functions. */
#ifndef ENCL_TESTS_SESSION_SIDES_H
#define ENCL_TESTS_SESSION_SIDES_H

#include "session/session.h"

#define NOW         1760000000
#define BUF_LIMIT   ((size_t)1 << 20)
#define TEXT(bytes) ENCL_SLICE((bytes), sizeof(bytes) - 1)

extern const encl_slice no_bytes;

/* ---- one session and the bytes it wants sent ---- */

typedef struct side {
    encl_session *s;
    encl_policy policy;
    encl_buf out;
    encl_error err;
    encl_event event;
} side;

void side_new_with(side *x, encl_role role, const encl_pins *pins, size_t max_open,
                   const uint8_t *ephemeral);
void side_new(side *x, encl_role role);
void side_free(side *x);
encl_session_state state_of(const side *x);

/* Feeds a copy (recv overwrites), expecting it to be taken whole; the event stays in x. */
encl_code feed(side *x, encl_slice bytes);

/* ---- the hostile peer ---- */

typedef struct peer {
    encl_role role;
    encl_noise_handshake *hs;
    encl_noise_transport *t;
    uint8_t hash[ENCL_NOISE_HASH_BYTES];
    encl_buf out;
    encl_error err;
} peer;

void peer_new(peer *p, encl_role role);
encl_slice peer_write_handshake(peer *p);
void peer_read_handshake(peer *p, encl_buf *from, size_t size);
encl_slice peer_record(peer *p, const encl_msg *m);
encl_code peer_says(peer *p, side *x, encl_msg m);

/* Decodes the next record that x wants sent; false where there is none. */
bool peer_hears(peer *p, side *x, encl_msg *m);

void assert_hears(peer *p, side *x, encl_msg_type type, uint64_t id);
void assert_silent(side *x);

/* An initiator in ATTESTING, and a peer that has read its one record. */
void attesting_with(side *x, peer *p);

void attesting(side *x, peer *p);
encl_msg stub_document(const peer *p);
void open_with(side *x, peer *p);
void opened(side *x, peer *p);
void serving(side *x, peer *p, size_t max_open);
void end(side *x, peer *p);
uint64_t open_stream(side *x, peer *p);
uint64_t request(side *x, peer *p);
void close_stream(side *x, peer *p, uint64_t id);
encl_msg message(encl_msg_type type, uint64_t id);
void debug_document(encl_buf *document, encl_slice nonce, uint8_t pcr_fill);
encl_pins debug_pins(uint8_t pcr_fill);

#endif
