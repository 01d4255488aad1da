/* Memory for secrets (guarded and locked by libsodium), wiping, constant-time compare, and the
 * fork generation that keeps a forked child away from its parent's keys. */
#ifndef ENCL_BASE_SECMEM_H
#define ENCL_BASE_SECMEM_H

#include "base/buf.h"

/* Must succeed once before anything else here is used; later calls cost a load. */
encl_result encl_base_init(encl_error *err);

/* Zeroed, guarded memory; NULL when there is none. encl_secret_free wipes size bytes, all that was
 * allocated. */
void *encl_secret_alloc(size_t size);
void encl_secret_free(void *secret, size_t size);

void encl_wipe(void *memory, size_t size);

/* True when both have the same length and bytes; time depends on the length alone. */
bool encl_equal_ct(encl_slice a, encl_slice b);

encl_result encl_random(uint8_t *out, size_t n, encl_error *err);

/* A number that differs between a process and its forked children. Whatever holds a key keeps the
 * value it was made under and refuses to work under another: the same key with the same nonce in
 * two processes would give away both plaintexts. */
uint64_t encl_fork_generation(void);

#endif
