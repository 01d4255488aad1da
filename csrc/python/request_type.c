/* Request: a one-shot request under way. Decides that one that was abandoned has no result any
 * more. Everything here takes the channel's lock and so releases the GIL; `abandoned` is guarded by
 * the GIL itself. */
#include "python/arguments.h"
#include "python/binding.h"

typedef struct request_object {
    PyObject_HEAD
    encl_request *request;
    bool abandoned;
} request_object;

/* Set while the module is being made and never after. */
static PyTypeObject *request_type;

PyObject *binding_wrap_request(encl_request *request) {
    request_object *self = (request_object *)binding_make(request_type);

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

/* The reference is given back by dealloc only: another thread may be waiting for the result. */
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

typedef struct result_context {
    encl_request *request;
    encl_slice answer; /* the request's */
} result_context;

static encl_code await_result(void *context, int64_t until, encl_error *err) {
    result_context *c = context;

    return encl_request_result(c->request, until, &c->answer, err);
}

static PyObject *request_result(PyObject *self, PyObject *timeout) {
    result_context c = {.request = live_request(self)};
    binding_outcome outcome;
    int64_t until;
    encl_error err;

    if (c.request == NULL || !binding_read_deadline(timeout, &until)) {
        return NULL;
    }
    outcome = binding_wait(until, ENCL_E_READ_TIMEOUT, await_result, &c, &err);
    if (outcome == BINDING_NOT_YET) {
        Py_RETURN_NONE;
    }
    if (outcome != BINDING_DONE) {
        return binding_not_done(outcome, &err);
    }
    return PyBytes_FromStringAndSize((const char *)c.answer.data, (Py_ssize_t)c.answer.len);
}

static encl_code enlist(void *request, int what, encl_notifier *n, uint64_t token,
                        encl_error *err) {
    (void)what;
    return encl_request_notify(request, n, token, err);
}

static void withdraw(void *request, const encl_notifier *n, uint64_t token) {
    encl_request_withdraw(request, n, token);
}

static const binding_source answered = {enlist, withdraw};

static PyObject *request_notify(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    encl_request *request = live_request(self);
    encl_notifier *notifier;
    uint64_t token;

    if (request == NULL || !binding_counted("notify", count, 2) ||
        !binding_read_token(args[1], &token) || !binding_read_notifier(args[0], &notifier)) {
        return NULL;
    }
    return binding_watch(self, request, &answered, 0, notifier, token);
}

static PyMethodDef request_methods[] = {
    {"result", request_result, METH_O, "The answer; None where it would wait."},
    {"notify", BINDING_CALL(request_notify), METH_FASTCALL, "Asks to be told once; gives a Watch."},
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

int binding_add_request(PyObject *module) {
    request_type = binding_add_type(module, &request_spec);
    return request_type == NULL ? -1 : 0;
}
