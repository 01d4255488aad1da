/* Decides what an argument of _core may be, and the error for any other. Calls
 * CPython and the clock (encl_now_ns). The GIL is held throughout; no lock. */
#include "python/arguments.h"

#include <math.h>
#include <string.h>

#include "channel/channel.h"

#define LONGEST_SECONDS 1e9

bool binding_wrong_type(const char *name, const char *expected, PyObject *value) {
    PyObject *type = PyType_GetName(Py_TYPE(value));

    if (type != NULL) {
        PyErr_Format(PyExc_TypeError, "%s: expected %s, got %U", name, expected, type);
        Py_DECREF(type);
    }
    return false;
}

/* The same where CPython has refused a value: its own TypeError does not name the argument. Any
 * other error is the value's own, and stays. */
static bool refused(const char *name, const char *expected, PyObject *value) {
    if (!PyErr_ExceptionMatches(PyExc_TypeError)) {
        return false;
    }
    PyErr_Clear();
    return binding_wrong_type(name, expected, value);
}

bool binding_counted(const char *function, Py_ssize_t got, Py_ssize_t expected) {
    if (got != expected) {
        PyErr_Format(PyExc_TypeError, "%s: expected %zd arguments, got %zd", function, expected,
                     got);
        return false;
    }
    return true;
}

/* ---- whole numbers ---- */

/* The int that value is or can be used as; a new reference, or NULL. */
static PyObject *as_int(const char *name, PyObject *value) {
    PyObject *number;

    if (PyLong_CheckExact(value)) {
        return Py_NewRef(value);
    }
    if (PyBool_Check(value)) {
        (void)binding_wrong_type(name, "a whole number", value);
        return NULL;
    }
    number = PyNumber_Index(value);
    if (number == NULL) {
        (void)refused(name, "a whole number", value);
    }
    return number;
}

/* Numbers that fit no C type are not written out: Python refuses to for very long ones. */
static int outside(const binding_whole *w, int beyond) {
    if (beyond == 0) {
        PyErr_Format(PyExc_ValueError, "%s: expected %lld to %lld, got %lld", w->name, w->least,
                     w->most, w->value);
    } else {
        PyErr_Format(PyExc_ValueError, "%s: expected %lld to %lld, got a number %s", w->name,
                     w->least, w->most, beyond > 0 ? "above 2**63 - 1" : "below -2**63");
    }
    return 0;
}

int binding_read_whole(PyObject *value, void *whole) {
    binding_whole *w = whole;
    PyObject *number = as_int(w->name, value);
    int beyond;

    if (number == NULL) {
        return 0;
    }
    w->value = PyLong_AsLongLongAndOverflow(number, &beyond);
    Py_DECREF(number);
    if (beyond != 0 || w->value < w->least || w->value > w->most) {
        return outside(w, beyond);
    }
    return 1;
}

static int read_u64(const char *name, PyObject *value, uint64_t *out) {
    PyObject *number = as_int(name, value);
    unsigned long long read;

    if (number == NULL) {
        return 0;
    }
    read = PyLong_AsUnsignedLongLong(number);
    Py_DECREF(number);
    if (read == (unsigned long long)-1 && PyErr_Occurred() != NULL) {
        PyErr_Clear();
        PyErr_Format(PyExc_ValueError, "%s: expected 0 to 2**64 - 1, got a number outside of it",
                     name);
        return 0;
    }
    *out = read;
    return 1;
}

int binding_read_token(PyObject *value, void *token) {
    return read_u64("token", value, token);
}

int binding_read_number(PyObject *value, void *number) {
    return read_u64("number", value, number);
}

/* ---- flags, text, bytes ---- */

int binding_read_flag(PyObject *value, void *flag) {
    binding_flag *f = flag;

    if (!PyBool_Check(value)) {
        return binding_wrong_type(f->name, "True or False", value);
    }
    f->value = value == Py_True;
    return 1;
}

/* Borrowed from value, with a NUL behind it. False with an exception set. */
static bool utf8_of(const char *name, const char *expected, PyObject *value, encl_slice *utf8) {
    Py_ssize_t len;
    const char *text;

    if (!PyUnicode_Check(value)) {
        return binding_wrong_type(name, expected, value);
    }
    text = PyUnicode_AsUTF8AndSize(value, &len);
    if (text == NULL) {
        if (PyErr_ExceptionMatches(PyExc_UnicodeEncodeError)) {
            PyErr_Clear();
            PyErr_Format(PyExc_ValueError,
                         "%s: expected text that can be written in UTF-8, got a surrogate in it",
                         name);
        }
        return false;
    }
    *utf8 = ENCL_SLICE(text, (size_t)len);
    return true;
}

/* C reads no further than to a NUL. */
static bool c_text_of(const char *name, const char *expected, PyObject *value, const char **text) {
    encl_slice utf8;

    if (!utf8_of(name, expected, value, &utf8)) {
        return false;
    }
    if (memchr(utf8.data, '\0', utf8.len) != NULL) {
        PyErr_Format(PyExc_ValueError, "%s: expected text without a NUL, got one in it", name);
        return false;
    }
    *text = (const char *)utf8.data;
    return true;
}

bool binding_text_of(const char *name, PyObject *value, const char **text) {
    return c_text_of(name, "text", value, text);
}

int binding_read_text(PyObject *value, void *text) {
    binding_text *t = text;

    t->text = NULL;
    if (t->optional && value == Py_None) {
        return 1;
    }
    return c_text_of(t->name, t->optional ? "text or None" : "text", value, &t->text);
}

int binding_read_label(PyObject *value, void *label) {
    binding_label *l = label;

    return utf8_of(l->name, "text", value, &l->utf8);
}

static bool octets_of(const char *name, const char *expected, PyObject *value, encl_slice *bytes) {
    char *data;
    Py_ssize_t len;

    if (!PyBytes_Check(value)) {
        return binding_wrong_type(name, expected, value);
    }
    if (PyBytes_AsStringAndSize(value, &data, &len) != 0) {
        return false;
    }
    *bytes = ENCL_SLICE(data, (size_t)len);
    return true;
}

bool binding_octets_of(const char *name, PyObject *value, encl_slice *bytes) {
    return octets_of(name, "bytes", value, bytes);
}

int binding_read_octets(PyObject *value, void *octets) {
    binding_octets *o = octets;

    o->bytes = ENCL_SLICE_NONE;
    if (o->optional && value == Py_None) {
        return 1;
    }
    return octets_of(o->name, o->optional ? "bytes or None" : "bytes", value, &o->bytes);
}

/* ---- buffers ---- */

/* CPython's BufferError says neither which argument it is nor, where a writable one is needed,
 * whether that or its shape is what is wrong. */
static int no_buffer(const binding_buffer *b, PyObject *value) {
    const char *expected = b->writable ? "a writable buffer" : "bytes or another buffer";
    Py_buffer any;

    if (PyErr_ExceptionMatches(PyExc_ValueError)) { /* a memoryview that was released */
        PyErr_Clear();
        PyErr_Format(PyExc_ValueError, "%s: expected %s, got one that is closed", b->name,
                     expected);
        return 0;
    }
    if (!PyErr_ExceptionMatches(PyExc_BufferError)) {
        return refused(b->name, expected, value);
    }
    PyErr_Clear();
    if (b->writable && PyObject_GetBuffer(value, &any, PyBUF_FULL_RO) == 0) {
        bool readonly = any.readonly != 0;

        PyBuffer_Release(&any);
        if (readonly) {
            return binding_wrong_type(b->name, expected, value);
        }
    }
    PyErr_Clear();
    PyErr_Format(PyExc_ValueError, "%s: expected %s in one piece, got one with gaps", b->name,
                 expected);
    return 0;
}

int binding_read_buffer(PyObject *value, void *buffer) {
    binding_buffer *b = buffer;

    if (value == NULL) { /* another argument was refused */
        PyBuffer_Release(&b->view);
        return 0;
    }
    if (PyObject_GetBuffer(value, &b->view, b->writable ? PyBUF_WRITABLE : PyBUF_SIMPLE) != 0) {
        return no_buffer(b, value);
    }
    return Py_CLEANUP_SUPPORTED;
}

/* ---- time ---- */

/* Any real number. A bool is no number of anything. */
static bool seconds_of(const char *name, const char *expected, PyObject *value, double *seconds) {
    if (PyBool_Check(value)) {
        return binding_wrong_type(name, expected, value);
    }
    *seconds = PyFloat_AsDouble(value);
    if (*seconds != -1.0 || PyErr_Occurred() == NULL) {
        return true;
    }
    if (PyErr_ExceptionMatches(PyExc_OverflowError)) {
        PyErr_Clear();
        PyErr_Format(PyExc_OverflowError, "%s: expected %s, got one that no float can hold", name,
                     expected);
        return false;
    }
    if (PyErr_ExceptionMatches(PyExc_ValueError)) { /* a signalling NaN of decimal */
        PyErr_Clear();
        return binding_wrong_type(name, expected, value);
    }
    return refused(name, expected, value);
}

static int not_seconds(const char *name, const char *expected, double seconds) {
    PyObject *got = PyFloat_FromDouble(seconds);

    if (got != NULL) {
        PyErr_Format(PyExc_ValueError, "%s: expected %s, got %R", name, expected, got);
        Py_DECREF(got);
    }
    return 0;
}

int binding_read_deadline(PyObject *value, void *until) {
    int64_t *deadline = until;
    double seconds;

    if (value == Py_None) {
        *deadline = ENCL_FOREVER;
        return 1;
    }
    if (!seconds_of("timeout", "a number of seconds or None", value, &seconds)) {
        return 0;
    }
    if (!(seconds >= 0)) { /* nor is it a NaN */
        return not_seconds("timeout", "0 or more seconds, or None for no limit", seconds);
    }
    if (seconds == 0) {
        *deadline = ENCL_POLL;
    } else if (seconds > LONGEST_SECONDS) {
        *deadline = ENCL_FOREVER;
    } else {
        *deadline = encl_now_ns() + (int64_t)(seconds * 1e9);
    }
    return 1;
}

int binding_read_seconds(PyObject *value, void *seconds) {
    binding_seconds *s = seconds;
    double read;

    if (!seconds_of(s->name, "a number of seconds", value, &read)) {
        return 0;
    }
    if (!(read >= 0 && read <= LONGEST_SECONDS)) {
        return not_seconds(s->name, "0 to 1e9 seconds", read);
    }
    s->ms = (uint64_t)llround(read * 1000);
    return 1;
}

/* ---- what has parts ---- */

PyObject *binding_members(const char *name, const char *expected, PyObject *iterable) {
    PyObject *members, *iterator = PyObject_GetIter(iterable);

    if (iterator == NULL) {
        (void)refused(name, expected, iterable);
        return NULL;
    }
    members = PySequence_Tuple(iterator);
    Py_DECREF(iterator);
    return members;
}
