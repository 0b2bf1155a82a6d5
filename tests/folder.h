/* A scratch folder for a test: made by mkdtemp under TMPDIR, removed with all it holds. */
#pragma once

#include "check.h"

#include <dirent.h>
#include <fts.h>
#include <unistd.h>

enum { FOLDER_PATHS = 32 };

typedef struct folder {
    char path[512];
    char *paths[FOLDER_PATHS]; /* handed out by folder_path */
    int used;
} folder;

static inline folder folder_make(void) {
    folder f = {.used = 0};
    const char *base = getenv("TMPDIR");
    snprintf(f.path, sizeof f.path, "%s/bulkhead-test-XXXXXX", base ? base : "/tmp");
    if (!mkdtemp(f.path)) fail_msg("cannot make %s", f.path);
    return f;
}

/* The path of a name inside, valid as long as the folder; at most FOLDER_PATHS of them. */
static inline const char *folder_path(folder *f, const char *name) {
    if (f->used == FOLDER_PATHS) fail_msg("more than %d paths", FOLDER_PATHS);
    size_t room = strlen(f->path) + strlen(name) + 2;
    char *path = f->paths[f->used++] = malloc(room);
    snprintf(path, room, "%s/%s", f->path, name);
    return path;
}

/* How many files and folders it holds. */
static inline int folder_entries(const folder *f) {
    DIR *d = opendir(f->path);
    if (!d) fail_msg("cannot list %s", f->path);
    int count = -2; /* . and .. */
    while (readdir(d)) count++;
    closedir(d);
    return count;
}

static inline void folder_remove(folder *f) {
    char *roots[] = {f->path, NULL};
    FTS *walk = fts_open(roots, FTS_PHYSICAL | FTS_NOCHDIR, NULL);
    for (FTSENT *entry; walk && (entry = fts_read(walk));)
        if (entry->fts_info != FTS_D && remove(entry->fts_accpath) != 0)
            fail_msg("cannot remove %s", entry->fts_accpath);
    while (f->used > 0) free(f->paths[--f->used]);
    if (!walk || fts_close(walk) != 0) fail_msg("cannot remove %s", f->path);
}
