/* The program: finds the command, runs it, prints the one message of a failure and turns its status into the exit code.
 */
#include "core/log.h"
#include "core/ops/ops.h"
#include "diag/worker.h"
#include "trainer/cli/command.h"

#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const command commands[] = {
    {"prepare", "turn text into a tokenizer and token shards", cmd_prepare},
    {"plan", "parameters, memory, communication, launch lines of a configuration", cmd_plan},
    {"train", "pretrain a model (under mpirun or srun)", cmd_train},
    {"watch", "a run while it goes on: progress, loss, spectra, events", cmd_watch},
    {"sweep", "runs over a grid of keys, side by side or as a job array, compared", cmd_sweep},
    {"merge", "unite the databases of runs in one file", cmd_merge},
    {"query", "ask a run's spectral history database", cmd_query},
    {"findings", "judge runs: onset, propagation, collapse and prevention as tests", cmd_findings},
    {"report", "one page of runs: curves, heat maps, spectra, findings", cmd_report},
    {"analyze", "spectra of any checkpoint: Hugging Face folders, safetensors", cmd_analyze},
    {"eval", "perplexity of a trained model, or its answers to multiple choice", cmd_eval},
    {"generate", "go on with a text, token by token", cmd_generate},
    {"export", "a trained model in Hugging Face's format", cmd_export},
    {"import", "a model in Hugging Face's format, to go on with its training", cmd_import},
    {"convert", "files into other kinds: databases, token shards, tokenizers", cmd_convert},
    {"version", "what this program is", cmd_version},
};

static void usage(FILE *out) {
    fprintf(out, "usage: bulkhead COMMAND [ARGUMENT...]\n\n");
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        fprintf(out, "  %-9s %s\n", commands[i].name, commands[i].summary);
    fputs("\n`bulkhead COMMAND --help` explains a command.\n"
          "\n"
          "Exit codes: 0 done, 64 usage, 65 bad data, 66 no input, 70 internal or not\n"
          "finite, 74 I/O, 75 stopped after a checkpoint, 78 config.\n",
          out);
}

status command_bad_option(char **argv, int option) {
    const char *word = argv[optind - 1];
    if (option == ':') return status_fail(STATUS_USAGE, "%s wants a value after it", word);
    return status_fail(STATUS_USAGE, "'%s' is not understood; `bulkhead %s --help` lists the options", word, argv[0]);
}

status command_read_number(const char *option, const char *text, int64_t least, int64_t most, int64_t *to) {
    char *end = NULL;
    errno = 0;
    *to = strtoll(text, &end, 10);
    if (errno || end == text || *end || *to < least || *to > most)
        return status_fail(STATUS_USAGE, "--%s wants a whole number from %lld to %lld, not \"%s\"", option,
                           (long long)least, (long long)most, text);
    return STATUS_OK;
}

status command_read_real(const char *option, const char *text, double least, double most, double *to) {
    char *end = NULL;
    *to = strtod(text, &end);
    if (end == text || *end || !(*to >= least && *to <= most))
        return status_fail(STATUS_USAGE, "--%s wants a number from %g to %g, not \"%s\"", option, least, most, text);
    return STATUS_OK;
}

void command_complain(const char *name) {
    if (status_message()[0]) fprintf(stderr, "bulkhead %s: %s\n", name, status_message());
    status_clear();
}

int main(int argc, char **argv) {
    ops_cpu_begin(argv);
    if (argc < 2) {
        usage(stderr);
        return STATUS_USAGE;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "help") == 0) {
        usage(stdout);
        return STATUS_OK;
    }
    if (strcmp(argv[1], "--version") == 0) return cmd_version(1, argv + 1);
    /* A closed pipe and a file at its size limit are failed writes, not deaths. */
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);
    if (strcmp(argv[1], DIAG_WORKER_COMMAND) == 0) return diag_worker_main();
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
        if (strcmp(argv[1], commands[i].name) != 0) continue;
        status s = commands[i].run(argc - 1, argv + 1);
        if (s != STATUS_OK) command_complain(argv[1]);
        return s;
    }
    fprintf(stderr, "bulkhead: there is no command '%s'; `bulkhead --help` lists them\n", argv[1]);
    return STATUS_USAGE;
}
