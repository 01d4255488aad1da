/* Verified documents and the questions for fresh ones: which question an answer belongs to, and
 * which are still open. Answers arrive in the order of the questions. Calls watch and the session;
 * the channel's lock is held, but for what concerns one document alone. */
#include "channel/documents.h"

#include <stdlib.h>
#include <string.h>

struct encl_doc {
    atomic_uint refs;
    encl_attestation *attestation;
};

/* ---- one document: shared, no lock ---- */

const encl_attestation *encl_doc_get(const encl_doc *doc) {
    return doc->attestation;
}

encl_doc *doc_retain(encl_doc *doc) {
    atomic_fetch_add(&doc->refs, 1);
    return doc;
}

void encl_doc_release(encl_doc *doc) {
    if (doc != NULL && atomic_fetch_sub(&doc->refs, 1) == 1) {
        encl_attestation_free(doc->attestation);
        free(doc);
    }
}

/* ---- what was verified ---- */

encl_result documents_take(encl_channel *ch, encl_error *err) {
    encl_doc *doc = calloc(1, sizeof *doc);

    ENCL_ENSURE(doc != NULL, err, ENCL_E_NOMEM, "out of memory");
    atomic_init(&doc->refs, 1);
    doc->attestation = encl_session_take_attestation(ch->session);
    encl_doc_release(ch->verified);
    ch->verified = doc;
    return ENCL_OK;
}

/* ---- questions ---- */

static document_asked *first_unanswered(encl_channel *ch) ENCL_REQUIRES(ch->lock) {
    for (size_t i = 0; i < ch->asked_count; i++) {
        if (ch->asked[i].doc == NULL) {
            return &ch->asked[i];
        }
    }
    return NULL;
}

encl_result documents_answer(encl_channel *ch, encl_error *err) {
    document_asked *asked = first_unanswered(ch);

    ENCL_TRY(documents_take(ch, err));
    if (asked != NULL && asked->abandoned) {
        documents_drop(ch, asked);
    } else if (asked != NULL) {
        asked->doc = doc_retain(ch->verified);
        watch_fire(&asked->answered);
    }
    pthread_cond_broadcast(&ch->changed);
    return ENCL_OK;
}

bool documents_full(const encl_channel *ch) {
    return ch->asked_count == DOCUMENTS_ASKED_MAX;
}

uint64_t documents_add(encl_channel *ch, watch answered) {
    document_asked *asked = &ch->asked[ch->asked_count++];

    *asked = (document_asked){.number = ++ch->asked_last, .answered = answered};
    return asked->number;
}

document_asked *documents_find(encl_channel *ch, uint64_t number) {
    for (size_t i = 0; i < ch->asked_count; i++) {
        if (ch->asked[i].number == number) {
            return &ch->asked[i];
        }
    }
    return NULL;
}

void documents_drop(encl_channel *ch, document_asked *asked) {
    size_t at = (size_t)(asked - ch->asked);

    watch_clear(&asked->answered);
    encl_doc_release(asked->doc);
    memmove(asked, asked + 1, (ch->asked_count - at - 1) * sizeof *asked);
    ch->asked_count--;
}

void documents_abandon(encl_channel *ch, document_asked *asked) {
    if (asked->doc != NULL || ch->state == ENCL_CHANNEL_CLOSED) {
        documents_drop(ch, asked);
    } else {
        asked->abandoned = true;
        watch_clear(&asked->answered);
    }
}

bool documents_awaited(const encl_channel *ch) {
    for (size_t i = 0; i < ch->asked_count; i++) {
        if (ch->asked[i].doc == NULL && !ch->asked[i].abandoned) {
            return true;
        }
    }
    return false;
}

void documents_tell_all(encl_channel *ch) {
    for (size_t i = 0; i < ch->asked_count; i++) {
        watch_fire(&ch->asked[i].answered);
    }
}

void documents_free(encl_channel *ch) {
    while (ch->asked_count != 0) {
        documents_drop(ch, &ch->asked[ch->asked_count - 1]);
    }
    encl_doc_release(ch->verified);
    ch->verified = NULL;
}
