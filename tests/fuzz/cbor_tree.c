#include "cbor_tree.h"

#define DEPTH_MAX 8192 /* a tag may be tagged, again and again */
#define BREAK     0xff
#define OF_CHUNKS 31

typedef struct reader {
    encl_slice in;
    size_t at;
} reader;

static cbor_node *read_item(reader *r, size_t depth);

cbor_node *cbor_new(uint8_t major, uint64_t value) {
    cbor_node *n = fuzz_arena_take(sizeof *n);

    if (n != NULL) {
        memset(n, 0, sizeof *n);
        n->major = major;
        n->value = value;
    }
    return n;
}

cbor_node *cbor_new_string(uint8_t major, encl_slice bytes) {
    cbor_node *n = cbor_new(major, 0);

    if (n != NULL) {
        n->bytes = bytes;
    }
    return n;
}

static bool is_string(const cbor_node *n) {
    return n->major == CBOR_BYTES || n->major == CBOR_TEXT;
}

static bool read_argument(reader *r, cbor_node *n, uint8_t info) {
    if (info < 24) {
        n->value = info;
        return true;
    }
    if (info > 27) {
        return false;
    }
    n->width = (uint8_t)(1u << (info - 24));
    if (r->in.len - r->at < n->width) {
        return false;
    }
    for (size_t i = 0; i < n->width; i++) {
        n->value = n->value << 8 | r->in.data[r->at++];
    }
    return n->major != CBOR_SIMPLE || n->width != 1 || n->value >= 32;
}

static bool at_break(reader *r) {
    if (r->at < r->in.len && r->in.data[r->at] == BREAK) {
        r->at++;
        return true;
    }
    return false;
}

/* count items, or up to a break; what they are in must be able to hold them. */
static bool read_children(reader *r, cbor_node *n, uint64_t count, size_t depth) {
    cbor_node **end = &n->child;
    uint64_t done = 0;

    while (n->indefinite ? !at_break(r) : done < count) {
        *end = read_item(r, depth + 1);
        if (*end == NULL || (is_string(n) && ((*end)->major != n->major || (*end)->indefinite))) {
            return false;
        }
        end = &(*end)->next;
        done++;
    }
    return n->major != CBOR_MAP || done % 2 == 0;
}

static bool read_content(reader *r, cbor_node *n, size_t depth) {
    uint64_t left = r->in.len - r->at;

    if (is_string(n) && !n->indefinite) {
        if (n->value > left) {
            return false;
        }
        n->bytes = ENCL_SLICE(r->in.data + r->at, n->value);
        r->at += n->value;
        n->value = 0;
        return true;
    }
    switch (n->major) {
    case CBOR_BYTES:
    case CBOR_TEXT:
        return read_children(r, n, 0, depth);
    case CBOR_ARRAY:
    case CBOR_MAP:
        return n->value <= left && read_children(r, n, n->value * (n->major - 3), depth);
    case CBOR_TAG:
        return read_children(r, n, 1, depth);
    default:
        return true;
    }
}

static cbor_node *read_item(reader *r, size_t depth) {
    uint8_t head;
    cbor_node *n;

    if (depth > DEPTH_MAX || r->at >= r->in.len) {
        return NULL;
    }
    head = r->in.data[r->at++];
    n = cbor_new(head >> 5, 0);
    if (n == NULL) {
        return NULL;
    }
    if ((head & 31) == OF_CHUNKS && n->major >= CBOR_BYTES && n->major <= CBOR_MAP) {
        n->indefinite = true;
    } else if (!read_argument(r, n, head & 31)) {
        return NULL;
    }
    if (!read_content(r, n, depth)) {
        return NULL;
    }
    if (n->major == CBOR_ARRAY || n->major == CBOR_MAP) {
        n->value = 0;
    }
    return n;
}

cbor_node *cbor_parse(encl_slice in, size_t *used) {
    reader r = {in, 0};
    cbor_node *n = read_item(&r, 0);

    *used = r.at;
    return n;
}

cbor_node *cbor_parse_all(encl_slice in) {
    size_t used;
    cbor_node *n = cbor_parse(in, &used);

    return n != NULL && used == in.len ? n : NULL;
}

/* ---- writing ---- */

typedef struct writer {
    uint8_t *out;
    size_t at, room;
    bool full;
} writer;

static void put(writer *w, uint8_t byte) {
    if (w->at == w->room) {
        w->full = true;
    } else {
        w->out[w->at++] = byte;
    }
}

static uint8_t least_width(uint64_t v) {
    return v < 24 ? 0 : v <= UINT8_MAX ? 1 : v <= UINT16_MAX ? 2 : v <= UINT32_MAX ? 4 : 8;
}

static void put_head(writer *w, const cbor_node *n, uint64_t v) {
    uint8_t least = n->major == CBOR_SIMPLE ? n->width : least_width(v);
    uint8_t width = n->width > least ? n->width : least;
    uint8_t info = width == 0   ? (uint8_t)v
                   : width == 1 ? 24
                   : width == 2 ? 25
                   : width == 4 ? 26
                                : 27;

    put(w, (uint8_t)(n->major << 5 | (info & 31)));
    for (size_t i = width; i-- > 0;) {
        put(w, (uint8_t)(v >> (8 * i)));
    }
}

static void put_item(writer *w, const cbor_node *n) {
    uint64_t v = n->value;

    if (n->indefinite) {
        put(w, (uint8_t)(n->major << 5 | OF_CHUNKS));
    } else {
        if (is_string(n)) {
            v = n->bytes.len + (uint64_t)n->lie;
        } else if (n->major == CBOR_ARRAY || n->major == CBOR_MAP) {
            v = cbor_count(n) / (n->major == CBOR_MAP ? 2 : 1) + (uint64_t)n->lie;
        }
        put_head(w, n, v);
        for (size_t i = 0; is_string(n) && i < n->bytes.len; i++) {
            put(w, n->bytes.data[i]);
        }
    }
    for (const cbor_node *c = n->child; c != NULL; c = c->next) {
        put_item(w, c);
    }
    if (n->indefinite) {
        put(w, BREAK);
    }
}

encl_slice cbor_write(const cbor_node *n) {
    writer w = {.at = 0};

    w.out = fuzz_arena_rest(&w.room);
    w.room = w.room > 64 ? w.room - 64 : 0;
    put_item(&w, n);
    if (w.full) {
        return ENCL_SLICE_NONE;
    }
    fuzz_arena_commit(w.at);
    return ENCL_SLICE(w.out, w.at);
}

/* ---- looking ---- */

cbor_node *cbor_copy(const cbor_node *n) {
    cbor_node *copy = cbor_new(n->major, 0), **end;

    if (copy == NULL) {
        return NULL;
    }
    *copy = *n;
    copy->next = copy->child = NULL;
    end = &copy->child;
    for (const cbor_node *c = n->child; c != NULL; c = c->next) {
        *end = cbor_copy(c);
        if (*end == NULL) {
            return NULL;
        }
        end = &(*end)->next;
    }
    return copy;
}

size_t cbor_count(const cbor_node *container) {
    size_t count = 0;

    for (const cbor_node *c = container->child; c != NULL; c = c->next) {
        count++;
    }
    return count;
}

cbor_node *cbor_at(const cbor_node *container, size_t i) {
    cbor_node *c = container->child;

    while (c != NULL && i-- > 0) {
        c = c->next;
    }
    return c;
}

encl_slice cbor_bytes(const cbor_node *string) {
    size_t len = 0, at = 0;
    uint8_t *joined;

    if (!string->indefinite) {
        return string->bytes;
    }
    for (const cbor_node *c = string->child; c != NULL; c = c->next) {
        len += c->bytes.len;
    }
    joined = fuzz_arena_take(len);
    REQUIRE(joined != NULL);
    for (const cbor_node *c = string->child; c != NULL; c = c->next) {
        if (c->bytes.len != 0) {
            memcpy(joined + at, c->bytes.data, c->bytes.len);
            at += c->bytes.len;
        }
    }
    return ENCL_SLICE(joined, len);
}

static bool same_slice(encl_slice a, encl_slice b) {
    return a.len == b.len && (a.len == 0 || memcmp(a.data, b.data, a.len) == 0);
}

bool cbor_is_text(const cbor_node *n, const char *text) {
    return n->major == CBOR_TEXT && same_slice(cbor_bytes(n), ENCL_SLICE(text, strlen(text)));
}

size_t cbor_lookup(const cbor_node *map, const char *key, cbor_node **value) {
    size_t count = 0;

    *value = NULL;
    for (const cbor_node *k = map->child; k != NULL; k = k->next->next) {
        if (cbor_is_text(k, key)) {
            *value = k->next;
            count++;
        }
    }
    return count;
}

bool cbor_same(const cbor_node *a, const cbor_node *b) {
    if (a->major != b->major || a->value != b->value) {
        return false;
    }
    return !is_string(a) || same_slice(cbor_bytes(a), cbor_bytes(b));
}
