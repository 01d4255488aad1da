/* Decides what the local enclave may be made of: modes, ports, PCRs, certificates and faults. Calls
 * CPython only. The GIL is held throughout; no lock. */
#include "python/enclave_arguments.h"

#include <limits.h>
#include <string.h>

#include "python/arguments.h"
#include "python/binding.h"

/* ---- mode, workload, TLS ---- */

static int read_mode(PyObject *value, void *mode) {
    static const char *const names[] = {"production", "debug", "stub"};
    encl_enclave_mode *out = mode;
    const char *name;

    if (!binding_text_of("mode", value, &name)) {
        return 0;
    }
    for (int i = 0; i < 3; i++) {
        if (strcmp(name, names[i]) == 0) {
            *out = (encl_enclave_mode)i;
            return 1;
        }
    }
    PyErr_Format(PyExc_ValueError, "mode: expected 'production', 'debug' or 'stub', got %R", value);
    return 0;
}

static int read_workload(PyObject *value, void *config) {
    binding_whole port = {"workload (port)", 1, UINT16_MAX, 0};
    encl_enclave_config *c = config;

    if (!PyTuple_Check(value) || PyTuple_Size(value) != 2) {
        return binding_wrong_type("workload", "(host, port)", value);
    }
    if (!binding_text_of("workload (host)", PyTuple_GetItem(value, 0), &c->workload_host) ||
        !binding_read_whole(PyTuple_GetItem(value, 1), &port)) {
        return 0;
    }
    c->workload_port = (uint16_t)port.value;
    return 1;
}

static int read_tls(PyObject *value, void *config) {
    encl_enclave_config *c = config;

    if (value == Py_None) {
        return 1;
    }
    if (!PyTuple_Check(value) || PyTuple_Size(value) != 2) {
        return binding_wrong_type("tls", "None or (certificate file, key file)", value);
    }
    return binding_text_of("tls (certificate)", PyTuple_GetItem(value, 0), &c->tls_cert_file) &&
           binding_text_of("tls (key)", PyTuple_GetItem(value, 1), &c->tls_key_file);
}

/* ---- the document ---- */

static bool read_pcr(PyObject *item, encl_doc_template *document) {
    binding_whole index = {"pcrs (index)", 0, ENCL_PCR_SLOTS - 1, 0};

    return binding_read_whole(PyTuple_GetItem(item, 0), &index) &&
           binding_pcr("pcrs", PyTuple_GetItem(item, 1), &document->pcrs[index.value]);
}

static int read_pcrs(PyObject *value, void *document) {
    PyObject *items;
    bool ok;

    if (!PyDict_Check(value)) {
        return binding_wrong_type("pcrs", "a dict of indexes and values", value);
    }
    items = PyDict_Items(value); /* a list of our own: reading an index may run Python code */
    ok = items != NULL;
    for (Py_ssize_t i = 0; ok && i < PyList_Size(items); i++) {
        ok = read_pcr(PyList_GetItem(items, i), document);
    }
    Py_XDECREF(items);
    return ok;
}

static bool read_certificates(PyObject *bundle, encl_doc_template *document) {
    Py_ssize_t count = PyTuple_Size(bundle);

    if (count > ENCL_CABUNDLE_MAX) {
        PyErr_Format(PyExc_ValueError, "cabundle: expected at most %d certificates, got %zd",
                     ENCL_CABUNDLE_MAX, count);
        return false;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        if (!binding_octets_of("cabundle", PyTuple_GetItem(bundle, i), &document->cabundle[i])) {
            return false;
        }
    }
    document->cabundle_len = (size_t)count;
    return true;
}

/* What is read of the arguments before the certificates are taken out of theirs. */
typedef struct document_arguments {
    binding_label module_id;
    binding_octets certificate, leaf_key;
    PyObject *cabundle;
} document_arguments;

static const document_arguments no_document = {
    .module_id = {.name = "module_id"},
    .certificate = {.name = "certificate"},
    .leaf_key = {.name = "leaf_key"},
};

static bool fill_document(const document_arguments *read, enclave_document *d) {
    d->template.module_id = read->module_id.utf8;
    d->template.certificate = read->certificate.bytes;
    d->leaf_key = read->leaf_key.bytes;
    d->cabundle = binding_members("cabundle", "a sequence of bytes", read->cabundle);
    return d->cabundle != NULL && read_certificates(d->cabundle, &d->template);
}

bool enclave_read_document(PyObject *args, PyObject *kwargs, enclave_document *document) {
    static char *names[] = {"module_id", "pcrs", "certificate", "cabundle", "leaf_key", NULL};
    document_arguments d = no_document;

    return PyArg_ParseTupleAndKeywords(args, kwargs, "O&O&O&OO&", names, binding_read_label,
                                       &d.module_id, read_pcrs, &document->template,
                                       binding_read_octets, &d.certificate, &d.cabundle,
                                       binding_read_octets, &d.leaf_key) != 0 &&
           fill_document(&d, document);
}

void enclave_document_free(enclave_document *document) {
    Py_CLEAR(document->cabundle);
}

/* ---- faults ---- */

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
    {"FAULT_UPGRADE_503", ENCL_FAULT_UPGRADE_503},
    {"FAULT_FULL", ENCL_FAULT_FULL},
    {"FAULT_SLOW", ENCL_FAULT_SLOW},
    {"FAULT_TRUNCATED", ENCL_FAULT_TRUNCATED},
};

#define ALL_FAULTS (((unsigned)ENCL_FAULT_TRUNCATED << 1) - 1)

int enclave_add_faults(PyObject *module) {
    for (size_t i = 0; i < sizeof fault_names / sizeof *fault_names; i++) {
        if (PyModule_AddIntConstant(module, fault_names[i].name, (long)fault_names[i].fault) != 0) {
            return -1;
        }
    }
    return 0;
}

typedef struct fault_arguments {
    binding_whole mask, split, record_length, truncated_after;
    binding_seconds delay;
    binding_octets instead, after;
} fault_arguments;

static const fault_arguments no_faults = {
    .mask = {"faults", 0, ALL_FAULTS, 0},
    .split = {"split", 0, PY_SSIZE_T_MAX, 0},
    .record_length = {"record_length", 0, UINT32_MAX, 0},
    .truncated_after = {"truncated_after", 0, PY_SSIZE_T_MAX, 0},
    .delay = {.name = "delay"},
    .instead = {.name = "instead_of_attestation", .bytes = {(const uint8_t *)"", 0}},
    .after = {.name = "after_attestation", .bytes = {(const uint8_t *)"", 0}},
};

static encl_enclave_faults faults_of(const fault_arguments *read) {
    return (encl_enclave_faults){
        .mask = (uint32_t)read->mask.value,
        .split = (size_t)read->split.value,
        .record_length = (uint32_t)read->record_length.value,
        .delay_ms = read->delay.ms,
        .truncated_after = (size_t)read->truncated_after.value,
        .instead_of_attestation = read->instead.bytes,
        .after_attestation = read->after.bytes,
    };
}

bool enclave_read_faults(PyObject *args, PyObject *kwargs, encl_enclave_faults *faults) {
    static char *names[] = {"faults",
                            "split",
                            "record_length",
                            "delay",
                            "truncated_after",
                            "instead_of_attestation",
                            "after_attestation",
                            NULL};
    fault_arguments f = no_faults;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|O&$O&O&O&O&O&O&", names, binding_read_whole,
                                     &f.mask, binding_read_whole, &f.split, binding_read_whole,
                                     &f.record_length, binding_read_seconds, &f.delay,
                                     binding_read_whole, &f.truncated_after, binding_read_octets,
                                     &f.instead, binding_read_octets, &f.after)) {
        return false;
    }
    *faults = faults_of(&f);
    return true;
}

/* ---- all of the constructor's ---- */

bool enclave_read_start(PyObject *args, PyObject *kwargs, enclave_document *document,
                        encl_enclave_config *config) {
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
                            "delay",
                            "truncated_after",
                            "instead_of_attestation",
                            "after_attestation",
                            NULL};
    document_arguments d = no_document;
    fault_arguments f = no_faults;
    binding_seconds idle = {.name = "idle_timeout"}, grace = {.name = "grace"};
    binding_seconds one_shot = {.name = "one_shot_timeout"};
    binding_whole connections = {"max_connections", 0, PY_SSIZE_T_MAX, 0};
    binding_whole port = {"port", 0, UINT16_MAX, 0};

    if (!PyArg_ParseTupleAndKeywords(
            args, kwargs, "O&O&O&O&O&OO&O&O&O&O&|O&O&O&O&O&O&O&O&O&", names, read_mode,
            &config->mode, read_workload, config, binding_read_label, &d.module_id, read_pcrs,
            &document->template, binding_read_octets, &d.certificate, &d.cabundle,
            binding_read_octets, &d.leaf_key, binding_read_seconds, &idle, binding_read_seconds,
            &grace, binding_read_seconds, &one_shot, binding_read_whole, &connections,
            binding_read_whole, &port, read_tls, config, binding_read_whole, &f.mask,
            binding_read_whole, &f.split, binding_read_whole, &f.record_length,
            binding_read_seconds, &f.delay, binding_read_whole, &f.truncated_after,
            binding_read_octets, &f.instead, binding_read_octets, &f.after) ||
        !fill_document(&d, document)) {
        return false;
    }
    config->document = document->template;
    config->leaf_key = document->leaf_key;
    config->idle_timeout_ms = idle.ms;
    config->grace_ms = grace.ms;
    config->one_shot_timeout_ms = one_shot.ms;
    config->max_connections = (size_t)connections.value;
    config->port = (uint16_t)port.value;
    config->faults = faults_of(&f);
    return true;
}

bool enclave_read_reset(PyObject *args, PyObject *kwargs, bool *reset) {
    static char *names[] = {"reset", NULL};
    binding_flag flag = {.name = "reset"};

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|O&", names, binding_read_flag, &flag)) {
        return false;
    }
    *reset = flag.value;
    return true;
}
