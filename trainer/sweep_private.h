/* Private to the sweep*.c files. */
#pragma once

#include "trainer/sweep.h"

/* Reads what the run's database says of it; held: another process goes on with it. */
status sweep_look_at(sweep_run *run, bool held);

/* What each launch begins with in that file. */
#define SWEEP_LAUNCH_MARK "== "

/* The line in the file that says why the last launch failed, into run->last_line. */
void sweep_read_last_line(sweep_run *run);
