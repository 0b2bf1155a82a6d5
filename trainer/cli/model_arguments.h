/* The arguments that commands on a trained model share. */
#pragma once

#include "trainer/trained.h"

#include <getopt.h>

typedef struct model_arguments {
    const char *model, *tokenizer;
    trained_options how;
    bool json, help;
} model_arguments;

/* Their lines of a command's table of long options. */
#define MODEL_ARGUMENTS                                                                                                \
    {"tokenizer", required_argument, NULL, 'z'}, {"device", required_argument, NULL, 'd'},                             \
        {"threads", required_argument, NULL, 'n'}, {"json", no_argument, NULL, 'j'}, {"help", no_argument, NULL, 'h'}, \
    {                                                                                                                  \
        NULL, 0, NULL, 0                                                                                               \
    }

/* An option that the command does not know itself; USAGE when these do not either. */
status model_arguments_take(model_arguments *out, char **argv, int option);

/* What is left behind the options is one model: USAGE when not. */
status model_arguments_end(model_arguments *out, int argc, char **argv);
