/* What the rewritten sources ask. A test that never asks for a mutant cannot notice it. */
#ifndef ENCL_MUTANT_H
#define ENCL_MUTANT_H

extern int encl_mutant; /* the one that is alive; 0 where none is */
extern unsigned char encl_mutant_seen[];

static inline int encl_mutant_is(int number) {
    encl_mutant_seen[number] = 1;
    return encl_mutant == number;
}

#endif
