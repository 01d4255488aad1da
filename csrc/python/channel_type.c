#include "python/binding.h"

#include <stdlib.h>
#include <string.h>

#include "session/session.h"

typedef struct channel_object {
    PyObject_HEAD
    encl_channel *channel;
} channel_object;

typedef struct slot_object {
    PyObject_HEAD
    encl_slot *slot;
} slot_object;

/* Set while the module is being made and never after. */
static PyTypeObject *channel_type, *slot_type;

static encl_channel *channel_of(PyObject *self) {
    return ((channel_object *)self)->channel;
}

/* ---- making one ---- */

/* Borrowed text in a block of its own. The tuple holds the pairs and the pairs hold the text:
 * another thread cannot take them away, as it could from a list. False with an exception set. */
static bool read_headers(PyObject *tuple, encl_header **out, size_t *count) {
    Py_ssize_t n = PyTuple_Size(tuple);
    encl_header *headers;

    *out = NULL;
    *count = 0;
    if (n < 0) {
        return false;
    }
    headers = calloc((size_t)n + 1, sizeof *headers);
    if (headers == NULL) {
        PyErr_NoMemory();
        return false;
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *pair = PyTuple_GetItem(tuple, i);
        bool ok = PyTuple_Check(pair) && PyTuple_Size(pair) == 2;

        if (!ok) {
            PyErr_SetString(PyExc_TypeError, "headers: expected tuples of (name, value)");
        } else {
            headers[i].name = PyUnicode_AsUTF8AndSize(PyTuple_GetItem(pair, 0), NULL);
            headers[i].value = headers[i].name == NULL
                                   ? NULL
                                   : PyUnicode_AsUTF8AndSize(PyTuple_GetItem(pair, 1), NULL);
            ok = headers[i].value != NULL;
        }
        if (!ok) {
            free(headers);
            return false;
        }
    }
    *out = headers;
    *count = (size_t)n;
    return true;
}

static bool read_proxy(PyObject *proxy, encl_ws_target *target) {
    int port;

    if (proxy == Py_None) {
        return true;
    }
    if (!PyTuple_Check(proxy)) {
        PyErr_SetString(PyExc_TypeError, "proxy: expected (host, port, auth) or None");
        return false;
    }
    if (!PyArg_ParseTuple(proxy, "siz", &target->proxy_host, &port, &target->proxy_auth)) {
        return false;
    }
    if (port < 1 || port > 65535) {
        PyErr_Format(PyExc_ValueError, "proxy: expected a port of 1 to 65535, got %d", port);
        return false;
    }
    target->proxy_port = (uint16_t)port;
    return true;
}

static PyObject *start_channel(PyTypeObject *type, const encl_channel_config *config) {
    allocfunc make = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    channel_object *self = (channel_object *)make(type, 0);
    encl_error err;
    encl_code rc;

    if (self == NULL) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
        rc = encl_channel_new(config, &self->channel, &err);
    Py_END_ALLOW_THREADS
    if (rc != ENCL_OK) {
        Py_DECREF(self);
        return binding_raise(&err);
    }
    return (PyObject *)self;
}

#define KEEPALIVE_MAX_MS (24LL * 60 * 60 * 1000)

static PyObject *channel_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {
        "host",          "port",   "tls",     "path",  "authority",    "headers", "policy",
        "max_in_flight", "verify", "ca_file", "proxy", "keepalive_ms", NULL};
    encl_channel_config config;
    PyObject *headers_arg, *policy_arg, *proxy_arg, *pairs, *made = NULL;
    encl_header *headers = NULL;
    int port, tls, verify;
    Py_ssize_t max_in_flight;
    long long keepalive_ms = 0;

    memset(&config, 0, sizeof config);
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "sipssOOnpzO|L", names, &config.target.host,
                                     &port, &tls, &config.target.path, &config.target.authority,
                                     &headers_arg, &policy_arg, &max_in_flight, &verify,
                                     &config.target.ca_file, &proxy_arg, &keepalive_ms)) {
        return NULL;
    }
    if (port < 1 || port > 65535) {
        return PyErr_Format(PyExc_ValueError, "port: expected 1 to 65535, got %d", port);
    }
    if (keepalive_ms < 0 || keepalive_ms > KEEPALIVE_MAX_MS) {
        return PyErr_Format(PyExc_ValueError, "keepalive_ms: expected 0 to %lld, got %lld",
                            KEEPALIVE_MAX_MS, keepalive_ms);
    }
    config.target.keepalive_ms = (uint64_t)keepalive_ms;
    config.policy = binding_policy(policy_arg);
    if (config.policy == NULL || !read_proxy(proxy_arg, &config.target)) {
        return NULL;
    }
    config.target.port = (uint16_t)port;
    config.target.tls = tls != 0;
    config.target.verify = verify != 0;
    config.max_in_flight = max_in_flight < 0 ? 0 : (size_t)max_in_flight;
    pairs = PySequence_Tuple(headers_arg);
    if (pairs != NULL && read_headers(pairs, &headers, &config.target.header_count)) {
        config.target.headers = headers;
        made = start_channel(type, &config);
        free(headers);
    }
    Py_XDECREF(pairs);
    return made;
}

static void channel_dealloc(PyObject *self) {
    encl_channel *channel = channel_of(self);

    if (channel != NULL) {
        Py_BEGIN_ALLOW_THREADS
            encl_channel_close(channel, NULL);
            encl_channel_release(channel);
        Py_END_ALLOW_THREADS
    }
    binding_free(self);
}

/* ---- what it is ---- */

static PyObject *get_state(PyObject *self, void *unused) {
    static const char *const names[] = {"connecting", "open", "closed"};

    (void)unused;
    return PyUnicode_FromString(names[encl_channel_get_state(channel_of(self))]);
}

static PyObject *get_error(PyObject *self, void *unused) {
    encl_error why;
    PyObject *type, *value, *traceback;
    encl_channel *channel = channel_of(self);
    bool closed;

    (void)unused;
    Py_BEGIN_ALLOW_THREADS
        closed = encl_channel_why(channel, &why);
    Py_END_ALLOW_THREADS
    if (!closed) {
        Py_RETURN_NONE;
    }
    binding_raise(&why);
    PyErr_Fetch(&type, &value, &traceback);
    PyErr_NormalizeException(&type, &value, &traceback);
    Py_XDECREF(type);
    Py_XDECREF(traceback);
    return value;
}

static PyObject *get_forked(PyObject *self, void *unused) {
    (void)unused;
    return PyBool_FromLong(encl_channel_is_forked(channel_of(self)));
}

static PyObject *get_handshake_hash(PyObject *self, void *unused) {
    uint8_t hash[32];
    encl_channel *channel = channel_of(self);
    encl_error err;
    encl_code rc;

    (void)unused;
    Py_BEGIN_ALLOW_THREADS
        rc = encl_channel_handshake_hash(channel, hash, &err);
    Py_END_ALLOW_THREADS
    if (rc != ENCL_OK) {
        return binding_raise(&err);
    }
    return PyBytes_FromStringAndSize((const char *)hash, sizeof hash);
}

static PyObject *take_doc(encl_doc *doc) {
    PyObject *result = binding_attestation(encl_doc_get(doc));

    encl_doc_release(doc);
    return result;
}

static PyObject *channel_attestation(PyObject *self, PyObject *unused) {
    encl_channel *channel = channel_of(self);
    encl_doc *doc;
    encl_error err;
    encl_code rc;

    (void)unused;
    Py_BEGIN_ALLOW_THREADS
        rc = encl_channel_attestation(channel, &doc, &err);
    Py_END_ALLOW_THREADS
    if (rc != ENCL_OK) {
        return binding_raise(&err);
    }
    return take_doc(doc);
}

static PyObject *channel_stats(PyObject *self, PyObject *unused) {
    encl_channel_stats s;

    (void)unused;
    encl_channel_get_stats(channel_of(self), &s);
    return Py_BuildValue(
        "{s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K}", "bytes_in", (unsigned long long)s.bytes_in,
        "bytes_out", (unsigned long long)s.bytes_out, "records_in",
        (unsigned long long)s.records_in, "records_out", (unsigned long long)s.records_out,
        "streams_open", (unsigned long long)s.streams_open, "streams_total",
        (unsigned long long)s.streams_total, "slots_in_use", (unsigned long long)s.slots_in_use,
        "slots_waiting", (unsigned long long)s.slots_waiting);
}

static PyObject *get_records_in(PyObject *self, void *unused) {
    encl_channel_stats s;

    (void)unused;
    encl_channel_get_stats(channel_of(self), &s);
    return PyLong_FromUnsignedLongLong(s.records_in);
}

/* ---- waiting for it ---- */

static void close_channel(encl_channel *channel, const encl_error *why) {
    Py_BEGIN_ALLOW_THREADS
        encl_channel_close(channel, why);
    Py_END_ALLOW_THREADS
}

static PyObject *channel_wait_open(PyObject *self, PyObject *args) {
    encl_channel *channel = channel_of(self);
    PyObject *timeout;
    int64_t until;
    encl_error err;
    encl_code rc;

    if (!PyArg_ParseTuple(args, "O", &timeout) || !binding_deadline(timeout, &until)) {
        return NULL;
    }
    for (;;) {
        int64_t slice = binding_slice(until);

        Py_BEGIN_ALLOW_THREADS
            rc = encl_channel_wait_open(channel, slice, &err);
        Py_END_ALLOW_THREADS
        if (rc != ENCL_E_CONNECT_TIMEOUT) {
            break;
        }
        if (encl_channel_get_state(channel) != ENCL_CHANNEL_CONNECTING) {
            continue; /* it was just decided */
        }
        if (PyErr_CheckSignals() != 0) {
            close_channel(channel, NULL);
            return NULL;
        }
        if (slice == until) {
            close_channel(channel, &err);
            break;
        }
    }
    if (rc != ENCL_OK) {
        return binding_raise(&err);
    }
    Py_RETURN_NONE;
}

static void withdraw_from_channel(void *target, const encl_notifier *n, uint64_t token) {
    encl_channel_withdraw(target, n, token);
}

static PyObject *channel_notify_open(PyObject *self, PyObject *args) {
    encl_channel *channel = channel_of(self);
    PyObject *notifier_arg, *watch;
    encl_notifier *notifier;
    unsigned long long token;
    bool ok;
    encl_error err;
    encl_code rc;

    if (!PyArg_ParseTuple(args, "OK", &notifier_arg, &token)) {
        return NULL;
    }
    notifier = binding_notifier(notifier_arg, false, &ok);
    if (!ok) {
        return NULL;
    }
    watch = binding_watch(self, channel, withdraw_from_channel, notifier, token);
    if (watch == NULL) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
        rc = encl_channel_notify_open(channel, notifier, token, &err);
    Py_END_ALLOW_THREADS
    if (rc != ENCL_OK) {
        Py_DECREF(watch);
        return binding_raise(&err);
    }
    return watch;
}

static PyObject *channel_close(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"timeout", NULL};
    encl_channel *channel = channel_of(self);
    PyObject *timeout = NULL;
    int64_t until = encl_now_ns() + 1000000000;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|O", names, &timeout) ||
        (timeout != NULL && !binding_deadline(timeout, &until))) {
        return NULL;
    }
    close_channel(channel, NULL);
    for (;;) {
        int64_t slice = binding_slice(until);
        bool gone;

        Py_BEGIN_ALLOW_THREADS
            gone = encl_channel_wait_closed(channel, slice);
        Py_END_ALLOW_THREADS
        if (gone || slice == until) {
            break;
        }
        if (PyErr_CheckSignals() != 0) {
            return NULL;
        }
    }
    Py_RETURN_NONE;
}

/* ---- slots, streams, requests ---- */

/* While the GIL is released another thread may close the notifier. */
static void keep_notifier(encl_notifier *notifier) {
    if (notifier != NULL) {
        encl_notifier_retain(notifier);
    }
}

static PyObject *channel_reserve(PyObject *self, PyObject *args) {
    encl_channel *channel = channel_of(self);
    PyObject *notifier_arg;
    encl_notifier *notifier;
    unsigned long long token;
    encl_slot *slot;
    bool ok;
    encl_error err;
    encl_code rc;

    if (!PyArg_ParseTuple(args, "OK", &notifier_arg, &token)) {
        return NULL;
    }
    notifier = binding_notifier(notifier_arg, true, &ok);
    if (!ok) {
        return NULL;
    }
    keep_notifier(notifier);
    Py_BEGIN_ALLOW_THREADS
        rc = encl_channel_reserve(channel, notifier, token, &slot, &err);
        encl_notifier_release(notifier);
    Py_END_ALLOW_THREADS
    return rc == ENCL_OK ? binding_wrap_slot(slot) : binding_raise(&err);
}

/* Everything of data from `done` on, in interruptible waits. False with an exception set. */
static bool write_rest(encl_stream *stream, const Py_buffer *data, size_t done) {
    encl_error err;
    encl_code rc = ENCL_OK;

    while (done < (size_t)data->len) {
        size_t put;

        Py_BEGIN_ALLOW_THREADS
            rc = encl_stream_write(
                stream, ENCL_SLICE((const uint8_t *)data->buf + done, (size_t)data->len - done),
                binding_slice(ENCL_FOREVER), &put, &err);
        Py_END_ALLOW_THREADS
        done += put;
        if (rc == ENCL_E_WRITE_TIMEOUT) {
            if (PyErr_CheckSignals() != 0) {
                return false;
            }
        } else if (rc != ENCL_OK) {
            binding_raise(&err);
            return false;
        }
    }
    return true;
}

static PyObject *channel_open_stream(PyObject *self, PyObject *args) {
    PyObject *slot_arg, *result;
    Py_buffer payload;
    encl_slot *slot;
    encl_stream *stream;
    size_t first;
    encl_error err;
    encl_code rc;

    (void)self;
    if (!PyArg_ParseTuple(args, "Oy*", &slot_arg, &payload)) {
        return NULL;
    }
    slot = binding_slot(slot_arg);
    if (slot == NULL) {
        PyBuffer_Release(&payload);
        return NULL;
    }
    first = payload.len < ENCL_STREAM_FIRST_MAX ? (size_t)payload.len : ENCL_STREAM_FIRST_MAX;
    Py_BEGIN_ALLOW_THREADS
        rc = encl_stream_open(slot, ENCL_SLICE(payload.buf, first), &stream, &err);
    Py_END_ALLOW_THREADS
    if (rc != ENCL_OK) {
        PyBuffer_Release(&payload);
        return binding_raise(&err);
    }
    result = binding_wrap_stream(stream);
    if (result != NULL && !write_rest(stream, &payload, first)) {
        Py_CLEAR(result);
    }
    PyBuffer_Release(&payload);
    return result;
}

static PyObject *channel_start_request(PyObject *self, PyObject *args) {
    PyObject *slot_arg;
    Py_buffer payload;
    encl_slot *slot;
    encl_request *request;
    encl_error err;
    encl_code rc;

    (void)self;
    if (!PyArg_ParseTuple(args, "Oy*", &slot_arg, &payload)) {
        return NULL;
    }
    slot = binding_slot(slot_arg);
    if (slot == NULL) {
        PyBuffer_Release(&payload);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
        rc = encl_request_start(slot, ENCL_SLICE(payload.buf, (size_t)payload.len), &request, &err);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&payload);
    return rc == ENCL_OK ? binding_wrap_request(request) : binding_raise(&err);
}

static PyObject *channel_start_attest(PyObject *self, PyObject *args) {
    encl_channel *channel = channel_of(self);
    PyObject *notifier_arg;
    encl_notifier *notifier;
    unsigned long long token;
    uint64_t number;
    bool ok;
    encl_error err;
    encl_code rc;

    if (!PyArg_ParseTuple(args, "OK", &notifier_arg, &token)) {
        return NULL;
    }
    notifier = binding_notifier(notifier_arg, true, &ok);
    if (!ok) {
        return NULL;
    }
    keep_notifier(notifier);
    Py_BEGIN_ALLOW_THREADS
        rc = encl_channel_start_attest(channel, notifier, token, &number, &err);
        encl_notifier_release(notifier);
    Py_END_ALLOW_THREADS
    if (rc != ENCL_OK) {
        return binding_raise(&err);
    }
    return PyLong_FromUnsignedLongLong(number);
}

static PyObject *channel_finish_attest(PyObject *self, PyObject *args) {
    encl_channel *channel = channel_of(self);
    unsigned long long number;
    PyObject *timeout;
    int64_t until;
    encl_doc *doc = NULL;
    encl_error err;
    encl_code rc;

    if (!PyArg_ParseTuple(args, "KO", &number, &timeout) || !binding_deadline(timeout, &until)) {
        return NULL;
    }
    for (;;) {
        int64_t slice = binding_slice(until);

        Py_BEGIN_ALLOW_THREADS
            rc = encl_channel_finish_attest(channel, number, slice, &doc, &err);
        Py_END_ALLOW_THREADS
        if (rc != ENCL_E_READ_TIMEOUT || until == ENCL_POLL || slice == until) {
            break;
        }
        if (PyErr_CheckSignals() != 0) {
            return NULL;
        }
    }
    if (rc == ENCL_E_READ_TIMEOUT && until == ENCL_POLL) {
        Py_RETURN_NONE;
    }
    return rc == ENCL_OK ? take_doc(doc) : binding_raise(&err);
}

static PyObject *channel_abandon_attest(PyObject *self, PyObject *args) {
    encl_channel *channel = channel_of(self);
    unsigned long long number;

    if (!PyArg_ParseTuple(args, "K", &number)) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
        encl_channel_abandon_attest(channel, number);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyMethodDef channel_methods[] = {
    {"wait_open", channel_wait_open, METH_VARARGS, "Until it is open; raises why it is not."},
    {"attestation", channel_attestation, METH_NOARGS, "What was verified last."},
    {"notify_open", channel_notify_open, METH_VARARGS, "Asks to be told once."},
    {"reserve", channel_reserve, METH_VARARGS, "Asks for a slot, in order."},
    {"open_stream", channel_open_stream, METH_VARARGS, "Opens a stream on a granted slot."},
    {"start_request", channel_start_request, METH_VARARGS, "Sends a one-shot request."},
    {"start_attest", channel_start_attest, METH_VARARGS, "Asks for a fresh document."},
    {"finish_attest", channel_finish_attest, METH_VARARGS, "Collects it."},
    {"abandon_attest", channel_abandon_attest, METH_VARARGS, "Nobody will collect it."},
    {"close", (PyCFunction)(void (*)(void))channel_close, METH_VARARGS | METH_KEYWORDS,
     "Ends the connection in good order."},
    {"stats", channel_stats, METH_NOARGS, "Counters."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef channel_properties[] = {
    {"state", get_state, NULL, "\"connecting\", \"open\" or \"closed\".", NULL},
    {"error", get_error, NULL, "Why it closed.", NULL},
    {"forked", get_forked, NULL, "Made by a parent process.", NULL},
    {"records_in", get_records_in, NULL, "Received so far, whole and decrypted.", NULL},
    {"handshake_hash", get_handshake_hash, NULL, "The channel binding, 32 bytes.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot channel_slots[] = {
    {Py_tp_new, channel_new},
    {Py_tp_dealloc, channel_dealloc},
    {Py_tp_methods, channel_methods},
    {Py_tp_getset, channel_properties},
    {Py_tp_doc, "One WebSocket, one Noise channel, one verified document."},
    {0, NULL},
};

static PyType_Spec channel_spec = {
    .name = "enclavia._core.Channel",
    .basicsize = sizeof(channel_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = channel_slots,
};

/* ---- slots ---- */

PyObject *binding_wrap_slot(encl_slot *slot) {
    allocfunc make = (allocfunc)PyType_GetSlot(slot_type, Py_tp_alloc);
    slot_object *self = (slot_object *)make(slot_type, 0);

    if (self == NULL) {
        encl_slot_release(slot);
        return NULL;
    }
    self->slot = slot;
    return (PyObject *)self;
}

encl_slot *binding_slot(PyObject *slot) {
    if (!PyObject_TypeCheck(slot, slot_type)) {
        PyErr_SetString(PyExc_TypeError, "slot: expected a Slot");
        return NULL;
    }
    return ((slot_object *)slot)->slot;
}

static void slot_dealloc(PyObject *self) {
    encl_slot *slot = ((slot_object *)self)->slot;

    Py_BEGIN_ALLOW_THREADS
        encl_slot_release(slot);
    Py_END_ALLOW_THREADS
    binding_free(self);
}

static PyObject *slot_wait(PyObject *self, PyObject *args) {
    encl_slot *slot = ((slot_object *)self)->slot;
    PyObject *timeout;
    int64_t until;
    encl_error err;
    encl_code rc;

    if (!PyArg_ParseTuple(args, "O", &timeout) || !binding_deadline(timeout, &until)) {
        return NULL;
    }
    for (;;) {
        int64_t slice = binding_slice(until);

        Py_BEGIN_ALLOW_THREADS
            rc = encl_slot_wait(slot, slice, &err);
        Py_END_ALLOW_THREADS
        if (rc != ENCL_E_POOL_TIMEOUT || slice == until) {
            break;
        }
        if (PyErr_CheckSignals() != 0) {
            return NULL;
        }
    }
    if (rc != ENCL_OK) {
        return binding_raise(&err);
    }
    Py_RETURN_NONE;
}

static PyObject *slot_give_up(PyObject *self, PyObject *unused) {
    encl_slot *slot = ((slot_object *)self)->slot;

    (void)unused;
    Py_BEGIN_ALLOW_THREADS
        encl_slot_give_up(slot);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *get_granted(PyObject *self, void *unused) {
    (void)unused;
    return PyBool_FromLong(encl_slot_granted(((slot_object *)self)->slot));
}

static PyMethodDef slot_methods[] = {
    {"wait", slot_wait, METH_VARARGS, "Until it is granted."},
    {"release", slot_give_up, METH_NOARGS, "Gives it up."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef slot_properties[] = {
    {"granted", get_granted, NULL, "Whether it may be used.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot slot_slots[] = {
    {Py_tp_dealloc, slot_dealloc},
    {Py_tp_methods, slot_methods},
    {Py_tp_getset, slot_properties},
    {Py_tp_doc, "A place among max_in_flight."},
    {0, NULL},
};

static PyType_Spec slot_spec = {
    .name = "enclavia._core.Slot",
    .basicsize = sizeof(slot_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = slot_slots,
};

int binding_add_channel(PyObject *module) {
    channel_type = binding_add_type(module, &channel_spec);
    slot_type = binding_add_type(module, &slot_spec);
    if (channel_type == NULL || slot_type == NULL ||
        PyModule_AddIntConstant(module, "MAX_IN_FLIGHT", ENCL_MAX_OPEN) != 0) {
        return -1;
    }
    return 0;
}
