/* bulkhead sweep: many runs of one configuration, here or as a Slurm job array. */
#include "core/log.h"
#include "trainer/cli/command.h"
#include "trainer/sweep.h"

#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char help[] = "usage: bulkhead sweep SWEEP.yaml [OPTION...]\n"
                           "\n"
                           "Trains one configuration for each combination of the values that SWEEP.yaml\n"
                           "lists, in folders under sweeps/NAME, unites their databases and compares: means\n"
                           "and 95% confidence intervals over the seeds. The same command goes on with what\n"
                           "is not finished. deploy/configs/sweep.yaml is an example.\n"
                           "\n"
                           "  --dry-run        prints the runs, what became of them and their command lines\n"
                           "  --jobs N         runs at a time (default 1); they share the cores and GPUs\n"
                           "  --retry-failed   starts failed runs again too\n"
                           "  --only RUN       that run alone, by number or name; compares nothing\n"
                           "  --set KEY=VALUE  overrides a key in every run, section.name; may be repeated\n"
                           "  --slurm          writes a job array for the runs to do, FOLDER/array.sbatch,\n"
                           "                   --jobs of its tasks at a time; starts nothing\n"
                           "  --submit         with --slurm: hands it to sbatch\n"
                           "  --csv            the comparison for programs\n"
                           "  --json           the runs, with why they failed, and the comparison\n"
                           "\n"
                           "SIGINT and SIGTERM ask the runs for a checkpoint; the same command goes on.\n"
                           "A failed run's exit code is the sweep's, 70 where it is none of these.\n"
                           "\n"
                           "Exit codes: 0 done, 64 usage, 65 bad data, 66 no input, 70 internal or not\n"
                           "finite, 74 I/O, 75 stopped after a checkpoint, 78 config.\n";

enum { MOST_SETTINGS = 256, MOST_JOBS = 1024 };

typedef struct arguments {
    const char *path, *only, *settings[MOST_SETTINGS];
    int setting_count;
    int64_t jobs;
    bool dry_run, retry_failed, slurm, submit, help;
    table_format format;
} arguments;

static status take(arguments *a, int option, char **argv) {
    switch (option) {
    case 's':
        if (a->setting_count == MOST_SETTINGS)
            return status_fail(STATUS_USAGE, "more than %d --set options; put them into the file", MOST_SETTINGS);
        a->settings[a->setting_count++] = optarg;
        return STATUS_OK;
    case 'J':
        return command_read_number("jobs", optarg, 1, MOST_JOBS, &a->jobs);
    case 'o':
        a->only = optarg;
        return STATUS_OK;
    case 'd':
        a->dry_run = true;
        return STATUS_OK;
    case 'r':
        a->retry_failed = true;
        return STATUS_OK;
    case 'l':
        a->slurm = true;
        return STATUS_OK;
    case 'u':
        a->submit = true;
        return STATUS_OK;
    case 'c':
        a->format = TABLE_CSV;
        return STATUS_OK;
    case 'j':
        a->format = TABLE_JSON;
        return STATUS_OK;
    case 'h':
        a->help = true;
        return STATUS_OK;
    default:
        return command_bad_option(argv, option);
    }
}

static status read_arguments(arguments *a, int argc, char **argv) {
    static const struct option options[] = {{"set", required_argument, NULL, 's'},
                                            {"jobs", required_argument, NULL, 'J'},
                                            {"only", required_argument, NULL, 'o'},
                                            {"dry-run", no_argument, NULL, 'd'},
                                            {"retry-failed", no_argument, NULL, 'r'},
                                            {"slurm", no_argument, NULL, 'l'},
                                            {"submit", no_argument, NULL, 'u'},
                                            {"csv", no_argument, NULL, 'c'},
                                            {"json", no_argument, NULL, 'j'},
                                            {"help", no_argument, NULL, 'h'},
                                            {NULL, 0, NULL, 0}};
    *a = (arguments){.jobs = 1};
    optind = 1;
    opterr = 0;
    for (int option; !a->help && (option = getopt_long(argc, argv, ":h", options, NULL)) != -1;)
        TRY(take(a, option, argv));
    if (a->help) return STATUS_OK;
    if (optind + 1 != argc)
        return status_fail(STATUS_USAGE, "one SWEEP.yaml is wanted, %d given; `bulkhead sweep --help` shows how",
                           argc - optind);
    a->path = argv[optind];
    if (a->submit && !a->slurm) return status_fail(STATUS_USAGE, "--submit goes with --slurm");
    if (a->slurm && (a->only || a->dry_run))
        return status_fail(STATUS_USAGE, "--slurm is for all runs to do, without --only and --dry-run");
    return STATUS_OK;
}

/* ---------------------------------------------------------------- what is printed */

static status print_runs(const sweep *s, table_format format) {
    table runs = {0};
    status result = sweep_table(s, format != TABLE_ALIGNED, &runs);
    if (result == STATUS_OK) table_print(&runs, format, stdout);
    table_free(&runs);
    if (result != STATUS_OK || format != TABLE_ALIGNED) return result;
    for (int i = 0; i < s->count; i++) {
        printf("\n%s\n  ", s->runs[i].name);
        sweep_print_command(&s->runs[i], stdout);
        printf("\n");
    }
    return STATUS_OK;
}

static status print_results(const sweep *s, table_format format) {
    table comparison = {0};
    char *database = NULL;
    status result = sweep_merge(s, &database);
    if (result == STATUS_OK) result = sweep_compare(s, format == TABLE_ALIGNED, &comparison);
    if (result == STATUS_OK && format == TABLE_JSON) {
        printf("{\"runs\": ");
        result = print_runs(s, TABLE_JSON);
        printf(", \"comparison\": ");
    }
    if (result == STATUS_OK) table_print(&comparison, format, stdout);
    if (result == STATUS_OK && format == TABLE_JSON) printf("}\n");
    if (result == STATUS_OK && format == TABLE_ALIGNED)
        printf("\nmean ± half of the 95%% confidence interval over the runs of a row (Student's t); validation loss of "
               "the "
               "last\nvalidation, median tokens/s, the others means over the layers at the last snapshot.\n");
    if (result == STATUS_OK && database) log_info("all runs are in %s", database);
    table_free(&comparison);
    free(database);
    return result;
}

/* The first failed run's exit code, where it is one of ours. */
static status judge(const sweep *s, const sweep_options *o) {
    static const int known[] = {STATUS_USAGE, STATUS_DATA, STATUS_NO_INPUT, STATUS_IO, STATUS_RESTART, STATUS_CONFIG};
    int failed = 0, first = 0;
    for (int i = 0; i < s->count; i++) {
        const sweep_run *run = &s->runs[i];
        if ((o->only >= 0 && o->only != i) || strcmp(run->status, "failed") != 0) continue;
        if (failed++ == 0) first = run->exit_code;
        log_error("%s failed, exit code %d: %s", run->name, run->exit_code, run->last_line);
    }
    if (failed == 0) return STATUS_OK;
    status code = STATUS_INTERNAL;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (known[i] == first) code = (status)first;
    return status_fail(code,
                       "%d of %d runs failed; %s/NAME.out has all that they said, --retry-failed starts them again",
                       failed, o->only >= 0 ? 1 : s->count, s->folder);
}

/* ---------------------------------------------------------------- the ways */

static status run_here(sweep *s, const sweep_options *o, table_format format) {
    TRY(sweep_execute(s, o));
    if (o->only < 0) TRY(print_results(s, format));
    return judge(s, o);
}

static status submit(const char *script) {
    fflush(stdout);
    execlp("sbatch", "sbatch", script, (char *)NULL);
    return status_fail(STATUS_NO_INPUT, "cannot start sbatch: %s", strerror(errno));
}

static status make_script(const sweep *s, const sweep_options *o, const arguments *a, const char *program) {
    char *script = NULL;
    status result = sweep_write_script(s, o, a->settings, a->setting_count, program, &script);
    if (result == STATUS_OK && !script) {
        log_info("there is nothing to do");
        return STATUS_OK;
    }
    if (result == STATUS_OK) {
        printf("%s\n", script);
        if (a->submit)
            result = submit(script);
        else
            log_info("submit it from the folder of the sources: sbatch %s", script);
    }
    free(script);
    return result;
}

static status run(sweep *s, const arguments *a) {
    char program[PATH_MAX];
    ssize_t length = readlink("/proc/self/exe", program, sizeof program - 1);
    if (length < 0) return status_fail(STATUS_INTERNAL, "where this program lies is not known: %s", strerror(errno));
    program[length] = '\0';
    sweep_options o = {.jobs = (int)a->jobs, .retry_failed = a->retry_failed, .only = -1};
    TRY(sweep_read(s, a->path));
    if (a->only) TRY(sweep_find(s, a->only, &o.only));
    TRY(sweep_plan(s, a->settings, a->setting_count, program));
    if (a->dry_run) return print_runs(s, a->format);
    return a->slurm ? make_script(s, &o, a, program) : run_here(s, &o, a->format);
}

status cmd_sweep(int argc, char **argv) {
    arguments a;
    sweep s = {0};
    TRY(read_arguments(&a, argc, argv));
    if (a.help) {
        fputs(help, stdout);
        return STATUS_OK;
    }
    log_setup("", LOG_INFO);
    status result = run(&s, &a);
    sweep_free(&s);
    return result;
}
