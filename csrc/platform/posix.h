/* posix: what linux.c and macos.c have in common. Inside platform only. */
#ifndef ENCL_PLATFORM_POSIX_H
#define ENCL_PLATFORM_POSIX_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>
#include <time.h>

#include "platform/platform.h"

#define NS_PER_S ((int64_t)1000000000)

/* encl_thread_at_exit, by a key with a destructor. */
void encl_posix_thread_at_exit(void (*fn)(void *unused));

struct timespec encl_posix_timespec(int64_t ns);

/* The first descriptor that is_it agrees to among those whose numbers are the names in folder; -1
 * where there is none. */
int encl_posix_descriptor_find(const char *folder, bool (*is_it)(int fd, void *arg), void *arg);

/* modified: the time in file, whose member has another name on each system. */
encl_file_id encl_posix_file_id(const struct stat *file, struct timespec modified);

#endif
