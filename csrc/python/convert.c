/* What the core has, as Python objects: errors, bytes, attestations; and what all types here need.
 * Decides which detail of an error its exception gets. Calls CPython and enclavia._errors. The GIL
 * is held throughout; no lock. */
#include "python/arguments.h"
#include "python/binding.h"

#include <string.h>

bool binding_put(PyObject *dict, const char *key, PyObject *value) {
    int rc = value == NULL ? -1 : PyDict_SetItemString(dict, key, value);

    Py_XDECREF(value);
    return rc == 0;
}

static PyObject *error_detail(const encl_error *err) {
    switch (err->code) {
    case ENCL_E_PCR:
        return Py_BuildValue(
            "{s:i,s:y#,s:y#}", "index", err->detail.pcr.index, "expected",
            (const char *)err->detail.pcr.expected, (Py_ssize_t)err->detail.pcr.expected_len,
            "actual", (const char *)err->detail.pcr.actual, (Py_ssize_t)err->detail.pcr.actual_len);
    case ENCL_E_SERVER:
        return Py_BuildValue("{s:K}", "id", (unsigned long long)err->detail.server.id);
    case ENCL_E_UPGRADE_REJECTED:
        return Py_BuildValue("{s:i,s:y#}", "status", err->detail.upgrade.status, "head",
                             (const char *)err->detail.upgrade.head,
                             (Py_ssize_t)err->detail.upgrade.head_len);
    default:
        return PyDict_New();
    }
}

static PyObject *detail_and_hint(const encl_error *err) {
    PyObject *detail = error_detail(err);
    const char *hint = encl_hint_name(err->hint);

    if (detail != NULL && hint != NULL &&
        !binding_put(detail, "hint", PyUnicode_FromString(hint))) {
        Py_CLEAR(detail);
    }
    return detail;
}

PyObject *binding_raise(const encl_error *err) {
    PyObject *module = NULL, *detail = NULL, *message = NULL, *made = NULL;

    module = PyImport_ImportModule("enclavia._errors");
    detail = detail_and_hint(err);
    /* What a peer sent may be cut in the middle of a character. */
    message = PyUnicode_DecodeUTF8(err->message, (Py_ssize_t)strlen(err->message), "replace");
    if (module != NULL && detail != NULL && message != NULL) {
        made = PyObject_CallMethod(module, "from_core", "sOOO", encl_code_name(err->code), message,
                                   err->retryable ? Py_True : Py_False, detail);
    }
    if (made != NULL) {
        PyErr_SetObject((PyObject *)Py_TYPE(made), made);
    }
    Py_XDECREF(made);
    Py_XDECREF(message);
    Py_XDECREF(detail);
    Py_XDECREF(module);
    return NULL;
}

PyObject *binding_bytes(encl_slice bytes) {
    if (bytes.data == NULL) {
        Py_RETURN_NONE;
    }
    return PyBytes_FromStringAndSize((const char *)bytes.data, (Py_ssize_t)bytes.len);
}

bool binding_pcr(const char *name, PyObject *value, encl_pcr *pcr) {
    encl_slice bytes;

    if (!binding_octets_of(name, value, &bytes)) {
        return false;
    }
    if (bytes.len != 32 && bytes.len != 48 && bytes.len != 64) {
        PyErr_Format(PyExc_ValueError, "%s: expected PCRs of 32, 48 or 64 bytes, got %zu", name,
                     bytes.len);
        return false;
    }
    memset(pcr, 0, sizeof *pcr);
    memcpy(pcr->value, bytes.data, bytes.len);
    pcr->len = (uint8_t)bytes.len;
    return true;
}

static PyObject *pcrs_dict(const encl_attestation *a) {
    PyObject *dict = PyDict_New();

    for (int i = 0; dict != NULL && i < ENCL_PCR_SLOTS; i++) {
        PyObject *index, *value;
        int rc;

        if (a->pcrs[i].len == 0) {
            continue;
        }
        index = PyLong_FromLong(i);
        value = binding_bytes(ENCL_SLICE(a->pcrs[i].value, a->pcrs[i].len));
        rc = index == NULL || value == NULL ? -1 : PyDict_SetItem(dict, index, value);
        Py_XDECREF(index);
        Py_XDECREF(value);
        if (rc != 0) {
            Py_CLEAR(dict);
        }
    }
    return dict;
}

static PyObject *bundle_list(const encl_attestation *a) {
    PyObject *list = PyList_New(0);

    for (size_t i = 0; list != NULL && i < a->cabundle_len; i++) {
        PyObject *der = binding_bytes(a->cabundle[i]);

        if (der == NULL || PyList_Append(list, der) != 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(der);
    }
    return list;
}

static const char *form_name(encl_doc_form form) {
    switch (form) {
    case ENCL_DOC_NITRO:
        return "nitro";
    case ENCL_DOC_DEBUG:
        return "debug";
    default:
        return "stub";
    }
}

/* Of a document in debug mode no certificate was judged. */
static PyObject *valid_until(const encl_attestation *a) {
    if (a->form != ENCL_DOC_NITRO) {
        Py_RETURN_NONE;
    }
    return PyLong_FromLongLong(a->valid_until);
}

static PyObject *matched_set(const encl_attestation *a) {
    if (a->matched == ENCL_MATCHED_NONE) {
        Py_RETURN_NONE;
    }
    return PyLong_FromLong(a->matched);
}

PyObject *binding_attestation(const encl_attestation *a) {
    PyObject *dict = PyDict_New();

    if (dict == NULL) {
        return NULL;
    }
    if (binding_put(dict, "form", PyUnicode_FromString(form_name(a->form))) &&
        binding_put(dict, "module_id",
                    PyUnicode_DecodeUTF8((const char *)a->module_id.data,
                                         (Py_ssize_t)a->module_id.len, "replace")) &&
        binding_put(dict, "timestamp", PyLong_FromUnsignedLongLong(a->timestamp_ms)) &&
        binding_put(dict, "pcrs", pcrs_dict(a)) &&
        binding_put(dict, "certificate",
                    PyBytes_FromStringAndSize((const char *)a->certificate.data,
                                              (Py_ssize_t)a->certificate.len)) &&
        binding_put(dict, "cabundle", bundle_list(a)) &&
        binding_put(dict, "public_key", binding_bytes(a->public_key)) &&
        binding_put(dict, "user_data", binding_bytes(a->user_data)) &&
        binding_put(dict, "nonce", binding_bytes(a->nonce)) &&
        binding_put(dict, "verified_at", PyLong_FromLongLong(a->verified_at)) &&
        binding_put(dict, "valid_until", valid_until(a)) &&
        binding_put(dict, "matched", matched_set(a)) &&
        binding_put(dict, "matched_pcrs", PyLong_FromUnsignedLong(a->matched_pcrs)) &&
        binding_put(dict, "document", binding_bytes(ENCL_SLICE(a->raw, a->raw_len)))) {
        return dict;
    }
    Py_DECREF(dict);
    return NULL;
}

PyTypeObject *binding_add_type(PyObject *module, PyType_Spec *spec) {
    PyObject *type = PyType_FromModuleAndSpec(module, spec, NULL);

    if (type == NULL || PyModule_AddType(module, (PyTypeObject *)type) != 0) {
        Py_XDECREF(type);
        return NULL;
    }
    return (PyTypeObject *)type;
}

PyObject *binding_make(PyTypeObject *type) {
    allocfunc make = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);

    return make(type, 0);
}

void binding_free(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);

    release(self);
    Py_DECREF(type);
}
