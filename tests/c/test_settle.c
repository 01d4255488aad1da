/* channel/settle: what a changed state leads to, and when. The lock is held by the test, so what is
 * looked at in between is what a change alone did. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#include "channel/queue.h"
#include "channel/settle.h"
#include "channel/transfer.h"
#include "local.h"

#define FAR ((int64_t)3600 * SECOND)

static encl_slot *ask_for_slot(encl_channel *ch) {
    encl_slot *slot;
    encl_error err;

    assert_int_equal(encl_channel_reserve(ch, NULL, 0, &slot, &err), ENCL_OK);
    return slot;
}

static encl_stream *open_stream(encl_channel *ch) {
    encl_slot *slot = ask_for_slot(ch);
    encl_stream *st;
    encl_error err;

    assert_int_equal(encl_slot_wait(slot, encl_now_ns() + 10 * SECOND, &err), ENCL_OK);
    assert_int_equal(encl_stream_open(slot, ENCL_SLICE("x", 1), &st, &err), ENCL_OK);
    encl_slot_release(slot);
    while (!encl_stream_readable(st)) {
        usleep(1000); /* its echo: the record has been read */
    }
    return st;
}

static void enter(encl_channel *ch) ENCL_ACQUIRES(ch->lock) {
    encl_lock(&ch->lock);
}

/* ---- a wait ---- */

static void a_wait_does_not_begin_where_settling_has_told_the_waiter(void **state) {
    encl_channel *ch = open_channel(1);
    encl_slot *first = ask_for_slot(ch), *second = ask_for_slot(ch);

    (void)state;
    assert_false(encl_slot_granted(second));
    enter(ch);
    queue_give_up(ch, first);
    assert_int_equal(second->state, SLOT_WAITING);
    /* Its signal is given by this very call: nobody would give another. */
    assert_true(ch_wait(ch, &second->changed, ENCL_FOREVER));
    assert_int_equal(second->state, SLOT_GRANTED);
    ch_leave(ch);
    encl_slot_release(second);
    encl_slot_release(first);
    done_with(ch);
}

static void a_wait_does_not_begin_where_settling_has_told_the_end(void **state) {
    encl_channel *ch = open_channel(1);
    encl_stream *st = open_stream(ch);
    encl_error why;

    (void)state;
    encl_fail(&why, ENCL_E_PROTOCOL, "expected a test to end it, got one");
    enter(ch);
    ch_end(ch, &why);
    assert_int_equal(ch->transfer_count, 1);
    assert_false(st->t.failed);
    assert_true(ch_wait(ch, &ch->changed, ENCL_FOREVER));
    assert_int_equal(ch->transfer_count, 0);
    assert_true(st->t.failed);
    assert_int_equal(st->t.error.code, ENCL_E_PROTOCOL);
    ch_leave(ch);
    encl_stream_release(st);
    done_with(ch);
}

/* ---- closes and slots ---- */

static void a_close_is_sent_and_its_place_given_on_when_the_lock_is_let_go(void **state) {
    encl_channel *ch = open_channel(1);
    encl_stream *st = open_stream(ch);
    encl_slot *next = ask_for_slot(ch);
    size_t records;

    (void)state;
    enter(ch);
    records = counted(&ch->records_out);
    transfer_close(ch, &st->t);
    assert_int_equal(counted(&ch->records_out), records);
    assert_int_equal(ch->transfer_count, 1);
    assert_int_equal(next->state, SLOT_WAITING);
    ch_leave(ch);
    enter(ch);
    assert_int_equal(counted(&ch->records_out), records + 1);
    assert_int_equal(ch->transfer_count, 0);
    assert_int_equal(next->state, SLOT_GRANTED);
    ch_leave(ch);
    encl_slot_release(next);
    encl_stream_release(st);
    done_with(ch);
}

static void a_close_of_a_channel_that_has_ended_is_not_sent(void **state) {
    encl_channel *ch = open_channel(1);
    encl_stream *st = open_stream(ch);
    encl_error why;
    size_t records;

    (void)state;
    encl_fail(&why, ENCL_E_CLOSED, "expected a test to end it, got one");
    enter(ch);
    records = counted(&ch->records_out);
    transfer_close(ch, &st->t);
    ch_end(ch, &why);
    ch_leave(ch);
    enter(ch);
    assert_int_equal(counted(&ch->records_out), records);
    assert_int_equal(ch->transfer_count + ch->closing, 0);
    assert_int_equal(counted(&ch->in_use), 0);
    ch_leave(ch);
    encl_stream_release(st);
    done_with(ch);
}

/* ---- writers ---- */

/* So many records of id that will not count as read by themselves. */
static void send_unread(encl_channel *ch, uint64_t id, size_t n) ENCL_REQUIRES(ch->lock) {
    while (n-- != 0) {
        encl_pace_sent(&ch->pace, id, 100, false, encl_now_ns() + FAR);
    }
}

/* Nothing more is under way than n records of id. */
static void let_room(encl_channel *ch, uint64_t id, size_t n) {
    enter(ch);
    ch->pace = (encl_pace){.head = 0};
    send_unread(ch, id, n);
    ch->look = true;
    ch_leave(ch);
}

static void ask_to_write(encl_stream *st, encl_notifier *n, uint64_t token) {
    encl_error err;

    assert_int_equal(encl_stream_notify(st, ENCL_WRITABLE, n, token, &err), ENCL_OK);
}

typedef struct two_writers {
    encl_channel *ch;
    encl_stream *first, *second;
    encl_notifier *told;
} two_writers;

/* Both wait: there is no room for any. */
static two_writers make_two_writers(void) {
    two_writers w = {.ch = open_channel(4)};
    encl_error err;

    w.second = open_stream(w.ch); /* not in the order of the table */
    w.first = open_stream(w.ch);
    assert_int_equal(encl_notifier_new(&w.told, &err), ENCL_OK);
    enter(w.ch);
    send_unread(w.ch, encl_stream_id(w.first), ENCL_PACE_TURNS);
    /* Answers for another stream keep coming. Without any, the first writer would be alone with the
     * server on a machine that takes 100 ms to come here, and could write at once. */
    (void)encl_pace_heard(&w.ch->pace, 4242, encl_now_ns() + FAR);
    ch_leave(w.ch);
    ask_to_write(w.first, w.told, 1);
    ask_to_write(w.second, w.told, 2);
    return w;
}

static void end_two_writers(two_writers *w) {
    encl_stream_withdraw(w->first, w->told, 1);
    encl_stream_withdraw(w->second, w->told, 2);
    encl_stream_release(w->first);
    encl_stream_release(w->second);
    encl_notifier_release(w->told);
    done_with(w->ch);
}

static void writers_are_told_in_the_order_in_which_they_began_to_wait(void **state) {
    two_writers w = make_two_writers();
    uint64_t tokens[4];

    (void)state;
    assert_int_equal(encl_notifier_drain(w.told, tokens, 4), 0);
    let_room(w.ch, 0, 0);
    assert_int_equal(encl_notifier_drain(w.told, tokens, 4), 2);
    assert_int_equal(tokens[0], 1);
    assert_int_equal(tokens[1], 2);
    end_two_writers(&w);
}

static void no_more_writers_are_told_than_there_is_room_for(void **state) {
    two_writers w = make_two_writers();
    uint64_t tokens[4];

    (void)state;
    /* An unread record counts as three turns: itself and two answers. Room is where fewer than 16
     * are taken, so beside four there is room for two more, beside five for one. */
    let_room(w.ch, 4242, 4);
    assert_int_equal(encl_notifier_drain(w.told, tokens, 4), 2);
    end_two_writers(&w);
    w = make_two_writers();
    let_room(w.ch, 4242, 5);
    assert_int_equal(encl_notifier_drain(w.told, tokens, 4), 1);
    assert_int_equal(tokens[0], 1);
    end_two_writers(&w);
}

static void a_writer_whose_record_is_unread_does_not_keep_the_next_one_back(void **state) {
    two_writers w = make_two_writers();
    uint64_t tokens[4];

    (void)state;
    let_room(w.ch, encl_stream_id(w.first), 4); /* three quarters, which is its own share */
    assert_int_equal(encl_notifier_drain(w.told, tokens, 4), 1);
    assert_int_equal(tokens[0], 2);
    end_two_writers(&w);
}

/* ---- readers ---- */

typedef struct reader {
    pthread_t thread;
    encl_stream *st;
    char read[8];
    size_t got;
    atomic_bool done;
} reader;

static void *read_some(void *arg) {
    reader *r = arg;
    encl_error err;

    assert_int_equal(
        encl_stream_read(r->st, (uint8_t *)r->read, sizeof r->read, ENCL_FOREVER, &r->got, &err),
        ENCL_OK);
    atomic_store(&r->done, true);
    return NULL;
}

static bool is_waiting(encl_channel *ch, const reader *r) {
    bool waiting;

    enter(ch);
    waiting = r->st->t.readers == 1;
    ch_leave(ch);
    return waiting;
}

/* A thread that waits for bytes of a stream of its own. */
static void begin_reading(encl_channel *ch, reader *r) {
    uint8_t echo[1];
    encl_error err;

    *r = (reader){.st = open_stream(ch)};
    assert_int_equal(encl_stream_read(r->st, echo, 1, ENCL_POLL, &r->got, &err), ENCL_OK);
    assert_int_equal(pthread_create(&r->thread, NULL, read_some, r), 0);
    while (!is_waiting(ch, r)) {
        usleep(1000);
    }
}

static void end_reading(reader *r, const char *expected) {
    assert_int_equal(pthread_join(r->thread, NULL), 0);
    assert_int_equal(r->got, strlen(expected));
    assert_memory_equal(r->read, expected, r->got);
    encl_stream_release(r->st);
}

static void a_reader_is_woken_once_and_after_the_lock_is_let_go(void **state) {
    encl_channel *ch = open_channel(1);
    reader r;

    (void)state;
    begin_reading(ch, &r);
    enter(ch);
    assert_int_equal(atomic_load(&r.st->t.refs), 2);
    transfer_received(ch, &r.st->t, ENCL_SLICE("ab", 2));
    transfer_received(ch, &r.st->t, ENCL_SLICE("c", 1));
    assert_int_equal(ch->to_wake.count, 1); /* noted, and nobody woken so far */
    assert_ptr_equal(ch->to_wake.of[0], &r.st->t);
    assert_int_equal(atomic_load(&r.st->t.refs), 3);
    ch_leave(ch);
    while (!atomic_load(&r.done)) {
        usleep(1000);
    }
    enter(ch);
    assert_int_equal(ch->to_wake.count, 0);
    assert_int_equal(atomic_load(&r.st->t.refs), 2);
    /* Nobody waits: nothing is noted for the next one who lets the lock go. */
    transfer_received(ch, &r.st->t, ENCL_SLICE("d", 1));
    assert_int_equal(ch->to_wake.count, 0);
    ch_leave(ch);
    end_reading(&r, "abc");
    done_with(ch);
}

static void a_reader_is_woken_before_the_thread_that_told_it_waits_itself(void **state) {
    encl_channel *ch = open_channel(1);
    reader r;

    (void)state;
    begin_reading(ch, &r);
    enter(ch);
    transfer_received(ch, &r.st->t, ENCL_SLICE("ab", 2));
    while (!atomic_load(&r.done)) {
        (void)ch_wait(ch, &ch->changed, encl_now_ns() + SECOND / 100);
    }
    ch_leave(ch);
    end_reading(&r, "ab");
    done_with(ch);
}

static void more_readers_than_are_noted_are_woken_too(void **state) {
    reader readers[WOKEN_LATER_MAX + 2];
    size_t n = sizeof readers / sizeof readers[0];
    encl_channel *ch = open_channel(n);

    (void)state;
    for (size_t i = 0; i < n; i++) {
        begin_reading(ch, &readers[i]);
    }
    enter(ch);
    for (size_t i = 0; i < n; i++) {
        transfer_received(ch, &readers[i].st->t, ENCL_SLICE("ab", 2));
    }
    assert_int_equal(ch->to_wake.count, WOKEN_LATER_MAX);
    ch_leave(ch);
    for (size_t i = 0; i < n; i++) {
        end_reading(&readers[i], "ab");
    }
    done_with(ch);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_reader_is_woken_once_and_after_the_lock_is_let_go),
        cmocka_unit_test(a_reader_is_woken_before_the_thread_that_told_it_waits_itself),
        cmocka_unit_test(more_readers_than_are_noted_are_woken_too),
        cmocka_unit_test(a_wait_does_not_begin_where_settling_has_told_the_waiter),
        cmocka_unit_test(a_wait_does_not_begin_where_settling_has_told_the_end),
        cmocka_unit_test(a_close_is_sent_and_its_place_given_on_when_the_lock_is_let_go),
        cmocka_unit_test(a_close_of_a_channel_that_has_ended_is_not_sent),
        cmocka_unit_test(writers_are_told_in_the_order_in_which_they_began_to_wait),
        cmocka_unit_test(no_more_writers_are_told_than_there_is_room_for),
        cmocka_unit_test(a_writer_whose_record_is_unread_does_not_keep_the_next_one_back),
    };

    alarm(600); /* what waits for a signal that nobody gives fails, instead of standing still */
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
