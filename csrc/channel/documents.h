/* Verified documents: shared ones, and the questions for fresh ones. Inside channel/ only. */
#ifndef ENCL_CHANNEL_DOCUMENTS_H
#define ENCL_CHANNEL_DOCUMENTS_H

#include "channel/state.h"

encl_doc *doc_retain(encl_doc *doc);

/* The document that the session has just verified is the channel's; ENCL_E_NOMEM leaves it with the
 * session. */
encl_result documents_take(encl_channel *ch, encl_error *err) ENCL_REQUIRES(ch->lock);
/* The same, as the answer to the question asked first. */
encl_result documents_answer(encl_channel *ch, encl_error *err) ENCL_REQUIRES(ch->lock);

bool documents_full(const encl_channel *ch) ENCL_REQUIRES(ch->lock);
/* A question has been sent; answered is its watch from now on. Returns its number. */
uint64_t documents_add(encl_channel *ch, watch answered) ENCL_REQUIRES(ch->lock);
/* NULL where nothing was asked under that number, or it was collected or given up. */
document_asked *documents_find(encl_channel *ch, uint64_t number) ENCL_REQUIRES(ch->lock);
void documents_drop(encl_channel *ch, document_asked *asked) ENCL_REQUIRES(ch->lock);
/* Nobody will collect its answer, which still arrives. */
void documents_abandon(encl_channel *ch, document_asked *asked) ENCL_REQUIRES(ch->lock);
/* Whether somebody waits for a document that has not been received. */
bool documents_awaited(const encl_channel *ch) ENCL_REQUIRES(ch->lock);
/* The channel has ended. */
void documents_tell_all(encl_channel *ch) ENCL_REQUIRES(ch->lock);
void documents_free(encl_channel *ch) ENCL_REQUIRES(ch->lock);

#endif
