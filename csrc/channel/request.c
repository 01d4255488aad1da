/* One-shot requests as their users have them: start, wait for the answer, abandon. Each function
 * enters, changes, and leaves. Calls transfer, waits, slot and settle. */
#include <stdlib.h>

#include "channel/settle.h"
#include "channel/slot.h"
#include "channel/transfer.h"
#include "channel/waits.h"

encl_result encl_request_start(encl_slot *slot, encl_slice payload, encl_request **out,
                               encl_error *err) {
    encl_request *rq;
    encl_code rc;

    *out = NULL;
    if (encl_channel_is_forked(slot->ch)) {
        return ch_forked(err);
    }
    rq = calloc(1, sizeof *rq);
    ENCL_ENSURE(rq != NULL, err, ENCL_E_NOMEM, "out of memory");
    transfer_init(&rq->t, slot->ch, false);
    rc = slot_use(slot, &rq->t, payload, err);
    if (rc != ENCL_OK) {
        encl_request_release(rq);
        return rc;
    }
    *out = rq;
    return ENCL_OK;
}

/* The id stays open until its answer has been received, as its place does on the server. */
void encl_request_abandon(encl_request *rq) {
    transfer *t = &rq->t;
    encl_channel *ch = t->ch;
    encl_error why;

    encl_fail(&why, ENCL_E_INVALID, "this request was abandoned");
    if (ch_enter(ch)) {
        t->abandoned = true;
        transfer_fail(ch, t, &why);
        ch_leave(ch);
    }
}

void encl_request_release(encl_request *rq) {
    if (rq == NULL || encl_channel_is_forked(rq->t.ch)) {
        return;
    }
    encl_request_abandon(rq);
    transfer_release(&rq->t);
}

encl_result encl_request_result(encl_request *rq, int64_t until, encl_slice *answer,
                                encl_error *err) {
    transfer *t = &rq->t;
    encl_channel *ch = t->ch;
    encl_code rc = ENCL_OK;

    *answer = ENCL_SLICE_NONE;
    if (!ch_enter(ch)) {
        return ch_forked(err);
    }
    while (rc == ENCL_OK && !t->eof) {
        rc = transfer_check(t, err);
        if (rc == ENCL_OK && !waits_for_data(ch, t, until)) {
            rc = encl_fail(err, ENCL_E_READ_TIMEOUT, "expected an answer, got none");
        }
    }
    if (rc == ENCL_OK) {
        *answer = encl_buf_peek(&t->answer);
    }
    ch_leave(ch);
    return rc;
}

encl_result encl_request_notify(encl_request *rq, encl_notifier *n, uint64_t token,
                                encl_error *err) {
    return waits_notify(&rq->t, ENCL_READABLE, n, token, err);
}

void encl_request_withdraw(encl_request *rq, const encl_notifier *n, uint64_t token) {
    waits_withdraw(&rq->t, n, token);
}
