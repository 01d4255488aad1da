/* callbacks: functions of Python's that are called soon after something has happened in the core.
 * Decides when: at the interpreter's next pending call, between two bytecodes of the main thread.
 * The GIL guards the list; callbacks_ask needs neither it nor a lock. */
#ifdef ENCL_WEB

#include "python/callbacks.h"

#include <stdatomic.h>

static encl_list listed = ENCL_LIST_EMPTY(listed); /* guarded by the GIL */
static atomic_bool asked; /* a pending call has been asked for, and has not begun */

static callback *next_meant(void) {
    encl_link *at = encl_list_first(&listed);

    while (at != NULL) {
        callback *c = ENCL_OWNER(at, callback, link);

        if (c->has_happened(c->self)) {
            return c;
        }
        at = encl_list_next(&listed, at);
    }
    return NULL;
}

/* Nobody waits for what a callback returns, or raises. */
static void call(callback *c) {
    PyObject *self = Py_NewRef(c->self), *function = Py_NewRef(c->function);
    PyObject *result = PyObject_CallNoArgs(function);

    if (result == NULL) {
        PyErr_WriteUnraisable(function);
    }
    Py_XDECREF(result);
    Py_DECREF(function);
    Py_DECREF(self);
}

/* The list may change in each call, so it is looked at from its beginning again. */
static int call_all(void *unused) {
    callback *c;

    (void)unused;
    atomic_store(&asked, false);
    while ((c = next_meant()) != NULL) {
        call(c);
    }
    return 0;
}

void callbacks_ask(void) {
    if (!atomic_exchange(&asked, true) && Py_AddPendingCall(call_all, NULL) != 0) {
        atomic_store(&asked, false); /* too many wait: the next one who asks tries again */
    }
}

PyObject *callback_set(callback *c, PyObject *self, bool (*has_happened)(PyObject *self),
                       PyObject *function) {
    PyObject *before;

    if (function != Py_None && !PyCallable_Check(function)) {
        PyErr_Format(PyExc_TypeError, "callback: expected something callable or None, got %R",
                     Py_TYPE(function));
        return NULL;
    }
    before = c->function;
    encl_link_remove(&c->link);
    c->function = NULL;
    if (function != Py_None) {
        c->self = self;
        c->function = Py_NewRef(function);
        c->has_happened = has_happened;
        encl_list_append(&listed, &c->link);
        callbacks_ask();
    }
    Py_XDECREF(before); /* last: its end may run anything, and set another one */
    Py_RETURN_NONE;
}

void callback_clear(callback *c) {
    PyObject *function = c->function;

    encl_link_remove(&c->link);
    c->function = NULL;
    Py_XDECREF(function);
}

#endif
