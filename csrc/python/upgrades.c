/* What a walk along a chain of upgrades asks for: documents of the past, signatures of a control
 * key, payloads. Decides nothing itself: attest/ does. Verifying works for long, and fork() is held
 * back meanwhile, so it releases the GIL; a LinkCache is lent to one call at a time, which a flag
 * says that is read and written with the GIL held. No lock. */
#include "python/arguments.h"
#include "python/binding.h"
#include "sync/fork.h"

#include <limits.h>

typedef struct cache_object {
    PyObject_HEAD
    encl_link_cache *cache;
    bool lent;
} cache_object;

/* One per interpreter process; set while the module is being made and never after. */
static PyTypeObject *cache_type;

#define CACHE_ENTRIES 256

static PyObject *cache_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {NULL};
    cache_object *self;
    encl_error err;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "", names)) {
        return NULL;
    }
    self = (cache_object *)binding_make(type);
    if (self != NULL && encl_link_cache_new(CACHE_ENTRIES, &self->cache, &err) != ENCL_OK) {
        Py_DECREF(self);
        return binding_raise(&err);
    }
    return (PyObject *)self;
}

static void cache_dealloc(PyObject *self) {
    Py_BEGIN_ALLOW_THREADS
        encl_fork_hold();
        encl_link_cache_free(((cache_object *)self)->cache);
        encl_fork_let_go();
    Py_END_ALLOW_THREADS
    binding_free(self);
}

static PyType_Slot cache_slots[] = {
    {Py_tp_new, cache_new},
    {Py_tp_dealloc, cache_dealloc},
    {Py_tp_doc, "Links of certificate chains that verified before."},
    {0, NULL},
};

static PyType_Spec cache_spec = {
    .name = "enclavia._core.LinkCache",
    .basicsize = sizeof(cache_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = cache_slots,
};

/* cache_object *, borrowed; NULL for None. */
static int read_cache(PyObject *value, void *cache) {
    cache_object **out = cache;

    if (value != Py_None && !PyObject_TypeCheck(value, cache_type)) {
        return binding_wrong_type("cache", "a LinkCache or None", value);
    }
    *out = value == Py_None ? NULL : (cache_object *)value;
    return 1;
}

/* Without a cache where another thread uses it. */
static encl_code verify_with(cache_object *cache, encl_slice document, const encl_policy *policy,
                             encl_attestation **attestation, encl_error *err) {
    bool mine = cache != NULL && !cache->lent;
    encl_code rc;

    if (mine) {
        cache->lent = true;
    }
    Py_BEGIN_ALLOW_THREADS
        encl_fork_hold();
        rc = encl_attest_verify_recorded(document, policy, mine ? cache->cache : NULL, attestation,
                                         err);
        encl_fork_let_go();
    Py_END_ALLOW_THREADS
    if (mine) {
        cache->lent = false;
    }
    return rc;
}

static PyObject *verify_recorded(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"document", "policy", "cache", NULL};
    binding_buffer document = {.name = "document"};
    const encl_policy *policy;
    cache_object *cache = NULL;
    encl_attestation *attestation = NULL;
    PyObject *result;
    encl_error err;
    encl_code rc;

    (void)module;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&O&|O&", names, binding_read_buffer, &document,
                                     binding_read_policy, &policy, read_cache, &cache)) {
        return NULL;
    }
    rc = verify_with(cache, ENCL_SLICE(document.view.buf, (size_t)document.view.len), policy,
                     &attestation, &err);
    PyBuffer_Release(&document.view);
    if (rc != ENCL_OK) {
        return binding_raise(&err);
    }
    result = binding_attestation(attestation);
    encl_attestation_free(attestation);
    return result;
}

static PyObject *verify_es256(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"public_key", "message", "signature", NULL};
    binding_octets public_key = {.name = "public_key"}, message = {.name = "message"},
                   signature = {.name = "signature"};
    encl_error err;
    encl_code rc;

    (void)module;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&O&O&", names, binding_read_octets,
                                     &public_key, binding_read_octets, &message,
                                     binding_read_octets, &signature)) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
        encl_fork_hold();
        rc = encl_attest_es256_verify(public_key.bytes, message.bytes, signature.bytes, &err);
        encl_fork_let_go();
    Py_END_ALLOW_THREADS
    if (rc != ENCL_OK) {
        return binding_raise(&err);
    }
    Py_RETURN_NONE;
}

/* Nothing is put where the kind has no such field. */
static bool put_bytes(PyObject *dict, const char *key, encl_slice bytes) {
    return bytes.data == NULL || binding_put(dict, key, binding_bytes(bytes));
}

static bool put_text(PyObject *dict, const char *key, encl_slice utf8) {
    return utf8.data == NULL ||
           binding_put(dict, key,
                       PyUnicode_DecodeUTF8((const char *)utf8.data, (Py_ssize_t)utf8.len, NULL));
}

static bool put_pcrs(PyObject *dict, const char *key, const encl_pins *pins) {
    const encl_pcr *pcr = pins->pcr;

    return pcr[0].len == 0 ||
           binding_put(dict, key,
                       Py_BuildValue("(NNN)", binding_bytes(ENCL_SLICE(pcr[0].value, pcr[0].len)),
                                     binding_bytes(ENCL_SLICE(pcr[1].value, pcr[1].len)),
                                     binding_bytes(ENCL_SLICE(pcr[2].value, pcr[2].len))));
}

static PyObject *payload_dict(const encl_link_payload *p) {
    PyObject *dict = PyDict_New();

    if (dict == NULL) {
        return NULL;
    }
    if (!put_bytes(dict, "enclave_id", p->enclave_id) ||
        !put_text(dict, "image_digest", p->image_digest) || !put_pcrs(dict, "pcrs", &p->pcrs) ||
        !put_pcrs(dict, "to_pcrs", &p->to_pcrs) || !put_text(dict, "booted_at", p->booted_at) ||
        !put_text(dict, "valid_from", p->valid_from) ||
        !put_text(dict, "issued_at", p->issued_at) || !put_bytes(dict, "revokes", p->revokes) ||
        !put_bytes(dict, "nonce", p->nonce)) {
        Py_CLEAR(dict);
    }
    return dict;
}

static PyObject *link_payload(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"kind", "payload", NULL};
    binding_whole kind = {"kind", 0, ENCL_LINK_KIND_COUNT_ - 1, 0};
    binding_octets payload = {.name = "payload"};
    encl_link_payload parsed;
    encl_error err;

    (void)module;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&O&", names, binding_read_whole, &kind,
                                     binding_read_octets, &payload)) {
        return NULL;
    }
    if (encl_link_payload_parse(payload.bytes, (encl_link_kind)kind.value, &parsed, &err) !=
        ENCL_OK) {
        return binding_raise(&err);
    }
    return payload_dict(&parsed);
}

static PyMethodDef functions[] = {
    {"verify_recorded", BINDING_CALL(verify_recorded), METH_VARARGS | METH_KEYWORDS,
     "Verifies a document at the moment that it states itself."},
    {"verify_es256", BINDING_CALL(verify_es256), METH_VARARGS | METH_KEYWORDS,
     "Verifies a raw ECDSA P-256 signature."},
    {"link_payload", BINDING_CALL(link_payload), METH_VARARGS | METH_KEYWORDS,
     "Reads the payload of a link of an upgrade chain."},
    {NULL, NULL, 0, NULL},
};

int binding_add_upgrades(PyObject *module) {
    if (PyModule_AddIntConstant(module, "LINK_BOOT", ENCL_LINK_BOOT) != 0 ||
        PyModule_AddIntConstant(module, "LINK_UPGRADE", ENCL_LINK_UPGRADE) != 0 ||
        PyModule_AddIntConstant(module, "LINK_REVOCATION", ENCL_LINK_REVOCATION) != 0) {
        return -1;
    }
    cache_type = binding_add_type(module, &cache_spec);
    return cache_type == NULL ? -1 : PyModule_AddFunctions(module, functions);
}
