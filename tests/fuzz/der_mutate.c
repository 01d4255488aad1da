/* Certificates changed value by value; lengths around a change are written anew. */
#include "der_tree.h"

#define SPOTS_MAX 512
#define HEX(text) ENCL_SLICE((text), sizeof(text) - 1)

typedef struct spot {
    der_node **slot;
    der_node *parent;
} spot;

static const encl_slice *offered;
static size_t offered_count;

void fuzz_der_offer_keys(const encl_slice *spki, size_t count) {
    offered = spki;
    offered_count = count;
}

static size_t collect(spot *all, size_t count, der_node **slot, der_node *parent) {
    if (count < SPOTS_MAX) {
        all[count++] = (spot){slot, parent};
    }
    for (der_node **c = &(*slot)->child; (*slot)->open && *c != NULL; c = &(*c)->next) {
        count = collect(all, count, c, *slot);
    }
    return count;
}

static spot choose(der_node **root, fuzz_random *r) {
    static spot all[SPOTS_MAX];

    return all[fuzz_below(r, collect(all, 0, root, NULL))];
}

static void replace(const spot *s, der_node *with) {
    if (with != NULL) {
        with->next = (*s->slot)->next;
        *s->slot = with;
    }
}

static encl_slice any_of(const encl_slice *list, size_t count, fuzz_random *r) {
    return list[fuzz_below(r, count)];
}

/* ---- values by their type ---- */

static encl_slice any_oid(fuzz_random *r) {
    static const encl_slice oids[] = {
        {(const uint8_t *)"\x55\x1d\x13", 3},                     /* basicConstraints */
        {(const uint8_t *)"\x55\x1d\x0f", 3},                     /* keyUsage */
        {(const uint8_t *)"\x55\x1d\x1e", 3},                     /* nameConstraints */
        {(const uint8_t *)"\x55\x1d\x25", 3},                     /* extKeyUsage */
        {(const uint8_t *)"\x55\x1d\x24", 3},                     /* policyConstraints */
        {(const uint8_t *)"\x55\x1d\x0e", 3},                     /* subjectKeyIdentifier */
        {(const uint8_t *)"\x55\x1d\x23", 3},                     /* authorityKeyIdentifier */
        {(const uint8_t *)"\x2a\x03\x04", 3},                     /* nobody's */
        {(const uint8_t *)"\x55\x04\x03", 3},                     /* commonName */
        {(const uint8_t *)"\x2b\x81\x04\x00\x22", 5},             /* P-384 */
        {(const uint8_t *)"\x2b\x81\x04\x00\x23", 5},             /* P-521 */
        {(const uint8_t *)"\x2b\x65\x70", 3},                     /* Ed25519 */
        {(const uint8_t *)"\x2a\x86\x48\xce\x3d\x03\x01\x07", 8}, /* P-256 */
        {(const uint8_t *)"\x2a\x86\x48\xce\x3d\x02\x01", 7},     /* id-ecPublicKey */
        {(const uint8_t *)"\x2a\x86\x48\xce\x3d\x04\x03\x02", 8}, /* ecdsa-with-SHA256 */
        {(const uint8_t *)"\x2a\x86\x48\xce\x3d\x04\x03\x03", 8}, /* ecdsa-with-SHA384 */
        {(const uint8_t *)"\x2a\x86\x48\xce\x3d\x04\x03\x04", 8}, /* ecdsa-with-SHA512 */
    };

    return any_of(oids, sizeof oids / sizeof *oids, r);
}

/* The certificates of the seeds are valid from 2027-03-14 15:08:26 on; they are judged a minute
 * later. */
static void set_time(der_node *n, fuzz_random *r) {
    static const encl_slice utc[] = {
        {(const uint8_t *)"270314150926Z", 13}, {(const uint8_t *)"270314150925Z", 13},
        {(const uint8_t *)"270314150927Z", 13}, {(const uint8_t *)"500101000000Z", 13},
        {(const uint8_t *)"491231235959Z", 13}, {(const uint8_t *)"2703141509Z", 11},
        {(const uint8_t *)"270230000000Z", 13}, {(const uint8_t *)"270314150926+0100", 17},
    };
    static const encl_slice general[] = {
        {(const uint8_t *)"20270314150926Z", 15},   {(const uint8_t *)"20270314150925Z", 15},
        {(const uint8_t *)"20270314150927Z", 15},   {(const uint8_t *)"99991231235959Z", 15},
        {(const uint8_t *)"00000101000000Z", 15},   {(const uint8_t *)"19691231235959Z", 15},
        {(const uint8_t *)"20270314150926.5Z", 17}, {(const uint8_t *)"20270314150926", 14},
    };
    bool wide = fuzz_one_in(r, 2);

    n->tag = wide ? DER_GENERALIZED_TIME : DER_UTC_TIME;
    n->bytes = wide ? any_of(general, sizeof general / sizeof *general, r)
                    : any_of(utc, sizeof utc / sizeof *utc, r);
}

static encl_slice any_integer(fuzz_random *r) {
    static const encl_slice integers[] = {
        {(const uint8_t *)"\x00", 1},
        {(const uint8_t *)"\x01", 1},
        {(const uint8_t *)"\x02", 1},
        {(const uint8_t *)"\x03", 1},
        {(const uint8_t *)"\x7f", 1},
        {(const uint8_t *)"\xff", 1},
        {(const uint8_t *)"\x00\x80", 2},
        {(const uint8_t *)"\x00\x01", 2},
        {(const uint8_t *)"", 0},
        {(const uint8_t *)"\x7f\xff\xff\xff\xff", 5},
        {(const uint8_t *)"\x7f\xff\xff\xff\xff\xff\xff\xff\xff", 9},
        {(const uint8_t *)"\x80\x00\x00\x00\x00\x00\x00\x00", 8},
    };

    return any_of(integers, sizeof integers / sizeof *integers, r);
}

/* A keyUsage is two or three bytes: how many bits are unused, then the bits. */
static encl_slice any_bits(fuzz_random *r) {
    uint8_t *bits = fuzz_arena_take(3);

    if (bits == NULL) {
        return ENCL_SLICE_NONE;
    }
    bits[0] = (uint8_t)fuzz_below(r, 8);
    bits[1] = (uint8_t)(fuzz_one_in(r, 2) ? 1u << fuzz_below(r, 8) : fuzz_below(r, 256));
    bits[2] = 0x80;
    return ENCL_SLICE(bits, 1 + fuzz_below(r, 3));
}

static void change_value(der_node *n, fuzz_random *r) {
    if (n->open || fuzz_one_in(r, 8)) {
        n->bytes = fuzz_mutate_bytes(n->bytes, r);
        n->open = false;
        return;
    }
    switch (n->tag) {
    case DER_BOOLEAN:
        n->bytes = fuzz_one_in(r, 2) ? HEX("\xff") : fuzz_one_in(r, 2) ? HEX("\x00") : HEX("\x01");
        return;
    case DER_INTEGER:
        n->bytes = any_integer(r);
        return;
    case DER_OID:
        n->bytes = any_oid(r);
        return;
    case DER_UTC_TIME:
    case DER_GENERALIZED_TIME:
        set_time(n, r);
        return;
    case DER_BIT_STRING:
        n->bytes = n->bytes.len <= 3 ? any_bits(r) : fuzz_mutate_bytes(n->bytes, r);
        return;
    default:
        n->bytes = fuzz_mutate_bytes(n->bytes, r);
    }
}

/* ---- what a certificate is made of ---- */

static der_node *extensions_of(const der_node *root) {
    der_node *body = der_signed_part(root);
    size_t i = 0;

    while (der_at(body, i) != NULL && der_at(body, i)->tag != DER_EXTENSIONS) {
        i++;
    }
    return der_at(der_at(body, i), 0);
}

/* Each one whole: what it is, whether it is critical, what it says. */
static void add_extension(const der_node *root, fuzz_random *r) {
    static const encl_slice made[] = {
        /* basicConstraints: CA; CA with pathLen 0; none; a pathLen without CA; pathLen -1 */
        {(const uint8_t *)"\x30\x0f\x06\x03\x55\x1d\x13\x01\x01\xff\x04\x05\x30\x03\x01\x01\xff",
         17},
        {(const uint8_t *)"\x30\x12\x06\x03\x55\x1d\x13\x01\x01\xff\x04\x08\x30\x06\x01\x01\xff"
                          "\x02\x01\x00",
         20},
        {(const uint8_t *)"\x30\x0c\x06\x03\x55\x1d\x13\x01\x01\xff\x04\x02\x30\x00", 14},
        {(const uint8_t *)"\x30\x0f\x06\x03\x55\x1d\x13\x01\x01\xff\x04\x05\x30\x03\x02\x01\x00",
         17},
        {(const uint8_t *)"\x30\x12\x06\x03\x55\x1d\x13\x01\x01\xff\x04\x08\x30\x06\x01\x01\xff"
                          "\x02\x01\xff",
         20},
        /* keyUsage: digitalSignature; keyCertSign */
        {(const uint8_t *)"\x30\x0e\x06\x03\x55\x1d\x0f\x01\x01\xff\x04\x04\x03\x02\x07\x80", 16},
        {(const uint8_t *)"\x30\x0e\x06\x03\x55\x1d\x0f\x01\x01\xff\x04\x04\x03\x02\x02\x04", 16},
        /* critical: nameConstraints, extKeyUsage, nobody's; nobody's, not critical */
        {(const uint8_t *)"\x30\x16\x06\x03\x55\x1d\x1e\x01\x01\xff\x04\x0c\x30\x0a\xa0\x08\x30\x06"
                          "\x82\x04\x74\x65\x73\x74",
         24},
        {(const uint8_t *)"\x30\x16\x06\x03\x55\x1d\x25\x01\x01\xff\x04\x0c\x30\x0a\x06\x08\x2b\x06"
                          "\x01\x05\x05\x07\x03\x01",
         24},
        {(const uint8_t *)"\x30\x0c\x06\x03\x2a\x03\x04\x01\x01\xff\x04\x02\x05\x00", 14},
        {(const uint8_t *)"\x30\x09\x06\x03\x2a\x03\x04\x04\x02\x05\x00", 11},
    };
    der_node *list = extensions_of(root);
    der_node *extension = der_parse(any_of(made, sizeof made / sizeof *made, r));

    if (list == NULL || extension == NULL || !list->open) {
        return;
    }
    extension->next = list->child;
    list->child = extension;
}

/* One of the same kind is taken out first, so that the new one is the only one. */
static void change_extension(const der_node *root, fuzz_random *r) {
    der_node *list = extensions_of(root);

    add_extension(root, r);
    for (der_node *e = list == NULL || !list->open ? NULL : list->child;
         e != NULL && e->next != NULL; e = e->next) {
        der_node *kind = der_at(e->next, 0), *added = der_at(list->child, 0);

        if (kind != NULL && added != NULL && kind->bytes.len == added->bytes.len &&
            memcmp(kind->bytes.data, added->bytes.data, kind->bytes.len) == 0) {
            e->next = e->next->next;
            return;
        }
    }
}

static void change_key(const der_node *root, fuzz_random *r) {
    der_node *key = der_part_of(root, DER_KEY);
    der_node *other = offered_count == 0 ? NULL : der_parse(any_of(offered, offered_count, r));

    if (key != NULL && other != NULL) {
        other->next = key->next;
        *key = *other;
    }
}

/* Both signature algorithms of a certificate, the one inside and the one outside. */
static void change_algorithm(const der_node *root, fuzz_random *r) {
    encl_slice oid = any_oid(r);
    der_node *inner = der_at(der_part_of(root, (der_part)1), 0);
    der_node *outer = der_at(der_at(root, 1), 0);

    if (inner != NULL && outer != NULL && !inner->open && !outer->open) {
        inner->bytes = outer->bytes = oid;
    }
}

static void change_time(const der_node *root, fuzz_random *r) {
    der_node *when = der_at(der_part_of(root, DER_VALIDITY), fuzz_below(r, 2));

    if (when != NULL) {
        set_time(when, r);
    }
}

/* ---- shape ---- */

static void drop(const spot *s) {
    if (s->parent != NULL) {
        *s->slot = (*s->slot)->next;
    }
}

static void duplicate(const spot *s) {
    der_node *copy = s->parent == NULL ? NULL : der_copy(*s->slot);

    if (copy != NULL) {
        copy->next = (*s->slot)->next;
        (*s->slot)->next = copy;
    }
}

static void swap_with_next(const spot *s) {
    der_node *a = *s->slot, *b = a->next;

    if (b != NULL) {
        a->next = b->next;
        b->next = a;
        *s->slot = b;
    }
}

static void change_tag(der_node *n, fuzz_random *r) {
    static const uint8_t tags[] = {0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x0a, 0x0c, 0x13, 0x17,
                                   0x18, 0x1e, 0x30, 0x31, 0x80, 0x82, 0xa0, 0xa1, 0xa3};

    n->tag = tags[fuzz_below(r, sizeof tags)];
}

static void change_shape(der_node **root, const spot *s, fuzz_random *r) {
    der_node *from;

    switch (fuzz_below(r, 6)) {
    case 0:
        drop(s);
        return;
    case 1:
        duplicate(s);
        return;
    case 2:
        swap_with_next(s);
        return;
    case 3:
        change_tag(*s->slot, r);
        return;
    case 4:
        (*s->slot)->length = (der_length)(1 + fuzz_below(r, 3));
        return;
    default:
        from = *choose(root, r).slot;
        replace(s, from == *root ? NULL : der_copy(from));
    }
}

encl_slice fuzz_mutate_der(encl_slice der, fuzz_random *r) {
    der_node *root = der_parse(der);
    spot s;

    if (root == NULL) {
        return ENCL_SLICE_NONE;
    }
    s = choose(&root, r);
    switch (fuzz_below(r, 12)) {
    case 0:
    case 1:
        change_extension(root, r);
        break;
    case 2:
        add_extension(root, r);
        break;
    case 3:
        change_key(root, r);
        break;
    case 4:
        change_algorithm(root, r);
        break;
    case 5:
    case 6:
        change_time(root, r);
        break;
    case 7:
    case 8:
        change_shape(&root, &s, r);
        break;
    default:
        change_value(*s.slot, r);
    }
    return der_write(root);
}
