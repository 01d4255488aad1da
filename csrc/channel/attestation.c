/* What was verified, and fresh documents, as users have them. Each function enters, changes the
 * questions, and leaves. Calls documents, sending and settle. */
#include <string.h>

#include "channel/documents.h"
#include "channel/sending.h"
#include "channel/settle.h"

encl_result encl_channel_attestation(encl_channel *ch, encl_doc **out, encl_error *err) {
    encl_code rc = ENCL_OK;

    *out = NULL;
    if (!ch_enter(ch)) {
        return ch_forked(err);
    }
    if (ch->verified == NULL) {
        rc = encl_fail(err, ENCL_E_STATE, "nothing has been verified on this channel");
    } else {
        *out = doc_retain(ch->verified);
    }
    ch_leave(ch);
    return rc;
}

encl_result encl_channel_handshake_hash(encl_channel *ch, uint8_t hash[32], encl_error *err) {
    encl_code rc = ENCL_OK;

    if (!ch_enter(ch)) {
        return ch_forked(err);
    }
    if (ch->verified == NULL) {
        rc = encl_fail(err, ENCL_E_STATE, "the channel is not verified yet");
    } else {
        memcpy(hash, ch->handshake_hash, 32);
    }
    ch_leave(ch);
    return rc;
}

/* ---- fresh documents ---- */

static encl_result send_question(encl_channel *ch, encl_error *err) ENCL_REQUIRES(ch->lock) {
    encl_buf *out;
    encl_code rc;

    ENCL_TRY(sending_begin(ch, &out, err));
    rc = encl_app_request_attestation(ch->app, out, err);
    sending_end(ch, 0, NULL);
    return rc;
}

encl_result encl_channel_start_attest(encl_channel *ch, encl_notifier *n, uint64_t token,
                                      uint64_t *number, encl_error *err) {
    watch answered = {.notifier = NULL};
    encl_code rc;

    if (!ch_enter(ch)) {
        return ch_forked(err);
    }
    ENCL_TRY_GOTO(ch_need_open(ch, err), done);
    ENCL_ENSURE_GOTO(
        !documents_full(ch), done, err, ENCL_E_STATE,
        "expected at most %d fresh documents asked for at once, got one more: wait for "
        "an answer first",
        DOCUMENTS_ASKED_MAX);
    ENCL_TRY_GOTO(watch_set(&answered, n, token, err), done);
    rc = send_question(ch, err);
    if (rc == ENCL_OK) {
        *number = documents_add(ch, answered);
    } else {
        watch_clear(&answered);
    }
done:
    ch_leave(ch);
    return rc;
}

static encl_result collect(encl_channel *ch, uint64_t number, int64_t until, encl_doc **out,
                           encl_error *err) ENCL_REQUIRES(ch->lock) {
    for (;;) {
        document_asked *asked = documents_find(ch, number);

        ENCL_ENSURE(asked != NULL, err, ENCL_E_STATE,
                    "expected the number of a question that is open, got %llu",
                    (unsigned long long)number);
        if (asked->doc != NULL) {
            *out = doc_retain(asked->doc);
            documents_drop(ch, asked);
            return ENCL_OK;
        }
        ENCL_TRY(ch_need_open(ch, err));
        ENCL_ENSURE(ch_wait(ch, &ch->changed, until), err, ENCL_E_READ_TIMEOUT,
                    "expected an attestation document, got none");
    }
}

encl_result encl_channel_finish_attest(encl_channel *ch, uint64_t number, int64_t until,
                                       encl_doc **out, encl_error *err) {
    encl_code rc;

    *out = NULL;
    if (!ch_enter(ch)) {
        return ch_forked(err);
    }
    rc = collect(ch, number, until, out, err);
    ch_leave(ch);
    return rc;
}

void encl_channel_abandon_attest(encl_channel *ch, uint64_t number) {
    document_asked *asked;

    if (!ch_enter(ch)) {
        return;
    }
    asked = documents_find(ch, number);
    if (asked != NULL) {
        documents_abandon(ch, asked);
    }
    ch_leave(ch);
}
