/* A sweep as a Slurm job array: one task a run, which starts that run alone. */
#include "core/file.h"
#include "core/shell.h"
#include "trainer/sweep.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { CPUS_A_TASK = 4 }; /* where run.threads does not say */

/* What the largest of the runs to do needs; *count of them. */
static sweep_run largest(const sweep *s, const sweep_options *o, int *count) {
    sweep_run most = {0};
    *count = 0;
    for (int i = 0; i < s->count; i++) {
        const sweep_run *run = &s->runs[i];
        if (!sweep_wants(s, i, o)) continue;
        ++*count;
        if (run->ranks > most.ranks) most.ranks = run->ranks;
        if (run->threads > most.threads) most.threads = run->threads;
        if (run->needs_gpus && run->compute_ranks > most.compute_ranks) most.compute_ranks = run->compute_ranks;
    }
    if (most.threads == 0) most.threads = CPUS_A_TASK;
    return most;
}

/* The numbers of the runs to do, as 1-3,7. */
static void print_numbers(FILE *out, const sweep *s, const sweep_options *o) {
    bool first = true;
    for (int i = 0; i < s->count; i++) {
        if (!sweep_wants(s, i, o)) continue;
        int last = i;
        while (last + 1 < s->count && sweep_wants(s, last + 1, o)) last++;
        fprintf(out, last > i ? "%s%d-%d" : "%s%d", first ? "" : ",", i + 1, last + 1);
        first = false;
        i = last;
    }
}

static void print_task(FILE *out, const sweep *s, const sweep_options *o, const char *const *settings,
                       int setting_count, const char *program) {
    fputs("exec \"${BULKHEAD_SLURM:-deploy/slurm}/launch\" sweep \"${BULKHEAD:-$program}\" sweep ", out);
    shell_print_word(out, s->path);
    fputs(" --only \"$SLURM_ARRAY_TASK_ID\"", out);
    if (o->retry_failed) fputs(" --retry-failed", out);
    for (int i = 0; i < setting_count; i++) {
        fputs(" --set ", out);
        shell_print_word(out, settings[i]);
    }
    fputc('\n', out);
}

static void print_script(FILE *out, const sweep *s, const sweep_options *o, const sweep_run *most,
                         const char *const *settings, int setting_count, const char *program) {
    fprintf(
        out,
        "#!/bin/bash\n"
        "# The runs of the sweep %s that were to do when `bulkhead sweep --slurm` wrote this, one task of a job array "
        "each.\n"
        "# From the folder of the sources; what is given to sbatch wins over these lines, which\n"
        "# deploy/slurm/one-node.sbatch explains. BULKHEAD names another program.\n"
        "#SBATCH --job-name=%s\n"
        "#SBATCH --array=",
        s->name, s->name);
    print_numbers(out, s, o);
    fprintf(out, "%%%d\n#SBATCH --nodes=1\n#SBATCH --ntasks=%d\n#SBATCH --cpus-per-task=%d\n", o->jobs, most->ranks,
            most->threads);
    if (most->compute_ranks > 0) fprintf(out, "#SBATCH --gpus-per-node=%d\n", most->compute_ranks);
    fprintf(out,
            "#SBATCH --time=08:00:00\n"
            "#SBATCH --signal=B:USR1@300\n"
            "#SBATCH --requeue\n"
            "#SBATCH --open-mode=append\n"
            "#SBATCH --output=%s/slurm-%%a.out\n"
            "program=",
            s->folder);
    shell_print_word(out, program);
    fputc('\n', out);
    print_task(out, s, o, settings, setting_count, program);
}

status sweep_write_script(const sweep *s, const sweep_options *o, const char *const *settings, int setting_count,
                          const char *program, char **script) {
    int count;
    sweep_run most = largest(s, o, &count);
    char *text = NULL;
    size_t bytes;
    *script = NULL;
    if (count == 0) return STATUS_OK;
    if (strpbrk(s->folder, " \t\n\"'"))
        return status_fail(STATUS_CONFIG, "folder: a batch script's #SBATCH lines cannot name \"%s\"", s->folder);
    TRY(file_make_dirs(s->folder));
    FILE *out = open_memstream(&text, &bytes);
    if (!out) return status_fail(STATUS_INTERNAL, "out of memory for the batch script");
    print_script(out, s, o, &most, settings, setting_count, program);
    status result = fclose(out) == 0 ? STATUS_OK : status_fail(STATUS_INTERNAL, "out of memory for the batch script");
    *script = file_join(s->folder, "array.sbatch");
    if (result == STATUS_OK && !*script) result = status_fail(STATUS_INTERNAL, "out of memory for the batch script");
    if (result == STATUS_OK) result = file_write_atomic(*script, text, bytes);
    free(text);
    return result;
}
