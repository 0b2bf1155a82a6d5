#include "trainer/cli/model_arguments.h"

#include "trainer/cli/command.h"

enum { MOST_THREADS = 1024 };

status model_arguments_take(model_arguments *out, char **argv, int option) {
    switch (option) {
    case 'z':
        out->tokenizer = optarg;
        return STATUS_OK;
    case 'd':
        out->how.device = optarg;
        return STATUS_OK;
    case 'n':
        return command_read_number("threads", optarg, 1, MOST_THREADS, &out->how.threads);
    case 'j':
        out->json = true;
        return STATUS_OK;
    case 'h':
        out->help = true;
        return STATUS_OK;
    default:
        return command_bad_option(argv, option);
    }
}

status model_arguments_end(model_arguments *out, int argc, char **argv) {
    if (out->help) return STATUS_OK;
    if (optind + 1 != argc)
        return status_fail(STATUS_USAGE, "one MODEL is wanted, %d given; `bulkhead %s --help` shows how", argc - optind,
                           argv[0]);
    out->model = argv[optind];
    return STATUS_OK;
}
