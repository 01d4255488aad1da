/* registry: which descriptors a forked child has copies of, so that it can close them. Otherwise
 * the parent's peers would not see its sockets end while a child lives. Knows neither connections
 * nor listeners: each embeds a net_owned for every socket that it has. Calls the C library alone.
 *
 * registry_lock guards the list and all that is in it. Whoever takes it holds fork() back, so that
 * a child finds them whole. It may be taken with any other lock of net held, and nothing is called
 * under it. */
#include <sys/stat.h>
#include <unistd.h>

#include "net/internal.h"

static encl_mutex registry_lock = ENCL_MUTEX_INITIALIZER;
static encl_list
    registry ENCL_GUARDED_BY(registry_lock) = ENCL_LIST_EMPTY(registry); /* net_owned.link */

static uintmax_t inode_of(int fd) {
    struct stat file;

    return fd >= 0 && fstat(fd, &file) == 0 ? file.st_ino : 0;
}

void net_own(net_owned *owned, int fd) {
    uintmax_t inode = inode_of(fd);

    encl_fork_hold();
    encl_lock(&registry_lock);
    encl_link_remove(&owned->link);
    owned->fd = fd;
    owned->inode = inode;
    if (inode != 0) {
        encl_list_append(&registry, &owned->link);
    }
    encl_unlock(&registry_lock);
    encl_fork_let_go();
}

/* Only the owner changes it, so that it may look without the lock: freeing a connection that is not
 * listed waits for nobody. */
void net_disown(net_owned *owned) {
    if (owned->inode != 0) {
        net_own(owned, -1);
    }
}

/* Closes what is still the same socket: the number may have been given to another file by then. It
 * only closes; a shutdown would act on the parent's connection. Every entry leaves the list,
 * because the child's own ones will be put there. There is no other thread, and none was in here.
 */
ENCL_LOCK_UNCHECKED static void close_copies(void) {
    encl_link *link;

    while ((link = encl_list_first(&registry)) != NULL) {
        const net_owned *owned = ENCL_OWNER(link, net_owned, link);

        if (inode_of(owned->fd) == owned->inode) {
            (void)close(owned->fd);
        }
        encl_link_remove(link);
    }
}

void net_registry_init(void) {
    encl_fork_in_child(close_copies);
}
