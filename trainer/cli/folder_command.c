#include "trainer/cli/folder_command.h"

#include "core/new_folder.h"
#include "trainer/cli/command.h"
#include "trainer/portable.h"

#include <getopt.h>
#include <stdio.h>

typedef struct request {
    const char *model, *folder, *tokenizer;
    bool help;
} request;

static status read_options(int argc, char **argv, request *r) {
    static const struct option options[] = {
        {"tokenizer", required_argument, NULL, 'z'}, {"help", no_argument, NULL, 'h'}, {NULL, 0, NULL, 0}};
    optind = 1;
    opterr = 0;
    for (int option; (option = getopt_long(argc, argv, ":ho:", options, NULL)) != -1;) {
        switch (option) {
        case 'o':
            r->folder = optarg;
            break;
        case 'z':
            r->tokenizer = optarg;
            break;
        case 'h':
            r->help = true;
            return STATUS_OK;
        default:
            return command_bad_option(argv, option);
        }
    }
    if (optind + 1 != argc)
        return status_fail(STATUS_USAGE, "one MODEL is wanted, %d given; `bulkhead %s --help` shows how", argc - optind,
                           argv[0]);
    if (!r->folder) return status_fail(STATUS_USAGE, "no folder; -o names the one to make");
    r->model = argv[optind];
    return STATUS_OK;
}

/* The tokenizer's file, checked, into *file; NULL: the model goes without. */
static status find_tokenizer(const request *r, const trained *t, char path[TRAINED_PATH_BYTES], const char **file) {
    tokenizer *k;
    *file = r->tokenizer;
    if (!r->tokenizer) {
        *file = path;
        if (trained_tokenizer_file(t, path) != STATUS_OK) {
            fprintf(stderr, "without a tokenizer: %s\n", status_message());
            status_clear();
            *file = NULL;
            return STATUS_OK;
        }
    }
    TRY(trained_tokenizer(t, r->tokenizer, &k));
    tokenizer_free(k);
    return STATUS_OK;
}

static status run(const request *r, trained *t,
                  status (*write)(const trained *t, const char *tokenizer_file, const char *folder)) {
    char path[TRAINED_PATH_BYTES];
    const char *tokenizer_file;
    TRY(find_tokenizer(r, t, path, &tokenizer_file));
    TRY(trained_load(t, 1, 1));
    TRY(write(t, tokenizer_file, r->folder));
    printf("%s: %s, %.2f million parameters%s\n", r->folder, config_variant_name(t->config.attention.variant),
           (double)params_global_count(&t->model.params) / 1e6, tokenizer_file ? ", with tokenizer" : "");
    return STATUS_OK;
}

status folder_command(int argc, char **argv, const char *help,
                      status (*write)(const trained *t, const char *tokenizer_file, const char *folder)) {
    const trained_options on_cpu = {.device = "cpu"};
    request r = {0};
    trained t;
    TRY(read_options(argc, argv, &r));
    if (r.help) {
        fputs(help, stdout);
        return STATUS_OK;
    }
    TRY(new_folder_check(r.folder));
    TRY(trained_find(&t, r.model, &on_cpu));
    status s = run(&r, &t, write);
    trained_close(&t);
    return s;
}
