#include "cases.h"

#include <arpa/inet.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "channel/channel.h"
#include "enclave/enclave.h"
#include "session/session.h"

#define SECOND ((int64_t)1000000000)
/* Far more than anything here takes: who still waits then was forgotten. */
#define DEADLINE (20 * SECOND)
#define BUF_MAX  ((size_t)1 << 20)

const char *const torture_phases[TORTURE_PHASES] = {"connect", "verify", "request", "stream",
                                                    "close"};

static encl_slice text(const char *chars) {
    return ENCL_SLICE(chars, strlen(chars));
}

/* ---- a document with its chain, without a cache */

typedef struct document {
    encl_policy policy;
    uint8_t bytes[8192];
    size_t len;
    bool forged;
} document;

static const uint8_t nonce[32] = {1, 2, 3};

static document *sign_document(const minted *m) {
    document *d = calloc(1, sizeof *d);
    encl_doc_template t = m->document;
    encl_error err;
    encl_buf out;

    must(d != NULL, "memory for a document");
    t.nonce = ENCL_SLICE(nonce, sizeof nonce);
    t.timestamp_ms = (uint64_t)time(NULL) * 1000;
    encl_buf_wrap(&out, d->bytes, sizeof d->bytes);
    must(encl_attest_sign(&t, m->leaf_key, &out, &err) == ENCL_OK, "signing a document");
    d->len = encl_buf_readable(&out);
    d->policy = production_policy(m);
    return d;
}

static void *good_document(const minted *m) {
    return sign_document(m);
}

/* Its last byte is one of the signature. */
static void *forged_document(const minted *m) {
    document *d = sign_document(m);

    d->bytes[d->len - 1] ^= 1;
    d->forged = true;
    return d;
}

/* A forged document must be refused whatever fails: that is the result that is right for it. */
static encl_code run_document(void *fixture, encl_error *err) {
    document *d = fixture;
    encl_attestation *a = NULL;
    encl_link_cache *cache = NULL;
    encl_code rc;

    alloc_phase = PHASE_VERIFY;
    rc = encl_link_cache_new(8, &cache, err);
    if (rc == ENCL_OK) {
        rc = encl_attest_verify(ENCL_SLICE(d->bytes, d->len), &d->policy,
                                ENCL_SLICE(nonce, sizeof nonce), (int64_t)time(NULL), cache, &a,
                                err);
        must((rc == ENCL_OK) == (a != NULL), "a document exactly where it verified");
        must(!d->forged || rc != ENCL_OK, "a forged document is refused");
    }
    encl_attestation_free(a);
    encl_link_cache_free(cache);
    return d->forged && rc == ENCL_E_SIGNATURE ? ENCL_OK : rc;
}

static void free_document(void *fixture) {
    document *d = fixture;

    encl_policy_free(&d->policy);
    free(d);
}

/* ---- two sessions and the bytes between them, without a network */

typedef struct pair {
    const minted *m;
    encl_session *client, *server;
    encl_buf to_client, to_server;
    encl_link_cache *cache;
    encl_policy policy;
    encl_event event;
    uint8_t block[2 * ENCL_RECORD_MAX];
} pair;

/* OpenSSL 3.0.19 asks a provider once for each kind of algorithm (ossl_method_construct): a MAC
 * that there was no memory for then is refused for as long as the process lives. So it is made
 * before. */
static void fetch_mac(void) {
    EVP_MAC *mac = EVP_MAC_fetch(NULL, "HMAC", NULL);

    must(mac != NULL, "HMAC");
    EVP_MAC_free(mac);
}

static void *make_pair(const minted *m) {
    pair *p = calloc(1, sizeof *p);

    fetch_mac();
    must(p != NULL, "memory for two sessions");
    p->m = m;
    return p;
}

static encl_result deliver(pair *p, encl_session *to, encl_buf *from, encl_buf *answers,
                           encl_error *err) {
    size_t len = encl_buf_readable(from), taken;

    must(len <= sizeof p->block, "room for what was sent");
    memcpy(p->block, encl_buf_peek(from).data, len);
    encl_buf_clear(from);
    return encl_session_recv(to, p->block, len, &taken, (int64_t)time(NULL), answers, &p->event,
                             err);
}

static encl_result begin_pair(pair *p, encl_error *err) {
    encl_session_config client = {.role = ENCL_INITIATOR, .policy = &p->policy};
    encl_session_config server = {.role = ENCL_RESPONDER};

    encl_buf_init(&p->to_client, BUF_MAX);
    encl_buf_init(&p->to_server, BUF_MAX);
    ENCL_TRY(encl_policy_init(&p->policy, &p->m->pins, 1, p->m->cert[0], false, true, err));
    ENCL_TRY(encl_link_cache_new(8, &p->cache, err));
    client.cache = p->cache;
    ENCL_TRY(encl_session_new(&client, &p->client, err));
    ENCL_TRY(encl_session_new(&server, &p->server, err));
    ENCL_TRY(encl_session_start(p->client, &p->to_server, err));
    ENCL_TRY(deliver(p, p->server, &p->to_server, &p->to_client, err));
    return deliver(p, p->client, &p->to_client, &p->to_server, err);
}

static encl_result attest_pair(pair *p, encl_error *err) {
    static const uint8_t control_nonce[ENCL_CONTROL_NONCE_BYTES];
    encl_doc_template t = p->m->document;
    encl_buf signed_one;
    encl_code rc;

    encl_buf_init(&signed_one, ENCL_DOCUMENT_MAX_BYTES);
    t.nonce = ENCL_SLICE(encl_session_handshake_hash(p->server), 32);
    t.timestamp_ms = (uint64_t)time(NULL) * 1000;
    ENCL_TRY_GOTO(deliver(p, p->server, &p->to_server, &p->to_client, err), done);
    ENCL_TRY_GOTO(encl_attest_sign(&t, p->m->leaf_key, &signed_one, err), done);
    ENCL_TRY_GOTO(encl_app_attestation(encl_session_app(p->server), encl_buf_peek(&signed_one),
                                       control_nonce, &p->to_client, err),
                  done);
    rc = deliver(p, p->client, &p->to_client, &p->to_server, err);
done:
    encl_buf_free(&signed_one);
    return rc;
}

static encl_result use_pair(pair *p, encl_error *err) {
    encl_app *client = encl_session_app(p->client), *server = encl_session_app(p->server);
    uint64_t id;

    must(client != NULL && server != NULL, "two open sessions");
    alloc_phase = PHASE_REQUEST;
    ENCL_TRY(encl_app_request(client, text("question"), &id, &p->to_server, err));
    ENCL_TRY(deliver(p, p->server, &p->to_server, &p->to_client, err));
    ENCL_TRY(encl_app_reply(server, id, text("answer"), &p->to_client, err));
    ENCL_TRY(deliver(p, p->client, &p->to_client, &p->to_server, err));
    must(p->event.type == ENCL_EV_DATA, "an answer");
    alloc_phase = PHASE_STREAM;
    ENCL_TRY(encl_app_open_stream(client, text("first"), &id, &p->to_server, err));
    ENCL_TRY(deliver(p, p->server, &p->to_server, &p->to_client, err));
    ENCL_TRY(encl_app_stream_data(client, id, text("second"), &p->to_server, err));
    ENCL_TRY(deliver(p, p->server, &p->to_server, &p->to_client, err));
    ENCL_TRY(encl_app_stream_data(server, id, text("back"), &p->to_client, err));
    ENCL_TRY(deliver(p, p->client, &p->to_client, &p->to_server, err));
    must(p->event.type == ENCL_EV_STREAM_DATA, "bytes of a stream");
    alloc_phase = PHASE_CLOSE;
    ENCL_TRY(encl_app_stream_close(client, id, ENCL_HALF_BOTH, &p->to_server, err));
    return deliver(p, p->server, &p->to_server, &p->to_client, err);
}

static void end_pair(pair *p) {
    encl_session_free(p->client);
    encl_session_free(p->server);
    encl_link_cache_free(p->cache);
    encl_policy_free(&p->policy);
    encl_buf_free(&p->to_client);
    encl_buf_free(&p->to_server);
    memset(p, 0, offsetof(pair, block));
}

static encl_code run_pair(void *fixture, encl_error *err) {
    pair *p = fixture;
    const minted *m = p->m;
    encl_code rc;

    alloc_phase = PHASE_CONNECT;
    ENCL_TRY_GOTO(begin_pair(p, err), done);
    alloc_phase = PHASE_VERIFY;
    ENCL_TRY_GOTO(attest_pair(p, err), done);
    must(encl_session_get_state(p->client) == ENCL_SESSION_OPEN, "an open session");
    rc = use_pair(p, err);
done:
    end_pair(p);
    p->m = m;
    return rc;
}

/* ---- a channel to a local enclave with an echoing workload */

/* So long that its buffer grows more than once while nobody reads. */
#define STREAM_BYTES 40000
static uint8_t pattern[STREAM_BYTES];

static void fill_pattern(void) {
    for (size_t i = 0; i < sizeof pattern; i++) {
        pattern[i] = (uint8_t)(1 + i % 251);
    }
}

typedef struct network {
    int listener;
    pthread_t echo;
    encl_enclave *enclave;
    encl_policy policy;
    encl_notifier *notifier;
} network;

static void echo_one(int fd) {
    char block[4096];
    ssize_t n;

    while ((n = recv(fd, block, sizeof block, 0)) > 0) {
        if (send(fd, block, (size_t)n, MSG_NOSIGNAL) != n || block[0] == 0) {
            break; /* a one-shot answer ends with its connection */
        }
    }
    (void)close(fd);
}

/* One at a time is enough, and no thread is made that could not be. */
static void *echo_all(void *arg) {
    const network *net = arg;
    int fd;

    while ((fd = accept(net->listener, NULL, NULL)) >= 0) {
        echo_one(fd);
    }
    return NULL;
}

static uint16_t start_workload(network *net) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof at;

    net->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    must(net->listener >= 0 && bind(net->listener, (struct sockaddr *)&at, sizeof at) == 0 &&
             listen(net->listener, 16) == 0 &&
             getsockname(net->listener, (struct sockaddr *)&at, &size) == 0 &&
             pthread_create(&net->echo, NULL, echo_all, net) == 0,
         "a workload");
    return ntohs(at.sin_port);
}

static void *start_network(const minted *m) {
    network *net = calloc(1, sizeof *net);
    encl_enclave_config config = {
        .mode = ENCL_ENCLAVE_PRODUCTION,
        .workload_host = "127.0.0.1",
        .document = m->document,
        .leaf_key = m->leaf_key,
        .idle_timeout_ms = 30000,
        .grace_ms = 1000,
        .one_shot_timeout_ms = 15000,
        .max_connections = 4,
    };
    encl_error err;

    must(net != NULL, "memory for a network");
    fill_pattern();
    fetch_mac();
    config.workload_port = start_workload(net);
    must(encl_enclave_start(&config, &net->enclave, &err) == ENCL_OK, "an enclave");
    must(encl_notifier_new(&net->notifier, &err) == ENCL_OK, "a notifier");
    net->policy = production_policy(m);
    return net;
}

static void stop_network(void *fixture) {
    network *net = fixture;

    encl_enclave_stop(net->enclave);
    encl_notifier_release(net->notifier);
    encl_policy_free(&net->policy);
    (void)shutdown(net->listener, SHUT_RDWR);
    pthread_join(net->echo, NULL);
    (void)close(net->listener);
    free(net);
}

enum { TOKEN_SLOT, TOKEN_ANSWER, TOKEN_STREAM, TOKEN_OPEN, TOKENS };

/* Whoever was not refused when asking to be told must have been told. */
static void check_announced(network *net, bool all) {
    uint64_t tokens[16];
    bool told[TOKENS] = {false};
    size_t n = encl_notifier_drain(net->notifier, tokens, 16);

    for (size_t i = 0; i < n; i++) {
        told[tokens[i]] = true;
    }
    for (size_t i = 0; all && i < TOKENS; i++) {
        must(told[i], "an announcement of all that was asked for");
    }
}

static encl_result take_slot(network *net, encl_channel *ch, encl_slot **slot, encl_error *err) {
    encl_code rc;

    ENCL_TRY(encl_channel_reserve(ch, net->notifier, TOKEN_SLOT, slot, err));
    rc = encl_slot_wait(*slot, encl_now_ns() + DEADLINE, err);
    if (rc != ENCL_OK) {
        encl_slot_release(*slot);
    }
    return rc;
}

static encl_result make_request(network *net, encl_channel *ch, encl_error *err) {
    encl_request *rq = NULL;
    encl_slot *slot;
    encl_slice answer;
    encl_code rc;

    ENCL_TRY(take_slot(net, ch, &slot, err));
    ENCL_TRY_GOTO(encl_request_start(slot, ENCL_SLICE("\0question", 9), &rq, err), done);
    ENCL_TRY_GOTO(encl_request_notify(rq, net->notifier, TOKEN_ANSWER, err), done);
    rc = encl_request_result(rq, encl_now_ns() + DEADLINE, &answer, err);
    must(rc != ENCL_OK || answer.len == 9, "a whole answer");
done:
    encl_request_release(rq);
    encl_slot_release(slot);
    return rc;
}

static encl_result read_back(encl_stream *st, encl_error *err) {
    static uint8_t back[STREAM_BYTES];
    size_t have = 0;

    while (have != sizeof back) {
        size_t got;

        ENCL_TRY(encl_stream_read(st, back + have, sizeof back - have, encl_now_ns() + DEADLINE,
                                  &got, err));
        must(memcmp(back + have, pattern + have, got) == 0, "bytes of a stream without a gap");
        must(got != 0, "an end of the stream only at its end");
        have += got;
    }
    return ENCL_OK;
}

static encl_result use_stream(network *net, encl_channel *ch, encl_error *err) {
    const size_t first = 1000;
    encl_stream *st = NULL;
    encl_slot *slot;
    size_t put;
    encl_code rc;

    ENCL_TRY(take_slot(net, ch, &slot, err));
    ENCL_TRY_GOTO(encl_stream_open(slot, ENCL_SLICE(pattern, first), &st, err), done);
    ENCL_TRY_GOTO(
        encl_stream_notify(st, ENCL_READABLE | ENCL_WRITABLE, net->notifier, TOKEN_STREAM, err),
        done);
    ENCL_TRY_GOTO(encl_stream_write(st, ENCL_SLICE(pattern + first, sizeof pattern - first),
                                    encl_now_ns() + DEADLINE, &put, err),
                  done);
    ENCL_TRY_GOTO(read_back(st, err), done);
    rc = encl_stream_write_eof(st, err);
done:
    alloc_phase = PHASE_CLOSE;
    encl_stream_release(st);
    encl_slot_release(slot);
    return rc;
}

static encl_result use_channel(network *net, encl_channel *ch, encl_error *err) {
    encl_doc *doc;

    ENCL_TRY(encl_channel_notify_open(ch, net->notifier, TOKEN_OPEN, err));
    ENCL_TRY(encl_channel_wait_open(ch, encl_now_ns() + DEADLINE, err));
    ENCL_TRY(encl_channel_attestation(ch, &doc, err));
    must(encl_doc_get(doc)->form == ENCL_DOC_NITRO, "a document of the production form");
    encl_doc_release(doc);
    alloc_phase = PHASE_REQUEST;
    ENCL_TRY(make_request(net, ch, err));
    alloc_phase = PHASE_STREAM;
    return use_stream(net, ch, err);
}

/* A name, and not an address: it goes through the resolver's thread. */
static encl_code run_channel(void *fixture, encl_error *err) {
    network *net = fixture;
    static const encl_header header = {"x-torture", "1"};
    encl_channel_config config = {
        .target = {.host = "localhost",
                   .port = encl_enclave_port(net->enclave),
                   .path = "/",
                   .authority = "localhost",
                   .headers = &header,
                   .header_count = 1,
                   .verify = true},
        .policy = &net->policy,
        .max_in_flight = 4,
    };
    encl_channel *ch;
    encl_code rc;

    alloc_phase = PHASE_CONNECT;
    ENCL_TRY(encl_channel_new(&config, &ch, err));
    rc = use_channel(net, ch, err);
    encl_channel_close(ch, NULL);
    must(encl_channel_wait_closed(ch, encl_now_ns() + DEADLINE), "a channel that is gone");
    encl_channel_release(ch);
    check_announced(net, rc == ENCL_OK);
    return rc;
}

static void no_more(void *fixture) {
    free(fixture);
}

const torture_case torture_cases[] = {
    {"verify", false, {false}, good_document, run_document, free_document},
    {"forged", false, {false}, forged_document, run_document, free_document},
    {"session", false, {false}, make_pair, run_pair, no_more},
    {"channel", true, {false}, start_network, run_channel, stop_network},
    {NULL, false, {false}, NULL, NULL, NULL},
};
