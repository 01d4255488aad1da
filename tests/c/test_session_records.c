/* session: records that break a rule, do not fit, or stand in memory that others write to. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "session/app.h"
#include "session_sides.h"

/* ---- records ---- */

static void lengths_out_of_bounds_are_refused(void **state) {
    static const uint32_t lengths[] = {0, 1, 15, 16, 65536, 1u << 24, UINT32_MAX};

    (void)state;
    for (size_t i = 0; i < 2 * sizeof lengths / sizeof *lengths; i++) {
        uint32_t n = lengths[i / 2];
        uint8_t record[32] = {(uint8_t)(n >> 24), (uint8_t)(n >> 16), (uint8_t)(n >> 8),
                              (uint8_t)n};
        char got[32];
        side x;
        peer p;

        opened(&x, &p);
        if (i % 2 == 0) {
            assert_int_equal(feed(&x, ENCL_SLICE(record, sizeof record)), ENCL_E_PROTOCOL);
        } else {
            for (size_t j = 0; j < 3; j++) {
                assert_int_equal(feed(&x, ENCL_SLICE(record + j, 1)), ENCL_OK);
                assert_true(encl_session_has_partial_record(x.s));
            }
            assert_int_equal(feed(&x, ENCL_SLICE(record + 3, 1)), ENCL_E_PROTOCOL);
        }
        (void)snprintf(got, sizeof got, "got %lu", (unsigned long)n);
        assert_non_null(strstr(x.err.message, "17 to 65535"));
        assert_non_null(strstr(x.err.message, got));
        assert_false(encl_session_has_partial_record(x.s));
        end(&x, &p);
    }
}

static void every_changed_byte_of_a_record_closes_the_session(void **state) {
    (void)state;
    for (size_t i = ENCL_RECORD_HEAD; i < 40; i++) {
        uint8_t copy[128];
        encl_msg m = message(ENCL_MSG_STREAM_DATA, 1);
        encl_slice record;
        side x;
        peer p;

        opened(&x, &p);
        (void)open_stream(&x, &p);
        record = peer_record(&p, &m);
        assert_true(record.len > 40 && record.len < sizeof copy);
        memcpy(copy, record.data, record.len);
        copy[i] ^= 1;
        assert_int_equal(feed(&x, ENCL_SLICE(copy, record.len)), ENCL_E_PROTOCOL);
        assert_non_null(strstr(x.err.message, "does not decrypt"));
        assert_int_equal(feed(&x, record), ENCL_E_CLOSED);
        end(&x, &p);
    }
}

static void a_record_that_holds_no_message_closes_the_session(void **state) {
    uint8_t block[ENCL_RECORD_HEAD + 8 + ENCL_NOISE_TAG_BYTES] = {0, 0, 0, 24, 0xa1, 0x64};
    size_t len;
    side x;
    peer p;

    (void)state;
    opened(&x, &p);
    assert_int_equal(encl_noise_seal(p.t, block + ENCL_RECORD_HEAD, 8,
                                     sizeof block - ENCL_RECORD_HEAD, &len, &p.err),
                     ENCL_OK);
    assert_int_equal(feed(&x, ENCL_SLICE(block, sizeof block)), ENCL_E_PROTOCOL);
    end(&x, &p);
}

static void the_largest_record_passes_whole_and_split(void **state) {
    static uint8_t zeros[ENCL_NOISE_MAX_PLAIN];
    size_t fits =
        sizeof zeros -
        encl_wire_size(
            &(encl_msg){.type = ENCL_MSG_STREAM_DATA, .id = 1, .payload = ENCL_SLICE(zeros, 65000)},
            ENCL_TO_CLIENT) +
        65000;
    encl_msg m = {.type = ENCL_MSG_STREAM_DATA, .id = 1, .payload = ENCL_SLICE(zeros, fits)};
    encl_slice record;
    side x;
    peer p;

    (void)state;
    opened(&x, &p);
    (void)open_stream(&x, &p);
    for (size_t cut = 0; cut < 5; cut++) {
        static const size_t cuts[] = {0, 2, 4, 5, 40000};

        record = peer_record(&p, &m);
        assert_int_equal(record.len, ENCL_RECORD_MAX);
        if (cuts[cut] != 0) {
            assert_int_equal(feed(&x, ENCL_SLICE(record.data, cuts[cut])), ENCL_OK);
            assert_int_equal(x.event.type, ENCL_EV_NONE);
            assert_true(encl_session_has_partial_record(x.s));
        }
        assert_int_equal(feed(&x, ENCL_SLICE(record.data + cuts[cut], record.len - cuts[cut])),
                         ENCL_OK);
        assert_int_equal(x.event.type, ENCL_EV_STREAM_DATA);
        assert_int_equal(x.event.payload.len, fits);
        assert_memory_equal(x.event.payload.data, zeros, fits);
        assert_false(encl_session_has_partial_record(x.s));
    }
    end(&x, &p);
}

static void what_does_not_fit_changes_nothing(void **state) {
    static uint8_t bytes[ENCL_NOISE_MAX_PLAIN + 1];
    uint8_t small[64];
    encl_app *app;
    encl_buf tight;
    uint64_t id = 0;
    side x;
    peer p;

    (void)state;
    memset(bytes, 200, sizeof bytes);
    opened(&x, &p);
    app = encl_session_app(x.s);
    (void)open_stream(&x, &p);
    assert_int_equal(encl_app_request(app, ENCL_SLICE(bytes, 32768), &id, &x.out, &x.err),
                     ENCL_E_INVALID);
    assert_non_null(strstr(x.err.message, "32768 bytes of payload"));
    assert_non_null(strstr(x.err.message, "at most 65519"));
    assert_int_equal(
        encl_app_stream_data(app, 1, ENCL_SLICE(bytes, ENCL_NOISE_MAX_PLAIN), &x.out, &x.err),
        ENCL_E_INVALID);
    assert_int_equal(encl_app_stream_data(app, 1, ENCL_SLICE(bytes, sizeof bytes), &x.out, &x.err),
                     ENCL_E_INVALID);
    memset(bytes, 0, sizeof bytes);
    assert_int_equal(
        encl_app_open_stream(app, ENCL_SLICE(bytes, ENCL_NOISE_MAX_PLAIN), &id, &x.out, &x.err),
        ENCL_E_INVALID);
    assert_non_null(strstr(x.err.message, "expected at most 65519"));
    assert_int_equal(
        encl_app_open_stream(app, ENCL_SLICE(bytes, sizeof bytes), &id, &x.out, &x.err),
        ENCL_E_INVALID);
    assert_non_null(strstr(x.err.message, "expected at most 65519"));
    encl_buf_wrap(&tight, small, sizeof small);
    assert_int_equal(encl_app_open_stream(app, ENCL_SLICE(bytes, 64), &id, &tight, &x.err),
                     ENCL_E_INVALID);
    assert_int_equal(encl_app_stream_close(app, 1, ENCL_HALF_BOTH, &tight, &x.err), ENCL_E_INVALID);
    assert_int_equal(encl_app_request_attestation(app, &tight, &x.err), ENCL_E_INVALID);
    assert_int_equal(encl_buf_readable(&tight), 0);
    assert_silent(&x);
    assert_int_equal(id, 0);
    assert_int_equal(encl_session_open_ids(x.s), 1);
    /* Neither an id nor a nonce was spent: the peer understands what comes next. */
    assert_int_equal(open_stream(&x, &p), 2);
    memset(bytes, 200, sizeof bytes);
    assert_int_equal(
        encl_app_stream_data(app, 2, ENCL_SLICE(bytes, ENCL_STREAM_CHUNK), &x.out, &x.err),
        ENCL_OK);
    assert_true(encl_buf_readable(&x.out) <= 32768 - 14);
    assert_hears(&p, &x, ENCL_MSG_STREAM_DATA, 2);
    assert_int_equal(peer_says(&p, &x, stub_document(&p)), ENCL_E_PROTOCOL);
    end(&x, &p);
}

/* ---- a payload in memory that others write to ---- */

/* Pages that fault when they are read. The page before the one that is read is then filled with
 * other bytes and guarded again: whoever comes back to it is counted, and finds it changed. */
static struct {
    uint8_t *pages;
    size_t page, count, faults;
} guarded;

static void on_guarded(int signal, siginfo_t *info, void *context) {
    size_t at = (size_t)((uint8_t *)info->si_addr - guarded.pages) / guarded.page;

    (void)context;
    if (at >= guarded.count) {
        (void)!write(2, "a fault outside the guarded pages\n", 34);
        abort();
    }
    guarded.faults++;
    (void)signal;
    (void)mprotect(guarded.pages + at * guarded.page, guarded.page, PROT_READ);
    if (at != 0) {
        uint8_t *before = guarded.pages + (at - 1) * guarded.page;

        (void)mprotect(before, guarded.page, PROT_READ | PROT_WRITE);
        memset(before, 0xff, guarded.page);
        (void)mprotect(before, guarded.page, PROT_NONE);
    }
}

static void a_payload_that_changes_is_read_once(void **state) {
    struct sigaction guard = {.sa_sigaction = on_guarded, .sa_flags = SA_SIGINFO}, old;
    size_t len;
    encl_msg back;
    uint64_t id = 0;
    side x;
    peer p;

    (void)state;
    opened(&x, &p);
    guarded.page = (size_t)sysconf(_SC_PAGESIZE);
    /* More than half of what fits a record: only what the bytes are decides whether it fits. */
    guarded.count = ENCL_NOISE_MAX_PLAIN * 3 / 4 / guarded.page;
    len = guarded.count * guarded.page;
    guarded.faults = 0;
    guarded.pages = mmap(NULL, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(guarded.pages != MAP_FAILED);
    assert_int_equal(sigaction(SIGSEGV, &guard, &old), 0);
    assert_int_equal(encl_app_request(encl_session_app(x.s), ENCL_SLICE(guarded.pages, len), &id,
                                      &x.out, &x.err),
                     ENCL_OK);
    assert_int_equal(sigaction(SIGSEGV, &old, NULL), 0);
    assert_int_equal(guarded.faults, guarded.count);
    assert_true(peer_hears(&p, &x, &back));
    assert_int_equal(back.type, ENCL_MSG_DATA);
    assert_int_equal(back.payload.len, len);
    for (size_t i = 0; i < len; i++) {
        assert_int_equal(back.payload.data[i], 0);
    }
    assert_int_equal(munmap(guarded.pages, len), 0);
    end(&x, &p);
}

static void a_forgotten_partial_record_leaves_the_rest_as_garbage(void **state) {
    encl_msg m = message(ENCL_MSG_OPEN_STREAM, 1);
    encl_slice record;
    side x;
    peer p;

    (void)state;
    serving(&x, &p, 0);
    assert_false(encl_session_forget_partial_record(x.s));
    record = peer_record(&p, &m);
    assert_int_equal(feed(&x, ENCL_SLICE(record.data, 20)), ENCL_OK);
    assert_true(encl_session_has_partial_record(x.s));
    assert_true(encl_session_forget_partial_record(x.s));
    assert_false(encl_session_forget_partial_record(x.s));
    assert_false(encl_session_has_partial_record(x.s));
    assert_int_equal(feed(&x, ENCL_SLICE(record.data + 20, record.len - 20)), ENCL_E_PROTOCOL);
    assert_false(encl_session_forget_partial_record(x.s));
    end(&x, &p);

    /* Forgetting on a boundary loses nothing, not even the event just given. */
    serving(&x, &p, 0);
    record = peer_record(&p, &m);
    assert_int_equal(feed(&x, ENCL_SLICE(record.data, 20)), ENCL_OK);
    assert_int_equal(feed(&x, ENCL_SLICE(record.data + 20, record.len - 20)), ENCL_OK);
    assert_int_equal(x.event.type, ENCL_EV_STREAM_OPENED);
    assert_false(encl_session_forget_partial_record(x.s));
    assert_memory_equal(x.event.payload.data, "some text", 9);
    m.id = 2;
    assert_int_equal(peer_says(&p, &x, m), ENCL_OK);
    end(&x, &p);
}

static void a_forked_child_can_neither_send_nor_receive(void **state) {
    encl_msg m = message(ENCL_MSG_STREAM_DATA, 1);
    encl_slice record;
    uint64_t id = 0;
    int status;
    side x, fresh;
    peer p;
    pid_t child;

    (void)state;
    opened(&x, &p);
    (void)open_stream(&x, &p);
    record = peer_record(&p, &m);
    side_new(&fresh, ENCL_INITIATOR);
    child = fork();
    if (child == 0) {
        encl_app *app = encl_session_app(x.s);
        bool refused = encl_app_stream_data(app, 1, TEXT("x"), &x.out, &x.err) == ENCL_E_FORKED &&
                       encl_app_open_stream(app, TEXT("x"), &id, &x.out, &x.err) == ENCL_E_FORKED &&
                       encl_buf_readable(&x.out) == 0 && encl_session_open_ids(x.s) == 1 &&
                       feed(&x, record) == ENCL_E_FORKED && state_of(&x) == ENCL_SESSION_CLOSED &&
                       encl_session_start(fresh.s, &fresh.out, &fresh.err) == ENCL_E_FORKED &&
                       state_of(&fresh) == ENCL_SESSION_CLOSED;

        _exit(refused ? 0 : 1);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    assert_int_equal(feed(&x, record), ENCL_OK);
    assert_int_equal(x.event.type, ENCL_EV_STREAM_DATA);
    side_free(&fresh);
    end(&x, &p);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lengths_out_of_bounds_are_refused),
        cmocka_unit_test(every_changed_byte_of_a_record_closes_the_session),
        cmocka_unit_test(a_record_that_holds_no_message_closes_the_session),
        cmocka_unit_test(the_largest_record_passes_whole_and_split),
        cmocka_unit_test(what_does_not_fit_changes_nothing),
        cmocka_unit_test(a_payload_that_changes_is_read_once),
        cmocka_unit_test(a_forgotten_partial_record_leaves_the_rest_as_garbage),
        cmocka_unit_test(a_forked_child_can_neither_send_nor_receive),
    };

    return cmocka_run_group_tests_name("session records", tests, NULL, NULL);
}
