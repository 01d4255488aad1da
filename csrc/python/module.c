#include "python/binding.h"

#include "base/secmem.h"

static int fill(PyObject *module) {
    encl_error err;

    /* The types are found through static pointers. 3.11's stable ABI has no slot to say so. */
    if (PyInterpreterState_GetID(PyInterpreterState_Get()) != 0) {
        PyErr_SetString(PyExc_ImportError,
                        "enclavia works in a process's main interpreter only, not in others");
        return -1;
    }
    if (encl_base_init(&err) != ENCL_OK) {
        PyErr_SetString(PyExc_ImportError, err.message);
        return -1;
    }
    if (PyModule_AddStringConstant(module, "VERSION", ENCL_VERSION) != 0 ||
        binding_add_policy(module) != 0 || binding_add_notifier(module) != 0 ||
        binding_add_stream(module) != 0 || binding_add_channel(module) != 0 ||
        binding_add_enclave(module) != 0 || binding_add_library(module) != 0) {
        return -1;
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
