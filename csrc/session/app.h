/* The capability to send application messages, and what it needs. Private to this layer: outside,
 * encl_app is opaque and comes from encl_session_app alone. */
#ifndef ENCL_SESSION_APP_H
#define ENCL_SESSION_APP_H

#include "session/session.h"
#include "session/table.h"

struct encl_app {
    encl_noise_transport *sealer; /* the session's; NULL once it is closed */
    encl_role role;
    uint64_t next_id;        /* initiator */
    size_t attestations_due; /* initiator: asked for and not yet answered */
    encl_table table;
};

encl_result encl_app_new(encl_role role, size_t max_open, encl_noise_transport *sealer,
                         encl_app **out, encl_error *err);
/* Callers may still hold the handle: it stays allocated, and refuses everything. */
void encl_app_disarm(encl_app *app);
void encl_app_free(encl_app *app);

#endif
