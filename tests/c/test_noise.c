/* noise: both roles against each other, tampering, exhaustion, fork. Published vectors are in
 * tests/python/core/test_noise.py. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/secmem.h"
#include "noise/noise.h"

#define FIRST_BYTES  32
#define ANSWER_BYTES 48

static const encl_slice no_bytes = {NULL, 0};

typedef struct pair {
    encl_noise_handshake *a, *b;
    uint8_t first[FIRST_BYTES], answer[ANSWER_BYTES];
} pair;

static encl_code write_exact(encl_noise_handshake *hs, uint8_t *block, size_t len) {
    encl_buf b;
    encl_error err;
    encl_code rc;

    encl_buf_wrap(&b, block, len);
    rc = encl_noise_handshake_write(hs, no_bytes, &b, &err);
    if (rc == ENCL_OK) {
        assert_int_equal(encl_buf_readable(&b), len);
    }
    return rc;
}

static encl_code read_exact(encl_noise_handshake *hs, const uint8_t *block, size_t len) {
    encl_buf payload;
    encl_error err;
    encl_code rc;

    encl_buf_init(&payload, ENCL_NOISE_MAX_MESSAGE);
    rc = encl_noise_handshake_read(hs, ENCL_SLICE(block, len), &payload, &err);
    assert_int_equal(encl_buf_readable(&payload), 0);
    encl_buf_free(&payload);
    return rc;
}

static void start(pair *p) {
    encl_error err;

    assert_int_equal(encl_noise_handshake_new(ENCL_INITIATOR, no_bytes, NULL, &p->a, &err),
                     ENCL_OK);
    assert_int_equal(encl_noise_handshake_new(ENCL_RESPONDER, no_bytes, NULL, &p->b, &err),
                     ENCL_OK);
    assert_int_equal(write_exact(p->a, p->first, FIRST_BYTES), ENCL_OK);
}

static void end(pair *p) {
    encl_noise_handshake_free(p->a);
    encl_noise_handshake_free(p->b);
}

static void connect(encl_noise_transport **a, encl_noise_transport **b) {
    uint8_t hash_a[32], hash_b[32];
    encl_error err;
    pair p;

    start(&p);
    assert_int_equal(read_exact(p.b, p.first, FIRST_BYTES), ENCL_OK);
    assert_int_equal(write_exact(p.b, p.answer, ANSWER_BYTES), ENCL_OK);
    assert_true(encl_noise_handshake_complete(p.b));
    assert_false(encl_noise_handshake_complete(p.a));
    assert_int_equal(read_exact(p.a, p.answer, ANSWER_BYTES), ENCL_OK);
    assert_int_equal(encl_noise_handshake_split(p.a, a, hash_a, &err), ENCL_OK);
    assert_int_equal(encl_noise_handshake_split(p.b, b, hash_b, &err), ENCL_OK);
    assert_memory_equal(hash_a, hash_b, 32);
    end(&p);
}

static void records_pass_both_ways_in_order(void **state) {
    encl_noise_transport *a, *b;
    uint8_t block[ENCL_NOISE_MAX_MESSAGE], again[ENCL_NOISE_MAX_MESSAGE];
    static const size_t sizes[] = {0, 1, 63, 64, 65, 16384, ENCL_NOISE_MAX_PLAIN};
    size_t len;
    encl_error err;

    (void)state;
    connect(&a, &b);
    for (size_t i = 0; i < 2 * sizeof sizes / sizeof *sizes; i++) {
        size_t size = sizes[i / 2];
        encl_noise_transport *from = i % 2 ? b : a, *to = i % 2 ? a : b;

        memset(block, (int)i, sizeof block);
        assert_int_equal(encl_noise_seal(from, block, size, sizeof block, &len, &err), ENCL_OK);
        assert_int_equal(len, size + 16);
        memset(again, (int)i, sizeof again);
        assert_true(size < 16 || memcmp(block, again, size) != 0);
        assert_int_equal(encl_noise_open(to, block, len, &len, &err), ENCL_OK);
        assert_int_equal(len, size);
        assert_memory_equal(block, again, size);
    }
    encl_noise_transport_free(a);
    encl_noise_transport_free(b);
}

static void the_same_plaintext_is_sealed_differently_each_time(void **state) {
    encl_noise_transport *a, *b;
    uint8_t one[48] = {0}, two[48] = {0}, other_way[48] = {0};
    size_t len;
    encl_error err;

    (void)state;
    connect(&a, &b);
    assert_int_equal(encl_noise_seal(a, one, 32, 48, &len, &err), ENCL_OK);
    assert_int_equal(encl_noise_seal(a, two, 32, 48, &len, &err), ENCL_OK);
    assert_int_equal(encl_noise_seal(b, other_way, 32, 48, &len, &err), ENCL_OK);
    assert_memory_not_equal(one, two, 32);
    assert_memory_not_equal(one, other_way, 32);
    encl_noise_transport_free(a);
    encl_noise_transport_free(b);
}

/* The first message carries no tag: a changed key there must show in the answer. */
static void every_changed_byte_of_the_handshake_is_noticed(void **state) {
    (void)state;
    for (size_t i = 0; i < FIRST_BYTES; i++) {
        pair p;

        start(&p);
        p.first[i] ^= 1;
        if (read_exact(p.b, p.first, FIRST_BYTES) == ENCL_OK) {
            assert_int_equal(write_exact(p.b, p.answer, ANSWER_BYTES), ENCL_OK);
            assert_int_equal(read_exact(p.a, p.answer, ANSWER_BYTES), ENCL_E_PROTOCOL);
        }
        end(&p);
    }
    for (size_t i = 0; i < ANSWER_BYTES; i++) {
        encl_noise_transport *t;
        uint8_t hash[32];
        encl_error err;
        pair p;

        start(&p);
        assert_int_equal(read_exact(p.b, p.first, FIRST_BYTES), ENCL_OK);
        assert_int_equal(write_exact(p.b, p.answer, ANSWER_BYTES), ENCL_OK);
        p.answer[i] ^= 0x80;
        assert_int_equal(read_exact(p.a, p.answer, ANSWER_BYTES), ENCL_E_PROTOCOL);
        p.answer[i] ^= 0x80;
        assert_int_equal(read_exact(p.a, p.answer, ANSWER_BYTES), ENCL_E_STATE);
        assert_false(encl_noise_handshake_complete(p.a));
        assert_int_equal(encl_noise_handshake_split(p.a, &t, hash, &err), ENCL_E_STATE);
        assert_null(t);
        end(&p);
    }
}

static void messages_of_another_length_are_refused(void **state) {
    static const size_t first[] = {0, 1, 31};
    static const size_t answers[] = {0, 31, 32, 47};
    uint8_t zeros[64] = {9};

    (void)state;
    for (size_t i = 0; i < sizeof first / sizeof *first; i++) {
        pair p;

        start(&p);
        assert_int_equal(read_exact(p.b, zeros, first[i]), ENCL_E_PROTOCOL);
        assert_int_equal(read_exact(p.a, zeros, answers[i]), ENCL_E_PROTOCOL);
        end(&p);
    }
    for (size_t i = 0; i < sizeof answers / sizeof *answers; i++) {
        pair p;

        start(&p);
        assert_int_equal(read_exact(p.a, zeros, answers[i]), ENCL_E_PROTOCOL);
        end(&p);
    }
}

static void an_all_zero_shared_secret_is_refused(void **state) {
    uint8_t zeros[FIRST_BYTES] = {0}, one[ANSWER_BYTES] = {1};
    pair p;

    (void)state;
    start(&p);
    assert_int_equal(read_exact(p.b, zeros, FIRST_BYTES), ENCL_OK);
    assert_int_equal(write_exact(p.b, p.answer, ANSWER_BYTES), ENCL_E_PROTOCOL);
    assert_int_equal(write_exact(p.b, p.answer, ANSWER_BYTES), ENCL_E_STATE);
    assert_int_equal(read_exact(p.a, one, ANSWER_BYTES), ENCL_E_PROTOCOL);
    end(&p);
}

static void out_of_turn_is_refused(void **state) {
    uint8_t block[ANSWER_BYTES] = {9};
    encl_noise_transport *t;
    encl_error err;
    pair p;

    (void)state;
    start(&p);
    assert_int_equal(write_exact(p.a, block, sizeof block), ENCL_E_STATE);
    assert_int_equal(write_exact(p.b, block, sizeof block), ENCL_E_STATE);
    assert_int_equal(encl_noise_handshake_split(p.a, &t, block, &err), ENCL_E_STATE);
    assert_int_equal(read_exact(p.b, p.first, FIRST_BYTES), ENCL_OK);
    assert_int_equal(read_exact(p.b, p.first, FIRST_BYTES), ENCL_E_STATE);
    assert_int_equal(write_exact(p.b, p.answer, ANSWER_BYTES), ENCL_OK);
    assert_int_equal(read_exact(p.a, p.answer, ANSWER_BYTES), ENCL_OK);
    assert_int_equal(encl_noise_handshake_split(p.a, &t, block, &err), ENCL_OK);
    encl_noise_transport_free(t);
    assert_int_equal(encl_noise_handshake_split(p.a, &t, block, &err), ENCL_E_STATE);
    end(&p);
}

static void a_complete_handshake_takes_and_gives_no_more(void **state) {
    uint8_t block[ANSWER_BYTES] = {9};
    pair p;

    (void)state;
    start(&p);
    assert_int_equal(read_exact(p.b, p.first, FIRST_BYTES), ENCL_OK);
    assert_int_equal(write_exact(p.b, p.answer, ANSWER_BYTES), ENCL_OK);
    assert_int_equal(read_exact(p.a, p.answer, ANSWER_BYTES), ENCL_OK);
    assert_int_equal(write_exact(p.a, block, sizeof block), ENCL_E_STATE);
    assert_int_equal(read_exact(p.a, block, sizeof block), ENCL_E_STATE);
    assert_int_equal(write_exact(p.b, block, sizeof block), ENCL_E_STATE);
    assert_int_equal(read_exact(p.b, block, sizeof block), ENCL_E_STATE);
    end(&p);
}

static void a_handshake_has_one_of_two_roles(void **state) {
    encl_noise_handshake *hs;
    encl_error err;

    (void)state;
    assert_int_equal(encl_noise_handshake_new((encl_role)7, no_bytes, NULL, &hs, &err),
                     ENCL_E_INVALID);
    assert_null(hs);
}

static encl_code write_payload(encl_noise_handshake *hs, size_t len, encl_buf *out) {
    static const uint8_t zeros[ENCL_NOISE_MAX_MESSAGE];
    encl_error err;

    return encl_noise_handshake_write(hs, ENCL_SLICE(zeros, len), out, &err);
}

static encl_code read_into(encl_noise_handshake *hs, const uint8_t *message, size_t len,
                           size_t limit) {
    encl_buf payload;
    encl_error err;
    encl_code rc;

    encl_buf_init(&payload, limit);
    rc = encl_noise_handshake_read(hs, ENCL_SLICE(message, len), &payload, &err);
    encl_buf_free(&payload);
    return rc;
}

static void handshake_messages_are_as_long_as_noise_allows(void **state) {
    static uint8_t message[ENCL_NOISE_MAX_MESSAGE + 1] = {9};
    size_t most = ENCL_NOISE_MAX_MESSAGE - FIRST_BYTES;
    encl_buf out;
    encl_error err;
    pair p;

    (void)state;
    encl_buf_init(&out, 2 * sizeof message);
    start(&p);
    encl_noise_handshake_free(p.a);
    assert_int_equal(encl_noise_handshake_new(ENCL_INITIATOR, no_bytes, NULL, &p.a, &err), ENCL_OK);
    assert_int_equal(write_payload(p.a, most + 1, &out), ENCL_E_INVALID);
    assert_int_equal(encl_buf_readable(&out), 0);
    assert_int_equal(write_payload(p.a, most, &out), ENCL_OK);
    assert_int_equal(read_into(p.b, out.data, encl_buf_readable(&out), most), ENCL_OK);
    encl_buf_free(&out);
    end(&p);

    start(&p);
    assert_int_equal(read_into(p.b, message, sizeof message, sizeof message), ENCL_E_PROTOCOL);
    end(&p);

    /* A payload that finds no room is lost, and the handshake with it. */
    start(&p);
    assert_int_equal(read_into(p.b, message, 100, 10), ENCL_E_INVALID);
    assert_int_equal(read_into(p.b, message, 100, 100), ENCL_E_STATE);
    end(&p);
}

static void a_record_beyond_noises_limit_is_refused_for_its_length(void **state) {
    static uint8_t block[ENCL_NOISE_MAX_MESSAGE + 1];
    encl_noise_transport *a, *b;
    size_t len;
    encl_error err;

    (void)state;
    connect(&a, &b);
    assert_int_equal(encl_noise_open(b, block, sizeof block, &len, &err), ENCL_E_PROTOCOL);
    assert_non_null(strstr(err.message, "16 to 65535 bytes, got 65536"));
    encl_noise_transport_free(a);
    encl_noise_transport_free(b);
}

/* A payload whose tag does not verify is nobody's: nothing of it stays where it was decrypted. */
static void a_refused_payload_leaves_nothing(void **state) {
    uint8_t first[FIRST_BYTES], block[64], zeros[8] = {0};
    encl_buf out, payload;
    encl_error err;
    pair p;

    (void)state;
    start(&p);
    memcpy(first, p.first, sizeof first);
    assert_int_equal(read_exact(p.b, first, FIRST_BYTES), ENCL_OK);
    encl_buf_init(&out, 64);
    assert_int_equal(encl_noise_handshake_write(p.b, ENCL_SLICE("payload!", 8), &out, &err),
                     ENCL_OK);
    out.data[ANSWER_BYTES + 7] ^= 1;
    memset(block, 0xff, sizeof block);
    encl_buf_wrap(&payload, block, sizeof block);
    assert_int_equal(encl_noise_handshake_read(p.a, encl_buf_peek(&out), &payload, &err),
                     ENCL_E_PROTOCOL);
    assert_memory_equal(block, zeros, sizeof zeros);
    encl_buf_free(&out);
    end(&p);
}

static void another_prologue_is_noticed(void **state) {
    pair p;
    encl_error err;

    (void)state;
    start(&p);
    encl_noise_handshake_free(p.b);
    assert_int_equal(encl_noise_handshake_new(ENCL_RESPONDER, ENCL_SLICE("x", 1), NULL, &p.b, &err),
                     ENCL_OK);
    assert_int_equal(read_exact(p.b, p.first, FIRST_BYTES), ENCL_OK);
    assert_int_equal(write_exact(p.b, p.answer, ANSWER_BYTES), ENCL_OK);
    assert_int_equal(read_exact(p.a, p.answer, ANSWER_BYTES), ENCL_E_PROTOCOL);
    end(&p);
}

static void every_changed_byte_of_a_record_ends_the_direction(void **state) {
    uint8_t zeros[40] = {0};

    (void)state;
    for (size_t i = 0; i < 40; i++) {
        encl_noise_transport *a, *b;
        uint8_t block[40], next[40];
        size_t len;
        encl_error err;

        connect(&a, &b);
        memset(block, 7, sizeof block);
        assert_int_equal(encl_noise_seal(a, block, 24, sizeof block, &len, &err), ENCL_OK);
        assert_int_equal(encl_noise_seal(a, next, 24, sizeof next, &len, &err), ENCL_OK);
        block[i] ^= 4;
        assert_int_equal(encl_noise_open(b, block, len, &len, &err), ENCL_E_PROTOCOL);
        assert_memory_equal(block, zeros, sizeof zeros);
        assert_int_equal(encl_noise_open(b, next, 40, &len, &err), ENCL_E_STATE);
        /* The other direction is untouched. */
        assert_int_equal(encl_noise_seal(b, next, 24, sizeof next, &len, &err), ENCL_OK);
        assert_int_equal(encl_noise_open(a, next, len, &len, &err), ENCL_OK);
        encl_noise_transport_free(a);
        encl_noise_transport_free(b);
    }
}

static void repeated_cut_or_reflected_records_are_refused(void **state) {
    (void)state;
    for (int i = 0; i < 5; i++) {
        encl_noise_transport *a, *b;
        uint8_t block[64] = {0}, copy[64];
        size_t len, sealed;
        encl_error err;

        connect(&a, &b);
        assert_int_equal(encl_noise_seal(a, block, 20, sizeof block, &sealed, &err), ENCL_OK);
        memcpy(copy, block, sizeof copy);
        if (i == 0) { /* the same again */
            assert_int_equal(encl_noise_open(b, copy, sealed, &len, &err), ENCL_OK);
        } else if (i == 1) { /* back to its sender */
            encl_noise_transport *swap = a;
            a = b;
            b = swap;
        } else if (i == 2) { /* one byte short */
            sealed--;
        } else if (i == 3) { /* one byte long */
            sealed++;
        } else { /* shorter than a tag */
            sealed = 15;
        }
        assert_int_equal(encl_noise_open(b, block, sealed, &len, &err), ENCL_E_PROTOCOL);
        assert_true(i != 4 || strstr(err.message, "of 16 to 65535 bytes, got 15") != NULL);
        memset(copy, 0, sizeof copy);
        assert_memory_equal(block, copy, sealed);
        encl_noise_transport_free(a);
        encl_noise_transport_free(b);
    }
}

static void sizes_are_checked_before_anything_is_used(void **state) {
    encl_noise_transport *a, *b;
    uint8_t block[64] = {0};
    size_t len;
    encl_error err;

    (void)state;
    connect(&a, &b);
    assert_int_equal(encl_noise_seal(a, block, 49, sizeof block, &len, &err), ENCL_E_INVALID);
    assert_int_equal(
        encl_noise_seal(a, block, ENCL_NOISE_MAX_PLAIN + 1, ENCL_NOISE_MAX_PLAIN + 17, &len, &err),
        ENCL_E_INVALID);
    assert_int_equal(encl_noise_seal(a, block, SIZE_MAX, SIZE_MAX, &len, &err), ENCL_E_INVALID);
    /* A refused argument costs no nonce. */
    assert_int_equal(encl_noise_seal(a, block, 48, sizeof block, &len, &err), ENCL_OK);
    assert_int_equal(encl_noise_open(b, block, len, &len, &err), ENCL_OK);
    encl_noise_transport_free(a);
    encl_noise_transport_free(b);
}

static void the_last_counter_is_never_used(void **state) {
    encl_noise_transport *a, *b;
    uint8_t block[64] = {0};
    size_t len;
    encl_error err;

    (void)state;
    connect(&a, &b);
    encl_noise_transport_set_counters(a, UINT64_MAX - 1, 0);
    encl_noise_transport_set_counters(b, 0, UINT64_MAX - 1);
    assert_int_equal(encl_noise_seal(a, block, 8, sizeof block, &len, &err), ENCL_OK);
    assert_int_equal(encl_noise_open(b, block, len, &len, &err), ENCL_OK);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(encl_noise_seal(a, block, 8, sizeof block, &len, &err), ENCL_E_STATE);
        assert_int_equal(encl_noise_open(b, block, 24, &len, &err), ENCL_E_STATE);
    }
    assert_non_null(strstr(err.message, "no nonce is left"));
    encl_noise_transport_free(a);
    encl_noise_transport_free(b);
}

static void every_bit_of_the_counter_is_in_the_nonce(void **state) {
    encl_noise_transport *a, *b;
    uint8_t first[64] = {0}, other[64];
    size_t len;
    encl_error err;

    (void)state;
    connect(&a, &b);
    assert_int_equal(encl_noise_seal(a, first, 8, sizeof first, &len, &err), ENCL_OK);
    for (int bit = 0; bit < 64; bit++) {
        memset(other, 0, sizeof other);
        encl_noise_transport_set_counters(a, (uint64_t)1 << bit, 0);
        assert_int_equal(encl_noise_seal(a, other, 8, sizeof other, &len, &err), ENCL_OK);
        assert_memory_not_equal(first, other, len);
    }
    encl_noise_transport_free(a);
    encl_noise_transport_free(b);
}

static void a_forked_child_gets_nothing(void **state) {
    encl_noise_transport *a, *b, *none;
    uint8_t block[64] = {0}, out[64];
    size_t len;
    encl_error err;
    pair p;
    pid_t child;
    int status;

    (void)state;
    connect(&a, &b);
    start(&p);
    assert_int_equal(encl_noise_seal(b, block, 8, sizeof block, &len, &err), ENCL_OK);
    child = fork();
    if (child == 0) {
        bool refused = encl_noise_seal(a, out, 8, sizeof out, &len, &err) == ENCL_E_FORKED &&
                       encl_noise_open(a, block, 24, &len, &err) == ENCL_E_FORKED &&
                       write_exact(p.b, out, ANSWER_BYTES) == ENCL_E_FORKED &&
                       read_exact(p.b, p.first, FIRST_BYTES) == ENCL_E_FORKED &&
                       encl_noise_handshake_split(p.a, &none, out, &err) == ENCL_E_FORKED;
        _exit(refused ? 0 : 1);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    assert_int_equal(encl_noise_open(a, block, len, &len, &err), ENCL_OK);
    encl_noise_transport_free(a);
    encl_noise_transport_free(b);
    end(&p);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(records_pass_both_ways_in_order),
        cmocka_unit_test(the_same_plaintext_is_sealed_differently_each_time),
        cmocka_unit_test(every_changed_byte_of_the_handshake_is_noticed),
        cmocka_unit_test(messages_of_another_length_are_refused),
        cmocka_unit_test(an_all_zero_shared_secret_is_refused),
        cmocka_unit_test(out_of_turn_is_refused),
        cmocka_unit_test(a_complete_handshake_takes_and_gives_no_more),
        cmocka_unit_test(a_handshake_has_one_of_two_roles),
        cmocka_unit_test(handshake_messages_are_as_long_as_noise_allows),
        cmocka_unit_test(a_record_beyond_noises_limit_is_refused_for_its_length),
        cmocka_unit_test(a_refused_payload_leaves_nothing),
        cmocka_unit_test(another_prologue_is_noticed),
        cmocka_unit_test(every_changed_byte_of_a_record_ends_the_direction),
        cmocka_unit_test(repeated_cut_or_reflected_records_are_refused),
        cmocka_unit_test(sizes_are_checked_before_anything_is_used),
        cmocka_unit_test(the_last_counter_is_never_used),
        cmocka_unit_test(every_bit_of_the_counter_is_in_the_nonce),
        cmocka_unit_test(a_forked_child_gets_nothing),
    };

    return cmocka_run_group_tests_name("noise", tests, NULL, NULL);
}
