/* Preloaded, this refuses every connection, datagram and lookup of a name that is not the
 * extension's own, and notes it as a line of the file that CONNECT_WATCH_LOG names. What native
 * libraries do is seen too, which Python's audit hooks do not see; system calls that go by the C
 * library are not.
 *
 * The extension's own are known by the library that calls: libwebsockets, or the extension itself
 * where it is linked into that. An address alone would not do, since a library that was told the
 * enclave's URL connects to the very same address. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define LINE_MAX_BYTES 512
#define SHOWN_MAX      (INET6_ADDRSTRLEN + 8)

typedef int (*connect_call)(int, const struct sockaddr *, socklen_t);
typedef ssize_t (*sendto_call)(int, const void *, size_t, int, const struct sockaddr *, socklen_t);
typedef ssize_t (*sendmsg_call)(int, const struct msghdr *, int);
typedef int (*sendmmsg_call)(int, struct mmsghdr *, unsigned, int);
typedef int (*getaddrinfo_call)(const char *, const char *, const struct addrinfo *,
                                struct addrinfo **);

static void note(const char *what, const char *where, const char *library) {
    const char *path = getenv("CONNECT_WATCH_LOG");
    char line[LINE_MAX_BYTES];
    int length = snprintf(line, sizeof line, "%s %s by %s\n", what, where, library);
    if (path == NULL || length < 0) {
        return;
    }
    if ((size_t)length >= sizeof line) {
        length = (int)sizeof line - 1;
        line[length - 1] = '\n';
    }
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (fd < 0 || write(fd, line, (size_t)length) != length) {
        abort(); /* What cannot be noted must not pass for something that did not happen. */
    }
    close(fd);
}

static const char *library_at(void *address) {
    Dl_info info;
    return dladdr(address, &info) != 0 && info.dli_fname != NULL ? info.dli_fname : "?";
}

static bool is_ours(const char *library) {
    return strstr(library, "/libwebsockets") != NULL || strstr(library, "/enclavia/_core.") != NULL;
}

static bool leaves(const struct sockaddr *address) {
    return address != NULL && (address->sa_family == AF_INET || address->sa_family == AF_INET6);
}

static void show(const struct sockaddr *address, char shown[SHOWN_MAX]) {
    char host[INET6_ADDRSTRLEN] = "?";
    unsigned port;
    if (address->sa_family == AF_INET) {
        const struct sockaddr_in *in = (const struct sockaddr_in *)(const void *)address;
        inet_ntop(AF_INET, &in->sin_addr, host, sizeof host);
        port = ntohs(in->sin_port);
    } else {
        const struct sockaddr_in6 *in = (const struct sockaddr_in6 *)(const void *)address;
        inet_ntop(AF_INET6, &in->sin6_addr, host, sizeof host);
        port = ntohs(in->sin6_port);
    }
    snprintf(shown, SHOWN_MAX, "%s:%u", host, port);
}

/* Whether this may go on; otherwise it is noted, and errno set. */
static bool allowed(const char *what, const struct sockaddr *address, void *caller) {
    char shown[SHOWN_MAX];
    if (!leaves(address)) {
        return true;
    }
    const char *library = library_at(caller);
    show(address, shown);
    if (is_ours(library)) {
        note("tunnel", shown, library);
        return true;
    }
    note(what, shown, library);
    errno = ENETUNREACH;
    return false;
}

int connect(int fd, const struct sockaddr *address, socklen_t length) {
    if (!allowed("connect", address, __builtin_return_address(0))) {
        return -1;
    }
    return ((connect_call)dlsym(RTLD_NEXT, "connect"))(fd, address, length);
}

ssize_t sendto(int fd, const void *data, size_t size, int flags, const struct sockaddr *address,
               socklen_t length) {
    if (!allowed("sendto", address, __builtin_return_address(0))) {
        return -1;
    }
    return ((sendto_call)dlsym(RTLD_NEXT, "sendto"))(fd, data, size, flags, address, length);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags) {
    if (!allowed("sendmsg", message->msg_name, __builtin_return_address(0))) {
        return -1;
    }
    return ((sendmsg_call)dlsym(RTLD_NEXT, "sendmsg"))(fd, message, flags);
}

int sendmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags) {
    for (unsigned i = 0; i < count; i++) {
        if (!allowed("sendmmsg", messages[i].msg_hdr.msg_name, __builtin_return_address(0))) {
            return -1;
        }
    }
    return ((sendmmsg_call)dlsym(RTLD_NEXT, "sendmmsg"))(fd, messages, count, flags);
}

int getaddrinfo(const char *host, const char *service, const struct addrinfo *hints,
                struct addrinfo **found) {
    struct in6_addr parsed;
    bool is_address = host == NULL || inet_pton(AF_INET, host, &parsed) == 1 ||
                      inet_pton(AF_INET6, host, &parsed) == 1;
    if (!is_address) {
        note("getaddrinfo", host, library_at(__builtin_return_address(0)));
        return EAI_FAIL;
    }
    return ((getaddrinfo_call)dlsym(RTLD_NEXT, "getaddrinfo"))(host, service, hints, found);
}
