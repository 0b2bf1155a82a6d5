/* Private to comm/: starting its threads. */
#pragma once

#include "core/status.h"

#include <pthread.h>

/* A thread with every signal blocked: signals are the main thread's business. */
status comm_start_thread(pthread_t *thread, void *(*run)(void *), void *user);
