#include "python/binding.h"

typedef struct notifier_object {
    PyObject_HEAD
    encl_notifier *notifier; /* NULL once closed */
} notifier_object;

/* Set while the module is being made and never after. */
static PyTypeObject *notifier_type;

static PyObject *notifier_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {NULL};
    allocfunc make = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    notifier_object *self;
    encl_error err;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "", names)) {
        return NULL;
    }
    self = (notifier_object *)make(type, 0);
    if (self != NULL && encl_notifier_new(&self->notifier, &err) != ENCL_OK) {
        Py_DECREF(self);
        return binding_raise(&err);
    }
    return (PyObject *)self;
}

static PyObject *notifier_close(PyObject *self, PyObject *unused) {
    notifier_object *n = (notifier_object *)self;
    encl_notifier *notifier = n->notifier;

    (void)unused;
    n->notifier = NULL;
    encl_notifier_release(notifier);
    Py_RETURN_NONE;
}

static void notifier_dealloc(PyObject *self) {
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

static PyObject *notifier_fileno(PyObject *self, PyObject *unused) {
    encl_notifier *notifier = open_notifier(self);

    (void)unused;
    return notifier == NULL ? NULL : PyLong_FromLong(encl_notifier_fd(notifier));
}

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
    {"fileno", notifier_fileno, METH_NOARGS, "The descriptor to wait for."},
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

encl_notifier *binding_notifier(PyObject *notifier, bool none_allowed, bool *ok) {
    *ok = true;
    if (notifier == Py_None && none_allowed) {
        return NULL;
    }
    *ok = false;
    if (!PyObject_TypeCheck(notifier, notifier_type)) {
        PyErr_SetString(PyExc_TypeError, "notifier: expected a Notifier");
        return NULL;
    }
    *ok = ((notifier_object *)notifier)->notifier != NULL;
    return open_notifier(notifier);
}

/* ---- registrations ---- */

typedef struct watch_object {
    PyObject_HEAD
    PyObject *owner;         /* a reference; NULL once ended */
    encl_notifier *notifier; /* a reference */
    void *target;
    binding_withdraw withdraw;
    uint64_t token;
} watch_object;

/* Set while the module is being made and never after. */
static PyTypeObject *watch_type;

PyObject *binding_watch(PyObject *owner, void *target, binding_withdraw withdraw, encl_notifier *n,
                        uint64_t token) {
    allocfunc make = (allocfunc)PyType_GetSlot(watch_type, Py_tp_alloc);
    watch_object *self = (watch_object *)make(watch_type, 0);

    if (self != NULL) {
        encl_notifier_retain(n);
        self->owner = Py_NewRef(owner);
        self->notifier = n;
        self->target = target;
        self->withdraw = withdraw;
        self->token = token;
    }
    return (PyObject *)self;
}

static void end_watch(watch_object *self) {
    PyObject *owner = self->owner;

    if (owner == NULL) {
        return;
    }
    self->owner = NULL;
    Py_BEGIN_ALLOW_THREADS
        self->withdraw(self->target, self->notifier, self->token);
        encl_notifier_release(self->notifier);
    Py_END_ALLOW_THREADS
    Py_DECREF(owner);
}

static PyObject *watch_end(PyObject *self, PyObject *unused) {
    (void)unused;
    end_watch((watch_object *)self);
    Py_RETURN_NONE;
}

static void watch_dealloc(PyObject *self) {
    end_watch((watch_object *)self);
    binding_free(self);
}

static PyMethodDef watch_methods[] = {
    {"end", watch_end, METH_NOARGS, "Withdraws; what was announced before may still come."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot watch_slots[] = {
    {Py_tp_dealloc, watch_dealloc},
    {Py_tp_methods, watch_methods},
    {Py_tp_doc, "That somebody waits. Withdrawn by end(), or when nobody has this object."},
    {0, NULL},
};

static PyType_Spec watch_spec = {
    .name = "enclavia._core.Watch",
    .basicsize = sizeof(watch_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = watch_slots,
};

int binding_add_notifier(PyObject *module) {
    notifier_type = binding_add_type(module, &notifier_spec);
    watch_type = binding_add_type(module, &watch_spec);
    return notifier_type == NULL || watch_type == NULL ? -1 : 0;
}
