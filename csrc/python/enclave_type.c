#include "python/binding.h"

#include <math.h>
#include <pthread.h>
#include <string.h>

#include "base/secmem.h"
#include "enclave/enclave.h"

#define LONGEST_SECONDS 1e9

typedef struct enclave_object {
    PyObject_HEAD
    bool lock_made;
    uint64_t generation;     /* of the process that may use the lock */
    pthread_mutex_t lock;    /* guards both below; held without the GIL, or for a moment with it */
    encl_enclave *enclave;   /* NULL once stopped */
    encl_enclave_stats last; /* of a stopped one */
} enclave_object;

/* A document template and the Python objects that its slices point into. */
typedef struct document_args {
    encl_doc_template document;
    encl_slice leaf_key;
    PyObject *cabundle;
} document_args;

static const struct {
    const char *name;
    encl_fault fault;
} fault_names[] = {
    {"FAULT_WRONG_NONCE", ENCL_FAULT_WRONG_NONCE},
    {"FAULT_WRONG_PCRS", ENCL_FAULT_WRONG_PCRS},
    {"FAULT_BAD_SIGNATURE", ENCL_FAULT_BAD_SIGNATURE},
    {"FAULT_GARBAGE_RECORD", ENCL_FAULT_GARBAGE_RECORD},
    {"FAULT_SPLIT", ENCL_FAULT_SPLIT},
    {"FAULT_SILENT_HANDSHAKE", ENCL_FAULT_SILENT_HANDSHAKE},
    {"FAULT_SILENT_ATTESTATION", ENCL_FAULT_SILENT_ATTESTATION},
    {"FAULT_SHORT_HANDSHAKE", ENCL_FAULT_SHORT_HANDSHAKE},
    {"FAULT_LONG_HANDSHAKE", ENCL_FAULT_LONG_HANDSHAKE},
    {"FAULT_ZERO_KEY", ENCL_FAULT_ZERO_KEY},
    {"FAULT_TEXT_ONLY", ENCL_FAULT_TEXT_ONLY},
    {"FAULT_CLOSE_ON_REQUEST", ENCL_FAULT_CLOSE_ON_REQUEST},
    {"FAULT_HALF_RECORD_LOST", ENCL_FAULT_HALF_RECORD_LOST},
    {"FAULT_SILENT_STREAMS", ENCL_FAULT_SILENT_STREAMS},
    {"FAULT_RAW_RECORD_LENGTH", ENCL_FAULT_RAW_RECORD_LENGTH},
};

/* ---- arguments */

static bool read_mode(const char *name, encl_enclave_mode *mode) {
    static const char *const names[] = {"production", "debug", "stub"};

    for (int i = 0; i < 3; i++) {
        if (strcmp(name, names[i]) == 0) {
            *mode = (encl_enclave_mode)i;
            return true;
        }
    }
    PyErr_Format(PyExc_ValueError, "mode: expected 'production', 'debug' or 'stub', got '%s'",
                 name);
    return false;
}

static bool read_port(const char *what, long value, long least, uint16_t *port) {
    if (value < least || value > 65535) {
        PyErr_Format(PyExc_ValueError, "%s: expected a port of %ld to 65535, got %ld", what, least,
                     value);
        return false;
    }
    *port = (uint16_t)value;
    return true;
}

static bool read_seconds(const char *what, double seconds, uint64_t *ms) {
    if (!isfinite(seconds) || seconds < 0 || seconds > LONGEST_SECONDS) {
        PyErr_Format(PyExc_ValueError, "%s: expected 0 to 1e9 seconds", what);
        return false;
    }
    *ms = (uint64_t)llround(seconds * 1000);
    return true;
}

static bool read_size(const char *what, Py_ssize_t value, size_t *size) {
    if (value < 0) {
        PyErr_Format(PyExc_ValueError, "%s: expected at least 0, got %zd", what, value);
        return false;
    }
    *size = (size_t)value;
    return true;
}

static bool read_pcrs(PyObject *dict, encl_doc_template *document) {
    PyObject *key, *value;
    Py_ssize_t at = 0;

    while (PyDict_Next(dict, &at, &key, &value)) {
        long index = PyLong_AsLong(key);

        if (index == -1 && PyErr_Occurred() != NULL) {
            return false;
        }
        if (index < 0 || index >= ENCL_PCR_SLOTS) {
            PyErr_Format(PyExc_ValueError, "pcrs: expected indexes of 0 to %d, got %ld",
                         ENCL_PCR_SLOTS - 1, index);
            return false;
        }
        if (!binding_pcr(value, &document->pcrs[index])) {
            return false;
        }
    }
    return true;
}

static bool read_certificates(PyObject *bundle, encl_doc_template *document) {
    Py_ssize_t count = PyTuple_Size(bundle);

    if (count < 0 || count > ENCL_CABUNDLE_MAX) {
        PyErr_Format(PyExc_ValueError, "cabundle: expected at most %d certificates, got %zd",
                     ENCL_CABUNDLE_MAX, count);
        return false;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        char *der;
        Py_ssize_t len;

        if (PyBytes_AsStringAndSize(PyTuple_GetItem(bundle, i), &der, &len) != 0) {
            return false;
        }
        document->cabundle[i] = ENCL_SLICE(der, (size_t)len);
    }
    document->cabundle_len = (size_t)count;
    return true;
}

/* Made of parsed arguments; document_free is due in any case. */
static bool document_read(document_args *d, PyObject *pcrs, PyObject *cabundle) {
    d->cabundle = PySequence_Tuple(cabundle);
    return d->cabundle != NULL && read_certificates(d->cabundle, &d->document) &&
           read_pcrs(pcrs, &d->document);
}

static void document_free(document_args *d) {
    Py_CLEAR(d->cabundle);
}

typedef struct fault_args {
    unsigned int mask;
    Py_ssize_t split, instead_len, after_len;
    unsigned int record_length;
    const char *instead, *after;
} fault_args;

static bool faults_read(const fault_args *args, encl_enclave_faults *faults) {
    *faults = (encl_enclave_faults){
        .mask = args->mask,
        .record_length = args->record_length,
        .instead_of_attestation = ENCL_SLICE(args->instead, (size_t)args->instead_len),
        .after_attestation = ENCL_SLICE(args->after, (size_t)args->after_len),
    };
    return read_size("split", args->split, &faults->split);
}

/* ---- life */

/* A forked child's copy of the lock may be held for ever by a thread that is not there. Nothing is
 * changed in a child, so it needs none. */
static bool is_forked(const enclave_object *self) {
    return self->generation != encl_fork_generation();
}

static void hold(enclave_object *self) {
    if (!is_forked(self)) {
        pthread_mutex_lock(&self->lock);
    }
}

static void let_go(enclave_object *self) {
    if (!is_forked(self)) {
        pthread_mutex_unlock(&self->lock);
    }
}

typedef struct start_args {
    const char *mode, *workload_host, *module_id, *certificate, *leaf_key;
    Py_ssize_t module_id_len, certificate_len, leaf_key_len, max_connections;
    int workload_port, port;
    PyObject *pcrs, *cabundle, *tls;
    double idle_timeout, grace, one_shot_timeout;
    fault_args faults;
} start_args;

static bool parse_start(PyObject *args, PyObject *kwargs, start_args *a) {
    static char *names[] = {"mode",
                            "workload",
                            "module_id",
                            "pcrs",
                            "certificate",
                            "cabundle",
                            "leaf_key",
                            "idle_timeout",
                            "grace",
                            "one_shot_timeout",
                            "max_connections",
                            "port",
                            "tls",
                            "faults",
                            "split",
                            "record_length",
                            "instead_of_attestation",
                            "after_attestation",
                            NULL};

    a->tls = Py_None;
    a->faults.instead = a->faults.after = "";
    return PyArg_ParseTupleAndKeywords(
               args, kwargs, "s(si)s#O!y#Oy#dddn|iOInIy#y#", names, &a->mode, &a->workload_host,
               &a->workload_port, &a->module_id, &a->module_id_len, &PyDict_Type, &a->pcrs,
               &a->certificate, &a->certificate_len, &a->cabundle, &a->leaf_key, &a->leaf_key_len,
               &a->idle_timeout, &a->grace, &a->one_shot_timeout, &a->max_connections, &a->port,
               &a->tls, &a->faults.mask, &a->faults.split, &a->faults.record_length,
               &a->faults.instead, &a->faults.instead_len, &a->faults.after,
               &a->faults.after_len) != 0;
}

static bool read_tls(PyObject *tls, encl_enclave_config *config) {
    if (tls == Py_None) {
        return true;
    }
    if (!PyTuple_Check(tls)) {
        PyErr_SetString(PyExc_TypeError, "tls: expected None or (certificate file, key file)");
        return false;
    }
    return PyArg_ParseTuple(tls, "ss", &config->tls_cert_file, &config->tls_key_file) != 0;
}

static bool read_start(const start_args *a, document_args *d, encl_enclave_config *config) {
    d->document.module_id = ENCL_SLICE(a->module_id, (size_t)a->module_id_len);
    d->document.certificate = ENCL_SLICE(a->certificate, (size_t)a->certificate_len);
    d->leaf_key = ENCL_SLICE(a->leaf_key, (size_t)a->leaf_key_len);
    if (!document_read(d, a->pcrs, a->cabundle) || !read_mode(a->mode, &config->mode) ||
        !read_port("workload", a->workload_port, 1, &config->workload_port) ||
        !read_port("port", a->port, 0, &config->port) || !read_tls(a->tls, config) ||
        !read_seconds("idle_timeout", a->idle_timeout, &config->idle_timeout_ms) ||
        !read_seconds("grace", a->grace, &config->grace_ms) ||
        !read_seconds("one_shot_timeout", a->one_shot_timeout, &config->one_shot_timeout_ms) ||
        !read_size("max_connections", a->max_connections, &config->max_connections) ||
        !faults_read(&a->faults, &config->faults)) {
        return false;
    }
    config->workload_host = a->workload_host;
    config->document = d->document;
    config->leaf_key = d->leaf_key;
    return true;
}

static PyObject *start(PyTypeObject *type, const encl_enclave_config *config) {
    allocfunc make = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    enclave_object *self = (enclave_object *)make(type, 0);
    encl_error err;
    encl_code rc;

    if (self == NULL) {
        return NULL;
    }
    if (pthread_mutex_init(&self->lock, NULL) != 0) {
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
    document_args document = {0};
    start_args parsed = {0};
    PyObject *self = NULL;

    if (!parse_start(args, kwargs, &parsed)) {
        return NULL;
    }
    if (read_start(&parsed, &document, &config)) {
        self = start(type, &config);
    }
    document_free(&document);
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
            pthread_mutex_destroy(&self->lock);
        }
    }
    binding_free(object);
}

/* ---- what can be asked of a running one */

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

static PyObject *enclave_set_faults(PyObject *object, PyObject *args, PyObject *kwargs) {
    static char *names[] = {
        "faults", "split", "record_length", "instead_of_attestation", "after_attestation", NULL};
    enclave_object *self = (enclave_object *)object;
    fault_args parsed = {.instead = "", .after = ""};
    encl_enclave_faults faults;
    encl_error err;
    encl_code rc;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|I$nIy#y#", names, &parsed.mask, &parsed.split,
                                     &parsed.record_length, &parsed.instead, &parsed.instead_len,
                                     &parsed.after, &parsed.after_len) ||
        !faults_read(&parsed, &faults)) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
        hold(self);
        rc = self->enclave == NULL ? encl_fail(&err, ENCL_E_STATE, "this enclave is stopped")
                                   : encl_enclave_set_faults(self->enclave, &faults, &err);
        let_go(self);
    Py_END_ALLOW_THREADS
    if (rc != ENCL_OK) {
        return binding_raise(&err);
    }
    Py_RETURN_NONE;
}

static encl_code set_document(enclave_object *self, const document_args *d, encl_error *err) {
    encl_code rc;

    Py_BEGIN_ALLOW_THREADS
        hold(self);
        rc = self->enclave == NULL
                 ? encl_fail(err, ENCL_E_STATE, "this enclave is stopped")
                 : encl_enclave_set_document(self->enclave, &d->document, d->leaf_key, err);
        let_go(self);
    Py_END_ALLOW_THREADS
    return rc;
}

static PyObject *enclave_set_document(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"module_id", "pcrs", "certificate", "cabundle", "leaf_key", NULL};
    const char *module_id, *certificate, *leaf_key;
    Py_ssize_t module_id_len, certificate_len, leaf_key_len;
    PyObject *pcrs, *cabundle, *result = NULL;
    document_args d = {0};
    encl_error err;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "s#O!y#Oy#", names, &module_id, &module_id_len,
                                     &PyDict_Type, &pcrs, &certificate, &certificate_len, &cabundle,
                                     &leaf_key, &leaf_key_len)) {
        return NULL;
    }
    d.document.module_id = ENCL_SLICE(module_id, (size_t)module_id_len);
    d.document.certificate = ENCL_SLICE(certificate, (size_t)certificate_len);
    d.leaf_key = ENCL_SLICE(leaf_key, (size_t)leaf_key_len);
    if (document_read(&d, pcrs, cabundle)) {
        result = set_document((enclave_object *)self, &d, &err) == ENCL_OK ? Py_NewRef(Py_None)
                                                                           : binding_raise(&err);
    }
    document_free(&d);
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
    static char *names[] = {"reset", NULL};
    enclave_object *self = (enclave_object *)object;
    int reset = 0;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|p", names, &reset)) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
        hold(self);
        if (self->enclave != NULL) {
            encl_enclave_drop_connections(self->enclave, reset != 0);
        }
        let_go(self);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

#define KEYWORDS(function) ((PyCFunction)(void (*)(void))(function))

static PyMethodDef enclave_methods[] = {
    {"set_faults", KEYWORDS(enclave_set_faults), METH_VARARGS | METH_KEYWORDS,
     "Switches exactly these faults on, all others off."},
    {"set_document", KEYWORDS(enclave_set_document), METH_VARARGS | METH_KEYWORDS,
     "Another identity from now on; open connections stay."},
    {"stats", enclave_stats, METH_NOARGS, "Counters; of a stopped enclave the last ones."},
    {"drop_connections", KEYWORDS(enclave_drop_connections), METH_VARARGS | METH_KEYWORDS,
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
    for (size_t i = 0; i < sizeof fault_names / sizeof *fault_names; i++) {
        if (PyModule_AddIntConstant(module, fault_names[i].name, (long)fault_names[i].fault) != 0) {
            return -1;
        }
    }
    return 0;
}
