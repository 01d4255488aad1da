/* Link: the WebSocket's side of a channel, for builds in which that belongs to Python (setup.py,
 * ENCLAVIA_WEB). Decides that one who drops the object has closed the WebSocket. What may take a
 * channel's lock releases the GIL; has_happened and finished do not, and take the connection's lock
 * at most, with which nobody waits. */
#ifdef ENCL_WEB

#include "python/arguments.h"
#include "python/binding.h"
#include "python/callbacks.h"
#include "web/web.h"

#define CLOSE_ABNORMAL 1006

typedef struct link_object {
    PyObject_HEAD
    encl_conn *conn; /* a reference */
    callback on_work;
} link_object;

/* Set while the module is being made and never after. */
static PyTypeObject *link_type;

static encl_conn *conn_of(PyObject *self) {
    return ((link_object *)self)->conn;
}

PyObject *binding_wrap_link(encl_conn *conn) {
    link_object *self = (link_object *)binding_make(link_type);

    if (self != NULL) {
        encl_conn_retain(conn);
        self->conn = conn;
    }
    return (PyObject *)self;
}

static void closed(encl_conn *conn, uint16_t code, encl_slice reason) {
    Py_BEGIN_ALLOW_THREADS
        encl_web_closed(conn, code, reason);
    Py_END_ALLOW_THREADS
}

void binding_drop_link(encl_conn *conn) {
    closed(conn, CLOSE_ABNORMAL, ENCL_SLICE_NONE);
}

static void link_dealloc(PyObject *self) {
    encl_conn *conn = conn_of(self);

    callback_clear(&((link_object *)self)->on_work);
    if (conn != NULL) {
        closed(conn, CLOSE_ABNORMAL, ENCL_SLICE_NONE);
        encl_conn_release(conn);
    }
    binding_free(self);
}

/* ---- what has happened to the WebSocket ---- */

static PyObject *link_opened(PyObject *self, PyObject *unused) {
    encl_conn *conn = conn_of(self);

    (void)unused;
    Py_BEGIN_ALLOW_THREADS
        encl_web_opened(conn);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *link_received(PyObject *self, PyObject *value) {
    encl_conn *conn = conn_of(self);
    binding_buffer data = {.name = "data"};
    size_t taken;

    if (!binding_read_buffer(value, &data)) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
        taken = encl_web_received(conn, ENCL_SLICE(data.view.buf, (size_t)data.view.len));
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&data.view);
    return PyLong_FromSize_t(taken);
}

static PyObject *link_text(PyObject *self, PyObject *unused) {
    encl_conn *conn = conn_of(self);

    (void)unused;
    Py_BEGIN_ALLOW_THREADS
        encl_web_received_text(conn);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *link_closed(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"code", "reason", NULL};
    binding_whole code = {"code", 1000, 4999, 0};
    binding_label reason = {.name = "reason"};

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&O&", names, binding_read_whole, &code,
                                     binding_read_label, &reason)) {
        return NULL;
    }
    closed(conn_of(self), (uint16_t)code.value, reason.utf8);
    Py_RETURN_NONE;
}

/* ---- what there is to do ---- */

static bool has_work(PyObject *self) {
    return encl_web_had_work(conn_of(self));
}

static PyObject *link_on_work(PyObject *self, PyObject *function) {
    return callback_set(&((link_object *)self)->on_work, self, has_work, function);
}

static PyObject *link_take(PyObject *self, PyObject *unused) {
    encl_conn *conn = conn_of(self);
    size_t len = encl_web_next(conn);
    PyObject *message = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)len);
    uint8_t *out;
    bool taken;

    (void)unused;
    if (message == NULL || len == 0) {
        return message;
    }
    out = (uint8_t *)PyBytes_AsString(message);
    Py_BEGIN_ALLOW_THREADS
        taken = encl_web_take(conn, out, len);
    Py_END_ALLOW_THREADS
    if (!taken) { /* what is in the block is nobody's */
        Py_DECREF(message);
        return PyBytes_FromStringAndSize(NULL, 0);
    }
    return message;
}

static PyObject *link_tick(PyObject *self, PyObject *unused) {
    encl_conn *conn = conn_of(self);
    int64_t wait;

    (void)unused;
    Py_BEGIN_ALLOW_THREADS
        wait = encl_web_tick(conn);
    Py_END_ALLOW_THREADS
    if (wait < 0) {
        Py_RETURN_NONE;
    }
    return PyFloat_FromDouble((double)wait / 1e9);
}

static PyObject *get_wants_reading(PyObject *self, void *unused) {
    (void)unused;
    return PyBool_FromLong(encl_web_wants_reading(conn_of(self)));
}

static PyObject *get_closing(PyObject *self, void *unused) {
    (void)unused;
    return PyBool_FromLong(encl_web_is_closing(conn_of(self)));
}

static PyObject *get_finished(PyObject *self, void *unused) {
    const char *reason;
    uint16_t code;

    (void)unused;
    return PyBool_FromLong(encl_web_is_finished(conn_of(self), &code, &reason));
}

static PyObject *get_code(PyObject *self, void *unused) {
    const char *reason;
    uint16_t code;

    (void)unused;
    (void)encl_web_is_finished(conn_of(self), &code, &reason);
    return PyLong_FromLong(code);
}

static PyObject *get_reason(PyObject *self, void *unused) {
    const char *reason;
    uint16_t code;

    (void)unused;
    (void)encl_web_is_finished(conn_of(self), &code, &reason);
    return PyUnicode_FromString(reason);
}

static PyMethodDef link_methods[] = {
    {"opened", link_opened, METH_NOARGS, "The WebSocket is open."},
    {"received", link_received, METH_O, "Bytes of a binary message; how many were taken."},
    {"text", link_text, METH_NOARGS, "A text message was received."},
    {"closed", BINDING_CALL(link_closed), METH_VARARGS | METH_KEYWORDS,
     "The WebSocket has closed, or could not be opened."},
    {"on_work", link_on_work, METH_O, "What to call when there is something to do."},
    {"take", link_take, METH_NOARGS, "The next message to send."},
    {"tick", link_tick, METH_NOARGS, "Fires timers; seconds until the next one."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef link_properties[] = {
    {"wants_reading", get_wants_reading, NULL, "Whether received() takes anything.", NULL},
    {"closing", get_closing, NULL, "Nothing is sent after what take() still gives.", NULL},
    {"finished", get_finished, NULL, "The WebSocket is to be closed.", NULL},
    {"code", get_code, NULL, "With which code.", NULL},
    {"reason", get_reason, NULL, "With which reason.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot link_slots[] = {
    {Py_tp_dealloc, link_dealloc},
    {Py_tp_methods, link_methods},
    {Py_tp_getset, link_properties},
    {Py_tp_doc, "The WebSocket's side of a channel."},
    {0, NULL},
};

static PyType_Spec link_spec = {
    .name = "enclavia._core.Link",
    .basicsize = sizeof(link_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = link_slots,
};

int binding_add_link(PyObject *module) {
    encl_web_on_work(callbacks_ask);
    encl_notifier_on_wake(callbacks_ask);
    link_type = binding_add_type(module, &link_spec);
    return link_type == NULL ? -1 : 0;
}

#endif
