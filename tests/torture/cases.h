/* What is run while allocations fail. */
#ifndef ENCL_TORTURE_CASES_H
#define ENCL_TORTURE_CASES_H

#include "alloc.h"
#include "mint.h"

enum torture_phase { /* of alloc_phase */
                     PHASE_CONNECT,
                     PHASE_VERIFY,
                     PHASE_REQUEST,
                     PHASE_STREAM,
                     PHASE_CLOSE
};
#define TORTURE_PHASES 5

typedef struct torture_case {
    const char *name;
    bool threads;
    bool skip[FROM_COUNT_]; /* what cannot fail here without the library's own harm: README.md */
    void *(*set_up)(const minted *m);
    encl_code (*run)(void *fixture, encl_error *err);
    void (*tear_down)(void *fixture);
} torture_case;

extern const torture_case torture_cases[]; /* ends with a name of NULL */
extern const char *const torture_phases[TORTURE_PHASES];

#endif
