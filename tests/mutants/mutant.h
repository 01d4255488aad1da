/* What the rewritten sources ask. encl_mutant_seen notes which mutants made a difference right
 * where they are: a test in which one made none cannot notice it, and need not meet it. */
#ifndef ENCL_MUTANT_H
#define ENCL_MUTANT_H

#include <stdbool.h>

#include "base/error.h"

extern int encl_mutant; /* the one that is alive; 0 where none is */
extern unsigned char *encl_mutant_seen;

static inline bool encl_other(int number, bool mutated, bool original) {
    encl_mutant_seen[number] |= mutated != original;
    return encl_mutant == number ? mutated : original;
}

static inline bool encl_inverted(int number, bool original) {
    return encl_other(number, !original, original);
}

static inline encl_code encl_succeeds(int number, encl_code original) {
    encl_mutant_seen[number] |= original != ENCL_OK;
    return encl_mutant == number ? ENCL_OK : original;
}

static inline bool encl_skipped(int number) {
    return encl_other(number, true, false);
}

#endif
