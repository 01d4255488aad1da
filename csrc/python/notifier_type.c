/* Notifier: a descriptor for event loops, and the tokens of what is ready. Decides nothing; hands
 * on to channel/notifier.c. drain takes the notifier's lock and so releases the GIL; fileno and
 * wake take none. An object that is closed by one thread while another drains it is retained there.
 */
#include "python/arguments.h"
#include "python/binding.h"
#include "python/callbacks.h"

typedef struct notifier_object {
    PyObject_HEAD
    encl_notifier *notifier; /* NULL once closed */
#ifdef ENCL_WEB
    callback on_wake;
#endif
} notifier_object;

/* Set while the module is being made and never after. */
static PyTypeObject *notifier_type;

static PyObject *notifier_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {NULL};
    notifier_object *self;
    encl_error err;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "", names)) {
        return NULL;
    }
    self = (notifier_object *)binding_make(type);
    if (self != NULL && encl_notifier_new(&self->notifier, &err) != ENCL_OK) {
        Py_DECREF(self);
        return binding_raise(&err);
    }
    return (PyObject *)self;
}

static void forget_callback(notifier_object *n) {
#ifdef ENCL_WEB
    callback_clear(&n->on_wake);
#else
    (void)n;
#endif
}

static PyObject *notifier_close(PyObject *self, PyObject *unused) {
    notifier_object *n = (notifier_object *)self;
    encl_notifier *notifier = n->notifier;

    (void)unused;
    n->notifier = NULL; /* first: the end of a callback may run anything, and set another one */
    forget_callback(n);
    encl_notifier_release(notifier);
    Py_RETURN_NONE;
}

static void notifier_dealloc(PyObject *self) {
    forget_callback((notifier_object *)self);
    encl_notifier_release(((notifier_object *)self)->notifier);
    binding_free(self);
}

static encl_notifier *open_notifier(PyObject *self) {
    encl_notifier *notifier = ((notifier_object *)self)->notifier;

    if (notifier == NULL) {
        PyErr_SetString(PyExc_ValueError, "this notifier is closed");
    }
    return notifier;
}

#ifdef ENCL_WEB
static bool was_woken(PyObject *self) {
    return encl_notifier_was_woken(((notifier_object *)self)->notifier);
}

static PyObject *notifier_on_wake(PyObject *self, PyObject *function) {
    if (open_notifier(self) == NULL) {
        return NULL;
    }
    return callback_set(&((notifier_object *)self)->on_wake, self, was_woken, function);
}
#else
static PyObject *notifier_fileno(PyObject *self, PyObject *unused) {
    encl_notifier *notifier = open_notifier(self);

    (void)unused;
    return notifier == NULL ? NULL : PyLong_FromLong(encl_notifier_fd(notifier));
}
#endif

static PyObject *notifier_wake(PyObject *self, PyObject *unused) {
    encl_notifier *notifier = open_notifier(self);

    (void)unused;
    if (notifier == NULL) {
        return NULL;
    }
    encl_notifier_wake(notifier);
    Py_RETURN_NONE;
}

static PyObject *notifier_drain(PyObject *self, PyObject *unused) {
    encl_notifier *notifier = open_notifier(self);
    uint64_t tokens[256];
    PyObject *list;
    size_t n;

    (void)unused;
    if (notifier == NULL) {
        return NULL;
    }
    encl_notifier_retain(notifier); /* another thread may close it meanwhile */
    Py_BEGIN_ALLOW_THREADS
        n = encl_notifier_drain(notifier, tokens, sizeof tokens / sizeof *tokens);
        encl_notifier_release(notifier);
    Py_END_ALLOW_THREADS
    list = PyList_New((Py_ssize_t)n);
    for (size_t i = 0; list != NULL && i < n; i++) {
        PyObject *token = PyLong_FromUnsignedLongLong(tokens[i]);

        if (token == NULL || PyList_SetItem(list, (Py_ssize_t)i, token) != 0) {
            Py_CLEAR(list);
        }
    }
    return list;
}

static PyMethodDef notifier_methods[] = {
#ifdef ENCL_WEB
    {"on_wake", notifier_on_wake, METH_O, "What to call when there are tokens."},
#else
    {"fileno", notifier_fileno, METH_NOARGS, "The descriptor to wait for."},
#endif
    {"drain", notifier_drain, METH_NOARGS, "The tokens announced since; at most 256 a call."},
    {"wake", notifier_wake, METH_NOARGS, "Makes the descriptor readable."},
    {"close", notifier_close, METH_NOARGS, "Closes the descriptor once nobody announces to it."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot notifier_slots[] = {
    {Py_tp_new, notifier_new},
    {Py_tp_dealloc, notifier_dealloc},
    {Py_tp_methods, notifier_methods},
    {Py_tp_doc, "A descriptor for event loops, and the tokens of what is ready."},
    {0, NULL},
};

static PyType_Spec notifier_spec = {
    .name = "enclavia._core.Notifier",
    .basicsize = sizeof(notifier_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = notifier_slots,
};

static int read_notifier(const char *expected, PyObject *value, encl_notifier **out) {
    if (!PyObject_TypeCheck(value, notifier_type)) {
        return binding_wrong_type("notifier", expected, value);
    }
    *out = ((notifier_object *)value)->notifier;
    if (*out == NULL) {
        PyErr_SetString(PyExc_ValueError, "notifier: expected an open one, got a closed one");
        return 0;
    }
    return 1;
}

int binding_read_notifier(PyObject *value, void *notifier) {
    return read_notifier("a Notifier", value, notifier);
}

int binding_read_notifier_or_none(PyObject *value, void *notifier) {
    encl_notifier **out = notifier;

    if (value == Py_None) {
        *out = NULL;
        return 1;
    }
    return read_notifier("a Notifier or None", value, out);
}

int binding_add_notifier(PyObject *module) {
    notifier_type = binding_add_type(module, &notifier_spec);
    return notifier_type == NULL ? -1 : 0;
}
