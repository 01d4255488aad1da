/* peer: whether the other end of a connection is there although nothing comes from it. Decides by
 * what the kernel knows (platform.h); no lock. */
#include "net/peer.h"

#include "platform/platform.h"

bool net_peer_takes(int fd, net_peer_view *seen) {
    net_peer_view before = *seen;
    encl_socket_progress now;

    if (!encl_socket_get_progress(fd, &now)) {
        return false;
    }
    seen->acknowledged = now.acknowledged;
    seen->backlog = now.backlog;
    return now.stalled ||
           (seen->acknowledged != before.acknowledged && (seen->backlog || before.backlog));
}
