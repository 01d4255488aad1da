/* The input of fuzz_record: a byte that says where to begin, plus BEGIN_COUNT times the size of the
 * pieces in which a second run delivers the same (0: there is none); then steps. */
#ifndef ENCL_FUZZ_RECORD_SCRIPT_H
#define ENCL_FUZZ_RECORD_SCRIPT_H

#include "mutate.h"
#include "wire/wire.h"

enum {
    BEGIN_ANSWER,     /* an initiator waits for the handshake's answer; the peer has no keys */
    BEGIN_FIRST,      /* a responder waits for the first message */
    BEGIN_ATTESTING,  /* the handshake is done, the peer not verified */
    BEGIN_OPEN,       /* verified, by a debug policy */
    BEGIN_SERVING,    /* a responder after the handshake */
    BEGIN_NEW,        /* an initiator that was not started */
    BEGIN_PRODUCTION, /* like ATTESTING, under pins and a root */
    BEGIN_COUNT
};

typedef enum step_kind {
    STEP_SAY,       /* any plaintext under the peer's keys */
    STEP_MESSAGE,   /* a message, well-formed */
    STEP_LARGE,     /* the same with a payload of any length */
    STEP_ACT,       /* what the session's user does */
    STEP_ACT_LARGE, /* the same with a payload of any length */
    STEP_RAW,       /* bytes that are no record of the peer's */
    STEP_DOCUMENT,  /* a signed document, good or bad in one way */
    STEP_COUNT
} step_kind;

typedef struct step {
    step_kind kind;
    uint16_t delivery; /* 0: all that is held; 1: nothing yet; else this many bytes but one */
    uint8_t what, id;  /* message type or action */
    encl_slice bytes;  /* plaintext or payload */
    uint16_t size;     /* of a large payload */
} step;

/* The next step; a short input reads as zeros. */
step script_next(fuzz_input *in);

#endif
