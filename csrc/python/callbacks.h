/* callbacks: functions of Python's that are to be called soon after something has happened in the
 * core, for event loops that can wait for no descriptor (a browser's). What happens is noted by
 * callbacks_ask, in any thread and with any lock held; the interpreter makes a pending call of it,
 * in which each source is asked whether it was meant. All else here has the GIL. */
#ifndef ENCL_PYTHON_CALLBACKS_H
#define ENCL_PYTHON_CALLBACKS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdbool.h>

#include "base/list.h"

/* Part of the object that the callback was given to. All zero at first. */
typedef struct callback {
    encl_link link; /* in a list of this file, while there is a function */
    PyObject *self; /* the object that it is part of, borrowed */
    PyObject *function;
    bool (*has_happened)(PyObject *self); /* since it was asked last */
} callback;

/* None: nobody is called. NULL with an exception set, or None. What has happened before, and nobody
 * was called for, leads to a call. */
PyObject *callback_set(callback *c, PyObject *self, bool (*has_happened)(PyObject *self),
                       PyObject *function);
/* When the object ends. */
void callback_clear(callback *c);

void callbacks_ask(void);

#endif
