/* bulkhead eval: how well a trained model predicts. */
#include "core/json.h"
#include "trainer/choices.h"
#include "trainer/cli/command.h"
#include "trainer/cli/model_arguments.h"
#include "trainer/perplexity.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>

static const char help[] = "usage: bulkhead eval MODEL (--shards GLOB | --text FILE | --tasks FILE)\n"
                           "                     [OPTION...]\n"
                           "\n"
                           "MODEL is a run's folder (its latest checkpoint), a checkpoint, or a folder with\n"
                           "model.safetensors and config.yaml or config.json.\n"
                           "\n"
                           "  --shards GLOB      perplexity over token shards: all tokens but their first\n"
                           "  --text FILE        perplexity and bits per byte of text (.txt or .jsonl, also\n"
                           "                     .gz and .zst): every token\n"
                           "  --tasks FILE       multiple choice, one question a line: {\"context\": \"...\",\n"
                           "                     \"endings\": [...], \"label\": 0}; the share of right answers,\n"
                           "                     by log-probability and by that over bytes, with intervals\n"
                           "  --stride N         tokens that the window moves on; the default is its length.\n"
                           "                     Less gives each token more context and takes longer\n"
                           "  --batch N          windows at a time (8); it changes no result beyond rounding\n"
                           "  --tokenizer FILE   tokenizer.model or .json; the default is the dataset's\n"
                           "  --device D         auto, cpu or cuda; the default is the run's\n"
                           "  --threads N        of the CPU; the default is the number of cores\n"
                           "  --json             for programs\n"
                           "\n"
                           "Exit codes: 0 done, 64 usage, 65 bad data, 66 no input, 78 config.\n";

enum { MOST_BATCH = 4096, MOST_STRIDE = 1 << 20 };

typedef struct request {
    model_arguments model;
    const char *shards, *text, *tasks;
    int64_t stride, batch;
} request;

static status read_options(int argc, char **argv, request *r) {
    static const struct option options[] = {
        {"shards", required_argument, NULL, 's'}, {"text", required_argument, NULL, 't'},
        {"tasks", required_argument, NULL, 'q'},  {"stride", required_argument, NULL, 'w'},
        {"batch", required_argument, NULL, 'b'},  MODEL_ARGUMENTS};
    optind = 1;
    opterr = 0;
    for (int option; !r->model.help && (option = getopt_long(argc, argv, ":h", options, NULL)) != -1;) {
        switch (option) {
        case 's':
            r->shards = optarg;
            break;
        case 't':
            r->text = optarg;
            break;
        case 'q':
            r->tasks = optarg;
            break;
        case 'w':
            TRY(command_read_number("stride", optarg, 1, MOST_STRIDE, &r->stride));
            break;
        case 'b':
            TRY(command_read_number("batch", optarg, 1, MOST_BATCH, &r->batch));
            break;
        default:
            TRY(model_arguments_take(&r->model, argv, option));
        }
    }
    if (!r->model.help && (r->shards != NULL) + (r->text != NULL) + (r->tasks != NULL) != 1)
        return status_fail(STATUS_USAGE, "one of --shards, --text and --tasks is wanted");
    return model_arguments_end(&r->model, argc, argv);
}

/* ---- results ---- */

static status print_json(json_t *result) {
    if (!result) return status_fail(STATUS_INTERNAL, "out of memory for the result");
    json_dumpf(result, stdout, JSON_INDENT(1));
    putchar('\n');
    json_decref(result);
    return STATUS_OK;
}

static status print_perplexity(const request *r, const perplexity *p) {
    double loss = p->nats / (double)p->tokens, bits = p->bytes ? p->nats / M_LN2 / (double)p->bytes : NAN;
    if (!r->model.json) {
        printf("tokens          %" PRId64 "\nnats            %.6f\nloss            %.6f\nperplexity      %.6g\n",
               p->tokens, p->nats, loss, exp(loss));
        if (p->bytes) printf("bytes           %" PRId64 "\nbits per byte   %.6f\n", p->bytes, bits);
        return STATUS_OK;
    }
    return print_json(json_pack("{s:s, s:s, s:I, s:o, s:o, s:o, s:o, s:o, s:I}", "model", r->model.model, "data",
                                r->shards ? r->shards : r->text, "tokens", (json_int_t)p->tokens, "nats",
                                json_finite(p->nats), "loss", json_finite(loss), "perplexity", json_finite(exp(loss)),
                                "bytes", p->bytes ? json_integer(p->bytes) : json_null(), "bits_per_byte",
                                json_finite(bits), "stride", (json_int_t)r->stride));
}

static json_t *json_of_result(const choices_result *c) {
    return json_pack("{s:I, s:f, s:f, s:f}", "right", (json_int_t)c->right, "share", c->share, "low", c->low, "high",
                     c->high);
}

static status print_choices(const request *r, const choices_report *c) {
    if (r->model.json)
        return print_json(json_pack("{s:s, s:s, s:I, s:o, s:o}", "model", r->model.model, "data", r->tasks, "questions",
                                    (json_int_t)c->questions, "sum", json_of_result(&c->sum), "per_byte",
                                    json_of_result(&c->per_byte)));
    const struct {
        const char *name;
        const choices_result *result;
    } lines[] = {{"log-probability", &c->sum}, {"per byte", &c->per_byte}};
    printf("questions         %" PRId64 "\n", c->questions);
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++)
        printf("%-17s %" PRId64 " right, %.2f%% (95%%: %.2f%% to %.2f%%)\n", lines[i].name, lines[i].result->right,
               100 * lines[i].result->share, 100 * lines[i].result->low, 100 * lines[i].result->high);
    return STATUS_OK;
}

/* ---- the way there ---- */

static status evaluate(const request *r, scorer *s, const tokenizer *t) {
    perplexity p;
    choices_report c;
    int32_t start = t ? trained_document_start(t) : 0;
    if (r->tasks) {
        TRY(choices_run(&c, s, t, start, r->tasks));
        return print_choices(r, &c);
    }
    if (r->text)
        TRY(perplexity_text(&p, s, t, start, r->text, r->stride));
    else
        TRY(perplexity_shards(&p, s, r->shards, r->stride));
    return print_perplexity(r, &p);
}

static status run(request *r, trained *t) {
    int64_t context = t->config.model.context;
    tokenizer *k = NULL;
    scorer s = {0};
    if (r->stride == 0) r->stride = context;
    if (r->stride > context)
        return status_fail(STATUS_USAGE, "--stride %" PRId64 " would leave tokens out: the context has %" PRId64,
                           r->stride, context);
    if (!r->shards) TRY(trained_tokenizer(t, r->model.tokenizer, &k));
    status result = trained_load(t, r->batch, 0);
    if (result == STATUS_OK) result = scorer_open(&s, &t->model);
    if (result == STATUS_OK) result = evaluate(r, &s, k);
    scorer_close(&s);
    if (k) tokenizer_free(k);
    return result;
}

status cmd_eval(int argc, char **argv) {
    request r = {.batch = 8};
    trained t;
    TRY(read_options(argc, argv, &r));
    if (r.model.help) {
        fputs(help, stdout);
        return STATUS_OK;
    }
    TRY(trained_find(&t, r.model.model, &r.model.how));
    status s = run(&r, &t);
    trained_close(&t);
    return s;
}
