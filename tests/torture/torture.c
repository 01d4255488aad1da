/* Every allocation failing in turn, as curl's torture tests do. One child process for each: it sets
 * up, arms the failure, runs one case, checks that the result is right or a typed error and no
 * timeout, runs the case again with nothing failing (what failed once must not be broken for good),
 * and looks for leaks. A child that crashes or hangs is a failure.
 *
 *   torture [--step N] [--only CASE] [--from LIBRARY]
 *
 * Step N takes only every N-th allocation of OpenSSL, of which there are thousands. */
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "alloc.h"
#include "cases.h"

#define HANG_S       60
#define EXIT_WRONG   10 /* a wrong result */
#define EXIT_BROKEN  11 /* the second run failed */
#define EXIT_LEAK    12
#define NAMES_MAX    32
#define PHASES_SHOWN 8

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/lsan_interface.h>
static bool leaks(void) {
    return __lsan_do_recoverable_leak_check() != 0;
}
#else
static bool leaks(void) {
    return false;
}
#endif

/* Written by the child, read by its parent. */
typedef struct report {
    long failed, counted;
    alloc_place place;
    encl_code code;
    char message[256];
} report;

static report *shared_report;
static minted chain; /* made once: keys take long */
static long crashes, hangs, wrong;

static void note(const encl_error *err, encl_code rc) {
    shared_report->code = rc;
    (void)snprintf(shared_report->message, sizeof shared_report->message, "%.200s",
                   rc == ENCL_OK ? "" : err->message);
}

static bool is_typed(encl_code rc) {
    return rc > ENCL_OK && rc < ENCL_E_COUNT_ && rc != ENCL_E_CONNECT_TIMEOUT &&
           rc != ENCL_E_READ_TIMEOUT && rc != ENCL_E_WRITE_TIMEOUT && rc != ENCL_E_POOL_TIMEOUT;
}

static void child(const torture_case *c, alloc_from from, long n, bool forever) {
    void *fixture;
    encl_error err;
    encl_code rc;

    (void)alarm(HANG_S);
    fixture = c->set_up(&chain);
    alloc_arm(from, n, forever);
    rc = c->run(fixture, &err);
    shared_report->counted = alloc_counted();
    shared_report->failed = alloc_disarm();
    note(&err, rc);
    if (rc != ENCL_OK && (!is_typed(rc) || shared_report->failed == 0)) {
        _Exit(EXIT_WRONG);
    }
    rc = c->run(fixture, &err);
    if (rc != ENCL_OK) {
        note(&err, rc);
        _Exit(EXIT_BROKEN);
    }
    c->tear_down(fixture);
    _Exit(leaks() ? EXIT_LEAK : 0);
}

static const char *verdict(int status) {
    if (WIFSIGNALED(status)) {
        hangs += WTERMSIG(status) == SIGALRM;
        crashes += WTERMSIG(status) != SIGALRM;
        return WTERMSIG(status) == SIGALRM ? "hung" : "crashed";
    }
    switch (WEXITSTATUS(status)) {
    case 0:
        return NULL;
    case EXIT_WRONG:
        wrong++;
        return "gave a wrong result";
    case EXIT_BROKEN:
        wrong++;
        return "was broken afterwards";
    case EXIT_LEAK:
        wrong++;
        return "leaked";
    default:
        crashes++;
        return "crashed";
    }
}

/* False where the case ran to its end without reaching the n-th allocation. */
static bool one(const torture_case *c, alloc_from from, long n, bool forever) {
    const char *what;
    pid_t pid;
    int status = 0;

    memset(shared_report, 0, sizeof *shared_report);
    (void)fflush(NULL);
    pid = fork();
    must(pid >= 0, "fork");
    if (pid == 0) {
        child(c, from, n, forever);
    }
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    what = verdict(status);
    if (what != NULL) {
        (void)printf("%s, %s, allocation %ld%s (%s, %s): %s; %s: %s\n", c->name, alloc_names[from],
                     n, forever ? " and all after it" : "",
                     torture_phases[shared_report->place.phase], shared_report->place.reason, what,
                     encl_code_name(shared_report->code), shared_report->message);
    }
    return shared_report->failed != 0 || what != NULL;
}

static void all(const torture_case *c, alloc_from from, bool forever, long step) {
    long points[TORTURE_PHASES] = {0}, total = 0;

    for (long n = 1;; n += step) {
        if (!one(c, from, n, forever)) {
            break;
        }
        points[shared_report->place.phase]++;
        total++;
    }
    (void)printf("%-10s %-8s %-8s %6ld failed:", c->name, alloc_names[from],
                 forever ? "and all" : "one", total);
    for (int phase = 0; phase < TORTURE_PHASES; phase++) {
        if (points[phase] != 0) {
            (void)printf(" %s %ld", torture_phases[phase], points[phase]);
        }
    }
    (void)printf("%s\n", step == 1 ? "" : " (a sample)");
}

int main(int argc, char **argv) {
    const char *only = NULL, *from_only = NULL;
    long step = 1;

    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--step") == 0) {
            step = strtol(argv[i + 1], NULL, 10);
        } else if (strcmp(argv[i], "--only") == 0) {
            only = argv[i + 1];
        } else if (strcmp(argv[i], "--from") == 0) {
            from_only = argv[i + 1];
        }
    }
    shared_report = mmap(NULL, sizeof *shared_report, PROT_READ | PROT_WRITE,
                         MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    must(shared_report != MAP_FAILED && step >= 1, "memory for the report");
    alloc_init(&shared_report->place);
    mint(&chain);
    for (size_t i = 0; torture_cases[i].name != NULL; i++) {
        const torture_case *c = &torture_cases[i];

        for (alloc_from from = 0; from < FROM_COUNT_; from++) {
            if ((only != NULL && strcmp(only, c->name) != 0) ||
                (from_only != NULL && strcmp(from_only, alloc_names[from]) != 0) ||
                (c->skip[from] && from_only == NULL)) {
                continue;
            }
            all(c, from, false, from == FROM_OPENSSL ? step : 1);
            if (from == FROM_OURS) {
                all(c, from, true, 1);
            }
        }
    }
    (void)printf("crashes %ld, hangs %ld, wrong results or leaks %ld\n", crashes, hangs, wrong);
    return crashes + hangs + wrong == 0 ? 0 : 1;
}
