#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "channel/state.h"
#include "local.h"
#include "streams.h"

encl_stream *open_stream(encl_channel *ch, const char *first) {
    encl_slot *slot;
    encl_stream *st;
    encl_error err;

    assert_int_equal(encl_channel_reserve(ch, NULL, 0, &slot, &err), ENCL_OK);
    if (encl_slot_wait(slot, encl_now_ns() + 10 * SECOND, &err) != ENCL_OK) {
        fail_msg("%s", err.message);
    }
    assert_int_equal(encl_stream_open(slot, ENCL_SLICE(first, strlen(first)), &st, &err), ENCL_OK);
    encl_slot_release(slot);
    return st;
}

void read_exactly(encl_stream *st, uint8_t *out, size_t n) {
    encl_error err;

    while (n != 0) {
        size_t got;

        if (encl_stream_read(st, out, n, encl_now_ns() + 10 * SECOND, &got, &err) != ENCL_OK) {
            fail_msg("%s", err.message);
        }
        assert_int_not_equal(got, 0);
        out += got;
        n -= got;
    }
}

void *pour_in(void *arg) {
    pour *p = arg;
    encl_error err;
    size_t put;

    if (encl_stream_write(p->st, ENCL_SLICE(p->bytes, p->len), encl_now_ns() + 30 * SECOND, &put,
                          &err) != ENCL_OK) {
        print_message("%s\n", err.message);
        abort();
    }
    return NULL;
}

void assert_all_slots_come_free(encl_channel *ch) {
    int64_t until = encl_now_ns() + 5 * SECOND;
    encl_channel_stats stats;

    do {
        encl_channel_get_stats(ch, &stats);
        if (stats.slots_in_use == 0) {
            return;
        }
        usleep(1000);
    } while (encl_now_ns() < until);
    fail_msg("%d slots were never freed", (int)stats.slots_in_use);
}
