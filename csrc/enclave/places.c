/* places: which are free, whether a client's further messages may be read, and the counters
 * that users see. Calls workload, never its client; takes the enclave's lock to count, through
 * encl_stat_add, and holds none otherwise. */
#include "enclave/places.h"

#include "enclave/faults.h"

void encl_places_init(encl_places *s, encl_enclave *e, void *owner) {
    *s = (encl_places){.enclave = e, .owner = owner};
    for (size_t i = 0; i < ENCL_MAX_OPEN; i++) {
        s->each[i].all = s;
    }
    encl_buf_init(&s->held_payload, ENCL_NOISE_MAX_PLAIN);
}

bool encl_places_blocked(const encl_places *s) {
    return s->full != 0 || s->held.type != ENCL_EV_NONE;
}

encl_place *encl_places_find(encl_places *s, uint64_t id) {
    for (size_t i = 0; i < ENCL_MAX_OPEN; i++) {
        const encl_workload *w = s->each[i].workload;

        if (w != NULL && encl_workload_id(w) == id && encl_workload_addressable(w)) {
            return &s->each[i];
        }
    }
    return NULL;
}

static encl_place *find_free(encl_places *s) {
    size_t i = 0;

    while (s->each[i].workload != NULL) {
        i++;
    }
    return &s->each[i];
}

static void count_taken(encl_places *s, encl_workload_kind kind) {
    encl_enclave_stats *stats = &s->enclave->stats;

    s->taken++;
    if (kind == ENCL_WORKLOAD_STREAM) {
        s->streams_open++;
        encl_stat_add(s->enclave, &stats->streams_total, 1);
    } else {
        encl_stat_add(s->enclave, &stats->requests_total, 1);
    }
    encl_stat_add(s->enclave, &stats->slots_open, 1);
}

encl_result encl_places_take(encl_places *s, const encl_event *event,
                             const encl_workload_events *events, encl_place **out,
                             encl_error *err) {
    encl_workload_kind kind =
        event->type == ENCL_EV_REQUEST ? ENCL_WORKLOAD_ONE_SHOT : ENCL_WORKLOAD_STREAM;
    bool silent = encl_fault_on(s->enclave, ENCL_FAULT_SILENT_STREAMS);
    encl_place *place;

    ENCL_ENSURE(s->taken < ENCL_MAX_OPEN, err, ENCL_E_STATE, "all %d places are taken",
                ENCL_MAX_OPEN);
    place = find_free(s);
    ENCL_TRY(encl_workload_new(s->enclave, kind, silent, event->id, events, place, &place->workload,
                               err));
    encl_workload_pause(place->workload, s->paused);
    count_taken(s, kind);
    *out = place;
    return ENCL_OK;
}

void encl_places_weigh(encl_place *place) {
    bool full = encl_workload_full(place->workload);

    if (full && !place->full) {
        place->all->full++;
    } else if (!full && place->full) {
        place->all->full--;
    }
    place->full = full;
}

void encl_places_give_back(encl_place *place) {
    encl_places *s = place->all;

    if (place->full) {
        s->full--;
    }
    if (encl_workload_addressable(place->workload)) {
        s->streams_open--;
    }
    encl_workload_free(place->workload);
    *place = (encl_place){.all = s};
    s->taken--;
    encl_stat_sub(s->enclave, &s->enclave->stats.slots_open, 1);
}

void encl_places_drop(encl_places *s) {
    for (size_t i = 0; i < ENCL_MAX_OPEN; i++) {
        if (s->each[i].workload != NULL) {
            encl_places_give_back(&s->each[i]);
        }
    }
    s->held.type = ENCL_EV_NONE;
    encl_buf_free(&s->held_payload);
}

bool encl_places_close(encl_place *place, encl_half half) {
    if (half == ENCL_HALF_BOTH) {
        place->all->streams_open--;
    }
    return encl_workload_close(place->workload, half);
}

static const uint8_t head_end[] = {'\r', '\n', '\r', '\n'};

static void look_for_head_end(encl_place *place, uint8_t byte) {
    if (byte == head_end[place->head_end]) {
        place->head_end++;
    } else {
        place->head_end = byte == '\r' ? 1 : 0;
    }
}

void encl_places_expect_answer(encl_place *place) {
    place->head_end = 0;
    place->body_sent = 0;
}

size_t encl_places_truncate(encl_place *place, encl_slice bytes, size_t after) {
    for (size_t i = 0; i < bytes.len; i++) {
        if (place->head_end < sizeof head_end) {
            look_for_head_end(place, bytes.data[i]);
        } else if (place->body_sent >= after) { /* more, where `after` has become less meanwhile */
            place->cut = true;
            return i;
        } else {
            place->body_sent++;
        }
    }
    return bytes.len;
}

void encl_places_pause(encl_places *s, bool paused) {
    if (s->paused == paused) {
        return;
    }
    s->paused = paused;
    for (size_t i = 0; i < ENCL_MAX_OPEN; i++) {
        if (s->each[i].workload != NULL) {
            encl_workload_pause(s->each[i].workload, paused);
        }
    }
}

encl_result encl_places_hold(encl_places *s, const encl_event *event, encl_error *err) {
    ENCL_TRY(encl_buf_write(&s->held_payload, event->payload, err));
    s->held = *event;
    return ENCL_OK;
}

bool encl_places_take_held(encl_places *s, encl_event *event, encl_buf *payload) {
    if (s->held.type == ENCL_EV_NONE || s->taken == ENCL_MAX_OPEN) {
        return false;
    }
    *payload = s->held_payload;
    encl_buf_init(&s->held_payload, ENCL_NOISE_MAX_PLAIN);
    *event = s->held;
    event->payload = encl_buf_peek(payload);
    s->held.type = ENCL_EV_NONE;
    return true;
}
