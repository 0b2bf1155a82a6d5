/* What a supervisor whose worker is not started again (diag/worker.h) leaves in the run's database, when all else is
 * over: how the run ended, and why rows are missing. It writes by itself, with nothing of diagnostics but SQLite. */
#pragma once

#include "diag/diag.h"
#include "diag/worker_private.h"

/* The end of the session that the worker began, as the database's own record would be, but for the exit code of lost
 * rows; and an event. IO when the database cannot be written. */
status last_word(const config *c, const worker_session *session, const diag_finish *finish, const char *why);
