/* The CBOR cursor over any bytes of up to MAX bytes, from any position: whatever libcbor says
 * within its contract (cbor_stubs.c), the cursor stays in its block, and so does each string it
 * shows. The writer over any capacity: what it wrote never passes it. */
#include "cbor/cursor.h"
#include "cbor/writer.h"
#include "proof.h"

#define MAX 4

static uint8_t block[MAX], room[MAX + 1];

static encl_cursor any_cursor(void) {
    size_t len = any_split(0, MAX);

    return (encl_cursor){
        /* Exactly where the array ends: a string's offset is a difference of pointers, of which EVA
         * must know both. */
        .block = block + MAX - len, .len = len,
        .at = any_split(0, len),    .code = any_bool() ? ENCL_E_PROTOCOL : ENCL_E_DOCUMENT,
        .no_chunks = any_bool(),
    };
}

static void reads(void) {
    encl_cursor c = any_cursor();
    encl_token t;
    encl_error err;

    if (encl_token_next(&c, "a value", &t, &err) == ENCL_OK) {
        encl_entries entries = encl_entries_of(&t);

        //@ assert t.at <= c.len;
        //@ assert t.len <= c.len - t.at;
        (void)!encl_token_ensure(&c, &t, ENCL_TOK_MAP, "a value", &err);
        (void)encl_entries_next(&c, &entries);
    }
    //@ assert c.at <= c.len;
}

static void any_put(encl_writer *w) {
    switch (Frama_C_interval_split(0, 6)) {
    case 0:
        encl_put_uint(w, any(0, UINT64_MAX));
        break;
    case 1:
        encl_put_bool(w, any_bool());
        break;
    case 2:
        encl_put_null(w);
        break;
    case 3:
        encl_put_array(w, any(0, SIZE_MAX));
        break;
    case 4:
        encl_put_map(w, any(0, SIZE_MAX));
        break;
    case 5:
        encl_put_bytes(w, ENCL_SLICE(block, any_split(0, MAX)));
        break;
    default:
        encl_put_text(w, ENCL_SLICE(block, any_split(0, MAX)));
        break;
    }
}

/* By induction: a put from any state that keeps the invariant keeps it. */
static void writes(void) {
    size_t cap = any_split(0, MAX);
    encl_writer w;
    encl_buf out;
    encl_error err;

    encl_buf_wrap(&out, ANY_BYTES(room, cap), cap);
    if (encl_writer_begin(&w, &out, any_split(0, MAX + 1), &err) == ENCL_OK) {
        w.at = any_split(0, w.cap);
        w.ok = w.ok && any_bool();
        any_put(&w);
        //@ assert w.at <= w.cap;
        (void)!encl_writer_end(&w, &out, "it", &err);
        //@ assert out.w <= out.cap;
    }
    (void)encl_head_size(any(0, UINT64_MAX));
}

int main(void) {
    Frama_C_make_unknown((char *)block, sizeof block);
    if (any_bool()) {
        reads();
    } else {
        writes();
    }
    return 0;
}
