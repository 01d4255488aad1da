/* CBOR changed item by item. Every change leaves the rest as it was: counts and lengths around it
 * are written anew, and so are the strings that it lies in. */
#include "cbor_tree.h"

#define SPOTS_MAX     4096
#define LARGE         24 /* elements of longer arrays are mostly payload, and rarely chosen */
#define NEST_MAX      20
#define STRUCTURE_MIN 16 /* bytes */

/* Where an item hangs. */
typedef struct spot {
    cbor_node **slot;
    cbor_node *parent; /* NULL for the outermost */
    size_t index;      /* among its siblings */
} spot;

typedef struct spots {
    spot at[SPOTS_MAX];
    size_t count;
} spots;

static void collect(spots *s, cbor_node **slot, cbor_node *parent, size_t index) {
    size_t i = 0;

    if (s->count < SPOTS_MAX) {
        s->at[s->count++] = (spot){slot, parent, index};
    }
    for (cbor_node **c = &(*slot)->child; *c != NULL; c = &(*c)->next) {
        collect(s, c, *slot, i++);
    }
}

static spot choose(cbor_node **root, fuzz_random *r) {
    static spots all;
    spot chosen = {root, NULL, 0};

    all.count = 0;
    collect(&all, root, NULL, 0);
    for (size_t i = 0; i < 4; i++) {
        chosen = all.at[fuzz_below(r, all.count)];
        if (chosen.parent == NULL || cbor_count(chosen.parent) <= LARGE || fuzz_one_in(r, 8)) {
            break;
        }
    }
    return chosen;
}

static bool is_string(const cbor_node *n) {
    return n->major == CBOR_BYTES || n->major == CBOR_TEXT;
}

static bool is_container(const cbor_node *n) {
    return n->major == CBOR_ARRAY || n->major == CBOR_MAP;
}

static void replace(const spot *s, cbor_node *with) {
    if (with != NULL) {
        with->next = (*s->slot)->next;
        *s->slot = with;
    }
}

/* The first item of what moves together: a key with its value, or an item alone. */
static cbor_node **unit(const spot *s, size_t *size) {
    cbor_node **slot = s->slot;

    *size = s->parent != NULL && s->parent->major == CBOR_MAP ? 2 : 1;
    if (*size == 2 && s->index % 2 == 1) {
        slot = &s->parent->child;
        for (size_t i = 1; i < s->index; i++) {
            slot = &(*slot)->next;
        }
    }
    return slot;
}

static cbor_node *last_of(cbor_node *first, size_t size) {
    return size == 2 ? first->next : first;
}

static cbor_node *any_item(fuzz_random *r) {
    static const char *const words[] = {"", "id", "type", "payload", "nonce", "x", "\xff\xfe"};
    static const uint8_t zeros[64];
    cbor_node *n;

    switch (fuzz_below(r, 8)) {
    case 0:
        return cbor_new(CBOR_UINT, fuzz_number(r));
    case 1:
        return cbor_new(CBOR_NEGINT, fuzz_number(r));
    case 2:
        return cbor_new_string(CBOR_BYTES, ENCL_SLICE(zeros, fuzz_below(r, sizeof zeros + 1)));
    case 3: {
        const char *word = words[fuzz_below(r, sizeof words / sizeof *words)];

        return cbor_new_string(CBOR_TEXT, ENCL_SLICE(word, strlen(word)));
    }
    case 4:
        return cbor_new(CBOR_ARRAY, 0);
    case 5:
        return cbor_new(CBOR_MAP, 0);
    case 6:
        return cbor_new(CBOR_SIMPLE, 20 + fuzz_below(r, 4));
    default:
        n = cbor_new(CBOR_SIMPLE, fuzz_number(r));
        if (n != NULL) {
            n->width = (uint8_t)(2u << fuzz_below(r, 3));
        }
        return n;
    }
}

/* ---- changes of one item ---- */

static void change_value(cbor_node *n, fuzz_random *r) {
    if (is_string(n)) {
        n->bytes = fuzz_mutate_string(cbor_bytes(n), r);
        n->indefinite = false;
        n->child = NULL;
    } else if (n->major != CBOR_SIMPLE) {
        n->value = fuzz_number(r);
    } else {
        n->value = n->width == 0 ? fuzz_below(r, 24) : fuzz_number(r);
    }
}

static void change_type(const spot *s, fuzz_random *r) {
    cbor_node *n = *s->slot;

    if (is_string(n) || n->major <= CBOR_NEGINT) {
        n->major ^= 1;
        for (cbor_node *c = n->child; c != NULL; c = c->next) {
            c->major = n->major;
        }
    } else if (n->major == CBOR_MAP || (n->major == CBOR_ARRAY && cbor_count(n) % 2 == 0)) {
        n->major ^= 1;
    } else {
        replace(s, any_item(r));
    }
}

static void change_width(cbor_node *n, fuzz_random *r) {
    if (n->major != CBOR_SIMPLE) {
        n->width = (uint8_t)(1u << fuzz_below(r, 4));
    }
}

/* A string falls into up to three chunks. */
static void split_string(cbor_node *n, fuzz_random *r) {
    cbor_node **end = &n->child;
    size_t at = 0;

    for (size_t i = 0; i < 3 && (i == 0 || at < n->bytes.len || fuzz_one_in(r, 4)); i++) {
        size_t left = n->bytes.len - at, len = i == 2 ? left : fuzz_below(r, left + 1);

        *end = cbor_new_string(n->major, ENCL_SLICE(n->bytes.data + at, len));
        if (*end == NULL) {
            return;
        }
        end = &(*end)->next;
        at += len;
    }
    n->bytes = ENCL_SLICE_NONE;
    n->indefinite = true;
}

static void change_form(cbor_node *n, fuzz_random *r) {
    if (is_container(n)) {
        n->indefinite = !n->indefinite;
    } else if (is_string(n) && n->indefinite) {
        n->bytes = cbor_bytes(n);
        n->child = NULL;
        n->indefinite = false;
    } else if (is_string(n)) {
        split_string(n, r);
    }
}

/* Bytes as an array of their values, and back: both forms are in use. */
static void change_byte_form(const spot *s) {
    cbor_node *n = *s->slot, *array;

    if (is_string(n)) {
        encl_slice bytes = cbor_bytes(n);
        cbor_node **end;

        array = cbor_new(CBOR_ARRAY, 0);
        end = array == NULL ? NULL : &array->child;
        for (size_t i = 0; end != NULL && i < bytes.len && i < SPOTS_MAX; i++) {
            *end = cbor_new(CBOR_UINT, bytes.data[i]);
            end = *end == NULL ? NULL : &(*end)->next;
        }
        replace(s, array);
    } else if (n->major == CBOR_ARRAY) {
        uint8_t *bytes = fuzz_arena_take(cbor_count(n));
        size_t len = 0;

        for (const cbor_node *c = n->child; bytes != NULL && c != NULL; c = c->next) {
            bytes[len++] = (uint8_t)c->value;
        }
        replace(s, bytes == NULL ? NULL : cbor_new_string(CBOR_BYTES, ENCL_SLICE(bytes, len)));
    }
}

static void lie_about_length(cbor_node *n, fuzz_random *r) {
    n->lie = fuzz_one_in(r, 4) ? (int64_t)fuzz_number(r) : fuzz_one_in(r, 2) ? 1 : -1;
}

static void wrap(const spot *s, fuzz_random *r) {
    size_t depth = fuzz_one_in(r, 4) ? 1 + fuzz_below(r, NEST_MAX) : 1;

    for (size_t i = 0; i < depth; i++) {
        cbor_node *n = *s->slot;
        cbor_node *outer = fuzz_one_in(r, 2) ? cbor_new(CBOR_ARRAY, 0)
                                             : cbor_new(CBOR_TAG, fuzz_one_in(r, 2) ? 18 : 24);

        if (outer == NULL) {
            return;
        }
        replace(s, outer);
        n->next = NULL;
        outer->child = n;
        outer->indefinite = outer->major == CBOR_ARRAY && fuzz_one_in(r, 4);
    }
}

/* ---- changes among siblings ---- */

static void drop(const spot *s) {
    size_t size;
    cbor_node **first = unit(s, &size);

    if (s->parent != NULL && s->parent->major != CBOR_TAG) {
        *first = last_of(*first, size)->next;
    }
}

static void duplicate(const spot *s, fuzz_random *r) {
    size_t size;
    cbor_node **first = unit(s, &size), *copy, *copy_end;
    cbor_node **where;

    if (s->parent == NULL || s->parent->major == CBOR_TAG) {
        return;
    }
    copy = copy_end = cbor_copy(*first);
    if (copy != NULL && size == 2) {
        copy_end = copy->next = cbor_copy((*first)->next);
    }
    if (copy_end == NULL) {
        return;
    }
    where = fuzz_one_in(r, 2) ? &s->parent->child : &last_of(*first, size)->next;
    copy_end->next = *where;
    *where = copy;
}

/* To the front. */
static void move(const spot *s) {
    size_t size;
    cbor_node **first = unit(s, &size), *moved = *first;

    if (s->parent == NULL || moved == s->parent->child) {
        return;
    }
    *first = last_of(moved, size)->next;
    last_of(moved, size)->next = s->parent->child;
    s->parent->child = moved;
}

static void insert(const spot *s, fuzz_random *r) {
    cbor_node *n = *s->slot, *value = any_item(r), *key;

    if (!is_container(n) || value == NULL) {
        return;
    }
    value->next = n->child;
    n->child = value;
    if (n->major == CBOR_MAP) {
        key = fuzz_one_in(r, 2)
                  ? cbor_new_string(CBOR_TEXT, ENCL_SLICE("unknown", fuzz_below(r, 8)))
                  : any_item(r);
        if (key == NULL) {
            n->child = value->next;
            return;
        }
        key->next = value;
        n->child = key;
    }
}

static void copy_over(cbor_node **root, const spot *s, fuzz_random *r) {
    cbor_node *from = *choose(root, r).slot;

    replace(s, from == *root ? NULL : cbor_copy(from));
}

static bool has_structure(encl_slice bytes) {
    const cbor_node *inner;

    if (bytes.len < STRUCTURE_MIN) {
        return false;
    }
    inner = cbor_parse_all(bytes);
    return fuzz_is_der(bytes) || (inner != NULL && is_container(inner));
}

/* Into a string that holds CBOR or DER, where there is one: most of a document is in such. */
static bool change_inside(cbor_node **root, fuzz_random *r) {
    static spots all, inside;
    spot s;

    all.count = inside.count = 0;
    collect(&all, root, NULL, 0);
    for (size_t i = 0; i < all.count; i++) {
        const cbor_node *n = *all.at[i].slot;

        if (n->major == CBOR_BYTES && !n->indefinite && has_structure(n->bytes)) {
            inside.at[inside.count++] = all.at[i];
        }
    }
    if (inside.count == 0) {
        return false;
    }
    s = inside.at[fuzz_below(r, inside.count)];
    (*s.slot)->bytes = fuzz_mutate_string((*s.slot)->bytes, r);
    return true;
}

static void change_once(cbor_node **root, fuzz_random *r) {
    spot s = choose(root, r);

    if (!fuzz_one_in(r, 3) && change_inside(root, r)) {
        return;
    }
    switch (fuzz_below(r, 17)) {
    case 0:
    case 1:
    case 2:
    case 3:
        change_value(*s.slot, r);
        return;
    case 4:
        change_type(&s, r);
        return;
    case 5:
        change_width(*s.slot, r);
        return;
    case 6:
        change_form(*s.slot, r);
        return;
    case 7:
        change_byte_form(&s);
        return;
    case 8:
        lie_about_length(*s.slot, r);
        return;
    case 9:
        wrap(&s, r);
        return;
    case 10:
        drop(&s);
        return;
    case 11:
        duplicate(&s, r);
        return;
    case 12:
        move(&s);
        return;
    case 13:
        insert(&s, r);
        return;
    case 14:
        replace(&s, any_item(r));
        return;
    default:
        copy_over(root, &s, r);
    }
}

static encl_slice change(cbor_node *root, fuzz_random *r) {
    size_t times = 1 + (fuzz_one_in(r, 3) ? fuzz_below(r, 3) : 0);

    for (size_t i = 0; i < times; i++) {
        change_once(&root, r);
    }
    return cbor_write(root);
}

encl_slice fuzz_mutate_string(encl_slice bytes, fuzz_random *r) {
    cbor_node *inner;

    if (fuzz_one_in(r, 8)) {
        return fuzz_mutate_bytes(bytes, r);
    }
    if (fuzz_is_der(bytes)) {
        return fuzz_mutate_der(bytes, r);
    }
    inner = cbor_parse_all(bytes);
    if (inner != NULL && is_container(inner) && inner->child != NULL) {
        return change(inner, r);
    }
    return fuzz_mutate_bytes(bytes, r);
}

static size_t give(encl_slice changed, uint8_t *out, size_t max) {
    if (changed.len == 0 || changed.len > max) {
        return 0;
    }
    memcpy(out, changed.data, changed.len);
    return changed.len;
}

size_t fuzz_mutate_cbor(uint8_t *data, size_t size, size_t max, fuzz_random *r) {
    cbor_node *root = cbor_parse_all(ENCL_SLICE(data, size));
    size_t n = root == NULL ? 0 : give(change(root, r), data, max);

    return n == 0 ? LLVMFuzzerMutate(data, size, max) : n;
}

size_t fuzz_cross_cbor(encl_slice a, encl_slice b, uint8_t *out, size_t max, fuzz_random *r) {
    cbor_node *to = cbor_parse_all(a), *from = cbor_parse_all(b);
    spot s;

    if (to == NULL || from == NULL) {
        return 0;
    }
    s = choose(&to, r);
    replace(&s, cbor_copy(*choose(&from, r).slot));
    return give(cbor_write(to), out, max);
}
