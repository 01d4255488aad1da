/* Decides which ids are open, up to a fixed number: few enough to be searched from end to end.
 * Calls nothing. */
#include "session/table.h"

#include <string.h>

#define NOT_FOUND SIZE_MAX

void encl_table_init(encl_table *t, size_t capacity) {
    memset(t, 0, sizeof *t);
    t->capacity = capacity < ENCL_TABLE_MAX ? capacity : ENCL_TABLE_MAX;
}

static size_t index_of(const encl_table *t, uint64_t id) {
    for (size_t i = 0; i < t->open; i++) {
        if (t->ids[i] == id) {
            return i;
        }
    }
    return NOT_FOUND;
}

encl_id_entry *encl_table_find(encl_table *t, uint64_t id) {
    size_t i = index_of(t, id);

    return i == NOT_FOUND ? NULL : &t->entries[i];
}

encl_result encl_table_add(encl_table *t, uint64_t id, encl_id_kind kind, encl_error *err) {
    ENCL_ENSURE(!encl_table_full(t), err, ENCL_E_STATE,
                "expected at most %zu requests and streams open, got one more", t->capacity);
    ENCL_ENSURE(index_of(t, id) == NOT_FOUND, err, ENCL_E_STATE, "id %llu is open already",
                (unsigned long long)id);
    t->ids[t->open] = id;
    t->entries[t->open] = (encl_id_entry){.kind = kind};
    t->open++;
    return ENCL_OK;
}

void encl_table_remove(encl_table *t, uint64_t id) {
    size_t i = index_of(t, id);

    if (i != NOT_FOUND) {
        t->open--;
        t->ids[i] = t->ids[t->open];
        t->entries[i] = t->entries[t->open];
    }
}
