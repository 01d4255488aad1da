/* Pump: bytes both ways between a stream and a socket, moved without Python. Decides nothing; what
 * takes a lock releases the GIL. What was left over is read with the GIL held, once the pump has
 * stopped and nobody changes it any more. */
#include "python/arguments.h"
#include "python/binding.h"

#include <limits.h>

#include "channel/pump.h"

typedef struct pump_object {
    PyObject_HEAD
    encl_pump *pump;
} pump_object;

/* Set while the module is being made and never after. */
static PyTypeObject *pump_type;

static encl_pump *pump_of(PyObject *self) {
    return ((pump_object *)self)->pump;
}

/* The object is made before the pump, so that there is never one without an object to stop it. */
PyObject *binding_pump(encl_stream *stream, int fd, encl_notifier *n, uint64_t token) {
    pump_object *self = (pump_object *)binding_make(pump_type);
    encl_error err;
    encl_code rc;

    if (self == NULL) {
        return NULL;
    }
    encl_notifier_retain(n);
    Py_BEGIN_ALLOW_THREADS
        rc = encl_pump_start(stream, fd, n, token, &self->pump, &err);
        encl_notifier_release(n);
    Py_END_ALLOW_THREADS
    if (rc != ENCL_OK) {
        Py_DECREF(self);
        return binding_raise(&err);
    }
    return (PyObject *)self;
}

static void pump_dealloc(PyObject *self) {
    encl_pump *pump = pump_of(self);

    Py_BEGIN_ALLOW_THREADS
        encl_pump_release(pump);
    Py_END_ALLOW_THREADS
    binding_free(self);
}

static PyObject *pump_stop(PyObject *self, PyObject *unused) {
    encl_pump *pump = pump_of(self);

    (void)unused;
    Py_BEGIN_ALLOW_THREADS
        encl_pump_stop(pump);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static const char *name_of(encl_pump_state state) {
    switch (state) {
    case ENCL_PUMP_MOVES:
        return "moves";
    case ENCL_PUMP_STOPPED:
        return "stopped";
    case ENCL_PUMP_GONE:
        return "gone";
    default:
        return "lost";
    }
}

static PyObject *get_state(PyObject *self, void *unused) {
    (void)unused;
    return PyUnicode_FromString(name_of(encl_pump_get_state(pump_of(self))));
}

static PyObject *bytes_of(encl_slice bytes) {
    return PyBytes_FromStringAndSize((const char *)bytes.data, (Py_ssize_t)bytes.len);
}

static PyObject *pump_rest(PyObject *self, PyObject *unused) {
    PyObject *in = bytes_of(encl_pump_rest_in(pump_of(self)));
    PyObject *out = bytes_of(encl_pump_rest_out(pump_of(self)));
    PyObject *both = NULL;

    (void)unused;
    if (in != NULL && out != NULL) {
        both = PyTuple_Pack(2, in, out);
    }
    Py_XDECREF(in);
    Py_XDECREF(out);
    return both;
}

static PyObject *seconds_since(int64_t at, int64_t now) {
    if (at == 0) {
        return Py_NewRef(Py_None);
    }
    return PyFloat_FromDouble(now < at ? 0.0 : (double)(now - at) / 1e9);
}

static PyObject *pump_stats(PyObject *self, PyObject *unused) {
    encl_pump *pump = pump_of(self);
    encl_pump_stats stats;
    PyObject *dict;
    int64_t now;
    bool ok;

    (void)unused;
    Py_BEGIN_ALLOW_THREADS
        encl_pump_get_stats(pump, &stats);
        now = encl_now_ns();
    Py_END_ALLOW_THREADS
    dict = PyDict_New();
    if (dict == NULL) {
        return NULL;
    }
    ok = binding_put(dict, "bytes_in", PyLong_FromUnsignedLongLong(stats.bytes_in)) &&
         binding_put(dict, "bytes_out", PyLong_FromUnsignedLongLong(stats.bytes_out)) &&
         binding_put(dict, "answered", PyBool_FromLong(stats.answered)) &&
         binding_put(dict, "pending", PyBool_FromLong(stats.pending)) &&
         binding_put(dict, "touched", seconds_since(stats.touched_at, now)) &&
         binding_put(dict, "asked", seconds_since(stats.asked_at, now)) &&
         binding_put(dict, "asked_records", PyLong_FromUnsignedLongLong(stats.asked_records));
    if (!ok) {
        Py_DECREF(dict);
        return NULL;
    }
    return dict;
}

static PyMethodDef pump_methods[] = {
    {"stop", pump_stop, METH_NOARGS, "Moves nothing any more, soon."},
    {"rest", pump_rest, METH_NOARGS, "What was taken and not passed on, once it has stopped."},
    {"stats", pump_stats, METH_NOARGS, "What it has moved, and when."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef pump_properties[] = {
    {"state", get_state, NULL, "\"moves\", \"stopped\", \"gone\" or \"lost\".", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot pump_slots[] = {
    {Py_tp_dealloc, pump_dealloc},
    {Py_tp_methods, pump_methods},
    {Py_tp_getset, pump_properties},
    {Py_tp_doc,
     "Bytes both ways between a stream and a socket. Stops when nobody has this object."},
    {0, NULL},
};

static PyType_Spec pump_spec = {
    .name = "enclavia._core.Pump",
    .basicsize = sizeof(pump_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = pump_slots,
};

int binding_add_pump(PyObject *module) {
    pump_type = binding_add_type(module, &pump_spec);
    return pump_type == NULL ? -1 : 0;
}
