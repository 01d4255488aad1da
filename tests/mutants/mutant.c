#include "base/mutant.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>

int encl_mutant;
int encl_mutant_count = ENCL_MUTANTS;
/* Shared with children: some checks fire only there. */
unsigned char *encl_mutant_seen;

/* Of cmocka, where that is linked. */
extern void cmocka_set_test_filter(const char *pattern) __attribute__((weak));

__attribute__((constructor)) static void choose(void) {
    const char *number = getenv("ENCL_MUTANT"), *test = getenv("ENCL_TEST"),
               *seconds = getenv("ENCL_MUTANT_CPU_SECONDS");

    encl_mutant_seen =
        mmap(NULL, ENCL_MUTANTS, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (encl_mutant_seen == MAP_FAILED) {
        abort();
    }
    if (seconds != NULL) {
        /* A mutant that loops for ever is ended by CPU time, of which other processes take none. */
        const rlim_t longest = (rlim_t)atoi(seconds);
        const struct rlimit limit = {longest, longest};

        (void)setrlimit(RLIMIT_CPU, &limit);
    }
    if (number != NULL) {
        encl_mutant = atoi(number);
    }
    if (test != NULL && cmocka_set_test_filter != NULL) {
        cmocka_set_test_filter(test);
    }
}

__attribute__((destructor)) static void tell(void) {
    const char *path = getenv("ENCL_MUTANT_SEEN");
    FILE *file = path == NULL ? NULL : fopen(path, "wb");

    if (file != NULL) {
        (void)fwrite(encl_mutant_seen, 1, ENCL_MUTANTS, file);
        (void)fclose(file);
    }
}
