/* The diagnostics work in a process of its own, so that a crash in it (a solver, SQLite, no memory) is an event and not
 * the end of the job: the diagnostics rank, which speaks MPI, supervises a worker that does what diag_open(),
 * diag_serve() and diag_close() do. It keeps every message until the worker has it on record, starts a worker that died
 * again, in the same session, and sends it what is not recorded. A message at which two workers died is left out. */
#pragma once

#include "diag/diag.h"

typedef struct diag_worker diag_worker;

/* Starts the worker: as diag_open(), or on a further rank (rank > 0) as diag_open_further(). Same errors. Call it, and
 * what follows, from one thread, which outlives the worker. c stays the caller's until diag_worker_close(). */
status diag_worker_open(diag_worker **out, const config *c, const char *run_dir, const char *device, int tp, int dp,
                        const char *hosts, int rank, int64_t resume_step);

/* As diag_serve(). first: on a further rank a channel_relay_open(). */
status diag_worker_serve(diag_worker *w, channel_receiver *channel, channel_sender *first);

/* As diag_close(). IO also when the worker died so often that it was not started again. */
status diag_worker_close(diag_worker *w);

/* A program that opens workers is started again with this one argument, and returns what diag_worker_main() does. */
#define DIAG_WORKER_COMMAND "diagnostics-worker"
status diag_worker_main(void);
