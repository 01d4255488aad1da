/* Slot: a place among a channel's max_in_flight. Decides nothing; hands on to csrc/channel. All but
 * `granted` takes the channel's lock and so releases the GIL; `granted` reads an atomic. */
#include "python/arguments.h"
#include "python/binding.h"

typedef struct slot_object {
    PyObject_HEAD
    encl_slot *slot;
} slot_object;

/* Set while the module is being made and never after. */
static PyTypeObject *slot_type;

static encl_slot *slot_of(PyObject *self) {
    return ((slot_object *)self)->slot;
}

PyObject *binding_wrap_slot(encl_slot *slot) {
    slot_object *self = (slot_object *)binding_make(slot_type);

    if (self == NULL) {
        encl_slot_release(slot);
        return NULL;
    }
    self->slot = slot;
    return (PyObject *)self;
}

int binding_read_slot(PyObject *value, void *slot) {
    encl_slot **out = slot;

    if (!PyObject_TypeCheck(value, slot_type)) {
        return binding_wrong_type("slot", "a Slot", value);
    }
    *out = slot_of(value);
    return 1;
}

static void slot_dealloc(PyObject *self) {
    encl_slot *slot = slot_of(self);

    Py_BEGIN_ALLOW_THREADS
        encl_slot_release(slot);
    Py_END_ALLOW_THREADS
    binding_free(self);
}

static encl_code await_grant(void *slot, int64_t until, encl_error *err) {
    return encl_slot_wait(slot, until, err);
}

static PyObject *slot_wait(PyObject *self, PyObject *timeout) {
    binding_outcome outcome;
    int64_t until;
    encl_error err;

    if (!binding_read_deadline(timeout, &until)) {
        return NULL;
    }
    outcome = binding_wait(until, ENCL_E_POOL_TIMEOUT, await_grant, slot_of(self), &err);
    return outcome == BINDING_DONE ? Py_NewRef(Py_None) : binding_not_done(outcome, &err);
}

static PyObject *slot_give_up(PyObject *self, PyObject *unused) {
    encl_slot *slot = slot_of(self);

    (void)unused;
    Py_BEGIN_ALLOW_THREADS
        encl_slot_give_up(slot);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *get_granted(PyObject *self, void *unused) {
    (void)unused;
    return PyBool_FromLong(encl_slot_granted(slot_of(self)));
}

static PyMethodDef slot_methods[] = {
    {"wait", slot_wait, METH_O, "Until it is granted."},
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

int binding_add_slot(PyObject *module) {
    slot_type = binding_add_type(module, &slot_spec);
    return slot_type == NULL ? -1 : 0;
}
