/* The one loop in which a thread of Python waits for the core. Decides when a wait looks for
 * signals and when it is over. The GIL is held on entry and on return, and released around each
 * step; a step may wait for locks and for its deadline, and must not touch a Python object. */
#include <stdio.h>
#include <string.h>

#include "python/binding.h"

/* A wait looks for signals this often: well below the 100 ms that are promised. */
#define SLICE_NS ((int64_t)50 * 1000000)

#ifdef ENCL_WEB
/* What is waited for comes by this thread: whoever waited here would wait for ever. */
static int64_t slice_of(int64_t until) {
    (void)until;
    return ENCL_POLL;
}

static binding_outcome refuse_to_wait(encl_error *err) {
    encl_fail(err, ENCL_E_STATE,
              "expected a call that waits for nothing, got one that has to wait: this build is for "
              "browsers, where there is one thread and only an event loop can wait (AsyncClient)");
    return BINDING_FAILED;
}
#else
/* The next point at which a wait until `until` has to look for signals. */
static int64_t slice_of(int64_t until) {
    int64_t next;

    if (until == ENCL_POLL) {
        return ENCL_POLL;
    }
    next = encl_now_ns() + SLICE_NS;
    return until < next ? until : next;
}
#endif

/* The core knows deadlines; how long a caller was ready to wait is known here. A wait that was over
 * as soon as it began names nothing. */
static void name_seconds(encl_error *err, int64_t allowed_ns) {
    long long ms = (allowed_ns + 500000) / 1000000;
    char text[48];

    if (ms <= 0) {
        return;
    }
    if (ms % 1000 == 0) {
        (void)snprintf(text, sizeof text, " within %lld s", ms / 1000);
    } else {
        (void)snprintf(text, sizeof text, " within %lld.%03lld s", ms / 1000, ms % 1000);
    }
    encl_error_suffix(err, text);
}

binding_outcome binding_wait(int64_t until, encl_code again, binding_step step, void *context,
                             encl_error *err) {
    int64_t begun = encl_now_ns();

    for (;;) {
        int64_t slice = slice_of(until);
        encl_code rc;

        Py_BEGIN_ALLOW_THREADS
            rc = step(context, slice, err);
        Py_END_ALLOW_THREADS
        if (rc != again) {
            return rc == ENCL_OK ? BINDING_DONE : BINDING_FAILED;
        }
        if (until == ENCL_POLL) {
            return BINDING_NOT_YET;
        }
#ifdef ENCL_WEB
        return refuse_to_wait(err);
#endif
        if (PyErr_CheckSignals() != 0) {
            return BINDING_RAISED;
        }
        if (slice == until) {
            name_seconds(err, until - begun);
            return BINDING_TIMED_OUT;
        }
    }
}

PyObject *binding_not_done(binding_outcome outcome, const encl_error *err) {
    return outcome == BINDING_RAISED ? NULL : binding_raise(err);
}
