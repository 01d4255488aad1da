#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "local.h"

/* ---- a workload that sends back what it gets ---- */

static int listen_fd;
static uint16_t workload_port;

static void *echo_one(void *arg) {
    int fd = (int)(intptr_t)arg;
    char block[65536];
    bool closing = false;
    ssize_t n;

    while ((n = recv(fd, block, sizeof block, 0)) > 0) {
        closing = n == 4 && memcmp(block, CLOSING, 4) == 0;
        for (ssize_t put = 0; put < n;) {
            ssize_t m = send(fd, block + put, (size_t)(n - put), MSG_NOSIGNAL);

            if (m <= 0) {
                n = 0;
                break;
            }
            put += m;
        }
        if (closing) {
            break;
        }
    }
    close(fd);
    return NULL;
}

static void *echo_all(void *arg) {
    (void)arg;
    for (;;) {
        int fd = accept(listen_fd, NULL, NULL);
        pthread_t thread;

        if (fd < 0) {
            return NULL;
        }
        if (pthread_create(&thread, NULL, echo_one, (void *)(intptr_t)fd) == 0) {
            pthread_detach(thread);
        } else {
            close(fd);
        }
    }
}

static pthread_t echo_thread;
encl_enclave *enclave;
static encl_policy policy;

int set_up(void **state) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    static const uint8_t certificate[64];
    socklen_t size = sizeof at;
    encl_enclave_config config;
    encl_error err;

    (void)state;
    listen_fd = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listen_fd, (struct sockaddr *)&at, sizeof at) != 0 || listen(listen_fd, 128) != 0 ||
        getsockname(listen_fd, (struct sockaddr *)&at, &size) != 0 ||
        pthread_create(&echo_thread, NULL, echo_all, NULL) != 0) {
        return -1;
    }
    workload_port = ntohs(at.sin_port);
    memset(&config, 0, sizeof config);
    config.mode = ENCL_ENCLAVE_STUB;
    config.workload_host = "127.0.0.1";
    config.workload_port = workload_port;
    config.idle_timeout_ms = 30000;
    config.grace_ms = 1000;
    config.one_shot_timeout_ms = 5000;
    config.max_connections = 64;
    config.document.module_id = ENCL_SLICE("i-test", 6);
    config.document.certificate = ENCL_SLICE(certificate, sizeof certificate);
    config.document.cabundle[0] = config.document.certificate;
    config.document.cabundle_len = 1;
    config.document.pcrs[0].len = config.document.pcrs[1].len = config.document.pcrs[2].len = 48;
    if (encl_enclave_start(&config, &enclave, &err) != ENCL_OK) {
        print_message("%s\n", err.message);
        return -1;
    }
    return encl_policy_init(&policy, NULL, 0, ENCL_SLICE_NONE, true, true, &err) == ENCL_OK ? 0
                                                                                            : -1;
}

int tear_down(void **state) {
    (void)state;
    encl_policy_free(&policy);
    encl_enclave_stop(enclave);
    shutdown(listen_fd, SHUT_RDWR);
    close(listen_fd);
    pthread_join(echo_thread, NULL);
    return 0;
}

encl_channel *start_channel(size_t max_in_flight) {
    encl_channel_config config;
    encl_channel *ch;
    encl_error err;

    memset(&config, 0, sizeof config);
    config.target = (encl_ws_target){.host = "127.0.0.1",
                                     .port = encl_enclave_port(enclave),
                                     .path = "/",
                                     .authority = "localhost",
                                     .verify = true};
    config.policy = &policy;
    config.max_in_flight = max_in_flight;
    assert_int_equal(encl_channel_new(&config, &ch, &err), ENCL_OK);
    return ch;
}

encl_channel *open_channel(size_t max_in_flight) {
    encl_channel *ch = start_channel(max_in_flight);
    encl_error err;

    if (encl_channel_wait_open(ch, encl_now_ns() + 10 * SECOND, &err) != ENCL_OK) {
        fail_msg("%s", err.message);
    }
    return ch;
}

void done_with(encl_channel *ch) {
    encl_channel_close(ch, NULL);
    assert_true(encl_channel_wait_closed(ch, encl_now_ns() + 5 * SECOND));
    encl_channel_release(ch);
}
