/* A local enclave in this process with an echoing workload, and channels to it. local.c has the
 * functions. */
#ifndef ENCL_TESTS_LOCAL_H
#define ENCL_TESTS_LOCAL_H

#include "channel/channel.h"
#include "enclave/enclave.h"

#define SECOND ((int64_t)1000000000)
/* A workload that is sent this first says it back and closes. */
#define CLOSING "quit"

/* The enclave that set_up has started. */
extern encl_enclave *enclave;

/* For a group of tests: the workload and the enclave in front of it. */
int set_up(void **state);
int tear_down(void **state);

/* A channel that begins to connect; one that is open; and its end, awaited. */
encl_channel *start_channel(size_t max_in_flight);
encl_channel *open_channel(size_t max_in_flight);
void done_with(encl_channel *ch);

#endif
