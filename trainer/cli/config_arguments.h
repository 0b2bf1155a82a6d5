/* The arguments that `train` and `plan` share: CONFIG and any number of --set section.key=value; and what one of them
 * has for itself. */
#pragma once

#include "core/status.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct config_arguments {
    const char *path; /* NULL with --help and --keys */
    const char *settings[256];
    int setting_count;
    const char *resume; /* of --resume, NULL without */
    int64_t profile;    /* of --profile, 0 without */
    bool keys, json;    /* of --keys and --json */
    bool help;
} config_arguments;

/* USAGE when CONFIG is missing or an argument is not understood. trains: --resume and --profile are; else --keys, in
 * CONFIG's place, and --json with it. */
status config_arguments_parse(config_arguments *out, int argc, char **argv, bool trains);
