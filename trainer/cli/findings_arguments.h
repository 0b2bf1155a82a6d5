/* The arguments that commands share which judge a study. */
#pragma once

#include "diag/findings.h"

#include <getopt.h>

/* Their lines of a command's table of long options. */
#define FINDINGS_ARGUMENTS                                                                                             \
    {"theta", required_argument, NULL, 't'}, {                                                                         \
        "alpha", required_argument, NULL, 'a'                                                                          \
    }

/* An option that the command does not know itself; USAGE when these do not either. */
status findings_arguments_take(findings_request *out, char **argv, int option);
