/* Watch: that somebody waits, for as long as this object lives. Decides when a registration is
 * taken back: by end(), or when nobody has the object. Registering and withdrawing take the
 * channel's lock, and so release the GIL. */
#include "python/binding.h"

typedef struct watch_object {
    PyObject_HEAD
    PyObject *owner;         /* a reference; NULL once ended */
    encl_notifier *notifier; /* a reference */
    void *target;
    const binding_source *source;
    uint64_t token;
} watch_object;

/* Set while the module is being made and never after. */
static PyTypeObject *watch_type;

static watch_object *make_watch(PyObject *owner, void *target, const binding_source *source,
                                encl_notifier *n, uint64_t token) {
    watch_object *self = (watch_object *)binding_make(watch_type);

    if (self != NULL) {
        encl_notifier_retain(n);
        self->owner = Py_NewRef(owner);
        self->notifier = n;
        self->target = target;
        self->source = source;
        self->token = token;
    }
    return self;
}

/* The object is made before the registration, so that there is never one without an object to take
 * it back. */
PyObject *binding_watch(PyObject *owner, void *target, const binding_source *source, int what,
                        encl_notifier *n, uint64_t token) {
    watch_object *self = make_watch(owner, target, source, n, token);
    encl_error err;
    encl_code rc;

    if (self == NULL) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
        rc = source->enlist(target, what, n, token, &err);
    Py_END_ALLOW_THREADS
    if (rc != ENCL_OK) {
        Py_DECREF(self);
        return binding_raise(&err);
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
        self->source->withdraw(self->target, self->notifier, self->token);
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
    {"end", watch_end, METH_NOARGS, "Withdraws; what was announced before may still arrive."},
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

int binding_add_watch(PyObject *module) {
    watch_type = binding_add_type(module, &watch_spec);
    return watch_type == NULL ? -1 : 0;
}
