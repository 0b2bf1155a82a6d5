/* bulkhead prepare: its options and its summary. The work is in data/prepare.c. */
#include "data/prepare.h"
#include "trainer/cli/command.h"

#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const char help[] = "usage: bulkhead prepare INPUT... -o DIR [OPTION...]\n"
                           "\n"
                           "Turns text (.txt, .jsonl or .json of lines, plain, .gz or .zst; - is standard\n"
                           "input) into what `bulkhead train` reads: DIR/tokenizer.model, train-*.bin,\n"
                           "val-*.bin and dataset.json. DIR must not exist or be empty; it appears whole.\n"
                           "\n"
                           "  -o, --output DIR    the folder to write\n"
                           "  --vocab N           train a SentencePiece model of N ids on the text (32000)\n"
                           "  --tokenizer FILE    use this SentencePiece model or tokenizer.json instead\n"
                           "  --field NAME        the field of .jsonl that holds the text (text)\n"
                           "  --format F          text or jsonl, whatever the names say\n"
                           "  --documents HOW     of a text file: file, blank-lines (which separate them) or\n"
                           "                      lines (file)\n"
                           "  --val-fraction F    part of the text for validation: whole documents, or\n"
                           "                      pieces of them where there are few (0.01)\n"
                           "  --seed N            draws the validation split and the tokenizer's lines (1)\n"
                           "  --encoding E        utf8 or latin1 (utf8)\n"
                           "  --invalid HOW       what of lines that are not UTF-8, which are counted and\n"
                           "                      named: stop, latin1 (read them as that) or skip (stop)\n"
                           "  --shard-tokens N    tokens a shard at most (100000000)\n"
                           "  --threads N         of encoding; they do not change the result (all cores)\n"
                           "\n"
                           "Exit codes: 0 done, 64 usage, 65 bad data, 66 no input, 74 I/O.\n";

static const double MOST_FRACTION = 0.999;

static status wrong(const char *option, const char *value, const char *want) {
    return status_fail(STATUS_USAGE, "--%s %s: want %s", option, value, want);
}

/* The choice's index among the names, which end with NULL. */
static status read_choice(int *out, const char *option, const char *text, const char *const *names, const char *want) {
    for (*out = 0; names[*out]; ++*out)
        if (strcmp(names[*out], text) == 0) return STATUS_OK;
    return wrong(option, text, want);
}

enum {
    OPTION_VOCAB = 256,
    OPTION_TOKENIZER,
    OPTION_FIELD,
    OPTION_FORMAT,
    OPTION_DOCUMENTS,
    OPTION_FRACTION,
    OPTION_SEED,
    OPTION_ENCODING,
    OPTION_INVALID,
    OPTION_SHARD,
    OPTION_THREADS
};

static const struct option long_options[] = {
    {"output", required_argument, NULL, 'o'},
    {"vocab", required_argument, NULL, OPTION_VOCAB},
    {"tokenizer", required_argument, NULL, OPTION_TOKENIZER},
    {"field", required_argument, NULL, OPTION_FIELD},
    {"format", required_argument, NULL, OPTION_FORMAT},
    {"documents", required_argument, NULL, OPTION_DOCUMENTS},
    {"val-fraction", required_argument, NULL, OPTION_FRACTION},
    {"seed", required_argument, NULL, OPTION_SEED},
    {"encoding", required_argument, NULL, OPTION_ENCODING},
    {"invalid", required_argument, NULL, OPTION_INVALID},
    {"shard-tokens", required_argument, NULL, OPTION_SHARD},
    {"threads", required_argument, NULL, OPTION_THREADS},
    {"help", no_argument, NULL, 'h'},
    {0},
};

static status read_option(prepare_options *o, int option, const char *text) {
    static const char *const formats[] = {"text", "jsonl", NULL}, *const encodings[] = {"utf8", "latin1", NULL};
    static const char *const invalids[] = {"stop", "latin1", "skip", NULL};
    static const char *const documents[] = {"file", "blank-lines", "lines", NULL};
    int64_t number = 0;
    int choice = 0;
    switch (option) {
    case 'o':
        o->out_dir = text;
        break;
    case OPTION_VOCAB:
        return command_read_number("vocab", text, 1, 16777216, &o->vocab);
    case OPTION_TOKENIZER:
        o->tokenizer = text;
        break;
    case OPTION_FIELD:
        o->reading.field = text;
        break;
    case OPTION_FORMAT:
        TRY(read_choice(&choice, "format", text, formats, "text or jsonl"));
        o->reading.format = FORMAT_TEXT + choice;
        break;
    case OPTION_DOCUMENTS:
        TRY(read_choice(&choice, "documents", text, documents, "file, blank-lines or lines"));
        o->reading.documents = choice;
        break;
    case OPTION_FRACTION:
        return command_read_real("val-fraction", text, 0, MOST_FRACTION, &o->val_fraction);
    case OPTION_SEED:
        TRY(command_read_number("seed", text, 0, 9007199254740992, &number));
        o->seed = (uint64_t)number;
        break;
    case OPTION_ENCODING:
        TRY(read_choice(&choice, "encoding", text, encodings, "utf8 or latin1"));
        o->reading.encoding = choice;
        break;
    case OPTION_INVALID:
        TRY(read_choice(&choice, "invalid", text, invalids, "stop, latin1 or skip"));
        o->reading.invalid = choice;
        break;
    case OPTION_SHARD:
        return command_read_number("shard-tokens", text, 1, INT32_MAX, &o->shard_tokens);
    case OPTION_THREADS:
        TRY(command_read_number("threads", text, 1, 1024, &number));
        o->threads = (int)number;
        break;
    }
    return STATUS_OK;
}

static status check_options(prepare_options *o) {
    enum { VOCAB = 32000 };
    if (o->input_count == 0)
        return status_fail(STATUS_USAGE, "name the text to prepare; `bulkhead prepare --help` shows how");
    if (!o->out_dir || !o->out_dir[0]) return status_fail(STATUS_USAGE, "name the folder to write with -o DIR");
    if (o->vocab && o->tokenizer)
        return status_fail(STATUS_USAGE, "--vocab trains a tokenizer, --tokenizer brings one: give only one of them");
    if (!o->vocab) o->vocab = VOCAB;
    int standard = 0;
    for (int i = 0; i < o->input_count; i++) standard += strcmp(o->inputs[i], "-") == 0;
    return standard <= 1 ? STATUS_OK : status_fail(STATUS_USAGE, "standard input (-) can be read only once");
}

static void print_split(const char *name, const dataset_split *s) {
    if (s->tokens == 0) {
        printf("  %-10s  none\n", name);
        return;
    }
    printf("  %-10s  %" PRId64 " tokens, %" PRId64 " documents, %" PRId64
           " shard%s, %.3f bytes a token, unigram entropy %.4f nats\n",
           name, s->tokens, s->documents, s->shards, s->shards == 1 ? "" : "s", (double)s->bytes / (double)s->tokens,
           s->unigram_entropy_nats);
}

static void print_summary(const prepare_options *o, const dataset_info *info) {
    printf("%s: vocabulary of %" PRId64 ", tokenizer %s\n", o->out_dir, info->vocab, info->tokenizer_hash);
    print_split("train", &info->train);
    print_split("validation", &info->validation);
}

status cmd_prepare(int argc, char **argv) {
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    prepare_options o = {.reading.field = "text",
                         .val_fraction = 0.01,
                         .seed = 1,
                         .shard_tokens = 100000000,
                         .threads = cores > 64  ? 64
                                    : cores > 1 ? (int)cores
                                                : 1};
    opterr = 0;
    optind = 0; /* glibc: start anew */
    for (int option; (option = getopt_long(argc, argv, ":o:h", long_options, NULL)) != -1;) {
        if (option == 'h') {
            fputs(help, stdout);
            return STATUS_OK;
        }
        if (option == ':' || option == '?') return command_bad_option(argv, option);
        TRY(read_option(&o, option, optarg));
    }
    o.inputs = (const char *const *)argv + optind;
    o.input_count = argc - optind;
    TRY(check_options(&o));
    dataset_info info;
    TRY(prepare(&o, &info));
    print_summary(&o, &info);
    return STATUS_OK;
}
