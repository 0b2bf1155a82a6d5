/* A folder of results that appears under its name when it is whole: made beside it under a name of its own, renamed at
 * the end. */
#pragma once

#include "core/status.h"

/* USAGE when there is something at the path other than an empty folder. */
status new_folder_check(const char *path);

/* What is behind its name until then; other characters for the X. */
#define NEW_FOLDER_ENDING ".partial-XXXXXX"

/* Makes the folder in which to write, malloc'ed into *partial, and the parents of path. IO when that is not possible.
 * End with one of the two below. */
status new_folder_make(char **partial, const char *path);

/* It is whole: it gets its name. partial is freed, and after a failure removed. */
status new_folder_publish(char *partial, const char *path);

/* Removes what was made, and frees partial; NULL: nothing was. */
void new_folder_discard(char *partial);
