/* adopt: gives libwebsockets a descriptor to watch and to close. Decides what happens to one for
 * which it has no room. Calls libwebsockets alone. Service thread only; no lock. */
#include <unistd.h>

#include "net/internal.h"

/* Where it has no room, libwebsockets 4.1 returns nothing, but keeps the wsi that it had made, and
 * would close the descriptor's number when the context ends: by then it may be another file's. So
 * the wsi is destroyed at once, and closes the descriptor while it is ours. */
static void discard(struct lws *made, int fd) {
    if (made != NULL) {
        lws_set_timeout(made, PENDING_TIMEOUT_KILLED_BY_PARENT, LWS_TO_KILL_SYNC);
    } else {
        (void)close(fd);
    }
}

struct lws *net_adopt(encl_loop *loop, int fd) {
    lws_adopt_desc_t info = {
        .vh = loop->raw_vhost,
        .type = LWS_ADOPT_RAW_FILE_DESC,
        .fd = {.filefd = fd},
        .vh_prot_name = NET_PROTOCOL,
    };
    struct lws *adopted;

    loop->adopting = true;
    loop->made = NULL;
    adopted = lws_adopt_descriptor_vhost_via_info(&info);
    loop->adopting = false;
    if (adopted == NULL) {
        discard(loop->made, fd);
    }
    return adopted;
}

void net_adopt_note_wsi(encl_loop *loop, struct lws *wsi) {
    if (loop->adopting) {
        loop->made = wsi;
    }
}
