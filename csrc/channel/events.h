/* What the connection tells a channel. Inside channel/ only. */
#ifndef ENCL_CHANNEL_EVENTS_H
#define ENCL_CHANNEL_EVENTS_H

#include "channel/state.h"

/* The user is the encl_channel; the connection has a reference to it, given back in closed. */
extern const encl_conn_events channel_events;

#endif
