/* The module enclavia._core: decides where it may be loaded, and puts its parts together. Its one
 * exported function is PyInit__core. The GIL is held throughout; no lock. */
#include "python/binding.h"

#include <openssl/crypto.h>

#include "base/secmem.h"
#include "sync/fork.h"

static int (*const parts[])(PyObject *module) = {
    binding_add_notifier, binding_add_watch,  binding_add_policy,  binding_add_upgrades,
    binding_add_slot,     binding_add_stream, binding_add_request, binding_add_channel,
#ifdef ENCL_WEB
    binding_add_link,
#else
    binding_add_pump,     binding_add_enclave,
#endif
    binding_add_library,
};

#ifdef ENCL_WEB
#define WEB Py_True
#else
#define WEB Py_False
#endif

/* By what enclavia._errors knows the errors of csrc/base/error.h. */
static int add_error_names(PyObject *module) {
    PyObject *names = PyTuple_New(ENCL_E_COUNT_ - 1);
    int rc = names == NULL ? -1 : 0;

    for (int code = ENCL_OK + 1; rc == 0 && code < ENCL_E_COUNT_; code++) {
        PyObject *name = PyUnicode_FromString(encl_code_name((encl_code)code));

        rc = name == NULL ? -1 : PyTuple_SetItem(names, code - 1, name); /* takes the reference */
    }
    if (rc == 0) {
        rc = PyModule_AddObjectRef(module, "ERROR_NAMES", names);
    }
    Py_XDECREF(names);
    return rc;
}

static int fill(PyObject *module) {
    encl_error err;

    /* The types are found through static pointers. 3.11's stable ABI has no slot to say so. */
    if (PyInterpreterState_GetID(PyInterpreterState_Get()) != 0) {
        PyErr_SetString(PyExc_ImportError,
                        "enclavia works in a process's main interpreter only, not in others");
        return -1;
    }
    if (!encl_fork_init()) {
        PyErr_NoMemory();
        return -1;
    }
    encl_fork_at_thread_end(OPENSSL_thread_stop);
    if (encl_base_init(&err) != ENCL_OK) {
        PyErr_SetString(PyExc_ImportError, err.message);
        return -1;
    }
    if (PyModule_AddStringConstant(module, "VERSION", ENCL_VERSION) != 0 ||
        PyModule_AddObjectRef(module, "WEB", WEB) != 0 || add_error_names(module) != 0) {
        return -1;
    }
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        if (parts[i](module) != 0) {
            return -1;
        }
    }
    return 0;
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, fill},
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "enclavia._core",
    .m_doc = "Crypto, codecs, the attestation state machine, sockets.",
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__core(void) {
    return PyModuleDef_Init(&definition);
}
