/* SIGTERM and SIGUSR1: the scheduler wants the machine back. */
#pragma once

/* On a compute rank: the first of them asks for a checkpoint and the end of the run; within 5 seconds another is the
 * same request (launchers and batch scripts repeat them), a later one ends the process at once with 128 + its number.
 */
void signals_catch(void);

/* On a diagnostics rank: both are left to the compute ranks, which end the run; what they sent is still recorded. */
void signals_ignore(void);

/* The signal that asked, 0: none has. */
int signals_asked(void);
