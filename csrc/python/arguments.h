/* arguments: readers of single arguments, for the format "O&" of PyArg_ParseTuple and its
 * relatives. Each knows its parameter's name and domain. What is outside of it is a TypeError
 * (another kind of object) or a ValueError, which name the parameter, what was expected and what
 * was got. What they fill in is borrowed from the argument, which lives until the call ends. */
#ifndef ENCL_PYTHON_ARGUMENTS_H
#define ENCL_PYTHON_ARGUMENTS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"

/* The readers have the signature that "O&" asks for: not 0 on success, 0 with an exception set. The
 * second parameter is a pointer to the type above each. Calls that are made often have
 * METH_FASTCALL or METH_O and use the readers without a format, a buffer's last. */

/* Whether a METH_FASTCALL function has as many arguments as it takes; false with TypeError. */
bool binding_counted(const char *function, Py_ssize_t got, Py_ssize_t expected);

/* An int or what can be used as one (__index__), least <= value <= most; no bool. */
typedef struct binding_whole {
    const char *name;
    long long least, most;
    long long value;
} binding_whole;
int binding_read_whole(PyObject *value, void *whole);

/* uint64_t: the number that a notifier announces, or that start_attest returned. */
int binding_read_token(PyObject *value, void *token);
int binding_read_number(PyObject *value, void *number);

/* True or False, nothing that can pass for them. */
typedef struct binding_flag {
    const char *name;
    bool value;
} binding_flag;
int binding_read_flag(PyObject *value, void *flag);

/* A str without NUL, as UTF-8. None where optional: text is NULL then. */
typedef struct binding_text {
    const char *name;
    bool optional;
    const char *text;
} binding_text;
int binding_read_text(PyObject *value, void *text);

/* A str that may be anything, as UTF-8. */
typedef struct binding_label {
    const char *name;
    encl_slice utf8;
} binding_label;
int binding_read_label(PyObject *value, void *label);

/* A bytes object. None where optional: data is NULL then, and only then. */
typedef struct binding_octets {
    const char *name;
    bool optional;
    encl_slice bytes;
} binding_octets;
int binding_read_octets(PyObject *value, void *octets);

/* The view of a buffer in one piece. To be released by the caller once the whole call was parsed;
 * where a later argument is refused, PyArg_ParseTuple does it. */
typedef struct binding_buffer {
    const char *name;
    bool writable;
    Py_buffer view;
} binding_buffer;
int binding_read_buffer(PyObject *value, void *buffer);

/* int64_t, a deadline: None is ENCL_FOREVER, 0 is ENCL_POLL, else seconds from now. */
int binding_read_deadline(PyObject *value, void *until);

/* Seconds, 0 to 1e9, as milliseconds. */
typedef struct binding_seconds {
    const char *name;
    uint64_t ms;
} binding_seconds;
int binding_read_seconds(PyObject *value, void *seconds);

/* ---- for readers of what has parts ---- */

/* TypeError "name: expected <expected>, got <type of value>"; gives false. */
bool binding_wrong_type(const char *name, const char *expected, PyObject *value);
/* The members of any iterable, which nobody else can change; NULL with TypeError. */
PyObject *binding_members(const char *name, const char *expected, PyObject *iterable);
/* The address of the bytes, borrowed. */
bool binding_octets_of(const char *name, PyObject *value, encl_slice *bytes);
bool binding_text_of(const char *name, PyObject *value, const char **text);

#endif
