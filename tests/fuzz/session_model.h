/* What a session may send and report, kept from outside of it. */
#ifndef ENCL_FUZZ_SESSION_MODEL_H
#define ENCL_FUZZ_SESSION_MODEL_H

#include "fuzz.h"
#include "session/session.h"

#define MODEL_IDS 512

typedef struct model_id {
    uint64_t id;
    bool stream;
    bool we_closed, peer_closed; /* the session's direction, and the other */
    bool errored;
} model_id;

typedef struct model {
    encl_role role;
    bool open;               /* the session said that it is */
    size_t asked, answered;  /* documents */
    uint64_t last_id;        /* of those that the initiator chose */
    model_id ids[MODEL_IDS]; /* those that are open */
    size_t count;
} model;

void model_init(model *m, encl_role role);
/* The session reported this. */
void model_event(model *m, const encl_event *event);
/* The peer read this. */
void model_sent(model *m, const encl_msg *msg);
void model_check_count(const model *m, size_t open_ids);

#endif
