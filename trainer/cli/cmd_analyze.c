/* bulkhead analyze: spectra of checkpoints, whoever trained them. */
#include "core/log.h"
#include "diag/analyze/analyze.h"
#include "diag/query.h"
#include "trainer/cli/command.h"

#include <getopt.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

enum { MOST_THREADS = 1024, MOST_SETTINGS = 32, NULL_WAIT_S = 300, MOST_WAIT_S = 10000000 };

static const int64_t MOST_STEP = 1000000000000;

static const char help[] = "usage: bulkhead analyze MODEL... -o DB [OPTION...]\n"
                           "\n"
                           "Writes the spectra of a model's attention heads to a new database, as a run's\n"
                           "snapshots are, and prints them layer by layer. Nothing is trained.\n"
                           "\n"
                           "MODEL is a Hugging Face folder (Llama, Mistral, Mixtral, Qwen2, Qwen3, Gemma,\n"
                           "Gemma 2, DeepSeek-V2 and -V3), a run or its checkpoint, or a safetensors file of\n"
                           "Bulkhead's names. Several are checkpoints of one model, their steps at the ends\n"
                           "of their names; a folder of such folders stands for all of them.\n"
                           "\n"
                           "  -o DB             the database, which must not be there yet\n"
                           "  --threads N       layers at a time; the default is the number of cores\n"
                           "  --step N          of a single model whose name has none (0)\n"
                           "  --config FILE     the config.yaml of a safetensors file\n"
                           "  --null-wait S     seconds to wait at the end for null ensembles that must be\n"
                           "                    drawn (300); columns whose ensembles are late stay NULL\n"
                           "  --set KEY=VALUE   diagnostics.scopes, .parts, .forms and .sigma2 as in\n"
                           "                    training, .esd_every=1 for singular values; run.name, .group\n"
                           "\n"
                           "Exit codes: 0 done, 64 usage, 65 bad data, 66 no input, 74 I/O, 78 config.\n";

static status read_options(int argc, char **argv, analyze_request *r, const char **settings, bool *show_help) {
    static const struct option options[] = {{"threads", required_argument, NULL, 't'},
                                            {"step", required_argument, NULL, 's'},
                                            {"null-wait", required_argument, NULL, 'w'},
                                            {"config", required_argument, NULL, 'c'},
                                            {"set", required_argument, NULL, 'k'},
                                            {"help", no_argument, NULL, 'h'},
                                            {NULL, 0, NULL, 0}};
    int64_t threads = 0, wait = NULL_WAIT_S;
    optind = 1;
    opterr = 0;
    for (int option; (option = getopt_long(argc, argv, ":ho:", options, NULL)) != -1;) {
        switch (option) {
        case 'o':
            r->output = optarg;
            break;
        case 't':
            TRY(command_read_number("threads", optarg, 1, MOST_THREADS, &threads));
            break;
        case 's':
            TRY(command_read_number("step", optarg, 0, MOST_STEP, &r->step));
            break;
        case 'w':
            TRY(command_read_number("null-wait", optarg, 0, MOST_WAIT_S, &wait));
            break;
        case 'c':
            r->config = optarg;
            break;
        case 'k':
            if (r->setting_count == MOST_SETTINGS) return status_fail(STATUS_USAGE, "too many settings");
            settings[r->setting_count++] = optarg;
            break;
        case 'h':
            *show_help = true;
            return STATUS_OK;
        default:
            return command_bad_option(argv, option);
        }
    }
    r->threads = (int)threads;
    r->null_wait_s = (int)wait;
    return STATUS_OK;
}

status cmd_analyze(int argc, char **argv) {
    const char *settings[MOST_SETTINGS];
    analyze_request r = {.step = -1, .settings = settings};
    bool show_help = false;
    TRY(read_options(argc, argv, &r, settings, &show_help));
    if (show_help) {
        fputs(help, stdout);
        return STATUS_OK;
    }
    r.models = (const char *const *)argv + optind;
    r.model_count = argc - optind;
    if (r.model_count == 0) return status_fail(STATUS_USAGE, "no model; name a folder or a safetensors file");
    if (!r.output) return status_fail(STATUS_USAGE, "no database; -o names the file to write");
    log_setup("", LOG_INFO);
    TRY(analyze_run(&r));
    const query_request layers = {.question = "layers", .layer = -1, .step = -1};
    return query_run(&r.output, 1, &layers, stdout);
}
