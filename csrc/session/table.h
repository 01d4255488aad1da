/* The ids open on one connection. Private to this layer. */
#ifndef ENCL_SESSION_TABLE_H
#define ENCL_SESSION_TABLE_H

#include "base/buf.h"

/* A responder holds one more than it serves, so that it can see a client go beyond the limit. */
#define ENCL_TABLE_MAX 65

typedef enum encl_id_kind { ENCL_ID_ONE_SHOT, ENCL_ID_STREAM } encl_id_kind;

typedef struct encl_id_entry {
    encl_id_kind kind;
    bool we_closed;   /* our direction: nothing more may be written */
    bool peer_closed; /* their direction: anything more is an error */
    bool errored;     /* initiator: ended by Error, holds its slot until we say Both */
} encl_id_entry;

typedef struct encl_table {
    size_t open, capacity;
    uint64_t ids[ENCL_TABLE_MAX];
    encl_id_entry entries[ENCL_TABLE_MAX];
} encl_table;

void encl_table_init(encl_table *t, size_t capacity);
/* NULL where id is not open. Valid until the next add or remove. */
encl_id_entry *encl_table_find(encl_table *t, uint64_t id);
static inline bool encl_table_full(const encl_table *t) {
    return t->open >= t->capacity;
}
/* The table must not be full and id not open. */
encl_result encl_table_add(encl_table *t, uint64_t id, encl_id_kind kind, encl_error *err);
/* Does nothing where id is not open. */
void encl_table_remove(encl_table *t, uint64_t id);

#endif
