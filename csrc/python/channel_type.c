/* Channel: one verified connection. Decides that an opening which does not succeed in time, or that
 * a signal breaks off, closes the channel. Everything that takes the channel's lock releases the
 * GIL; state, forked, records_in and stats read atomics with it. */
#include "python/arguments.h"
#include "python/binding.h"

#include <stdlib.h>

#include "session/session.h"

typedef struct channel_object {
    PyObject_HEAD
    encl_channel *channel;
#ifdef ENCL_WEB
    bool linked; /* somebody has its Link */
#endif
} channel_object;

/* Set while the module is being made and never after. */
static PyTypeObject *channel_type;

static encl_channel *channel_of(PyObject *self) {
    return ((channel_object *)self)->channel;
}

/* ---- making one ---- */

static bool read_header(PyObject *pair, encl_header *header) {
    if (!PyTuple_Check(pair) || PyTuple_Size(pair) != 2) {
        return binding_wrong_type("headers", "tuples of (name, value)", pair);
    }
    return binding_text_of("headers (name)", PyTuple_GetItem(pair, 0), &header->name) &&
           binding_text_of("headers (value)", PyTuple_GetItem(pair, 1), &header->value);
}

/* A block of the caller's with borrowed text; NULL with an exception set. The tuple holds the pairs
 * and the pairs hold the text: another thread cannot take them away, as it could from a list. */
static encl_header *read_headers(PyObject *pairs, size_t *count) {
    Py_ssize_t n = PyTuple_Size(pairs);
    encl_header *headers = calloc((size_t)n + 1, sizeof *headers);

    if (headers == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        if (!read_header(PyTuple_GetItem(pairs, i), &headers[i])) {
            free(headers);
            return NULL;
        }
    }
    *count = (size_t)n;
    return headers;
}

static int read_proxy(PyObject *value, void *target) {
    encl_ws_target *t = target;
    binding_text host = {.name = "proxy (host)"};
    binding_text auth = {.name = "proxy (auth)", .optional = true};
    binding_whole port = {"proxy (port)", 1, UINT16_MAX, 0};

    if (value == Py_None) {
        return 1;
    }
    if (!PyTuple_Check(value) || PyTuple_Size(value) != 3) {
        return binding_wrong_type("proxy", "(host, port, auth) or None", value);
    }
    if (!binding_read_text(PyTuple_GetItem(value, 0), &host) ||
        !binding_read_whole(PyTuple_GetItem(value, 1), &port) ||
        !binding_read_text(PyTuple_GetItem(value, 2), &auth)) {
        return 0;
    }
    t->proxy_host = host.text;
    t->proxy_port = (uint16_t)port.value;
    t->proxy_auth = auth.text;
    return 1;
}

static PyObject *start_channel(PyTypeObject *type, const encl_channel_config *config) {
    channel_object *self = (channel_object *)binding_make(type);
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

/* With the headers, which are a block for as long as it takes. */
static PyObject *start_with_headers(PyTypeObject *type, encl_channel_config *config,
                                    PyObject *iterable) {
    PyObject *made = NULL;
    PyObject *pairs = binding_members("headers", "a sequence of (name, value)", iterable);
    encl_header *headers = NULL;

    if (pairs != NULL) {
        headers = read_headers(pairs, &config->target.header_count);
    }
    if (headers != NULL) {
        config->target.headers = headers;
        made = start_channel(type, config);
        free(headers);
    }
    Py_XDECREF(pairs);
    return made;
}

#define KEEPALIVE_MAX_MS (24LL * 60 * 60 * 1000)

static PyObject *channel_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {
        "host",          "port",   "tls",     "path",  "authority",    "headers", "policy",
        "max_in_flight", "verify", "ca_file", "proxy", "keepalive_ms", NULL};
    encl_channel_config config = {0};
    binding_text host = {.name = "host"}, path = {.name = "path"};
    binding_text authority = {.name = "authority"}, ca_file = {.name = "ca_file", .optional = true};
    binding_whole port = {"port", 1, UINT16_MAX, 0};
    binding_whole max_in_flight = {"max_in_flight", 1, ENCL_MAX_OPEN, 0};
    binding_whole keepalive_ms = {"keepalive_ms", 0, KEEPALIVE_MAX_MS, 0};
    binding_flag tls = {.name = "tls"}, verify = {.name = "verify"};
    PyObject *headers;

    if (!PyArg_ParseTupleAndKeywords(
            args, kwargs, "O&O&O&O&O&OO&O&O&O&O&|O&", names, binding_read_text, &host,
            binding_read_whole, &port, binding_read_flag, &tls, binding_read_text, &path,
            binding_read_text, &authority, &headers, binding_read_policy, &config.policy,
            binding_read_whole, &max_in_flight, binding_read_flag, &verify, binding_read_text,
            &ca_file, read_proxy, &config.target, binding_read_whole, &keepalive_ms)) {
        return NULL;
    }
    config.max_in_flight = (size_t)max_in_flight.value;
    config.target.host = host.text;
    config.target.port = (uint16_t)port.value;
    config.target.tls = tls.value;
    config.target.path = path.text;
    config.target.authority = authority.text;
    config.target.verify = verify.value;
    config.target.ca_file = ca_file.text;
    config.target.keepalive_ms = (uint64_t)keepalive_ms.value;
    return start_with_headers(type, &config, headers);
}

#ifdef ENCL_WEB
static PyObject *channel_link(PyObject *self, PyObject *unused) {
    channel_object *c = (channel_object *)self;
    PyObject *link;

    (void)unused;
    if (c->linked) {
        PyErr_SetString(PyExc_RuntimeError,
                        "link: expected one call for each channel, got another one");
        return NULL;
    }
    link = binding_wrap_link(encl_channel_connection(c->channel));
    c->linked = link != NULL;
    return link;
}

/* Where nobody took the Link there is no WebSocket, and nobody who would say that it has closed. */
static void drop_unlinked(PyObject *self, encl_channel *channel) {
    if (!((channel_object *)self)->linked) {
        binding_drop_link(encl_channel_connection(channel));
    }
}
#endif

static void channel_dealloc(PyObject *self) {
    encl_channel *channel = channel_of(self);

    if (channel != NULL) {
#ifdef ENCL_WEB
        drop_unlinked(self, channel);
#endif
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

/* What the two steps below give where the channel has not changed yet. */
#define STILL_WAITING ENCL_E_CONNECT_TIMEOUT

/* A channel that another thread closed because its own time was up gives ENCL_E_CONNECT_TIMEOUT for
 * ever, so the code does not say whether to go on waiting. The state does. */
static encl_code await_open(void *channel, int64_t until, encl_error *err) {
    encl_code rc = encl_channel_wait_open(channel, until, err);

    if (rc != ENCL_E_CONNECT_TIMEOUT) {
        return rc;
    }
    if (encl_channel_get_state(channel) == ENCL_CHANNEL_CONNECTING) {
        return STILL_WAITING;
    }
    rc = encl_channel_wait_open(channel, ENCL_POLL, err); /* it may just have been decided */
    return rc == ENCL_OK ? ENCL_OK : ENCL_E_CLOSED;       /* err says why it is closed */
}

static PyObject *channel_wait_open(PyObject *self, PyObject *timeout) {
    encl_channel *channel = channel_of(self);
    binding_outcome outcome;
    int64_t until;
    encl_error err;

    if (!binding_read_deadline(timeout, &until)) {
        return NULL;
    }
    outcome = binding_wait(until, STILL_WAITING, await_open, channel, &err);
    if (outcome == BINDING_DONE) {
        Py_RETURN_NONE;
    }
    if (outcome != BINDING_FAILED) {
        close_channel(channel, outcome == BINDING_RAISED ? NULL : &err);
    }
    return binding_not_done(outcome, &err);
}

static encl_code enlist(void *channel, int what, encl_notifier *n, uint64_t token,
                        encl_error *err) {
    (void)what;
    return encl_channel_notify_open(channel, n, token, err);
}

static void withdraw(void *channel, const encl_notifier *n, uint64_t token) {
    encl_channel_withdraw(channel, n, token);
}

static const binding_source opening = {enlist, withdraw};

static PyObject *channel_notify_open(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    encl_notifier *notifier;
    uint64_t token;

    if (!binding_counted("notify_open", count, 2) || !binding_read_token(args[1], &token) ||
        !binding_read_notifier(args[0], &notifier)) {
        return NULL;
    }
    return binding_watch(self, channel_of(self), &opening, 0, notifier, token);
}

static encl_code enlist_stage(void *channel, int seen, encl_notifier *n, uint64_t token,
                              encl_error *err) {
    return encl_channel_notify_stage(channel, seen, n, token, err);
}

static const binding_source progressing = {enlist_stage, withdraw};

static PyObject *channel_notify_stage(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    encl_notifier *notifier;
    binding_whole seen = {"seen", 0, ENCL_STAGES, 0};
    uint64_t token;

    if (!binding_counted("notify_stage", count, 3) || !binding_read_whole(args[0], &seen) ||
        !binding_read_token(args[2], &token) || !binding_read_notifier(args[1], &notifier)) {
        return NULL;
    }
    return binding_watch(self, channel_of(self), &progressing, (int)seen.value, notifier, token);
}

/* Names of stages, in their order. */
static const char *const stage_names[ENCL_STAGES] = {
    [ENCL_STAGE_RESOLVED] = "resolved",   [ENCL_STAGE_CONNECTED] = "connected",
    [ENCL_STAGE_SECURED] = "secured",     [ENCL_STAGE_UPGRADED] = "upgraded",
    [ENCL_STAGE_HANDSHAKE] = "handshake", [ENCL_STAGE_VERIFIED] = "verified",
};

static bool add_stage(PyObject *ages, const char *name, int64_t ns) {
    PyObject *age = PyLong_FromLongLong(ns);
    bool added = age != NULL && PyDict_SetItemString(ages, name, age) == 0;

    Py_XDECREF(age);
    return added;
}

static PyObject *channel_stages(PyObject *self, PyObject *unused) {
    int64_t at[ENCL_STAGES], now = encl_now_ns();
    PyObject *ages = PyDict_New();

    (void)unused;
    if (ages == NULL) {
        return NULL;
    }
    encl_channel_get_stages(channel_of(self), at);
    for (int stage = 0; stage < ENCL_STAGES; stage++) {
        if (at[stage] != 0 && !add_stage(ages, stage_names[stage], now - at[stage])) {
            Py_DECREF(ages);
            return NULL;
        }
    }
    return ages;
}

static encl_code await_closed(void *channel, int64_t until, encl_error *err) {
    (void)err;
    return encl_channel_wait_closed(channel, until) ? ENCL_OK : STILL_WAITING;
}

static PyObject *channel_close(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"timeout", NULL};
    encl_channel *channel = channel_of(self);
    int64_t until = encl_now_ns() + 1000000000;
    encl_error unused = {.message = ""};

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|O&", names, binding_read_deadline, &until)) {
        return NULL;
    }
    close_channel(channel, NULL);
#ifdef ENCL_WEB
    until = ENCL_POLL; /* the WebSocket closes in a later turn of the event loop */
#endif
    if (binding_wait(until, STILL_WAITING, await_closed, channel, &unused) == BINDING_RAISED) {
        return NULL;
    }
    Py_RETURN_NONE; /* also where the connection is still there: it ends later */
}

/* ---- slots, streams, requests ---- */

/* While the GIL is released another thread may close the notifier. */
static void keep_notifier(encl_notifier *notifier) {
    if (notifier != NULL) {
        encl_notifier_retain(notifier);
    }
}

static PyObject *channel_reserve(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    encl_channel *channel = channel_of(self);
    encl_notifier *notifier;
    uint64_t token;
    encl_slot *slot;
    encl_error err;
    encl_code rc;

    if (!binding_counted("reserve", count, 2) || !binding_read_token(args[1], &token) ||
        !binding_read_notifier_or_none(args[0], &notifier)) {
        return NULL;
    }
    keep_notifier(notifier);
    Py_BEGIN_ALLOW_THREADS
        rc = encl_channel_reserve(channel, notifier, token, &slot, &err);
        encl_notifier_release(notifier);
    Py_END_ALLOW_THREADS
    return rc == ENCL_OK ? binding_wrap_slot(slot) : binding_raise(&err);
}

/* The first record's part of payload, then the rest. NULL with an exception set. */
static PyObject *open_with(encl_slot *slot, encl_slice payload) {
    size_t done = payload.len < ENCL_STREAM_CHUNK ? payload.len : ENCL_STREAM_CHUNK;
    binding_outcome outcome;
    PyObject *result;
    encl_stream *stream;
    encl_error err;
    encl_code rc;

    Py_BEGIN_ALLOW_THREADS
        rc = encl_stream_open(slot, ENCL_SLICE(payload.data, done), &stream, &err);
    Py_END_ALLOW_THREADS
    if (rc != ENCL_OK) {
        return binding_raise(&err);
    }
    result = binding_wrap_stream(stream);
    if (result == NULL || done == payload.len) {
        return result;
    }
    outcome = binding_write(stream, payload, ENCL_FOREVER, &done, &err);
    if (outcome != BINDING_DONE) {
        Py_DECREF(result);
        return binding_not_done(outcome, &err);
    }
    return result;
}

static PyObject *channel_open_stream(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    binding_buffer payload = {.name = "payload"};
    PyObject *result;
    encl_slot *slot;

    (void)self;
    if (!binding_counted("open_stream", count, 2) || !binding_read_slot(args[0], &slot) ||
        !binding_read_buffer(args[1], &payload)) {
        return NULL;
    }
    result = open_with(slot, ENCL_SLICE(payload.view.buf, (size_t)payload.view.len));
    PyBuffer_Release(&payload.view);
    return result;
}

static PyObject *channel_start_request(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    binding_buffer payload = {.name = "payload"};
    encl_slot *slot;
    encl_request *request;
    encl_error err;
    encl_code rc;

    (void)self;
    if (!binding_counted("start_request", count, 2) || !binding_read_slot(args[0], &slot) ||
        !binding_read_buffer(args[1], &payload)) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
        rc = encl_request_start(slot, ENCL_SLICE(payload.view.buf, (size_t)payload.view.len),
                                &request, &err);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&payload.view);
    return rc == ENCL_OK ? binding_wrap_request(request) : binding_raise(&err);
}

/* ---- documents ---- */

static PyObject *channel_start_attest(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    encl_channel *channel = channel_of(self);
    encl_notifier *notifier;
    uint64_t token, number;
    encl_error err;
    encl_code rc;

    if (!binding_counted("start_attest", count, 2) || !binding_read_token(args[1], &token) ||
        !binding_read_notifier_or_none(args[0], &notifier)) {
        return NULL;
    }
    keep_notifier(notifier);
    Py_BEGIN_ALLOW_THREADS
        rc = encl_channel_start_attest(channel, notifier, token, &number, &err);
        encl_notifier_release(notifier);
    Py_END_ALLOW_THREADS
    return rc == ENCL_OK ? PyLong_FromUnsignedLongLong(number) : binding_raise(&err);
}

typedef struct document_context {
    encl_channel *channel;
    uint64_t number;
    encl_doc *doc;
} document_context;

static encl_code await_document(void *context, int64_t until, encl_error *err) {
    document_context *c = context;

    return encl_channel_finish_attest(c->channel, c->number, until, &c->doc, err);
}

static PyObject *channel_finish_attest(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    document_context c = {.channel = channel_of(self)};
    binding_outcome outcome;
    int64_t until;
    encl_error err;

    if (!binding_counted("finish_attest", count, 2) || !binding_read_number(args[0], &c.number) ||
        !binding_read_deadline(args[1], &until)) {
        return NULL;
    }
    outcome = binding_wait(until, ENCL_E_READ_TIMEOUT, await_document, &c, &err);
    if (outcome == BINDING_NOT_YET) {
        Py_RETURN_NONE;
    }
    return outcome == BINDING_DONE ? take_doc(c.doc) : binding_not_done(outcome, &err);
}

static PyObject *channel_abandon_attest(PyObject *self, PyObject *value) {
    encl_channel *channel = channel_of(self);
    uint64_t number;

    if (!binding_read_number(value, &number)) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
        encl_channel_abandon_attest(channel, number);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyMethodDef channel_methods[] = {
#ifdef ENCL_WEB
    {"link", channel_link, METH_NOARGS, "Its WebSocket's side."},
#endif
    {"wait_open", channel_wait_open, METH_O, "Until it is open; raises why it is not."},
    {"attestation", channel_attestation, METH_NOARGS, "What was verified last."},
    {"notify_open", BINDING_CALL(channel_notify_open), METH_FASTCALL, "Asks to be told once."},
    {"notify_stage", BINDING_CALL(channel_notify_stage), METH_FASTCALL,
     "Asks to be told once that more stages of connecting are reached."},
    {"stages", channel_stages, METH_NOARGS, "Stages of connecting: name, and ns ago."},
    {"reserve", BINDING_CALL(channel_reserve), METH_FASTCALL, "Asks for a slot, in order."},
    {"open_stream", BINDING_CALL(channel_open_stream), METH_FASTCALL,
     "Opens a stream on a granted slot."},
    {"start_request", BINDING_CALL(channel_start_request), METH_FASTCALL,
     "Sends a one-shot request."},
    {"start_attest", BINDING_CALL(channel_start_attest), METH_FASTCALL,
     "Asks for a fresh document."},
    {"finish_attest", BINDING_CALL(channel_finish_attest), METH_FASTCALL, "Collects it."},
    {"abandon_attest", channel_abandon_attest, METH_O, "Nobody will collect it."},
    {"close", BINDING_CALL(channel_close), METH_VARARGS | METH_KEYWORDS,
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

int binding_add_channel(PyObject *module) {
    channel_type = binding_add_type(module, &channel_spec);
    if (channel_type == NULL ||
        PyModule_AddIntConstant(module, "MAX_IN_FLIGHT", ENCL_MAX_OPEN) != 0) {
        return -1;
    }
    return 0;
}
