/* Allocations that fail when told to, for each library apart. */
#ifndef ENCL_TORTURE_ALLOC_H
#define ENCL_TORTURE_ALLOC_H

#include <stdbool.h>
#include <stddef.h>

typedef enum alloc_from {
    FROM_OURS,    /* malloc, calloc, realloc, strdup, asprintf and pthread_create in csrc */
    FROM_OPENSSL, /* CRYPTO_set_mem_functions */
    FROM_LWS,     /* lws_set_allocator */
    FROM_SODIUM,  /* sodium_malloc in csrc */
    FROM_COUNT_
} alloc_from;

extern const char *const alloc_names[FROM_COUNT_];

/* What is being done; set by whoever does it. */
extern int alloc_phase;

/* Where the first failure struck, kept in memory that a parent process can read. */
typedef struct alloc_place {
    int phase;
    char reason[64]; /* libwebsockets' own name for what it allocates */
} alloc_place;

/* Before anything else: OpenSSL takes its functions only while it has allocated nothing. */
void alloc_init(alloc_place *place);
/* From now on the n-th allocation (counted from 1) of one library fails, in any thread; and so do
 * all after it, where forever. n 0: none fails, they are only counted. */
void alloc_arm(alloc_from from, long n, bool forever);
/* None fails any more. Returns how many failed. */
long alloc_disarm(void);
long alloc_counted(void);

#endif
