#include "trainer/cli/config_arguments.h"

#include "trainer/cli/command.h"

#include <getopt.h>
#include <stddef.h>

enum { MOST_PROFILED_STEPS = 1000 };
enum { SETTINGS = sizeof((config_arguments){0}).settings / sizeof(char *) };

status config_arguments_parse(config_arguments *out, int argc, char **argv, bool trains) {
    static const struct option options[] = {{"set", required_argument, NULL, 's'},
                                            {"help", no_argument, NULL, 'h'},
                                            {"resume", required_argument, NULL, 'r'},
                                            {"profile", required_argument, NULL, 'p'},
                                            {"keys", no_argument, NULL, 'k'},
                                            {"json", no_argument, NULL, 'j'},
                                            {NULL, 0, NULL, 0}};
    *out = (config_arguments){0};
    opterr = 0;
    optind = 1;
    for (int option; (option = getopt_long(argc, argv, ":h", options, NULL)) != -1;) {
        switch (option) {
        case 'h':
            out->help = true;
            return STATUS_OK;
        case 's':
            if (out->setting_count == SETTINGS)
                return status_fail(STATUS_USAGE, "more than %d --set options; put them into the file", SETTINGS);
            out->settings[out->setting_count++] = optarg;
            break;
        case 'r':
            if (!trains) return status_fail(STATUS_USAGE, "--resume is for `bulkhead train`");
            out->resume = optarg;
            break;
        case 'p':
            if (!trains) return status_fail(STATUS_USAGE, "--profile is for `bulkhead train`");
            TRY(command_read_number("profile", optarg, 1, MOST_PROFILED_STEPS, &out->profile));
            break;
        case 'k':
            if (trains) return status_fail(STATUS_USAGE, "--keys is for `bulkhead plan`");
            out->keys = true;
            break;
        case 'j':
            if (trains) return status_fail(STATUS_USAGE, "--json is for `bulkhead plan --keys`");
            out->json = true;
            break;
        default:
            return command_bad_option(argv, option);
        }
    }
    if (out->keys) {
        if (optind == argc && out->setting_count == 0) return STATUS_OK;
        return status_fail(STATUS_USAGE, "--keys is of no CONFIG and takes no --set");
    }
    if (out->json) return status_fail(STATUS_USAGE, "--json is for --keys");
    if (optind + 1 != argc)
        return status_fail(STATUS_USAGE, "one CONFIG file is wanted, %d given; `bulkhead %s --help` shows how",
                           argc - optind, argv[0]);
    out->path = argv[optind];
    return STATUS_OK;
}
