/* python: types over the C API below. The only files that include Python.h. Limited API of 3.11.
 * Every call that may wait, or that works on more than a few KiB, releases the GIL. To wait for a
 * lock is to wait: the service thread holds a channel's lock while it decodes and verifies, and no
 * other Python thread could go on meanwhile. So what needs a lock is called with the GIL released;
 * what is called with the GIL held reads atomics, or tries the lock and gives up at once.
 *
 * The files, from the lowest to the highest; each calls those before it only:
 * arguments, callbacks, convert, wait, notifier_type, watch_type, policy_type, upgrades, slot_type,
 * pump_type, stream_type, request_type, link_type, channel_type, enclave_arguments, enclave_type,
 * library, module. With ENCL_WEB there is no enclave and no pump, and without it no callbacks and
 * no link. */
#ifndef ENCL_PYTHON_BINDING_H
#define ENCL_PYTHON_BINDING_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "attest/attest.h"
#include "base/error.h"
#include "channel/channel.h"

/* A function of another signature than PyCFunction's, for a PyMethodDef that says so in its flags.
 */
#define BINDING_CALL(function) ((PyCFunction)(void (*)(void))(function))

/* ---- convert ---- */

/* Raises what enclavia._errors.from_core makes of err; gives NULL. */
PyObject *binding_raise(const encl_error *err);

/* Into a dict. Takes value's reference, also on failure; NULL is one, with its exception set. */
bool binding_put(PyObject *dict, const char *key, PyObject *value);
/* A bytes object (or None where data is NULL). */
PyObject *binding_bytes(encl_slice bytes);
PyObject *binding_attestation(const encl_attestation *attestation);
/* From bytes of 32, 48 or 64; name is the parameter's. False with an exception set. */
bool binding_pcr(const char *name, PyObject *value, encl_pcr *pcr);

/* PyType_FromModuleAndSpec and PyModule_AddObjectRef; the new reference, or NULL. */
PyTypeObject *binding_add_type(PyObject *module, PyType_Spec *spec);
/* A new object of a heap type, all zeros behind its head; or NULL. */
PyObject *binding_make(PyTypeObject *type);
/* Frees a heap type's object. */
void binding_free(PyObject *self);

/* ---- wait ---- */

/* Called without the GIL: does what is waited for, by `until` at the latest. What it gives says
 * only whether to go on; what is raised is err. */
typedef encl_code (*binding_step)(void *context, int64_t until, encl_error *err);

typedef enum binding_outcome {
    BINDING_DONE,
    BINDING_NOT_YET,   /* until was ENCL_POLL, and it would have to wait; err says so */
    BINDING_TIMED_OUT, /* the deadline passed; err says so */
    BINDING_FAILED,    /* err says why */
    BINDING_RAISED,    /* a signal's handler raised, and its exception is set */
} binding_outcome;

/* Makes steps until one gives anything but `again`, which is what a step gives at its deadline. */
binding_outcome binding_wait(int64_t until, encl_code again, binding_step step, void *context,
                             encl_error *err);
/* Sees to it that an exception is set, for any outcome but BINDING_DONE; gives NULL. */
PyObject *binding_not_done(binding_outcome outcome, const encl_error *err);

/* ---- the types: readers for "O&" (arguments.h), and makers ---- */

/* encl_notifier *, borrowed: retained by whoever uses it without the GIL, because another thread
 * may close it meanwhile. Read after all other arguments, because reading a number may run Python
 * code (__index__), which may close it as well. NULL for None, which only the second one takes. */
int binding_read_notifier(PyObject *value, void *notifier);
int binding_read_notifier_or_none(PyObject *value, void *notifier);

/* What announces to a notifier, and how that is asked for and taken back. Both without the GIL. */
typedef struct binding_source {
    encl_code (*enlist)(void *target, int what, encl_notifier *n, uint64_t token, encl_error *err);
    void (*withdraw)(void *target, const encl_notifier *n, uint64_t token);
} binding_source;
/* Registers, and makes the Watch that takes it back. owner keeps target alive. */
PyObject *binding_watch(PyObject *owner, void *target, const binding_source *source, int what,
                        encl_notifier *n, uint64_t token);

int binding_read_policy(PyObject *value, void *policy); /* const encl_policy * */

PyObject *binding_wrap_slot(encl_slot *slot);       /* takes the reference */
int binding_read_slot(PyObject *value, void *slot); /* encl_slot * */

/* Starts one; raises where it cannot be had. */
PyObject *binding_pump(encl_stream *stream, int fd, encl_notifier *n, uint64_t token);

PyObject *binding_wrap_stream(encl_stream *stream); /* takes the reference */
/* All of data from *done on, which is counted up. */
binding_outcome binding_write(encl_stream *stream, encl_slice data, int64_t until, size_t *done,
                              encl_error *err);

PyObject *binding_wrap_request(encl_request *request); /* takes the reference */

#ifdef ENCL_WEB
PyObject *binding_wrap_link(encl_conn *conn); /* borrows the reference */
/* Ends a connection of which no Link was made: its WebSocket never was, either. */
void binding_drop_link(encl_conn *conn);
#endif

/* Each adds its types, functions and constants to the module. */
int binding_add_policy(PyObject *module);
int binding_add_upgrades(PyObject *module);
int binding_add_notifier(PyObject *module);
int binding_add_watch(PyObject *module);
int binding_add_slot(PyObject *module);
int binding_add_pump(PyObject *module);
int binding_add_stream(PyObject *module);
int binding_add_request(PyObject *module);
int binding_add_channel(PyObject *module);
#ifdef ENCL_WEB
int binding_add_link(PyObject *module);
#else
int binding_add_enclave(PyObject *module);
#endif
int binding_add_library(PyObject *module);

#endif
