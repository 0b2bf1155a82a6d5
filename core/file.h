/* Files that are whole or absent: written beside their final name, synced, then renamed into place.
 *
 * Messages name the path and the system's reason. */
#pragma once

#include "core/status.h"

#include <stdbool.h>
#include <stddef.h>

bool file_exists(const char *path);

/* FOLDER/NAME, malloc'ed; NULL when out of memory. */
char *file_join(const char *folder, const char *name);

/* Creates the folder and its missing parents. IO when that is not possible or a part of the path is no folder. */
status file_make_dirs(const char *path);

/* Makes the names in the folder durable: a rename is, once its folder is. */
status file_sync_folder(const char *path);

/* The file's bytes and a NUL behind them, malloc'ed. NO_INPUT when it cannot be opened or is a folder, DATA when it has
 * more than limit_bytes, IO when reading fails. */
status file_read_all(char **out, size_t *bytes, const char *path, size_t limit_bytes);

/* Opens the file, to add to it, and takes its lock, which this process has until *fd is closed by all that inherit it.
 * *fd -1: another process has it. IO when the file cannot be opened or made. Where the file system knows no locks, it
 * is as if nobody else were there. */
status file_lock(int *fd, const char *path);

/* Writes the file in one go; an existing one is replaced, and kept as it was when anything fails. */
status file_write_atomic(const char *path, const void *data, size_t bytes);

/* The same in pieces: begin, put ..., then commit (durable, visible) or discard (no trace). After a failed put,
 * discard. */
typedef struct file_writer {
    int fd;
    char *path, *temporary;
} file_writer;

status file_begin(file_writer *w, const char *path);
status file_put(file_writer *w, const void *data, size_t bytes);
status file_commit(file_writer *w); /* discards when it fails */
void file_discard(file_writer *w);
