/* What export and import have in common: MODEL -o FOLDER. */
#pragma once

#include "trainer/trained.h"

/* Reads the arguments, finds the model and its tokenizer, loads its weights on the CPU, has them written, and prints
 * what there is now. With --help it prints that. */
status folder_command(int argc, char **argv, const char *help,
                      status (*write)(const trained *t, const char *tokenizer_file, const char *folder));
