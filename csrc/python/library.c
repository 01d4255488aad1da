/* library: what this build is made of, for Python. Functions without state; no lock. */
#include "python/binding.h"

#include "base/library.h"
#include "cbor/library.h"
#ifndef ENCL_WEB
#include "net/library.h"
#endif
#include "wire/wire.h"

#ifdef __clang__
#define COMPILER __VERSION__ /* begins with its name */
#else
#define COMPILER "GCC " __VERSION__
#endif

/* The tag of the wheel that this is built for (setup.py). */
#ifndef ENCL_PLATFORM
#define ENCL_PLATFORM "source"
#endif

static PyObject *default_ca_paths(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
#ifdef ENCL_WEB
    return Py_BuildValue("(ss)", "", ""); /* the browser verifies certificates */
#else
    return Py_BuildValue("(ss)", encl_net_default_ca_file(), encl_net_default_ca_dir());
#endif
}

static bool add(PyObject *info, const char *name, const char *text) {
    PyObject *value = PyUnicode_FromString(text);
    bool ok = value != NULL && PyDict_SetItemString(info, name, value) == 0;

    Py_XDECREF(value);
    return ok;
}

/* "openssl": as it runs; "openssl_compiled": as it was compiled against, and so on. */
static PyObject *build_info(PyObject *module, PyObject *unused) {
    const char *const texts[][2] = {
        {"openssl", encl_openssl_running()},
        {"openssl_compiled", encl_openssl_compiled()},
        {"libsodium", encl_sodium_running()},
        {"libsodium_compiled", encl_sodium_compiled()},
#ifndef ENCL_WEB
        {"libwebsockets", encl_net_lws_running()},
        {"libwebsockets_compiled", encl_net_lws_compiled()},
#endif
        {"libcbor_compiled", encl_cbor_compiled()},
        {"compiler", COMPILER},
        {"platform", ENCL_PLATFORM},
        {"codec", encl_bytes_codec()},
    };
    PyObject *info = PyDict_New();

    (void)module;
    (void)unused;
    for (size_t i = 0; info != NULL && i < sizeof texts / sizeof texts[0]; i++) {
        if (!add(info, texts[i][0], texts[i][1])) {
            Py_CLEAR(info);
        }
    }
    return info;
}

static PyMethodDef functions[] = {
    {"default_ca_paths", default_ca_paths, METH_NOARGS, NULL},
    {"build_info", build_info, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

int binding_add_library(PyObject *module) {
    return PyModule_AddFunctions(module, functions);
}
