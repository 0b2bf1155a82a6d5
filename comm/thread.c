#include "comm/thread.h"

#include <signal.h>
#include <string.h>

status comm_start_thread(pthread_t *thread, void *(*run)(void *), void *user) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(thread, NULL, run, user);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return error ? status_fail(STATUS_INTERNAL, "cannot start a thread: %s", strerror(error)) : STATUS_OK;
}
