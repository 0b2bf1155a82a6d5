/* The folder of a run: config.yaml (resolved), log.txt, run.db. Created once, never overwritten. */
#pragma once

#include "core/config.h"

#include <stddef.h>

/* Creates c->run.dir and writes config.yaml. CONFIG when the folder exists, IO when it cannot be made. */
status run_folder_create(const config *c);

/* Takes back what run_folder_create and a failed start left behind: a run that never began leaves no folder. */
void run_folder_discard(const config *c);

/* DIR/NAME into out. */
void run_folder_path(char *out, size_t bytes, const config *c, const char *name);
