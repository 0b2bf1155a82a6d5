#include "trainer/signals.h"

#include "core/clock.h"

#include <signal.h>
#include <unistd.h>

enum { SAME_REQUEST_S = 5 };

static volatile sig_atomic_t asked;
static volatile double asked_s; /* written before `asked`, read by the same handler only */

/* clock_gettime, behind clock_now_s, may be called here. */
static void take(int number) {
    double now = clock_now_s();
    if (!asked) {
        asked_s = now;
        asked = number;
    } else if (now - asked_s > SAME_REQUEST_S) {
        _exit(128 + number);
    }
}

/* Not SIG_IGN: programs that the rank starts would inherit that. */
static void leave(int number) {}

static void handle(void (*handler)(int)) {
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    /* One at a time: a handler reads what the other has written. */
    sigaddset(&action.sa_mask, SIGTERM);
    sigaddset(&action.sa_mask, SIGUSR1);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGUSR1, &action, NULL);
}

void signals_catch(void) {
    handle(take);
}

void signals_ignore(void) {
    handle(leave);
}

int signals_asked(void) {
    return asked;
}
