#include "base/mutant.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>

#define CPU_SECONDS 20

int encl_mutant;
int encl_mutant_count = ENCL_MUTANTS;
unsigned char encl_mutant_seen[ENCL_MUTANTS];

/* Of cmocka, where that is linked. */
extern void cmocka_set_test_filter(const char *pattern) __attribute__((weak));

__attribute__((constructor)) static void choose(void) {
    const char *number = getenv("ENCL_MUTANT"), *test = getenv("ENCL_TEST");

    if (number != NULL) {
        /* A mutant that loops for ever is ended by CPU time, which a busy machine does not change;
         * the slowest test takes two seconds. */
        const struct rlimit limit = {CPU_SECONDS, CPU_SECONDS};

        (void)setrlimit(RLIMIT_CPU, &limit);
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
        (void)fwrite(encl_mutant_seen, 1, sizeof encl_mutant_seen, file);
        (void)fclose(file);
    }
}
