/* Policy: pins, root and mode, checked and copied; and verify, which judges one document. Decides
 * nothing itself: attest/ does, which calls OpenSSL. That works for long, and fork() is held back
 * meanwhile, so the GIL is released. No lock: a policy does not change once it is made. */
#include "python/arguments.h"
#include "python/binding.h"
#include "sync/fork.h"
#include "sync/together.h"

#include <limits.h>
#include <stdlib.h>

typedef struct policy_object {
    PyObject_HEAD
    encl_policy policy;
} policy_object;

/* One per interpreter process; set while the module is being made and never after. */
static PyTypeObject *policy_type;

#define PINS_MAX 1024

/* One of (index, value). The index is a further PCR's, and stands in a set once. */
static bool read_further_pin(PyObject *pair, encl_pins *pins) {
    long long index;

    if (!PyTuple_Check(pair) || PyTuple_Size(pair) != 2) {
        return binding_wrong_type("pins", "(index, value) after PCR2", pair);
    }
    if (!PyLong_Check(PyTuple_GetItem(pair, 0))) {
        return binding_wrong_type("pins", "an index that is an int", PyTuple_GetItem(pair, 0));
    }
    index = PyLong_AsLongLong(PyTuple_GetItem(pair, 0));
    if (index == -1 && PyErr_Occurred() != NULL) {
        PyErr_Clear(); /* beyond 64 bits: as wrong as any other index that there is not */
    }
    if (index < ENCL_PINNED_PCRS || index >= ENCL_PCR_SLOTS) {
        PyErr_Format(PyExc_ValueError, "pins: expected a further index of %d to %d, got %S",
                     ENCL_PINNED_PCRS, ENCL_PCR_SLOTS - 1, PyTuple_GetItem(pair, 0));
        return false;
    }
    if (pins->pcr[index].len != 0) {
        PyErr_Format(PyExc_ValueError, "pins: expected PCR%lld once, got it twice", index);
        return false;
    }
    return binding_pcr("pins", PyTuple_GetItem(pair, 1), &pins->pcr[index]);
}

static bool read_pin_set(PyObject *set, encl_pins *pins) {
    if (!PyTuple_Check(set) || PyTuple_Size(set) < ENCL_PINNED_PCRS) {
        return binding_wrong_type("pins", "tuples of (PCR0, PCR1, PCR2)", set);
    }
    for (Py_ssize_t i = 0; i < ENCL_PINNED_PCRS; i++) {
        if (!binding_pcr("pins", PyTuple_GetItem(set, i), &pins->pcr[i])) {
            return false;
        }
    }
    for (Py_ssize_t i = ENCL_PINNED_PCRS; i < PyTuple_Size(set); i++) {
        if (!read_further_pin(PyTuple_GetItem(set, i), pins)) {
            return false;
        }
    }
    return true;
}

/* A block of the caller's; NULL with an exception set. */
static encl_pins *read_pin_sets(PyObject *sets, Py_ssize_t n) {
    encl_pins *pins;

    if (n > PINS_MAX) {
        PyErr_Format(PyExc_ValueError, "pins: expected at most %d sets, got %zd", PINS_MAX, n);
        return NULL;
    }
    pins = calloc((size_t)n + 1, sizeof *pins);
    if (pins == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        if (!read_pin_set(PyTuple_GetItem(sets, i), &pins[i])) {
            free(pins);
            return NULL;
        }
    }
    return pins;
}

/* *out is NULL for None alone: an empty sequence is passed on, for encl_policy_init to refuse. */
static bool read_pins(PyObject *sequence, encl_pins **out, size_t *count) {
    PyObject *sets;

    *out = NULL;
    *count = 0;
    if (sequence == Py_None) {
        return true;
    }
    sets = binding_members("pins", "a sequence of (PCR0, PCR1, PCR2) or None", sequence);
    if (sets == NULL) {
        return false;
    }
    *count = (size_t)PyTuple_Size(sets);
    *out = read_pin_sets(sets, PyTuple_Size(sets));
    Py_DECREF(sets);
    return *out != NULL;
}

static PyObject *policy_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"pins", "root", "debug", "need_pins", "clock_leeway", NULL};
    binding_octets root = {.name = "root", .optional = true};
    binding_flag debug = {.name = "debug"}, need_pins = {.name = "need_pins"};
    binding_whole leeway = {"clock_leeway", 0, ENCL_CLOCK_LEEWAY_MAX, 0};
    policy_object *self;
    PyObject *pins_arg;
    encl_pins *pins;
    size_t count;
    encl_error err;
    encl_code rc;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO&O&O&|O&", names, &pins_arg,
                                     binding_read_octets, &root, binding_read_flag, &debug,
                                     binding_read_flag, &need_pins, binding_read_whole, &leeway) ||
        !read_pins(pins_arg, &pins, &count)) {
        return NULL;
    }
    self = (policy_object *)binding_make(type);
    if (self == NULL) {
        free(pins);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
        encl_fork_hold();
        rc = encl_policy_init(&self->policy, pins, count, root.bytes, debug.value, need_pins.value,
                              &err);
        encl_fork_let_go();
    Py_END_ALLOW_THREADS
    free(pins);
#ifndef ENCL_WEB /* where there is one thread */
    self->policy.each = encl_together;
#endif
    if (rc == ENCL_OK) {
        rc = encl_policy_set_clock_leeway(&self->policy, leeway.value, &err);
    }
    if (rc != ENCL_OK) {
        Py_DECREF(self);
        return binding_raise(&err);
    }
    return (PyObject *)self;
}

static void policy_dealloc(PyObject *self) {
    Py_BEGIN_ALLOW_THREADS
        encl_fork_hold();
        encl_policy_free(&((policy_object *)self)->policy);
        encl_fork_let_go();
    Py_END_ALLOW_THREADS
    binding_free(self);
}

static PyObject *policy_root(PyObject *self, void *unused) {
    const encl_policy *policy = &((policy_object *)self)->policy;

    (void)unused;
    return binding_bytes(ENCL_SLICE(policy->root, policy->root_len));
}

static PyGetSetDef policy_properties[] = {
    {"root", policy_root, NULL, "The root certificate that it trusts, DER.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot policy_slots[] = {
    {Py_tp_new, policy_new},
    {Py_tp_dealloc, policy_dealloc},
    {Py_tp_getset, policy_properties},
    {Py_tp_doc, "Pins, root and mode, checked and copied."},
    {0, NULL},
};

static PyType_Spec policy_spec = {
    .name = "enclavia._core.Policy",
    .basicsize = sizeof(policy_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = policy_slots,
};

int binding_read_policy(PyObject *value, void *policy) {
    const encl_policy **out = policy;

    if (!PyObject_TypeCheck(value, policy_type)) {
        return binding_wrong_type("policy", "a Policy", value);
    }
    *out = &((policy_object *)value)->policy;
    return 1;
}

static PyObject *verify(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"document", "policy", "nonce", "at", NULL};
    binding_buffer document = {.name = "document"};
    binding_octets nonce = {.name = "nonce", .optional = true};
    binding_whole at = {"at", LLONG_MIN, LLONG_MAX, 0};
    const encl_policy *policy;
    encl_attestation *attestation = NULL;
    PyObject *result;
    encl_error err;
    encl_code rc;

    (void)module;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&O&O&O&", names, binding_read_buffer,
                                     &document, binding_read_policy, &policy, binding_read_octets,
                                     &nonce, binding_read_whole, &at)) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
        encl_fork_hold();
        rc = encl_attest_verify(ENCL_SLICE(document.view.buf, (size_t)document.view.len), policy,
                                nonce.bytes, at.value, NULL, &attestation, &err);
        encl_fork_let_go();
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&document.view);
    if (rc != ENCL_OK) {
        return binding_raise(&err);
    }
    result = binding_attestation(attestation);
    encl_attestation_free(attestation);
    return result;
}

static PyMethodDef functions[] = {
    {"verify", BINDING_CALL(verify), METH_VARARGS | METH_KEYWORDS,
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
