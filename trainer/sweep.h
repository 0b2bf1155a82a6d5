/* A sweep: many runs of one configuration, in which some keys vary (docs/operations.md). The way through this header:
 * sweep_read, sweep_plan, then sweep_execute, sweep_merge and sweep_compare, or sweep_write_script.
 *
 * What became of a run is in its own folder and database alone. While a run goes on, whoever started it holds a lock on
 * the file that its launch writes to, NAME.out: so no run has two writers, whatever is killed or started twice. */
#pragma once

#include "diag/table.h"

#include <stdbool.h>

typedef struct sweep_setting {
    char *key, *value; /* section.key */
} sweep_setting;

typedef struct sweep_run {
    char *name; /* made of the settings */
    sweep_setting *settings;
    int setting_count;
    /* of sweep_plan: */
    char *dir, *output; /* FOLDER/NAME, FOLDER/NAME.out */
    char **command;     /* what starts it, or goes on with it; NULL behind the last word */
    int ranks, compute_ranks;
    int threads;                   /* run.threads; 0: derived from the cores that a launch may use */
    bool may_use_gpus, needs_gpus; /* run.device is not cpu; is cuda */
    /* of sweep_plan and sweep_execute: */
    char status[16];     /* new, running (somebody else has it), interrupted, finished, stopped, failed */
    int exit_code;       /* of the last launch, 128 + n where signal n ended it; -1: not known */
    char last_line[512]; /* why it failed, as its launch said it */
} sweep_run;

typedef struct sweep {
    char *path, *name, *folder;
    char *config;        /* the base; with inline_config the file that sweep_plan writes it to */
    char *inline_config; /* YAML text, or NULL */
    char *launcher;      /* with {ranks}; NULL: mpirun on this host */
    sweep_run *runs;     /* [count] */
    int count;
    char **keys; /* [key_count] that vary, in the order in which they come up */
    int key_count;
} sweep;

/* Reads the file and makes its runs. CONFIG with file and line where it is wrong; NO_INPUT. Free in any case. */
status sweep_read(sweep *out, const char *path);

/* Loads and plans every run's configuration, with `settings` (section.key=value) over all of them, before any is
 * started; fills in what starts it, and what became of it so far. program: bulkhead's path. CONFIG names the first run
 * that cannot be, or that is done, but was made with another configuration than the sweep now has; IO, DATA where a
 * database cannot be read. */
status sweep_plan(sweep *s, const char *const *settings, int setting_count, const char *program);

/* The run that --only names, by number from 1 or by name. USAGE: there is none. */
status sweep_find(const sweep *s, const char *word, int *index);

typedef struct sweep_options {
    int jobs;          /* runs at a time */
    bool retry_failed; /* start failed runs again too */
    int only;          /* index of the one run to start, -1: all */
} sweep_options;

/* Finished, or stopped by an alert. */
bool sweep_is_done(const sweep_run *run);

/* Whether there is something to do for that run. */
bool sweep_wants(const sweep *s, int index, const sweep_options *o);

/* Starts what there is to do, `jobs` at a time, and waits. A run that stops with a checkpoint (75), or loses a rank
 * (134, 137, 139; twice at most), is started again. SIGINT, SIGTERM, SIGHUP and SIGUSR1 ask the runs for a checkpoint,
 * start nothing more and give RESTART; again, 5 s later or more, they end the runs at once. Progress goes to the log.
 * CONFIG: fewer GPUs here than a run needs. Failed runs are no failure of this call. */
status sweep_execute(sweep *s, const sweep_options *o);

/* Unites the databases of all runs in FOLDER/sweep.db; the path in *database, NULL while there are none (free it). */
status sweep_merge(const sweep *s, char **database);

/* The runs as a table: number, name, status, exit_code, ranks, the keys; whole: command and last_line too. */
status sweep_table(const sweep *s, bool whole, table *out);

/* The run's command line for a shell. */
void sweep_print_command(const sweep_run *run, FILE *out);

/* Finished and stopped runs as a table of compare_groups, grouped by all keys but run.seed. */
status sweep_compare(const sweep *s, bool joined, table *out);

/* Writes FOLDER/array.sbatch, a job array with a task for each run that is to do; *script: its path (free it), NULL:
 * nothing is to do. */
status sweep_write_script(const sweep *s, const sweep_options *o, const char *const *settings, int setting_count,
                          const char *program, char **script);

void sweep_free(sweep *s);
