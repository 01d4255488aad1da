#include "python/binding.h"

#include <stdlib.h>
#include <string.h>

typedef struct policy_object {
    PyObject_HEAD
    encl_policy policy;
} policy_object;

/* One per interpreter process; set while the module is being made and never after. */
static PyTypeObject *policy_type;

/* *out is NULL for None alone: an empty sequence is passed on, for encl_policy_init to refuse. */
static bool read_pins(PyObject *sequence, encl_pins **out, size_t *count) {
    Py_ssize_t n;
    encl_pins *pins;

    *out = NULL;
    *count = 0;
    if (sequence == Py_None) {
        return true;
    }
    n = PySequence_Size(sequence);

    if (n < 0) {
        return false;
    }
    if (n > 1024) {
        PyErr_SetString(PyExc_ValueError, "pins: expected at most 1024 sets");
        return false;
    }
    pins = calloc((size_t)n + 1, sizeof *pins);
    if (pins == NULL) {
        PyErr_NoMemory();
        return false;
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *set = PySequence_GetItem(sequence, i);
        bool ok = set != NULL && PyTuple_Check(set) && PyTuple_Size(set) == ENCL_PINNED_PCRS;

        if (set != NULL && !ok) {
            PyErr_SetString(PyExc_TypeError, "pins: expected tuples of (PCR0, PCR1, PCR2)");
        }
        for (Py_ssize_t k = 0; ok && k < ENCL_PINNED_PCRS; k++) {
            ok = binding_pcr(PyTuple_GetItem(set, k), &pins[i].pcr[k]);
        }
        Py_XDECREF(set);
        if (!ok) {
            free(pins);
            return false;
        }
    }
    *out = pins;
    *count = (size_t)n;
    return true;
}

/* None is "not given" (data NULL); bytes stay borrowed and their data is never NULL, also where
 * there are none. */
static bool bytes_or_none(PyObject *value, const char *what, encl_slice *out) {
    char *data;
    Py_ssize_t len;

    *out = ENCL_SLICE_NONE;
    if (value == Py_None) {
        return true;
    }
    if (!PyBytes_Check(value)) {
        PyErr_Format(PyExc_TypeError, "%s: expected bytes or None", what);
        return false;
    }
    if (PyBytes_AsStringAndSize(value, &data, &len) != 0) {
        return false;
    }
    *out = ENCL_SLICE(data, (size_t)len);
    return true;
}

static PyObject *policy_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"pins", "root", "debug", "need_pins", "clock_leeway", NULL};
    allocfunc make = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    policy_object *self;
    PyObject *pins_arg, *root_arg;
    encl_slice root;
    int debug, need_pins;
    long long clock_leeway = 0;
    encl_pins *pins;
    size_t count;
    encl_error err;
    encl_code rc;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOpp|L", names, &pins_arg, &root_arg, &debug,
                                     &need_pins, &clock_leeway) ||
        !bytes_or_none(root_arg, "root", &root) || !read_pins(pins_arg, &pins, &count)) {
        return NULL;
    }
    self = (policy_object *)make(type, 0);
    if (self == NULL) {
        free(pins);
        return NULL;
    }
    rc = encl_policy_init(&self->policy, pins, count, root, debug != 0, need_pins != 0, &err);
    free(pins);
    if (rc == ENCL_OK) {
        rc = encl_policy_set_clock_leeway(&self->policy, clock_leeway, &err);
    }
    if (rc != ENCL_OK) {
        Py_DECREF(self);
        return binding_raise(&err);
    }
    return (PyObject *)self;
}

static void policy_dealloc(PyObject *self) {
    encl_policy_free(&((policy_object *)self)->policy);
    binding_free(self);
}

static PyType_Slot policy_slots[] = {
    {Py_tp_new, policy_new},
    {Py_tp_dealloc, policy_dealloc},
    {Py_tp_doc, "Pins, root and mode, checked and copied."},
    {0, NULL},
};

static PyType_Spec policy_spec = {
    .name = "enclavia._core.Policy",
    .basicsize = sizeof(policy_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = policy_slots,
};

const encl_policy *binding_policy(PyObject *policy) {
    if (!PyObject_TypeCheck(policy, policy_type)) {
        PyErr_SetString(PyExc_TypeError, "policy: expected a Policy");
        return NULL;
    }
    return &((policy_object *)policy)->policy;
}

static PyObject *verify(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"document", "policy", "nonce", "at", NULL};
    Py_buffer document;
    PyObject *policy_arg, *nonce_arg, *result;
    const encl_policy *policy;
    encl_slice nonce;
    long long at;
    encl_attestation *attestation = NULL;
    encl_error err;
    encl_code rc;

    (void)module;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "y*OOL", names, &document, &policy_arg,
                                     &nonce_arg, &at)) {
        return NULL;
    }
    policy = binding_policy(policy_arg);
    if (policy == NULL || !bytes_or_none(nonce_arg, "nonce", &nonce)) {
        PyBuffer_Release(&document);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
        rc = encl_attest_verify(ENCL_SLICE(document.buf, (size_t)document.len), policy, nonce, at,
                                NULL, &attestation, &err);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&document);
    if (rc != ENCL_OK) {
        return binding_raise(&err);
    }
    result = binding_attestation(attestation);
    encl_attestation_free(attestation);
    return result;
}

static PyMethodDef functions[] = {
    {"verify", (PyCFunction)(void (*)(void))verify, METH_VARARGS | METH_KEYWORDS,
     "Verifies an attestation document (AWS Nitro Enclaves; RFC 9052, RFC 5280)."},
    {NULL, NULL, 0, NULL},
};

int binding_add_policy(PyObject *module) {
    encl_slice root = encl_aws_root_g1();
    PyObject *der = binding_bytes(root);
    int rc = der == NULL ? -1 : PyModule_AddObjectRef(module, "AWS_ROOT_G1", der);

    Py_XDECREF(der);
    if (rc != 0) {
        return -1;
    }
    policy_type = binding_add_type(module, &policy_spec);
    return policy_type == NULL ? -1 : PyModule_AddFunctions(module, functions);
}
