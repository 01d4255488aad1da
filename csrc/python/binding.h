/* python: types over the C API below. The only files that include Python.h. Limited API of 3.11.
 * Every call that may wait, or that works on more than a few KiB, releases the GIL. To wait for a
 * lock is to wait: the service thread holds a channel's lock while it decodes and verifies, and no
 * other Python thread could go on meanwhile. So what needs a lock is called with the GIL released;
 * what is called with the GIL held reads atomics, or tries the lock and lets be. */
#ifndef ENCL_PYTHON_BINDING_H
#define ENCL_PYTHON_BINDING_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "attest/attest.h"
#include "base/error.h"
#include "channel/channel.h"

/* A wait looks for signals this often: well below the 100 ms that are promised. */
#define BINDING_SLICE_NS ((int64_t)50 * 1000000)

/* Raises what enclavia._errors.from_core makes of err; gives NULL. */
PyObject *binding_raise(const encl_error *err);

/* None: for ever; else seconds from now. 0 is ENCL_POLL. False with an exception set otherwise. */
bool binding_deadline(PyObject *timeout, int64_t *until);
/* The next point at which a wait until `until` has to look for signals. */
int64_t binding_slice(int64_t until);

/* A bytes object (or None where data is NULL). */
PyObject *binding_bytes(encl_slice bytes);
PyObject *binding_attestation(const encl_attestation *attestation);
bool binding_pcr(PyObject *value, encl_pcr *pcr); /* from bytes of 32, 48 or 64 */

const encl_policy *binding_policy(PyObject *policy); /* NULL with TypeError */
encl_notifier *binding_notifier(PyObject *notifier, bool none_allowed, bool *ok);
/* How a registration is taken back. */
typedef void (*binding_withdraw)(void *target, const encl_notifier *n, uint64_t token);
/* A Watch that holds owner, which keeps target alive. It has to be made before the registration is,
 * so that there is none without one. */
PyObject *binding_watch(PyObject *owner, void *target, binding_withdraw withdraw, encl_notifier *n,
                        uint64_t token);
PyObject *binding_wrap_stream(encl_stream *stream);    /* takes the reference */
PyObject *binding_wrap_request(encl_request *request); /* takes the reference */
PyObject *binding_wrap_slot(encl_slot *slot);          /* takes the reference */
encl_slot *binding_slot(PyObject *slot);               /* NULL with TypeError */

/* Each adds its types and functions to the module. */
int binding_add_policy(PyObject *module);
int binding_add_notifier(PyObject *module);
int binding_add_channel(PyObject *module);
int binding_add_stream(PyObject *module);
int binding_add_enclave(PyObject *module);
int binding_add_library(PyObject *module);

/* PyType_FromModuleAndSpec and PyModule_AddObjectRef; the new reference, or NULL. */
PyTypeObject *binding_add_type(PyObject *module, PyType_Spec *spec);
/* Frees a heap type's object. */
void binding_free(PyObject *self);

#endif
