#include "trainer/run_folder.h"

#include "core/clock.h"
#include "core/file.h"
#include "core/log.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* How long a job that is ending may still have the folder: ranks whose mpirun was killed need a moment to see it. */
static const double PATIENCE_S = 10;

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

static status write_id(const config *c, char id[RUN_FOLDER_ID_BYTES]) {
    unsigned char random[(RUN_FOLDER_ID_BYTES - 1) / 2];
    char path[4096];
    if (getrandom(random, sizeof random, 0) != sizeof random)
        return status_fail(STATUS_INTERNAL, "no random numbers for the run's identity: %s", strerror(errno));
    for (size_t i = 0; i < sizeof random; i++) snprintf(id + 2 * i, 3, "%02x", random[i]);
    run_folder_path(path, sizeof path, c, "run-id");
    return file_write_atomic(path, id, RUN_FOLDER_ID_BYTES - 1);
}

static status write_config(const config *c) {
    char path[4096];
    char *yaml = config_to_yaml(c);
    run_folder_path(path, sizeof path, c, "config.yaml");
    status s = yaml ? file_write_atomic(path, yaml, strlen(yaml))
                    : status_fail(STATUS_INTERNAL, "out of memory for the resolved configuration");
    free(yaml);
    return s;
}

status run_folder_create(const config *c, char id[RUN_FOLDER_ID_BYTES]) {
    TRY(make_parent(c->run.dir));
    if (mkdir(c->run.dir, 0777) != 0) {
        if (errno == EEXIST)
            return status_fail(
                STATUS_CONFIG,
                "the run folder %s exists and is not overwritten; go on with it (--resume auto), choose another "
                "run.name or run.dir, or remove it",
                c->run.dir);
        return status_fail(STATUS_IO, "cannot create the run folder %s: %s", c->run.dir, strerror(errno));
    }
    status s = write_id(c, id);
    if (s == STATUS_OK) s = write_config(c);
    if (s != STATUS_OK) run_folder_discard(c);
    return s;
}

status run_folder_read_id(const config *c, char id[RUN_FOLDER_ID_BYTES]) {
    static const char *const others[] = {"run.db", "config.yaml", "checkpoints"};
    char path[4096], *text = NULL;
    id[0] = '\0';
    run_folder_path(path, sizeof path, c, "run-id");
    if (file_exists(path)) {
        TRY(file_read_all(&text, NULL, path, 4096));
        bool good = strlen(text) == RUN_FOLDER_ID_BYTES - 1 && strspn(text, "0123456789abcdef") == strlen(text);
        if (good) snprintf(id, RUN_FOLDER_ID_BYTES, "%s", text);
        free(text);
        return good ? STATUS_OK : status_fail(STATUS_CONFIG, "%s is no run's identity", path);
    }
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        run_folder_path(path, sizeof path, c, others[i]);
        if (file_exists(path))
            return status_fail(STATUS_CONFIG,
                               "the folder %s holds a %s but no run-id: it is not a run that can go on; choose another "
                               "run.dir",
                               c->run.dir, others[i]);
    }
    return STATUS_OK;
}

status run_folder_adopt(const config *c, char id[RUN_FOLDER_ID_BYTES]) {
    if (!id[0]) TRY(write_id(c, id));
    return write_config(c);
}

status run_folder_hold(const config *c) {
    char path[4096];
    int fd; /* open, and so locked, until the process ends */
    double since_s = clock_now_s();
    run_folder_path(path, sizeof path, c, "run-id");
    TRY(file_lock(&fd, path));
    if (fd < 0) log_info("another job has the run folder %s: waiting up to %.0f s for its end", c->run.dir, PATIENCE_S);
    while (fd < 0 && clock_now_s() - since_s < PATIENCE_S) {
        nanosleep(&(struct timespec){.tv_nsec = 100000000}, NULL);
        TRY(file_lock(&fd, path));
    }
    if (fd >= 0) return STATUS_OK;
    return status_fail(STATUS_IO,
                       "the run folder %s is in use by another job; wait for its end, stop it, or choose another "
                       "run.name or run.dir",
                       c->run.dir);
}

void run_folder_discard(const config *c) {
    static const char *const names[] = {"run-id",     "config.yaml", "log.txt",       "run.db",
                                        "run.db-wal", "run.db-shm",  "run.db-journal"};
    char path[4096];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        run_folder_path(path, sizeof path, c, names[i]);
        unlink(path);
    }
    rmdir(c->run.dir); /* stays when it holds anything else */
}
