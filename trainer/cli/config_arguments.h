/* The arguments that `train` and `plan` share: CONFIG and any number of --set section.key=value. */
#pragma once

#include "core/status.h"

#include <stdbool.h>

typedef struct config_arguments {
    const char *path; /* NULL with --help */
    const char *settings[256];
    int setting_count;
    bool help;
} config_arguments;

/* USAGE when CONFIG is missing or an argument is not understood. */
status config_arguments_parse(config_arguments *out, int argc, char **argv);
