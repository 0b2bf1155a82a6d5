#include "trainer/run_folder.h"

#include "core/file.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

void run_folder_path(char *out, size_t bytes, const config *c, const char *name) {
    snprintf(out, bytes, "%s/%s", c->run.dir, name);
}

/* The folder that holds the run folder, with what is missing above it. */
static status make_parent(const char *dir) {
    char parent[4096];
    snprintf(parent, sizeof parent, "%s", dir);
    char *slash = strrchr(parent, '/');
    if (!slash || slash == parent) return STATUS_OK;
    *slash = '\0';
    return file_make_dirs(parent);
}

status run_folder_create(const config *c) {
    char path[4096];
    TRY(make_parent(c->run.dir));
    if (mkdir(c->run.dir, 0777) != 0) {
        if (errno == EEXIST)
            return status_fail(
                STATUS_CONFIG,
                "the run folder %s exists and is not overwritten; choose another run.name or run.dir, or "
                "remove it",
                c->run.dir);
        return status_fail(STATUS_IO, "cannot create the run folder %s: %s", c->run.dir, strerror(errno));
    }
    char *yaml = config_to_yaml(c);
    run_folder_path(path, sizeof path, c, "config.yaml");
    status s = yaml ? file_write_atomic(path, yaml, strlen(yaml))
                    : status_fail(STATUS_INTERNAL, "out of memory for the resolved configuration");
    free(yaml);
    if (s != STATUS_OK) run_folder_discard(c);
    return s;
}

void run_folder_discard(const config *c) {
    static const char *const names[] = {"config.yaml", "log.txt",    "run.db",
                                        "run.db-wal",  "run.db-shm", "run.db-journal"};
    char path[4096];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        run_folder_path(path, sizeof path, c, names[i]);
        unlink(path);
    }
    rmdir(c->run.dir); /* stays when it holds anything else */
}
