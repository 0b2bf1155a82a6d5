/* The folder of a run: run-id, config.yaml (resolved), log.txt, run.db, checkpoints/. Created once; a run that goes on
 * keeps it. */
#pragma once

#include "core/config.h"

#include <stddef.h>

enum { RUN_FOLDER_ID_BYTES = 33 };

/* Creates c->run.dir with a new identity, which goes into id, and writes config.yaml. CONFIG when the folder exists, IO
 * when it cannot be made. */
status run_folder_create(const config *c, char id[RUN_FOLDER_ID_BYTES]);

/* The identity of the run whose folder c->run.dir is; "" where none was given yet, the start having been interrupted.
 * CONFIG when the folder is something else. */
status run_folder_read_id(const config *c, char id[RUN_FOLDER_ID_BYTES]);

/* Goes on in a folder that is there: config.yaml is now this one's; id "": it gets an identity. */
status run_folder_adopt(const config *c, char id[RUN_FOLDER_ID_BYTES]);

/* Makes the folder, which has an identity, this process's until it ends: nobody else goes on in it, and the diagnostics
 * ranks write behind the training's end. A job that is just ending is waited for. IO when another one keeps it. */
status run_folder_hold(const config *c);

/* Takes back what run_folder_create and a failed start left behind: a run that never began leaves no folder. */
void run_folder_discard(const config *c);

/* DIR/NAME into out. */
void run_folder_path(char *out, size_t bytes, const config *c, const char *name);
