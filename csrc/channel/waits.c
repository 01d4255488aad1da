/* Who waits for a transfer: threads for its conditions, event loops by a notifier. Notes that they
 * do, which settle.c looks at (whether to read on, who is told that there is room), and takes them
 * out again. Calls transfer, sending, watch and settle. A thread calls these with the
 * channel's lock held, which is released while it sleeps; the functions for event loops take it. */
#include "channel/waits.h"

#include "channel/sending.h"
#include "channel/settle.h"
#include "channel/transfer.h"

bool waits_for_data(encl_channel *ch, transfer *t, int64_t until) {
    bool waited;

    if (until == ENCL_POLL) {
        return false;
    }
    t->readers++;
    waited = ch_wait(ch, &t->readable, until);
    t->readers--;
    return waited;
}

bool waits_to_send(encl_channel *ch, transfer *t, int64_t until) {
    bool waited;

    if (until == ENCL_POLL) {
        return false;
    }
    t->writers++;
    t->ask_threads = true;
    transfer_set_waiting(ch, t);
    waited = ch_wait(ch, &ch->changed, until);
    if (--t->writers == 0) {
        t->ask_threads = false;
    }
    return waited;
}

static encl_result notify_readable(transfer *t, encl_notifier *n, uint64_t token, encl_error *err) {
    ENCL_TRY(watches_add(&t->on_readable, n, token, err));
    if (transfer_is_readable(t)) {
        watches_fire(&t->on_readable);
    }
    return ENCL_OK;
}

static encl_result notify_writable(encl_channel *ch, transfer *t, encl_notifier *n, uint64_t token,
                                   encl_error *err) ENCL_REQUIRES(ch->lock) {
    ENCL_TRY(watches_add(&t->on_writable, n, token, err));
    if (t->closed || t->failed || t->eof || sending_has_room(ch, t, 0)) {
        watches_fire(&t->on_writable);
    } else {
        transfer_set_waiting(ch, t);
    }
    return ENCL_OK;
}

static void forget_all(encl_channel *ch, transfer *t) ENCL_REQUIRES(ch->lock) {
    watches_clear(&t->on_readable);
    watches_clear(&t->on_writable);
    transfer_stopped_waiting(ch, t);
}

encl_result waits_notify(transfer *t, int what, encl_notifier *n, uint64_t token, encl_error *err) {
    encl_channel *ch = t->ch;
    encl_code rc = ENCL_OK;

    if (!ch_enter(ch)) {
        return ch_forked(err);
    }
    if (what == 0) {
        forget_all(ch, t);
    }
    if ((what & ENCL_READABLE) != 0) {
        ENCL_TRY_GOTO(notify_readable(t, n, token, err), done);
    }
    if ((what & ENCL_WRITABLE) != 0) {
        rc = notify_writable(ch, t, n, token, err);
    }
done:
    ch_leave(ch);
    return rc;
}

void waits_withdraw(transfer *t, const encl_notifier *n, uint64_t token) {
    encl_channel *ch = t->ch;

    if (ch_enter(ch)) {
        watches_withdraw(&t->on_readable, n, token);
        watches_withdraw(&t->on_writable, n, token);
        transfer_stopped_waiting(ch, t);
        ch_leave(ch);
    }
}
