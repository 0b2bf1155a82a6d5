/* The commands of the program: one file each in this folder, listed once in main.c. */
#pragma once

#include "core/status.h"

#include <stdint.h>

typedef struct command {
    const char *name, *summary;
    /* argv[0] is the command's name. The status is the exit code; main prints status_message(). */
    status (*run)(int argc, char **argv);
} command;

/* Prints this thread's failure message as the command's one line on stderr, and clears it; nothing when there is none.
 */
void command_complain(const char *name);

/* What getopt_long did not take (it returned `option`, its optstring begins with ':') as a USAGE failure. */
status command_bad_option(char **argv, int option);

/* The whole number of --option. USAGE where it is none from least to most. */
status command_read_number(const char *option, const char *text, int64_t least, int64_t most, int64_t *to);

/* The number of --option, likewise; infinity and NaN are none. least and most are finite. */
status command_read_real(const char *option, const char *text, double least, double most, double *to);

status cmd_prepare(int argc, char **argv);
status cmd_plan(int argc, char **argv);
status cmd_train(int argc, char **argv);
status cmd_query(int argc, char **argv);
status cmd_merge(int argc, char **argv);
status cmd_findings(int argc, char **argv);
status cmd_report(int argc, char **argv);
status cmd_analyze(int argc, char **argv);
status cmd_eval(int argc, char **argv);
status cmd_generate(int argc, char **argv);
status cmd_export(int argc, char **argv);
status cmd_import(int argc, char **argv);
status cmd_sweep(int argc, char **argv);
status cmd_convert(int argc, char **argv);
status cmd_watch(int argc, char **argv);
status cmd_version(int argc, char **argv);
