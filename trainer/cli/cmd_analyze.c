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

static const char help[] =
    "usage: bulkhead analyze MODEL... -o DB [--threads N] [--step N] [--config FILE] [--set diagnostics.KEY=VALUE "
    "...]\n"
    "\n"
    "Writes the spectra of a model's attention heads to a new database, as a run's snapshots are recorded, and prints\n"
    "them layer by layer. Nothing is trained; memory holds one layer's weights a thread.\n"
    "\n"
    "MODEL is a folder with config.json and model.safetensors, or shards with model.safetensors.index.json (Llama,\n"
    "Mistral, Mixtral, Qwen2, Qwen3, Gemma, Gemma 2, DeepSeek-V2 and -V3; bf16, fp16 or fp32); or a safetensors file "
    "of\n"
    "Bulkhead's own names with config.yaml beside it. Several are checkpoints of one model, each with its step at the\n"
    "end of its name (step-1000, checkpoint-1000); a folder of such folders stands for all of them.\n"
    "\n"
    "options:\n"
    "  -o DB           the database, which must not be there yet\n"
    "  --threads N     layers at a time; the default is the number of cores\n"
    "  --step N        the step of a single model whose name has none; the default is 0\n"
    "  --config FILE   the config.yaml of a safetensors file of Bulkhead's names\n"
    "  --null-wait S   how long to wait at the end for null ensembles that have to be drawn; the default is 300 "
    "seconds;\n"
    "                  the columns whose ensembles are not ready stay NULL; an ensemble that is ready is kept for\n"
    "                  the next time, one that is not begins anew\n"
    "  --set KEY=VALUE diagnostics.scopes, .parts, .forms, .sigma2 as for training, diagnostics.esd_every=1 to keep "
    "the\n"
    "                  singular values, run.name, run.group, run.tags\n";

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
