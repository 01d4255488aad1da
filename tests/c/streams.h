/* Streams of a channel to the local enclave of local.h: opened, read to the end, filled. streams.c
 * has the functions. */
#ifndef ENCL_TESTS_STREAMS_H
#define ENCL_TESTS_STREAMS_H

#include "channel/channel.h"

encl_stream *open_stream(encl_channel *ch, const char *first);
void read_exactly(encl_stream *st, uint8_t *out, size_t n);

typedef struct pour {
    encl_stream *st;
    const uint8_t *bytes;
    size_t len;
} pour;

void *pour_in(void *arg);

/* A stream's slot is free when its StreamClose has been sent, which waits its turn. */
void assert_all_slots_come_free(encl_channel *ch);

#endif
