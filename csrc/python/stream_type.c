#include "base/secmem.h"
#include "python/binding.h"

#include <stdlib.h>
#include <string.h>

/* What one read gives at most. */
#define READ_MAX ((Py_ssize_t)1024 * 1024)

/* What is copied at once with the GIL held, where that needs no waiting for a lock. Where many
 * threads run, giving the GIL up means to queue for it again, which takes longer than the work. */
#define HELD_MAX 4096

typedef struct stream_object {
    PyObject_HEAD
    encl_stream *stream;
} stream_object;

typedef struct request_object {
    PyObject_HEAD
    encl_request *request;
    bool abandoned;
} request_object;

/* Set while the module is being made and never after. */
static PyTypeObject *stream_type, *request_type;

static encl_stream *stream_of(PyObject *self) {
    return ((stream_object *)self)->stream;
}

PyObject *binding_wrap_stream(encl_stream *stream) {
    allocfunc make = (allocfunc)PyType_GetSlot(stream_type, Py_tp_alloc);
    stream_object *self = (stream_object *)make(stream_type, 0);

    if (self == NULL) {
        encl_stream_release(stream);
        return NULL;
    }
    self->stream = stream;
    return (PyObject *)self;
}

static void stream_dealloc(PyObject *self) {
    encl_stream *stream = stream_of(self);

    Py_BEGIN_ALLOW_THREADS
        encl_stream_release(stream);
    Py_END_ALLOW_THREADS
    binding_free(self);
}

/* ---- reading ---- */

/* Reads into block, waiting in slices. 1: *got is set; 0: it would wait (poll); -1: raised. */
static int read_into(encl_stream *stream, uint8_t *block, size_t cap, int64_t until, size_t *got) {
    encl_error err;
    encl_code rc;

    for (;;) {
        int64_t slice = binding_slice(until);

        Py_BEGIN_ALLOW_THREADS
            rc = encl_stream_read(stream, block, cap, slice, got, &err);
        Py_END_ALLOW_THREADS
        if (rc == ENCL_OK) {
            return 1;
        }
        if (rc != ENCL_E_READ_TIMEOUT) {
            break;
        }
        if (until == ENCL_POLL) {
            return 0;
        }
        if (PyErr_CheckSignals() != 0) {
            return -1;
        }
        if (slice == until) {
            break;
        }
    }
    binding_raise(&err);
    return -1;
}

/* What is there, where it is little. False: nothing, or more than that, or that cannot be told
 * without waiting. */
static bool read_held(encl_stream *stream, size_t n, PyObject **result) {
    uint8_t block[HELD_MAX];
    size_t got;

    if ((n > sizeof block && encl_stream_buffered(stream) > sizeof block) ||
        !encl_stream_read_now(stream, block, n < sizeof block ? n : sizeof block, &got)) {
        return false;
    }
    *result = PyBytes_FromStringAndSize((const char *)block, (Py_ssize_t)got);
    encl_wipe(block, got);
    return true;
}

static PyObject *read_waiting(encl_stream *stream, size_t n, int64_t until) {
    size_t room = encl_stream_buffered(stream), got = 0;
    PyObject *result = NULL;
    uint8_t *block;
    int rc;

    if (room == 0 || room > n) {
        room = room == 0 && n > 65536 ? 65536 : n;
    }
    block = malloc(room);
    if (block == NULL) {
        return PyErr_NoMemory();
    }
    rc = read_into(stream, block, room, until, &got);
    if (rc == 1) {
        result = PyBytes_FromStringAndSize((const char *)block, (Py_ssize_t)got);
    } else if (rc == 0) {
        result = Py_NewRef(Py_None);
    }
    encl_wipe(block, got);
    free(block);
    return result;
}

static PyObject *stream_read(PyObject *self, PyObject *args) {
    encl_stream *stream = stream_of(self);
    PyObject *timeout, *result = NULL;
    Py_ssize_t n;
    int64_t until;

    if (!PyArg_ParseTuple(args, "nO", &n, &timeout) || !binding_deadline(timeout, &until)) {
        return NULL;
    }
    if (n < 0) {
        return PyErr_Format(PyExc_ValueError, "read: expected at least 0 bytes, got %zd", n);
    }
    n = n > READ_MAX ? READ_MAX : n;
    if (read_held(stream, (size_t)n, &result)) {
        return result;
    }
    return read_waiting(stream, (size_t)n, until);
}

static PyObject *stream_readinto(PyObject *self, PyObject *args) {
    Py_buffer buffer;
    PyObject *timeout;
    int64_t until;
    size_t got = 0;
    int rc;

    if (!PyArg_ParseTuple(args, "w*O", &buffer, &timeout)) {
        return NULL;
    }
    if (!binding_deadline(timeout, &until)) {
        PyBuffer_Release(&buffer);
        return NULL;
    }
    rc = read_into(stream_of(self), buffer.buf, (size_t)buffer.len, until, &got);
    PyBuffer_Release(&buffer);
    if (rc < 0) {
        return NULL;
    }
    return rc == 0 ? Py_NewRef(Py_None) : PyLong_FromSize_t(got);
}

/* ---- writing ---- */

/* From *done on, waiting in slices. False: a signal's handler raised. */
static bool write_waiting(encl_stream *stream, const Py_buffer *data, int64_t until, size_t *done,
                          encl_code *rc, encl_error *err) {
    size_t put;

    for (;;) {
        int64_t slice = binding_slice(until);

        Py_BEGIN_ALLOW_THREADS
            *rc = encl_stream_write(
                stream, ENCL_SLICE((const uint8_t *)data->buf + *done, (size_t)data->len - *done),
                slice, &put, err);
        Py_END_ALLOW_THREADS
        *done += put;
        if (*rc != ENCL_E_WRITE_TIMEOUT || until == ENCL_POLL) {
            return true;
        }
        if (PyErr_CheckSignals() != 0) {
            return false;
        }
        if (slice == until) {
            return true;
        }
    }
}

static PyObject *stream_write(PyObject *self, PyObject *args) {
    encl_stream *stream = stream_of(self);
    Py_buffer data;
    PyObject *timeout;
    int64_t until;
    size_t done = 0;
    bool handled;
    encl_error err;
    encl_code rc;

    if (!PyArg_ParseTuple(args, "y*O", &data, &timeout)) {
        return NULL;
    }
    if (!binding_deadline(timeout, &until)) {
        PyBuffer_Release(&data);
        return NULL;
    }
    handled = write_waiting(stream, &data, until, &done, &rc, &err);
    PyBuffer_Release(&data);
    if (!handled) {
        return NULL;
    }
    if (rc != ENCL_OK && !(rc == ENCL_E_WRITE_TIMEOUT && until == ENCL_POLL)) {
        return binding_raise(&err);
    }
    return PyLong_FromSize_t(done);
}

static PyObject *stream_write_eof(PyObject *self, PyObject *unused) {
    encl_stream *stream = stream_of(self);
    encl_error err;
    encl_code rc;

    (void)unused;
    Py_BEGIN_ALLOW_THREADS
        rc = encl_stream_write_eof(stream, &err);
    Py_END_ALLOW_THREADS
    if (rc != ENCL_OK) {
        return binding_raise(&err);
    }
    Py_RETURN_NONE;
}

static PyObject *stream_close(PyObject *self, PyObject *unused) {
    encl_stream *stream = stream_of(self);

    (void)unused;
    Py_BEGIN_ALLOW_THREADS
        encl_stream_close(stream);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static void withdraw_from_stream(void *target, const encl_notifier *n, uint64_t token) {
    encl_stream_withdraw(target, n, token);
}

static PyObject *stream_notify(PyObject *self, PyObject *args) {
    encl_stream *stream = stream_of(self);
    PyObject *notifier_arg, *watch;
    encl_notifier *notifier;
    unsigned long long token;
    int what;
    bool ok;
    encl_error err;
    encl_code rc;

    if (!PyArg_ParseTuple(args, "iOK", &what, &notifier_arg, &token)) {
        return NULL;
    }
    notifier = binding_notifier(notifier_arg, false, &ok);
    if (!ok) {
        return NULL;
    }
    watch = binding_watch(self, stream, withdraw_from_stream, notifier, token);
    if (watch == NULL) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
        rc = encl_stream_notify(stream, what, notifier, token, &err);
    Py_END_ALLOW_THREADS
    if (rc != ENCL_OK) {
        Py_DECREF(watch);
        return binding_raise(&err);
    }
    return watch;
}

static PyObject *get_id(PyObject *self, void *unused) {
    (void)unused;
    return PyLong_FromUnsignedLongLong(encl_stream_id(stream_of(self)));
}

static PyObject *get_closed(PyObject *self, void *unused) {
    (void)unused;
    return PyBool_FromLong(encl_stream_is_closed(stream_of(self)));
}

static PyObject *get_at_eof(PyObject *self, void *unused) {
    (void)unused;
    return PyBool_FromLong(encl_stream_at_eof(stream_of(self)));
}

static PyObject *get_readable(PyObject *self, void *unused) {
    (void)unused;
    return PyBool_FromLong(encl_stream_readable(stream_of(self)));
}

static PyMethodDef stream_methods[] = {
    {"read", stream_read, METH_VARARGS, "1..n bytes; b'' at the end; None where it would wait."},
    {"readinto", stream_readinto, METH_VARARGS, "The same, into a buffer."},
    {"write", stream_write, METH_VARARGS, "Writes all of a buffer."},
    {"write_eof", stream_write_eof, METH_NOARGS, "Shuts down our direction."},
    {"close", stream_close, METH_NOARGS, "Ends the stream and frees its slot."},
    {"notify", stream_notify, METH_VARARGS, "Asks to be told once; gives a Watch."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef stream_properties[] = {
    {"id", get_id, NULL, "The stream's id on its channel.", NULL},
    {"closed", get_closed, NULL, "Closed by us.", NULL},
    {"at_eof", get_at_eof, NULL, "The workload closed and everything was read.", NULL},
    {"readable", get_readable, NULL, "A read would not wait.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot stream_slots[] = {
    {Py_tp_dealloc, stream_dealloc},
    {Py_tp_methods, stream_methods},
    {Py_tp_getset, stream_properties},
    {Py_tp_doc, "One TCP connection to the workload."},
    {0, NULL},
};

static PyType_Spec stream_spec = {
    .name = "enclavia._core.Stream",
    .basicsize = sizeof(stream_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = stream_slots,
};

/* ---- one-shot requests ---- */

PyObject *binding_wrap_request(encl_request *request) {
    allocfunc make = (allocfunc)PyType_GetSlot(request_type, Py_tp_alloc);
    request_object *self = (request_object *)make(request_type, 0);

    if (self == NULL) {
        encl_request_release(request);
        return NULL;
    }
    self->request = request;
    return (PyObject *)self;
}

static void request_dealloc(PyObject *self) {
    encl_request *request = ((request_object *)self)->request;

    Py_BEGIN_ALLOW_THREADS
        encl_request_release(request);
    Py_END_ALLOW_THREADS
    binding_free(self);
}

/* Released by dealloc only: another thread may be waiting for its result. */
static PyObject *request_abandon(PyObject *self, PyObject *unused) {
    encl_request *request = ((request_object *)self)->request;

    (void)unused;
    ((request_object *)self)->abandoned = true;
    Py_BEGIN_ALLOW_THREADS
        encl_request_abandon(request);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static encl_request *live_request(PyObject *self) {
    if (((request_object *)self)->abandoned) {
        PyErr_SetString(PyExc_ValueError, "this request was abandoned");
        return NULL;
    }
    return ((request_object *)self)->request;
}

static PyObject *request_result(PyObject *self, PyObject *args) {
    encl_request *request = live_request(self);
    PyObject *timeout;
    int64_t until;
    encl_slice answer;
    encl_error err;
    encl_code rc;

    if (request == NULL || !PyArg_ParseTuple(args, "O", &timeout) ||
        !binding_deadline(timeout, &until)) {
        return NULL;
    }
    for (;;) {
        int64_t slice = binding_slice(until);

        Py_BEGIN_ALLOW_THREADS
            rc = encl_request_result(request, slice, &answer, &err);
        Py_END_ALLOW_THREADS
        if (rc != ENCL_E_READ_TIMEOUT || until == ENCL_POLL) {
            break;
        }
        if (PyErr_CheckSignals() != 0) {
            return NULL;
        }
        if (slice == until) {
            break;
        }
    }
    if (rc == ENCL_E_READ_TIMEOUT && until == ENCL_POLL) {
        Py_RETURN_NONE;
    }
    if (rc != ENCL_OK) {
        return binding_raise(&err);
    }
    return PyBytes_FromStringAndSize((const char *)answer.data, (Py_ssize_t)answer.len);
}

static void withdraw_from_request(void *target, const encl_notifier *n, uint64_t token) {
    encl_request_withdraw(target, n, token);
}

static PyObject *request_notify(PyObject *self, PyObject *args) {
    encl_request *request = live_request(self);
    PyObject *notifier_arg, *watch;
    encl_notifier *notifier;
    unsigned long long token;
    bool ok;
    encl_error err;
    encl_code rc;

    if (request == NULL || !PyArg_ParseTuple(args, "OK", &notifier_arg, &token)) {
        return NULL;
    }
    notifier = binding_notifier(notifier_arg, false, &ok);
    if (!ok) {
        return NULL;
    }
    watch = binding_watch(self, request, withdraw_from_request, notifier, token);
    if (watch == NULL) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
        rc = encl_request_notify(request, notifier, token, &err);
    Py_END_ALLOW_THREADS
    if (rc != ENCL_OK) {
        Py_DECREF(watch);
        return binding_raise(&err);
    }
    return watch;
}

static PyMethodDef request_methods[] = {
    {"result", request_result, METH_VARARGS, "The answer; None where it would wait."},
    {"notify", request_notify, METH_VARARGS, "Asks to be told once; gives a Watch."},
    {"abandon", request_abandon, METH_NOARGS, "Gives the answer up."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot request_slots[] = {
    {Py_tp_dealloc, request_dealloc},
    {Py_tp_methods, request_methods},
    {Py_tp_doc, "A one-shot request under way."},
    {0, NULL},
};

static PyType_Spec request_spec = {
    .name = "enclavia._core.Request",
    .basicsize = sizeof(request_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = request_slots,
};

int binding_add_stream(PyObject *module) {
    stream_type = binding_add_type(module, &stream_spec);
    request_type = binding_add_type(module, &request_spec);
    if (stream_type == NULL || request_type == NULL ||
        PyModule_AddIntConstant(module, "READABLE", ENCL_READABLE) != 0 ||
        PyModule_AddIntConstant(module, "WRITABLE", ENCL_WRITABLE) != 0) {
        return -1;
    }
    return 0;
}
