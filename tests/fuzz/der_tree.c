#include "der_tree.h"

#define DEPTH_MAX 16

static der_node *read_values(encl_slice in, size_t depth, bool *good);

der_node *der_new(uint8_t tag, encl_slice bytes) {
    der_node *n = fuzz_arena_take(sizeof *n);

    if (n != NULL) {
        memset(n, 0, sizeof *n);
        n->tag = tag;
        n->bytes = bytes;
    }
    return n;
}

static bool read_length(encl_slice in, size_t *at, size_t *len) {
    size_t width, n = in.data[(*at)++];

    if (n >= 0x80) {
        width = n & 0x7f;
        if (width == 0 || width > 3 || in.len - *at < width) {
            return false;
        }
        for (n = 0; width > 0; width--) {
            n = n << 8 | in.data[(*at)++];
        }
    }
    *len = n;
    return n <= in.len - *at;
}

/* Constructed values, and strings that turn out to hold whole values. */
static void open_content(der_node *n, size_t depth) {
    bool good = false;
    encl_slice inner = n->bytes;
    der_node *child;

    if ((n->tag & 0x20) == 0 && n->tag != DER_OCTET_STRING && n->tag != DER_BIT_STRING) {
        return;
    }
    if (n->tag == DER_BIT_STRING) {
        if (inner.len == 0 || inner.data[0] != 0) {
            return;
        }
        n->prefix = 1;
        inner = ENCL_SLICE(inner.data + 1, inner.len - 1);
    }
    child = read_values(inner, depth + 1, &good);
    if (good && (child != NULL || (n->tag & 0x20) != 0)) {
        n->open = true;
        n->child = child;
    } else {
        n->prefix = 0;
    }
}

static der_node *read_values(encl_slice in, size_t depth, bool *good) {
    der_node *first = NULL, **end = &first;
    size_t at = 0, len = 0;

    *good = false;
    while (at < in.len) {
        uint8_t tag = in.data[at++];

        if (depth > DEPTH_MAX || at == in.len || (tag & 0x1f) == 0x1f || tag == 0 ||
            !read_length(in, &at, &len)) {
            return NULL;
        }
        *end = der_new(tag, ENCL_SLICE(in.data + at, len));
        if (*end == NULL) {
            return NULL;
        }
        open_content(*end, depth);
        end = &(*end)->next;
        at += len;
    }
    *good = true;
    return first;
}

der_node *der_parse(encl_slice in) {
    bool good;
    der_node *n = read_values(in, 0, &good);

    return good && n != NULL && n->next == NULL ? n : NULL;
}

bool fuzz_is_der(encl_slice bytes) {
    der_node *n = bytes.len < 2 || bytes.data[0] != DER_SEQUENCE ? NULL : der_parse(bytes);

    return n != NULL && n->open && n->child != NULL;
}

/* ---- writing: lengths are known from the inside out ---- */

static size_t size_of(const der_node *n);

static size_t content_size(const der_node *n) {
    size_t size = n->prefix;

    if (!n->open) {
        return n->bytes.len;
    }
    for (const der_node *c = n->child; c != NULL; c = c->next) {
        size += size_of(c);
    }
    return size;
}

static size_t length_bytes(const der_node *n, size_t size) {
    size_t shortest = size < 0x80 ? 1 : size < 0x100 ? 2 : size < 0x10000 ? 3 : 4;

    return n->length == DER_INDEFINITE ? 1 : n->length == DER_LONGER ? 4 : shortest;
}

static size_t size_of(const der_node *n) {
    size_t size = content_size(n);

    return 1 + length_bytes(n, size) + size + (n->length == DER_INDEFINITE ? 2 : 0);
}

static uint8_t *put_length(uint8_t *to, const der_node *n, size_t size) {
    size_t width = length_bytes(n, size) - 1;

    if (n->length == DER_INDEFINITE) {
        *to++ = 0x80;
        return to;
    }
    if (n->length == DER_WRONG) {
        size = size < 0x7f ? size + 1 : size;
    }
    if (width == 0) {
        *to++ = (uint8_t)size;
        return to;
    }
    *to++ = (uint8_t)(0x80 | width);
    while (width-- > 0) {
        *to++ = (uint8_t)(size >> (8 * width));
    }
    return to;
}

static uint8_t *put(uint8_t *to, const der_node *n) {
    *to++ = n->tag;
    to = put_length(to, n, content_size(n));
    if (!n->open) {
        if (n->bytes.len != 0) {
            memcpy(to, n->bytes.data, n->bytes.len);
        }
        to += n->bytes.len;
    }
    if (n->open && n->prefix != 0) {
        *to++ = 0;
    }
    for (const der_node *c = n->open ? n->child : NULL; c != NULL; c = c->next) {
        to = put(to, c);
    }
    if (n->length == DER_INDEFINITE) {
        *to++ = 0;
        *to++ = 0;
    }
    return to;
}

encl_slice der_write(const der_node *n) {
    size_t size = size_of(n);
    uint8_t *out = fuzz_arena_take(size);

    if (out == NULL) {
        return ENCL_SLICE_NONE;
    }
    REQUIRE((size_t)(put(out, n) - out) == size);
    return ENCL_SLICE(out, size);
}

/* ---- looking ---- */

der_node *der_copy(const der_node *n) {
    der_node *copy = der_new(n->tag, n->bytes), **end;

    if (copy == NULL) {
        return NULL;
    }
    *copy = *n;
    copy->child = copy->next = NULL;
    end = &copy->child;
    for (const der_node *c = n->child; c != NULL; c = c->next) {
        *end = der_copy(c);
        if (*end == NULL) {
            return NULL;
        }
        end = &(*end)->next;
    }
    return copy;
}

der_node *der_at(const der_node *parent, size_t i) {
    der_node *c = parent == NULL || !parent->open ? NULL : parent->child;

    while (c != NULL && i-- > 0) {
        c = c->next;
    }
    return c;
}

der_node *der_signed_part(const der_node *certificate) {
    der_node *part = der_at(certificate, 0);

    return part != NULL && part->tag == DER_SEQUENCE && part->open ? part : NULL;
}

/* RFC 5280: [0] version may be missing; then serial, algorithm, issuer, validity, subject, key. */
der_node *der_part_of(const der_node *certificate, der_part part) {
    der_node *body = der_signed_part(certificate), *first = der_at(body, 0);

    return der_at(body, (size_t)part + (first != NULL && first->tag == 0xa0 ? 1 : 0));
}
