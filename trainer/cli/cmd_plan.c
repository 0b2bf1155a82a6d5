/* bulkhead plan: what a run will need; starts nothing. */
#include "core/shell.h"
#include "trainer/cli/command.h"
#include "trainer/cli/config_arguments.h"
#include "trainer/plan.h"
#include "trainer/vocab.h"

#include <stdio.h>
#include <stdlib.h>

static const char help[] = "usage: bulkhead plan CONFIG [--set KEY=VALUE ...]\n"
                           "       bulkhead plan --keys [--json]\n"
                           "\n"
                           "Prints parameters, memory, communication a step, disk and the launch lines of a\n"
                           "run. Starts nothing.\n"
                           "\n"
                           "  --set KEY=VALUE    overrides a key of CONFIG, section.name; may be repeated\n"
                           "  --keys             all keys of configurations instead: type, default, meaning\n"
                           "  --json             the keys for programs, with limits and choices\n"
                           "\n"
                           "Exit codes: 0 done, 64 usage, 65 bad data, 66 no input, 78 config.\n";

static void print_command(FILE *out, const config_arguments *a) {
    fputs("bulkhead train ", out);
    shell_print_word(out, a->path);
    for (int i = 0; i < a->setting_count; i++) {
        fputs(" --set ", out);
        shell_print_word(out, a->settings[i]);
    }
}

static status print_launch_lines(int world, const config_arguments *a) {
    char *srun = NULL;
    size_t bytes = 0;
    FILE *line = open_memstream(&srun, &bytes);
    if (!line) return status_fail(STATUS_INTERNAL, "out of memory for the launch lines");
    fputs("srun --mpi=pmix ", line);
    print_command(line, a);
    fclose(line);
    printf("\nlaunch with\n  mpirun -n %d --bind-to none ", world);
    print_command(stdout, a);
    printf("\nor in a Slurm job\n  sbatch --ntasks=%d --wrap ", world);
    shell_print_word(stdout, srun);
    fputs("\n(deploy/slurm has batch scripts that also save before the time limit, requeue and go on)\n", stdout);
    free(srun);
    return STATUS_OK;
}

static status print_keys(bool as_json) {
    json_t *keys = config_describe_keys(), *k;
    size_t i;
    if (!keys) return status_fail(STATUS_INTERNAL, "out of memory for the keys");
    if (as_json) {
        json_dumpf(keys, stdout, JSON_INDENT(1));
        putchar('\n');
    } else {
        json_array_foreach(keys, i, k) {
            const char *name, *type, *value, *meaning;
            json_unpack(k, "{s:s, s:s, s:s, s:s}", "key", &name, "type", &type, "default", &value, "meaning", &meaning);
            printf("%-27s %-12s  %-26s  %s\n", name, type, value, meaning);
        }
    }
    json_decref(keys);
    return STATUS_OK;
}

status cmd_plan(int argc, char **argv) {
    config_arguments arguments;
    TRY(config_arguments_parse(&arguments, argc, argv, false));
    if (arguments.help) {
        fputs(help, stdout);
        return STATUS_OK;
    }
    if (arguments.keys) return print_keys(arguments.json);
    config c;
    plan p;
    dataset_info info;
    TRY(config_load(&c, arguments.path, arguments.settings, arguments.setting_count));
    status s = vocab_resolve(&c, &info);
    if (s == STATUS_OK) s = plan_make(&p, &c);
    if (s == STATUS_OK) {
        plan_print(&p, &c);
        s = print_launch_lines(p.world, &arguments);
    }
    config_free(&c);
    return s;
}
