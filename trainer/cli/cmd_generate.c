/* bulkhead generate: text from a trained model, token by token. */
#include "data/reader.h"
#include "trainer/cli/command.h"
#include "trainer/cli/model_arguments.h"
#include "trainer/decoder.h"
#include "trainer/sampling.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char help[] = "usage: bulkhead generate MODEL [--prompt TEXT | --tokens 1,2,3] [OPTION...]\n"
                           "\n"
                           "Goes on with a text as the model would, and prints it with what follows. MODEL\n"
                           "is a run's folder (its latest checkpoint), a checkpoint, or a folder with\n"
                           "model.safetensors and config.yaml or config.json. stderr says the cache's size.\n"
                           "\n"
                           "  --prompt TEXT      the text; the default is the beginning of a document\n"
                           "  --tokens IDS       the same as ids, taken as they are; ids are printed\n"
                           "  --max N            tokens at most (100); the end of a document or of the\n"
                           "                     context ends it before\n"
                           "  --temperature T    0: always the likeliest token (1)\n"
                           "  --top-k K          only among the K likeliest tokens; the default is all\n"
                           "  --top-p P          only the fewest that have the share P of probability (1)\n"
                           "  --seed S           another seed is another text (1)\n"
                           "  --tokenizer FILE   tokenizer.model or .json; the default is the dataset's\n"
                           "  --device D         auto, cpu or cuda; the default is the run's\n"
                           "  --threads N        of the CPU; the default is the number of cores\n"
                           "  --json             prompt, text, their tokens, what ended it, cache bytes\n"
                           "\n"
                           "Exit codes: 0 done, 64 usage, 65 bad data, 66 no input, 78 config.\n";

enum { MOST_TOKENS = 1 << 20 };

typedef struct request {
    model_arguments model;
    const char *prompt, *tokens;
    sampling sampling;
    int64_t most;
} request;

typedef struct generation {
    tokenizer *tokenizer; /* NULL: --tokens, and none is found */
    tokenizer_ids ids;    /* what the model has read, and then what it wrote */
    int64_t prompt;       /* of them the first */
    int64_t shown;        /* from here on they are the text: behind a document's start that nobody wrote */
    const char *ended;
} generation;

/* ---- arguments ---- */

static status read_options(int argc, char **argv, request *r) {
    static const struct option options[] = {
        {"prompt", required_argument, NULL, 'p'}, {"tokens", required_argument, NULL, 't'},
        {"max", required_argument, NULL, 'm'},    {"temperature", required_argument, NULL, 'T'},
        {"top-k", required_argument, NULL, 'k'},  {"top-p", required_argument, NULL, 'P'},
        {"seed", required_argument, NULL, 's'},   MODEL_ARGUMENTS};
    int64_t seed = 1;
    optind = 1;
    opterr = 0;
    for (int option; !r->model.help && (option = getopt_long(argc, argv, ":h", options, NULL)) != -1;) {
        switch (option) {
        case 'p':
            r->prompt = optarg;
            break;
        case 't':
            r->tokens = optarg;
            break;
        case 'm':
            TRY(command_read_number("max", optarg, 1, MOST_TOKENS, &r->most));
            break;
        case 'T':
            TRY(command_read_real("temperature", optarg, 0, 1e6, &r->sampling.temperature));
            break;
        case 'k':
            TRY(command_read_number("top-k", optarg, 1, INT32_MAX, &r->sampling.top_k));
            break;
        case 'P':
            TRY(command_read_real("top-p", optarg, 1e-9, 1, &r->sampling.top_p));
            break;
        case 's':
            TRY(command_read_number("seed", optarg, 0, INT64_MAX, &seed));
            break;
        default:
            TRY(model_arguments_take(&r->model, argv, option));
        }
    }
    r->sampling.seed = (uint64_t)seed;
    if (r->prompt && r->tokens) return status_fail(STATUS_USAGE, "--prompt and --tokens are two ways of one thing");
    return model_arguments_end(&r->model, argc, argv);
}

/* ---- the prompt ---- */

static status add_id(tokenizer_ids *ids, int32_t id) {
    if (ids->count == ids->room) {
        int64_t room = ids->room ? 2 * ids->room : 64;
        int32_t *more = realloc(ids->ids, (size_t)room * sizeof *more);
        if (!more) return status_fail(STATUS_INTERNAL, "out of memory for %" PRId64 " tokens", room);
        ids->ids = more;
        ids->room = room;
    }
    ids->ids[ids->count++] = id;
    return STATUS_OK;
}

static status read_ids(const char *text, int64_t vocab, tokenizer_ids *out) {
    for (const char *at = text;;) {
        char *end;
        long long id = strtoll(at, &end, 10);
        if (end == at || (*end && *end != ','))
            return status_fail(STATUS_USAGE, "--tokens wants ids with commas between them, not \"%s\"", text);
        if (id < 0 || id >= vocab)
            return status_fail(STATUS_DATA, "--tokens: the model has no token %lld, only 0 to %" PRId64, id, vocab - 1);
        TRY(add_id(out, (int32_t)id));
        if (!*end) return STATUS_OK;
        at = end + 1;
    }
}

static status read_prompt(const request *r, const trained *t, generation *g) {
    int64_t context = t->config.model.context;
    if (r->tokens) {
        TRY(read_ids(r->tokens, t->config.model.vocab, &g->ids));
    } else {
        TRY(trained_tokenizer(t, r->model.tokenizer, &g->tokenizer));
        tokenizer_text prompt = {.bytes = r->prompt ? r->prompt : ""};
        prompt.length = strlen(prompt.bytes);
        if (reader_valid_utf8(prompt.bytes, prompt.length) != prompt.length)
            return status_fail(STATUS_DATA, "--prompt is not UTF-8");
        TRY(add_id(&g->ids, trained_document_start(g->tokenizer)));
        TRY(tokenizer_encode(g->tokenizer, &prompt, 1, 1, &g->ids));
        g->shown = 1;
    }
    g->prompt = g->ids.count;
    if (g->prompt < context) return STATUS_OK;
    return status_fail(STATUS_DATA,
                       "the prompt has %" PRId64 " tokens; the model's context, %" PRId64 ", leaves no room", g->prompt,
                       context);
}

/* ---- the way on ---- */

static status write_tokens(const request *r, decoder *d, generation *g, float *logits, sampling_choice *choices) {
    model *m = d->model;
    int64_t fresh = g->prompt, count;
    g->ended = "max";
    for (int64_t written = 0; written < r->most; written++, fresh = 1) {
        if (g->ids.count == m->context) {
            g->ended = "context";
            break;
        }
        decoder_add(d, g->ids.ids + g->ids.count - fresh, fresh);
        decoder_logits(d, logits);
        TRY(model_status(m));
        TRY(sampling_choices(&r->sampling, logits, m->vocab, choices, &count));
        int32_t next = sampling_pick(choices, count, sampling_draw(&r->sampling, g->ids.count));
        if (g->tokenizer && next == tokenizer_eos(g->tokenizer)) {
            g->ended = "document";
            break;
        }
        TRY(add_id(&g->ids, next));
    }
    return STATUS_OK;
}

static status generate(const request *r, model *m, generation *g) {
    decoder d;
    float *logits = malloc((size_t)m->vocab * sizeof *logits);
    sampling_choice *choices = malloc((size_t)m->vocab * sizeof *choices);
    status s = decoder_open(&d, m);
    if (s == STATUS_OK && (!logits || !choices)) s = status_fail(STATUS_INTERNAL, "out of memory for the logits");
    if (s == STATUS_OK) s = write_tokens(r, &d, g, logits, choices);
    decoder_close(&d);
    free(logits);
    free(choices);
    return s;
}

/* ---- results ---- */

static json_t *list_of(const int32_t *ids, int64_t count) {
    json_t *list = json_array();
    for (int64_t i = 0; i < count; i++) json_array_append_new(list, json_integer(ids[i]));
    return list;
}

/* Bytes that are no UTF-8, as half a character at the end of the text, become U+FFFD. NULL: out of memory. */
static json_t *json_of_bytes(const char *text, size_t length) {
    static const char unknown[] = "\xEF\xBF\xBD";
    char *valid = malloc(3 * length + 1);
    size_t used = 0;
    if (!valid) return NULL;
    for (size_t at = 0; at < length;) {
        size_t good = reader_valid_utf8(text + at, length - at);
        memcpy(valid + used, text + at, good);
        used += good;
        at += good;
        if (at == length) break;
        memcpy(valid + used, unknown, sizeof unknown - 1);
        used += sizeof unknown - 1;
        at++;
    }
    json_t *json = json_stringn(valid, used);
    free(valid);
    return json;
}

/* Text of the tokens [first, end) as JSON; null where there is no tokenizer. */
static status text_of(const generation *g, int64_t first, int64_t end, json_t **out) {
    char *text;
    size_t length;
    *out = json_null();
    if (!g->tokenizer) return STATUS_OK;
    TRY(tokenizer_decode(g->tokenizer, g->ids.ids + first, end - first, &text, &length));
    *out = json_of_bytes(text, length);
    free(text);
    return *out ? STATUS_OK : status_fail(STATUS_INTERNAL, "out of memory for the text");
}

static status print_json(const request *r, const generation *g, decoder_bytes bytes) {
    json_t *prompt, *text, *tokens = list_of(g->ids.ids, g->prompt),
                           *written = list_of(g->ids.ids + g->prompt, g->ids.count - g->prompt);
    TRY(text_of(g, g->shown, g->prompt, &prompt));
    TRY(text_of(g, g->prompt, g->ids.count, &text));
    json_t *all = json_pack("{s:s, s:o, s:o, s:o, s:o, s:s, s:I, s:{s:I, s:I}}", "model", r->model.model, "prompt",
                            prompt, "prompt_tokens", tokens, "text", text, "tokens", written, "ended", g->ended, "seed",
                            (json_int_t)r->sampling.seed, "cache", "bytes_per_token", (json_int_t)bytes.token,
                            "mha_bytes_per_token", (json_int_t)bytes.mha_token);
    if (!all) return status_fail(STATUS_INTERNAL, "out of memory for the result");
    json_dumpf(all, stdout, JSON_INDENT(1));
    putchar('\n');
    json_decref(all);
    return STATUS_OK;
}

static status print_text(const generation *g) {
    if (!g->tokenizer) {
        for (int64_t i = 0; i < g->ids.count; i++) printf("%s%d", i ? "," : "", (int)g->ids.ids[i]);
        putchar('\n');
        return STATUS_OK;
    }
    char *text;
    size_t length;
    TRY(tokenizer_decode(g->tokenizer, g->ids.ids + g->shown, g->ids.count - g->shown, &text, &length));
    fwrite(text, 1, length, stdout);
    putchar('\n');
    free(text);
    return STATUS_OK;
}

static status run(const request *r, trained *t, generation *g) {
    TRY(read_prompt(r, t, g));
    TRY(trained_load(t, 1, 0));
    decoder_bytes bytes = decoder_cache_bytes(&t->model, &t->config);
    TRY(generate(r, &t->model, g));
    fprintf(stderr, "cache: %" PRId64 " bytes a token; mha with the same heads: %" PRId64 " (%.1f times as many)\n",
            bytes.token, bytes.mha_token, (double)bytes.mha_token / (double)bytes.token);
    if (strcmp(g->ended, "context") == 0)
        fprintf(stderr, "the context of %" PRId64 " tokens is full\n", t->model.context);
    return r->model.json ? print_json(r, g, bytes) : print_text(g);
}

status cmd_generate(int argc, char **argv) {
    request r = {.most = 100, .sampling = {.temperature = 1, .top_p = 1}};
    trained t;
    generation g = {0};
    TRY(read_options(argc, argv, &r));
    if (r.model.help) {
        fputs(help, stdout);
        return STATUS_OK;
    }
    TRY(trained_find(&t, r.model.model, &r.model.how));
    status s = run(&r, &t, &g);
    if (g.tokenizer) tokenizer_free(g.tokenizer);
    free(g.ids.ids);
    trained_close(&t);
    return s;
}
