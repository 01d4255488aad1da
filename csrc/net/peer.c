/* What the kernel knows of the other end. In a file of its own: <linux/tcp.h> and <netinet/tcp.h>
 * define the same names, and only the first knows the fields that are needed here. */
#include <linux/tcp.h>
#include <netinet/in.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>

#include "net/peer.h"

/* Its window is shut, and it answers the probes: alive, but it reads nothing at present. */
static bool is_stalled(const struct tcp_info *info) {
    return info->tcpi_unacked == 0 && info->tcpi_notsent_bytes != 0 && info->tcpi_probes <= 1;
}

bool net_peer_takes(int fd, net_peer_view *seen) {
    net_peer_view before = *seen;
    struct tcp_info info;
    socklen_t size = sizeof info;

    memset(&info, 0, sizeof info);
    if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) != 0 ||
        size < offsetof(struct tcp_info, tcpi_notsent_bytes) + sizeof info.tcpi_notsent_bytes) {
        return false;
    }
    seen->acknowledged = info.tcpi_bytes_acked;
    seen->backlog = info.tcpi_unacked != 0 || info.tcpi_notsent_bytes != 0;
    return is_stalled(&info) ||
           (seen->acknowledged != before.acknowledged && (seen->backlog || before.backlog));
}
