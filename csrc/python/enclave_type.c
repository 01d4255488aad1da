/* Enclave: a local enclave, for tests. Decides what can still be asked of a stopped one. Its lock
 * guards which enclave the object has; it is waited for with the GIL released. Calls csrc/enclave
 * with that lock held, except for stopping, which waits for the enclave's thread. */
#include "python/binding.h"

#include "base/secmem.h"
#include "enclave/enclave.h"
#include "python/enclave_arguments.h"
#include "sync/lock.h"

typedef struct enclave_object {
    PyObject_HEAD
    bool lock_made;
    uint64_t generation;     /* of the process that may use the lock */
    encl_mutex lock;         /* guards both below; held without the GIL, or for a moment with it */
    encl_enclave *enclave;   /* NULL once stopped */
    encl_enclave_stats last; /* of a stopped one */
} enclave_object;

/* ---- life ---- */

/* A forked child's copy of the lock may be held for ever by a thread that is not there. Nothing is
 * changed in a child, so it needs none. That is also why hold and let_go themselves are left out by
 * the analysis: their callers are to let go what they hold, in both processes. */
static bool is_forked(const enclave_object *self) {
    return self->generation != encl_fork_generation();
}

static void hold(enclave_object *self) ENCL_ACQUIRES(self->lock);
static void let_go(enclave_object *self) ENCL_RELEASES(self->lock);

ENCL_LOCK_UNCHECKED static void hold(enclave_object *self) {
    if (!is_forked(self)) {
        encl_lock(&self->lock);
    }
}

ENCL_LOCK_UNCHECKED static void let_go(enclave_object *self) {
    if (!is_forked(self)) {
        encl_unlock(&self->lock);
    }
}

static PyObject *start(PyTypeObject *type, const encl_enclave_config *config) {
    enclave_object *self = (enclave_object *)binding_make(type);
    encl_error err;
    encl_code rc;

    if (self == NULL) {
        return NULL;
    }
    if (!encl_mutex_init(&self->lock)) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    self->lock_made = true;
    self->generation = encl_fork_generation();
    Py_BEGIN_ALLOW_THREADS
        rc = encl_enclave_start(config, &self->enclave, &err);
    Py_END_ALLOW_THREADS
    if (rc != ENCL_OK) {
        Py_DECREF(self);
        return binding_raise(&err);
    }
    return (PyObject *)self;
}

static PyObject *enclave_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    encl_enclave_config config = {0};
    enclave_document document = {0};
    PyObject *self = NULL;

    if (enclave_read_start(args, kwargs, &document, &config)) {
        self = start(type, &config);
    }
    enclave_document_free(&document);
    return self;
}

/* Without the GIL. */
static void stop(enclave_object *self) {
    encl_enclave *enclave;

    if (is_forked(self)) {
        return;
    }
    hold(self);
    enclave = self->enclave;
    self->enclave = NULL;
    if (enclave != NULL) {
        encl_enclave_get_stats(enclave, &self->last);
        self->last.connections_open = self->last.slots_open = 0;
    }
    let_go(self);
    encl_enclave_stop(enclave);
}

static PyObject *enclave_stop(PyObject *self, PyObject *unused) {
    (void)unused;
    Py_BEGIN_ALLOW_THREADS
        stop((enclave_object *)self);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static void enclave_dealloc(PyObject *object) {
    enclave_object *self = (enclave_object *)object;

    if (self->lock_made) {
        Py_BEGIN_ALLOW_THREADS
            stop(self);
        Py_END_ALLOW_THREADS
        if (!is_forked(self)) {
            encl_mutex_destroy(&self->lock);
        }
    }
    binding_free(object);
}

/* ---- what can be asked of a running one ---- */

static PyObject *raise_stopped(void) {
    encl_error err;

    (void)encl_fail(&err, ENCL_E_STATE, "this enclave is stopped");
    return binding_raise(&err);
}

static PyObject *enclave_port(PyObject *object, void *unused) {
    enclave_object *self = (enclave_object *)object;
    int port = -1;

    (void)unused;
    Py_BEGIN_ALLOW_THREADS
        hold(self);
        if (self->enclave != NULL) {
            port = encl_enclave_port(self->enclave);
        }
        let_go(self);
    Py_END_ALLOW_THREADS
    return port < 0 ? raise_stopped() : PyLong_FromLong(port);
}

/* Runs with the object's lock; the enclave is not NULL. */
typedef encl_code (*enclave_change)(encl_enclave *enclave, const void *context, encl_error *err);

/* None, or NULL with an exception set. */
static PyObject *change(PyObject *object, enclave_change make, const void *context) {
    enclave_object *self = (enclave_object *)object;
    encl_error err;
    encl_code rc;

    Py_BEGIN_ALLOW_THREADS
        hold(self);
        rc = self->enclave == NULL ? encl_fail(&err, ENCL_E_STATE, "this enclave is stopped")
                                   : make(self->enclave, context, &err);
        let_go(self);
    Py_END_ALLOW_THREADS
    return rc == ENCL_OK ? Py_NewRef(Py_None) : binding_raise(&err);
}

static encl_code change_faults(encl_enclave *enclave, const void *faults, encl_error *err) {
    return encl_enclave_set_faults(enclave, faults, err);
}

static PyObject *enclave_set_faults(PyObject *self, PyObject *args, PyObject *kwargs) {
    encl_enclave_faults faults;

    return enclave_read_faults(args, kwargs, &faults) ? change(self, change_faults, &faults) : NULL;
}

static encl_code change_document(encl_enclave *enclave, const void *document, encl_error *err) {
    const enclave_document *d = document;

    return encl_enclave_set_document(enclave, &d->template, d->leaf_key, err);
}

static PyObject *enclave_set_document(PyObject *self, PyObject *args, PyObject *kwargs) {
    enclave_document document = {0};
    PyObject *result = NULL;

    if (enclave_read_document(args, kwargs, &document)) {
        result = change(self, change_document, &document);
    }
    enclave_document_free(&document);
    return result;
}

static PyObject *enclave_stats(PyObject *object, PyObject *unused) {
    enclave_object *self = (enclave_object *)object;
    encl_enclave_stats s;

    (void)unused;
    Py_BEGIN_ALLOW_THREADS
        hold(self);
        s = self->last;
        if (self->enclave != NULL) {
            encl_enclave_get_stats(self->enclave, &s);
        }
        let_go(self);
    Py_END_ALLOW_THREADS
    return Py_BuildValue("{s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K}", "connections_total",
                         s.connections_total, "connections_open", s.connections_open, "slots_open",
                         s.slots_open, "streams_total", s.streams_total, "requests_total",
                         s.requests_total, "attestations_total", s.attestations_total,
                         "bytes_from_workload", s.bytes_from_workload, "bytes_to_workload",
                         s.bytes_to_workload, "protocol_errors", s.protocol_errors);
}

static PyObject *enclave_drop_connections(PyObject *object, PyObject *args, PyObject *kwargs) {
    enclave_object *self = (enclave_object *)object;
    bool reset;

    if (!enclave_read_reset(args, kwargs, &reset)) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
        hold(self);
        if (self->enclave != NULL) {
            encl_enclave_drop_connections(self->enclave, reset);
        }
        let_go(self);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyMethodDef enclave_methods[] = {
    {"set_faults", BINDING_CALL(enclave_set_faults), METH_VARARGS | METH_KEYWORDS,
     "Switches exactly these faults on, all others off."},
    {"set_document", BINDING_CALL(enclave_set_document), METH_VARARGS | METH_KEYWORDS,
     "Another identity from now on; open connections stay."},
    {"stats", enclave_stats, METH_NOARGS, "Counters; of a stopped enclave the last ones."},
    {"drop_connections", BINDING_CALL(enclave_drop_connections), METH_VARARGS | METH_KEYWORDS,
     "Ends every connection at once, and goes on listening."},
    {"stop", enclave_stop, METH_NOARGS, "Ends everything. May be called again."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef enclave_getset[] = {
    {"port", enclave_port, NULL, "Where it listens, on 127.0.0.1.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot enclave_slots[] = {
    {Py_tp_new, enclave_new},
    {Py_tp_dealloc, enclave_dealloc},
    {Py_tp_methods, enclave_methods},
    {Py_tp_getset, enclave_getset},
    {Py_tp_doc, "A local enclave in front of a TCP workload, for tests. Listens once made."},
    {0, NULL},
};

static PyType_Spec enclave_spec = {
    .name = "enclavia._core.Enclave",
    .basicsize = sizeof(enclave_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = enclave_slots,
};

int binding_add_enclave(PyObject *module) {
    PyTypeObject *type = binding_add_type(module, &enclave_spec);

    if (type == NULL) {
        return -1;
    }
    Py_DECREF(type); /* the module holds it */
    return enclave_add_faults(module);
}
