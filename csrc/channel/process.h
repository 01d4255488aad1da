/* What all channels of a process share. Inside channel/ only. */
#ifndef ENCL_CHANNEL_PROCESS_H
#define ENCL_CHANNEL_PROCESS_H

#include "attest/attest.h"
#include "net/net.h"

/* The process's one client loop, and the cache that its service thread alone uses. Both live until
 * the process ends. */
encl_result process_shared(encl_loop **loop, encl_link_cache **links, encl_error *err);

#endif
