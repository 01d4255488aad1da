/* posix: what linux.c and macos.c have in common. Decides nothing; calls the C library alone; no
 * lock. */
#include "platform/posix.h"

#include <dirent.h>
#include <stdlib.h>

static pthread_once_t key_once = PTHREAD_ONCE_INIT;
static void (*destructor)(void *); /* the same whoever writes it */
static pthread_key_t key;
static bool key_made; /* both are written under key_once */

static void make_key(void) {
    key_made = pthread_key_create(&key, destructor) == 0;
}

void encl_posix_thread_at_exit(void (*fn)(void *unused)) {
    destructor = fn;
    (void)pthread_once(&key_once, make_key);
    if (key_made) {
        (void)pthread_setspecific(key, &key); /* anything but NULL */
    }
}

struct timespec encl_posix_timespec(int64_t ns) {
    return (struct timespec){.tv_sec = (time_t)(ns / NS_PER_S), .tv_nsec = (long)(ns % NS_PER_S)};
}

int encl_posix_descriptor_find(const char *folder, bool (*is_it)(int fd, void *arg), void *arg) {
    DIR *dir = opendir(folder);
    struct dirent *at;
    int found = -1;

    while (dir != NULL && found < 0 && (at = readdir(dir)) != NULL) {
        int fd = (int)strtol(at->d_name, NULL, 10);

        if (at->d_name[0] != '.' && is_it(fd, arg)) {
            found = fd;
        }
    }
    if (dir != NULL) {
        closedir(dir);
    }
    return found;
}

encl_file_id encl_posix_file_id(const struct stat *file, struct timespec modified) {
    return (encl_file_id){
        .inode = file->st_ino,
        .size = file->st_size,
        .seconds = modified.tv_sec,
        .nanoseconds = modified.tv_nsec,
    };
}
