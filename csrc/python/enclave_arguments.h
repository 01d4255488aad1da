/* enclave_arguments: what Enclave's constructor and methods are given, read into what csrc/enclave
 * takes. */
#ifndef ENCL_PYTHON_ENCLAVE_ARGUMENTS_H
#define ENCL_PYTHON_ENCLAVE_ARGUMENTS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdbool.h>

#include "enclave/enclave.h"

/* A document template, and the Python objects that its slices point into beside the arguments. */
typedef struct enclave_document {
    encl_doc_template template;
    encl_slice leaf_key;
    PyObject *cabundle;
} enclave_document;

/* Each: false with an exception set. What is read is borrowed from the arguments; *document has to
 * be all zeros before, and enclave_document_free is due in either case. */
bool enclave_read_start(PyObject *args, PyObject *kwargs, enclave_document *document,
                        encl_enclave_config *config);
bool enclave_read_document(PyObject *args, PyObject *kwargs, enclave_document *document);
void enclave_document_free(enclave_document *document);
bool enclave_read_faults(PyObject *args, PyObject *kwargs, encl_enclave_faults *faults);
bool enclave_read_reset(PyObject *args, PyObject *kwargs, bool *reset);

/* The constants FAULT_…; 0, or -1 with an exception set. */
int enclave_add_faults(PyObject *module);

#endif
