/* cbor: what is an item and what is not, skipping, writing within a capacity. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "cbor/cursor.h"
#include "cbor/writer.h"

/* A cursor over a copy of exactly that size, so that AddressSanitizer sees every step beyond it. */
static encl_cursor over(const char *bytes, size_t n) {
    uint8_t *exact = malloc(n == 0 ? 1 : n);

    assert_non_null(exact);
    memcpy(exact, bytes, n);
    return (encl_cursor){.block = exact, .len = n, .code = ENCL_E_PROTOCOL};
}

static void done_with(encl_cursor *c) {
    free((void *)(uintptr_t)c->block);
}

#define S(bytes) bytes, sizeof(bytes) - 1

static void tokens_are_told_apart(void **state) {
    static const struct {
        const char *bytes;
        size_t n, at, len;
        encl_token_kind kind;
        uint64_t value;
    } cases[] = {
        {S("\x00"), 0, 0, ENCL_TOK_UINT, 0},
        {S("\x17"), 0, 0, ENCL_TOK_UINT, 23},
        {S("\x18\xff"), 0, 0, ENCL_TOK_UINT, 255},
        {S("\x19\x01\x00"), 0, 0, ENCL_TOK_UINT, 256},
        {S("\x1a\x01\x00\x00\x00"), 0, 0, ENCL_TOK_UINT, 1 << 24},
        {S("\x1b\xff\xff\xff\xff\xff\xff\xff\xff"), 0, 0, ENCL_TOK_UINT, UINT64_MAX},
        {S("\x20"), 0, 0, ENCL_TOK_NEGATIVE, 0},
        {S("\x38\x22"), 0, 0, ENCL_TOK_NEGATIVE, 34},
        {S("\x39\x01\x00"), 0, 0, ENCL_TOK_NEGATIVE, 256},
        {S("\x3a\x00\x01\x00\x00"), 0, 0, ENCL_TOK_NEGATIVE, 65536},
        {S("\x3b\x80\0\0\0\0\0\0\0"), 0, 0, ENCL_TOK_NEGATIVE, (uint64_t)1 << 63},
        {S("\x40"), 1, 0, ENCL_TOK_BYTES, 0},
        {S("\x58\x02\xff\xfe"), 2, 2, ENCL_TOK_BYTES, 0},
        {S("\x5f"), 0, 0, ENCL_TOK_BYTES_BEGIN, 0},
        {S("\x63"
           "abc"),
         1, 3, ENCL_TOK_TEXT, 0},
        {S("\x7f"), 0, 0, ENCL_TOK_TEXT_BEGIN, 0},
        {S("\x82\x01\x02"), 0, 0, ENCL_TOK_ARRAY, 2},
        {S("\x9b\0\0\0\0\0\0\0\x01\x02"), 0, 0, ENCL_TOK_ARRAY, 1},
        {S("\x9f"), 0, 0, ENCL_TOK_ARRAY_BEGIN, 0},
        {S("\xa1\x01\x02"), 0, 0, ENCL_TOK_MAP, 1},
        {S("\xbf"), 0, 0, ENCL_TOK_MAP_BEGIN, 0},
        {S("\xc0"), 0, 0, ENCL_TOK_TAG, 0},
        {S("\xd2"), 0, 0, ENCL_TOK_TAG, 18},
        {S("\xd7"), 0, 0, ENCL_TOK_TAG, 23},
        {S("\xd8\x62"), 0, 0, ENCL_TOK_TAG, 98},
        {S("\xf4"), 0, 0, ENCL_TOK_BOOL, 0},
        {S("\xf5"), 0, 0, ENCL_TOK_BOOL, 1},
        {S("\xf6"), 0, 0, ENCL_TOK_NULL, 0},
        {S("\xf7"), 0, 0, ENCL_TOK_UNDEFINED, 0},
        {S("\xf9\0\0"), 0, 0, ENCL_TOK_FLOAT, 0},
        {S("\xfa\0\0\0\0"), 0, 0, ENCL_TOK_FLOAT, 0},
        {S("\xfb\0\0\0\0\0\0\0\0"), 0, 0, ENCL_TOK_FLOAT, 0},
        {S("\xff"), 0, 0, ENCL_TOK_BREAK, 0},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        encl_cursor c = over(cases[i].bytes, cases[i].n);
        encl_token t;
        encl_error err;

        if (encl_token_next(&c, "x", &t, &err) != ENCL_OK) {
            fail_msg("case %zu: %s", i, err.message);
        }
        if (t.kind != cases[i].kind || t.value != cases[i].value || t.at != cases[i].at ||
            t.len != cases[i].len) {
            fail_msg("case %zu: got %s, %zu bytes at %zu", i, encl_token_name(t.kind), t.len, t.at);
        }
        assert_true(c.at != 0);
        done_with(&c);
    }
}

static void every_kind_has_a_name(void **state) {
    (void)state;
    for (encl_token_kind kind = 0; kind < ENCL_TOK_COUNT_; kind++) {
        assert_non_null(encl_token_name(kind));
        assert_string_not_equal(encl_token_name(kind), "nothing known");
    }
    assert_string_equal(encl_token_name(ENCL_TOK_COUNT_), "nothing known");
}

static void what_is_no_item_is_refused(void **state) {
    static const struct {
        const char *bytes;
        size_t n;
        const char *why;
    } cases[] = {
        {S(""), "expected x, got the end at offset 0"},
        {S("\x18"), "a head of 0x18 at offset 0 whose item does not end within the 1 bytes left"},
        {S("\x1b\0\0\0\0\0\0\0"), "does not end within the 8 bytes left"},
        {S("\x58"), "does not end within"},
        {S("\xfb\0"), "does not end within"},
        {S("\x41"), "does not end within the 1 bytes left"},
        {S("\x42\x01"), "does not end within the 2 bytes left"},
        {S("\x5a\xff\xff\xff\xff"), "does not end within"},
        {S("\x5b\xff\xff\xff\xff\xff\xff\xff\xff"), "does not end within"},
        /* A 32-bit size would keep one byte of this length, and that byte is there. */
        {S("\x5b\0\0\0\x01\0\0\0\x01\x00"), "does not end within"},
        {S("\x7b\0\0\0\x01\0\0\0\x01\x00"), "does not end within"},
        {S("\x9b\0\0\0\x01\0\0\0\x01\x00"), "most 1 items in an array here, got a declared length"},
        {S("\xbb\0\0\0\x01\0\0\0\x01\x00\x00"), "most 1 pairs in a map here, got a declared"},
        {S("\x82\x01"), "most 1 items in an array here, got a declared length of 2"},
        {S("\xa1\x01"), "most 0 pairs in a map here, got a declared length of 1"},
        {S("\xa2\x01\x02\x03"), "most 1 pairs in a map here, got a declared length of 2"},
        {S("\x9b\xff\xff\xff\xff\xff\xff\xff\xff"), "length of 18446744073709551615"},
        {S("\x1c"), "got 0x1c at offset 0, which begins no item"},
        {S("\x5c"), "begins no item"},
        {S("\x9e"), "begins no item"},
        {S("\x1f"), "begins no item"},
        {S("\xdf"), "begins no item"},
        {S("\xf8\x18"), "begins no item"},
        {S("\x61\xff"), "x: expected UTF-8, got other bytes"},
        {S("\x61\xc3\xa4"), "x: expected UTF-8"}, /* its character ends in the next item */
        {S("\x63\xed\xa0\x80"), "x: expected UTF-8"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        encl_cursor c = over(cases[i].bytes, cases[i].n);
        encl_token t;
        encl_error err;

        assert_int_equal(encl_token_next(&c, "x", &t, &err), ENCL_E_PROTOCOL);
        if (strstr(err.message, cases[i].why) == NULL) {
            fail_msg("case %zu: %s", i, err.message);
        }
        assert_int_equal(c.at, 0);
        c.code = ENCL_E_DOCUMENT;
        assert_int_equal(encl_token_next(&c, "x", &t, &err), ENCL_E_DOCUMENT);
        done_with(&c);
    }
}

static void chunks_are_refused_where_they_cannot_be_used(void **state) {
    static const char *const heads[] = {"\x5f", "\x7f"};

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        encl_cursor c = over(heads[i], 1);
        encl_token t;
        encl_error err;

        c.no_chunks = true;
        assert_int_equal(encl_token_next(&c, "a name", &t, &err), ENCL_E_PROTOCOL);
        assert_non_null(strstr(err.message, "of indefinite length, which is not accepted here"));
        assert_int_equal(c.at, 0);
        done_with(&c);
    }
}

static void expecting_a_kind_takes_its_indefinite_form_too(void **state) {
    static const struct {
        const char *bytes;
        size_t n;
        encl_token_kind kind;
        encl_code rc;
    } cases[] = {
        {S("\x80"), ENCL_TOK_ARRAY, ENCL_OK},
        {S("\x9f"), ENCL_TOK_ARRAY, ENCL_OK},
        {S("\xa0"), ENCL_TOK_MAP, ENCL_OK},
        {S("\xbf"), ENCL_TOK_MAP, ENCL_OK},
        {S("\x9f"), ENCL_TOK_MAP, ENCL_E_PROTOCOL},
        {S("\xbf"), ENCL_TOK_ARRAY, ENCL_E_PROTOCOL},
        {S("\x40"), ENCL_TOK_BYTES, ENCL_OK},
        /* A string's bytes must lie together for whoever asks for one. */
        {S("\x5f"), ENCL_TOK_BYTES, ENCL_E_PROTOCOL},
        {S("\x7f"), ENCL_TOK_TEXT, ENCL_E_PROTOCOL},
        {S("\x60"), ENCL_TOK_BYTES, ENCL_E_PROTOCOL},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        encl_cursor c = over(cases[i].bytes, cases[i].n);
        encl_token t;
        encl_error err;

        if (encl_token_expect(&c, cases[i].kind, "it", &t, &err) != cases[i].rc) {
            fail_msg("case %zu", i);
        }
        if (cases[i].rc != ENCL_OK) {
            assert_non_null(strstr(err.message, "it: expected a"));
            assert_non_null(strstr(err.message, ", got a"));
        }
        done_with(&c);
    }
}

/* How many entries a collection has, each taken as one item; SIZE_MAX where taking one fails. */
static size_t walk(const char *bytes, size_t n, size_t *left) {
    encl_cursor c = over(bytes, n);
    encl_token t;
    encl_error err;
    encl_entries entries;
    size_t count = 0;

    assert_int_equal(encl_token_next(&c, "x", &t, &err), ENCL_OK);
    entries = encl_entries_of(&t);
    while (count != SIZE_MAX && encl_entries_next(&c, &entries)) {
        count = encl_token_next(&c, "an entry", &t, &err) == ENCL_OK ? count + 1 : SIZE_MAX;
    }
    *left = encl_cursor_left(&c);
    done_with(&c);
    return count;
}

static void entries_end_where_they_should(void **state) {
    static const uint8_t behind[] = {0x9f, 0xff};
    encl_entries entries = {.open_end = true};
    encl_cursor c;
    size_t left;

    (void)state;
    assert_int_equal(walk(S("\x80\x05"), &left), 0);
    assert_int_equal(left, 1);
    assert_int_equal(walk(S("\x82\x05\x06\x07"), &left), 2);
    assert_int_equal(left, 1);
    assert_int_equal(walk(S("\x9f\xff\x07"), &left), 0);
    assert_int_equal(left, 1);
    assert_int_equal(walk(S("\x9f\x05\xff\x07"), &left), 1);
    assert_int_equal(left, 1);
    assert_true(walk(S("\x9f\x05"), &left) == SIZE_MAX);
    /* What lies behind the block is not looked at, not even where it would be a break. */
    c = (encl_cursor){.block = behind, .len = 1, .at = 1};
    assert_true(encl_entries_next(&c, &entries));
    assert_int_equal(c.at, 1);
}

static encl_code skip_one(const char *bytes, size_t n, bool no_chunks, size_t *left) {
    encl_cursor c = over(bytes, n);
    encl_error err;
    encl_code rc;

    c.no_chunks = no_chunks;
    rc = encl_cursor_skip(&c, &err);
    *left = encl_cursor_left(&c);
    done_with(&c);
    return rc;
}

#define SIXTEEN "\x81\x81\x81\x81\x81\x81\x81\x81\x81\x81\x81\x81\x81\x81\x81\x81"

static void skipping_takes_one_whole_item(void **state) {
    static const struct {
        const char *bytes;
        size_t n, left;
        encl_code rc;
    } cases[] = {
        {S("\x00\x01"), 1, ENCL_OK},
        {S("\x80\x01"), 1, ENCL_OK},
        {S("\xa0\x01"), 1, ENCL_OK},
        {S("\x82\x01\x82\x02\x03\x04"), 1, ENCL_OK},
        {S("\xa1\x01\x9f\xff\x04"), 1, ENCL_OK},
        {S("\xbf\x01\xa1\x02\x03\xff\x04"), 1, ENCL_OK},
        {S("\xa2\x01\xa0\x02\x80\x04"), 1, ENCL_OK},
        {S("\xc6\xd8\x63\x61x\x04"), 1, ENCL_OK},
        {S("\xd2\x82\xd2\x01\x02\x04"), 1, ENCL_OK},
        {S("\xfb\0\0\0\0\0\0\0\0\x04"), 1, ENCL_OK},
        {S("\x5f\x41\x00\x40\xff\x04"), 1, ENCL_OK},
        {S("\x7f\x61x\xff\x04"), 1, ENCL_OK},
        {S(SIXTEEN "\x00"), 0, ENCL_OK},
        {S(SIXTEEN "\x81\x00"), 0, ENCL_E_PROTOCOL},
        {S("\xff"), 0, ENCL_E_PROTOCOL},
        {S("\xc1\xff"), 0, ENCL_E_PROTOCOL},
        {S("\x9f\xc1\xff"), 0, ENCL_E_PROTOCOL},
        {S("\x9f\x01"), 0, ENCL_E_PROTOCOL},
        {S("\xbf\x01\xff"), 0, ENCL_E_PROTOCOL},
        {S("\xbf\x01\x02\x03\xff"), 0, ENCL_E_PROTOCOL},
        {S("\xa1\x01\xff"), 0, ENCL_E_PROTOCOL},
        {S("\x81\xff"), 0, ENCL_E_PROTOCOL},
        {S("\x5f\x61x\xff"), 0, ENCL_E_PROTOCOL},
        {S("\x7f\x41x\xff"), 0, ENCL_E_PROTOCOL},
        {S("\x7f\x7f\xff\xff"), 0, ENCL_E_PROTOCOL},
        {S("\x5f\x41\x00"), 0, ENCL_E_PROTOCOL},
        {S("\x5b\xff\xff\xff\xff\xff\xff\xff\xff"), 0, ENCL_E_PROTOCOL},
        {S("\x58"), 0, ENCL_E_PROTOCOL},
        {S("\x81\x61\xff"), 0, ENCL_E_PROTOCOL},
        {S(""), 0, ENCL_E_PROTOCOL},
    };
    size_t left;

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (skip_one(cases[i].bytes, cases[i].n, false, &left) != cases[i].rc ||
            (cases[i].rc == ENCL_OK && left != cases[i].left)) {
            fail_msg("case %zu, %zu bytes left", i, left);
        }
    }
    assert_int_equal(skip_one(S("\x81\x5f\x41\x00\xff"), true, &left), ENCL_E_PROTOCOL);
    assert_int_equal(skip_one(S("\x81\x41\x00"), true, &left), ENCL_OK);
}

static void skipping_says_what_is_missing(void **state) {
    static const struct {
        const char *bytes;
        size_t n;
        const char *why;
    } cases[] = {
        {S(""), "expected a value, got the end"},
        {S("\x9f\x01"), "expected a value, got the end at offset 2"},
        {S("\xc1"), "expected a tagged value, got the end"},
        {S("\xc1\xff"), "expected a tagged value, got a break"},
        {S("\x5f\x41\x00"), "expected a chunk or a break, got the end at offset 3"},
        {S("\x5f\x61x\xff"), "a chunk: expected a byte string, got a text"},
        {S("\x7f\x01\xff"), "a chunk: expected a text, got an unsigned integer"},
        {S("\xff"), "got a break outside of an indefinite length"},
        {S("\xbf\x01\xff"), "expected a key's value, got a break"},
        {S(SIXTEEN "\x81\x00"), "at most 16 nested arrays and maps, got more"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        encl_cursor c = over(cases[i].bytes, cases[i].n);
        encl_error err;

        assert_int_equal(encl_cursor_skip(&c, &err), ENCL_E_PROTOCOL);
        if (strstr(err.message, cases[i].why) == NULL) {
            fail_msg("case %zu: %s", i, err.message);
        }
        done_with(&c);
    }
}

static void put_one_of_each(encl_writer *w) {
    encl_put_map(w, 4);
    encl_put_uint(w, UINT64_MAX);
    encl_put_bool(w, true);
    encl_put_uint(w, 24);
    encl_put_null(w);
    encl_put_text(w, ENCL_SLICE("abc", 3));
    encl_put_array(w, 300);
    encl_put_bytes(w, ENCL_SLICE("\x01\x02", 2));
    encl_put_bytes(w, ENCL_SLICE_NONE);
}

static const uint8_t one_of_each[] = "\xa4\x1b\xff\xff\xff\xff\xff\xff\xff\xff\xf5\x18\x18\xf6\x63"
                                     "abc\x99\x01\x2c\x42\x01\x02\x40";
#define ONE_OF_EACH (sizeof one_of_each - 1)

static void what_is_written_is_in_its_shortest_form(void **state) {
    encl_writer w;
    encl_buf out;
    encl_error err;

    (void)state;
    encl_buf_init(&out, 100);
    assert_int_equal(encl_writer_begin(&w, &out, 50, &err), ENCL_OK);
    assert_int_equal(w.cap, 50);
    put_one_of_each(&w);
    assert_int_equal(encl_buf_readable(&out), 0);
    assert_int_equal(encl_writer_end(&w, &out, "it", &err), ENCL_OK);
    assert_int_equal(encl_buf_readable(&out), ONE_OF_EACH);
    assert_memory_equal(out.data, one_of_each, ONE_OF_EACH);
    encl_buf_free(&out);
}

static void nothing_is_written_beyond_the_capacity(void **state) {
    (void)state;
    for (size_t cap = 0; cap <= ONE_OF_EACH; cap++) {
        uint8_t *block = malloc(cap == 0 ? 1 : cap);
        encl_writer w;
        encl_buf out;
        encl_error err;
        bool fits = cap == ONE_OF_EACH;

        encl_buf_wrap(&out, block, cap);
        assert_int_equal(encl_writer_begin(&w, &out, 1000, &err), ENCL_OK);
        put_one_of_each(&w);
        assert_true(w.at <= cap);
        assert_int_equal(encl_writer_end(&w, &out, "it", &err), fits ? ENCL_OK : ENCL_E_INVALID);
        assert_true(fits || strstr(err.message, "it: expected an encoding of at most") != NULL);
        assert_int_equal(encl_buf_readable(&out), fits ? cap : 0);
        free(block);
    }
}

/* A long text does not fit where the short one after it would. */
static void nothing_follows_what_did_not_fit(void **state) {
    encl_writer w;
    encl_buf out;
    encl_error err;

    (void)state;
    encl_buf_init(&out, 8);
    assert_int_equal(encl_writer_begin(&w, &out, 8, &err), ENCL_OK);
    encl_put_text(&w, ENCL_SLICE("0123456789", 10));
    encl_put_uint(&w, 1);
    encl_put_null(&w);
    encl_put_bool(&w, false);
    encl_put_array(&w, 0);
    encl_put_map(&w, 0);
    encl_put_bytes(&w, ENCL_SLICE_NONE);
    assert_false(w.ok);
    assert_int_equal(w.at, 1);
    assert_int_equal(encl_writer_end(&w, &out, "it", &err), ENCL_E_INVALID);
    encl_buf_free(&out);
}

static void head_sizes_are_those_of_the_encoder(void **state) {
    static const uint64_t values[] = {0,     23,    24,         255,        256,
                                      65535, 65536, 4294967295, 4294967296, UINT64_MAX};

    (void)state;
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        encl_writer w;
        encl_buf out;
        encl_error err;

        encl_buf_init(&out, 16);
        assert_int_equal(encl_writer_begin(&w, &out, 16, &err), ENCL_OK);
        encl_put_uint(&w, values[i]);
        assert_int_equal(w.at, encl_head_size(values[i]));
        encl_buf_free(&out);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tokens_are_told_apart),
        cmocka_unit_test(every_kind_has_a_name),
        cmocka_unit_test(what_is_no_item_is_refused),
        cmocka_unit_test(chunks_are_refused_where_they_cannot_be_used),
        cmocka_unit_test(expecting_a_kind_takes_its_indefinite_form_too),
        cmocka_unit_test(entries_end_where_they_should),
        cmocka_unit_test(skipping_takes_one_whole_item),
        cmocka_unit_test(skipping_says_what_is_missing),
        cmocka_unit_test(what_is_written_is_in_its_shortest_form),
        cmocka_unit_test(nothing_is_written_beyond_the_capacity),
        cmocka_unit_test(nothing_follows_what_did_not_fit),
        cmocka_unit_test(head_sizes_are_those_of_the_encoder),
    };

    return cmocka_run_group_tests_name("cbor", tests, NULL, NULL);
}
