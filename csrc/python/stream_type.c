/* Stream: one TCP connection to the workload. Decides how much one read gives, and when it is
 * copied with the GIL held. Whatever takes the channel's lock releases the GIL; the properties read
 * atomics, and a small read (read_held) tries the lock and gives up at once. What is copied here is
 * wiped. */
#include "base/secmem.h"
#include "python/arguments.h"
#include "python/binding.h"
#include "session/session.h"

#include <limits.h>
#include <stdlib.h>

/* What one read gives at most. */
#define READ_MAX ((size_t)1024 * 1024)

/* What is copied at once with the GIL held, where that needs no waiting for a lock. Where many
 * threads run, giving the GIL up means to queue for it again, which takes longer than the work. */
#define HELD_MAX 4096

typedef struct stream_object {
    PyObject_HEAD
    encl_stream *stream;
} stream_object;

/* Set while the module is being made and never after. */
static PyTypeObject *stream_type;

static encl_stream *stream_of(PyObject *self) {
    return ((stream_object *)self)->stream;
}

PyObject *binding_wrap_stream(encl_stream *stream) {
    stream_object *self = (stream_object *)binding_make(stream_type);

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

typedef struct read_context {
    encl_stream *stream;
    uint8_t *block;
    size_t cap, got;
} read_context;

static encl_code read_step(void *context, int64_t until, encl_error *err) {
    read_context *c = context;

    return encl_stream_read(c->stream, c->block, c->cap, until, &c->got, err);
}

static binding_outcome read_into(read_context *c, int64_t until, encl_error *err) {
    return binding_wait(until, ENCL_E_READ_TIMEOUT, read_step, c, err);
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

/* How large a block to read into: what is there, or where that is nothing, what usually is. */
static size_t read_room(encl_stream *stream, size_t n) {
    size_t room = encl_stream_buffered(stream);

    if (room == 0 || room > n) {
        room = room == 0 && n > 65536 ? 65536 : n;
    }
    return room;
}

static PyObject *read_waiting(encl_stream *stream, size_t n, int64_t until) {
    size_t room = read_room(stream, n);
    read_context c = {.stream = stream, .block = malloc(room), .cap = room};
    binding_outcome outcome;
    PyObject *result = NULL;
    encl_error err;

    if (c.block == NULL) {
        return PyErr_NoMemory();
    }
    outcome = read_into(&c, until, &err);
    if (outcome == BINDING_DONE) {
        result = PyBytes_FromStringAndSize((const char *)c.block, (Py_ssize_t)c.got);
        encl_wipe(c.block, c.got);
    } else if (outcome == BINDING_NOT_YET) {
        result = Py_NewRef(Py_None);
    } else {
        binding_not_done(outcome, &err);
    }
    free(c.block);
    return result;
}

static PyObject *stream_read(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    encl_stream *stream = stream_of(self);
    binding_whole n = {"n", 0, LLONG_MAX, 0};
    PyObject *result = NULL;
    size_t most;
    int64_t until;

    if (!binding_counted("read", count, 2) || !binding_read_whole(args[0], &n) ||
        !binding_read_deadline(args[1], &until)) {
        return NULL;
    }
    most = (unsigned long long)n.value > READ_MAX ? READ_MAX : (size_t)n.value;
    if (read_held(stream, most, &result)) {
        return result;
    }
    return read_waiting(stream, most, until);
}

static PyObject *stream_readinto(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    binding_buffer buffer = {.name = "buffer", .writable = true};
    read_context c = {.stream = stream_of(self)};
    binding_outcome outcome;
    int64_t until;
    encl_error err;

    if (!binding_counted("readinto", count, 2) || !binding_read_deadline(args[1], &until) ||
        !binding_read_buffer(args[0], &buffer)) {
        return NULL;
    }
    c.block = buffer.view.buf;
    c.cap = (size_t)buffer.view.len;
    outcome = read_into(&c, until, &err);
    PyBuffer_Release(&buffer.view);
    if (outcome == BINDING_NOT_YET) {
        Py_RETURN_NONE;
    }
    return outcome == BINDING_DONE ? PyLong_FromSize_t(c.got) : binding_not_done(outcome, &err);
}

/* ---- writing ---- */

typedef struct write_context {
    encl_stream *stream;
    encl_slice data;
    size_t done;
} write_context;

static encl_code write_step(void *context, int64_t until, encl_error *err) {
    write_context *c = context;
    encl_slice rest = ENCL_SLICE(c->data.data + c->done, c->data.len - c->done);
    size_t put;
    encl_code rc = encl_stream_write(c->stream, rest, until, &put, err);

    c->done += put;
    return rc;
}

binding_outcome binding_write(encl_stream *stream, encl_slice data, int64_t until, size_t *done,
                              encl_error *err) {
    write_context c = {.stream = stream, .data = data, .done = *done};
    binding_outcome outcome = binding_wait(until, ENCL_E_WRITE_TIMEOUT, write_step, &c, err);

    *done = c.done;
    return outcome;
}

static PyObject *stream_write(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    binding_buffer data = {.name = "data"};
    binding_outcome outcome;
    size_t done = 0;
    int64_t until;
    encl_error err;

    if (!binding_counted("write", count, 2) || !binding_read_deadline(args[1], &until) ||
        !binding_read_buffer(args[0], &data)) {
        return NULL;
    }
    outcome = binding_write(stream_of(self), ENCL_SLICE(data.view.buf, (size_t)data.view.len),
                            until, &done, &err);
    PyBuffer_Release(&data.view);
    if (outcome != BINDING_DONE && outcome != BINDING_NOT_YET) {
        return binding_not_done(outcome, &err);
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

static encl_code enlist(void *stream, int what, encl_notifier *n, uint64_t token, encl_error *err) {
    return encl_stream_notify(stream, what, n, token, err);
}

static void withdraw(void *stream, const encl_notifier *n, uint64_t token) {
    encl_stream_withdraw(stream, n, token);
}

static const binding_source readiness = {enlist, withdraw};

static PyObject *stream_notify(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    binding_whole what = {"what", 0, ENCL_READABLE | ENCL_WRITABLE, 0};
    encl_notifier *notifier;
    uint64_t token;

    if (!binding_counted("notify", count, 3) || !binding_read_whole(args[0], &what) ||
        !binding_read_token(args[2], &token) || !binding_read_notifier(args[1], &notifier)) {
        return NULL;
    }
    return binding_watch(self, stream_of(self), &readiness, (int)what.value, notifier, token);
}

#ifndef ENCL_WEB
static PyObject *stream_pump(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    binding_whole fd = {"fd", 0, INT_MAX, 0};
    encl_notifier *notifier;
    uint64_t token;

    if (!binding_counted("pump", count, 3) || !binding_read_whole(args[0], &fd) ||
        !binding_read_token(args[2], &token) || !binding_read_notifier(args[1], &notifier)) {
        return NULL;
    }
    return binding_pump(stream_of(self), (int)fd.value, notifier, token);
}
#endif

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
    {"read", BINDING_CALL(stream_read), METH_FASTCALL,
     "1..n bytes; b'' at the end; None where it would wait."},
    {"readinto", BINDING_CALL(stream_readinto), METH_FASTCALL, "The same, into a buffer."},
    {"write", BINDING_CALL(stream_write), METH_FASTCALL, "Writes all of a buffer."},
    {"write_eof", stream_write_eof, METH_NOARGS, "Shuts down our direction."},
    {"close", stream_close, METH_NOARGS, "Ends the stream and frees its slot."},
    {"notify", BINDING_CALL(stream_notify), METH_FASTCALL, "Asks to be told once; gives a Watch."},
#ifndef ENCL_WEB
    {"pump", BINDING_CALL(stream_pump), METH_FASTCALL,
     "Moves bytes between this and a socket; gives a Pump."},
#endif
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

int binding_add_stream(PyObject *module) {
    stream_type = binding_add_type(module, &stream_spec);
    if (stream_type == NULL || PyModule_AddIntConstant(module, "READABLE", ENCL_READABLE) != 0 ||
        PyModule_AddIntConstant(module, "WRITABLE", ENCL_WRITABLE) != 0 ||
        PyModule_AddIntConstant(module, "STREAM_CHUNK", ENCL_STREAM_CHUNK) != 0) {
        return -1;
    }
    return 0;
}
