/* From shards to a checkpoint: what compute rank 0's thread does when all of them are durable. */
#include "trainer/checkpoint_private.h"

#include "core/clock.h"
#include "core/file.h"
#include "core/json.h"
#include "core/log.h"
#include "trainer/events.h"

#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static const char partial[] = ".partial";

/* ---------------------------------------------------------------- the manifest */

static void add_config(void *object, const char *key, const char *value) {
    json_object_set_new(object, key, json_string(value));
}

static json_t *describe_spikes(const spikes *s) {
    json_t *losses = json_array();
    for (int i = 0; i < s->count; i++) json_array_append_new(losses, json_finite(s->losses[i]));
    return json_pack("{s:b, s:o}", "above", s->above, "losses", losses);
}

static json_t *describe_box(const safetensors_entry *e, const char *text, int file) {
    tensor_box b;
    if (e->rank != 2 || !box_parse(&b, e->name, text)) return NULL;
    return json_pack("{s:s, s:s, s:i, s:I, s:I, s:I, s:I, s:I, s:I, s:s}", "name", b.tensor, "kind", b.kind, "file",
                     file, "rows", (json_int_t)b.rows, "cols", (json_int_t)b.cols, "row", (json_int_t)b.row, "col",
                     (json_int_t)b.col, "n_rows", (json_int_t)e->shape[0], "n_cols", (json_int_t)e->shape[1], "xxh3",
                     b.hash);
}

/* A shard's line in files and its boxes. */
static status describe_shard(json_t *files, json_t *boxes, const char *folder, int rank) {
    char name[CHECKPOINT_NAME_BYTES], path[CHECKPOINT_PATH_BYTES + 64];
    safetensors f;
    checkpoint_shard_name(name, rank);
    snprintf(path, sizeof path, "%s/%s", folder, name);
    TRY(safetensors_open(&f, path));
    status s = STATUS_OK;
    json_array_append_new(files, json_pack("{s:s, s:I}", "name", name, "bytes", (json_int_t)f.map_bytes));
    for (int i = 0; i < f.count && s == STATUS_OK; i++) {
        json_t *line = describe_box(&f.entries[i], safetensors_metadata(&f, f.entries[i].name), rank);
        if (!line || json_array_append_new(boxes, line) != 0)
            s = status_fail(STATUS_INTERNAL, "%s: tensor %s cannot be described", path, f.entries[i].name);
    }
    safetensors_close(&f);
    return s;
}

static json_t *describe(const checkpoint_source *source, const checkpoint_state *state, json_t *files, json_t *boxes) {
    const config *c = source->config;
    json_t *keys = json_object();
    config_visit(c, add_config, keys);
    return json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:i, s:i, s:s, s:o, s:o, s:o, s:o, s:o, s:o}", "run",
                     source->run, "step", (json_int_t)state->step, "updates", (json_int_t)state->updates, "left_out",
                     (json_int_t)state->left_out, "tokens",
                     (json_int_t)(state->step * c->train.global_batch * c->model.context), "windows",
                     (json_int_t)source->windows, "seed", (json_int_t)c->run.seed, "tensor", source->roles->tp, "data",
                     source->roles->dp, "code_version", BULKHEAD_VERSION, "loss", json_finite(state->loss),
                     "validation_loss", json_finite(state->validation_loss), "spikes", describe_spikes(&state->spikes),
                     "config", keys, "files", files, "boxes", boxes);
}

static status write_content(const char *folder, json_t *content) {
    char path[CHECKPOINT_PATH_BYTES + 32], hash[BOX_HASH_BYTES];
    char *text = content ? json_dumps(content, JSON_COMPACT) : NULL;
    if (!text) {
        json_decref(content);
        return status_fail(STATUS_INTERNAL, "%s: out of memory for the manifest", folder);
    }
    box_hash(hash, text, strlen(text));
    free(text);
    json_t *root = json_pack("{s:s, s:i, s:s, s:o}", "format", "bulkhead-checkpoint", "version", 1, "xxh3", hash,
                             "content", content);
    snprintf(path, sizeof path, "%s/manifest.json", folder);
    status s = root ? json_write_file(path, root) : status_fail(STATUS_INTERNAL, "%s: out of memory", path);
    json_decref(root);
    return s;
}

static status write_manifest(const checkpoint_source *source, const checkpoint_state *state, const char *folder) {
    json_t *files = json_array(), *boxes = json_array();
    status s = files && boxes ? STATUS_OK : status_fail(STATUS_INTERNAL, "%s: out of memory for the manifest", folder);
    for (int rank = 0; rank < source->roles->tp * source->roles->dp && s == STATUS_OK; rank++)
        s = describe_shard(files, boxes, folder, rank);
    if (s == STATUS_OK) return write_content(folder, describe(source, state, files, boxes));
    json_decref(files);
    json_decref(boxes);
    return s;
}

static status write_config(const config *c, const char *folder) {
    char path[CHECKPOINT_PATH_BYTES + 32];
    char *yaml = config_to_yaml(c);
    if (!yaml) return status_fail(STATUS_INTERNAL, "%s: out of memory", folder);
    snprintf(path, sizeof path, "%s/config.yaml", folder);
    status s = file_write_atomic(path, yaml, strlen(yaml));
    free(yaml);
    return s;
}

/* ---------------------------------------------------------------- folders */

/* Removes a folder of files. What is left, after a failure, is found by the next start. */
static void remove_folder(const char *path) {
    DIR *d = opendir(path);
    if (!d) return;
    for (struct dirent *e; (e = readdir(d));)
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0) unlinkat(dirfd(d), e->d_name, 0);
    closedir(d);
    if (rmdir(path) != 0) log_warn("cannot remove %s: %s", path, strerror(errno));
}

void checkpoint_discard(const config *c, int64_t step) {
    char path[CHECKPOINT_PATH_BYTES];
    checkpoint_path(path, c, step, false);
    remove_folder(path);
}

void checkpoint_clean(const config *c) {
    char folder[CHECKPOINT_PATH_BYTES], path[CHECKPOINT_PATH_BYTES + 300];
    checkpoint_folder(folder, c);
    DIR *d = opendir(folder);
    if (!d) return;
    for (struct dirent *e; (e = readdir(d));) {
        size_t length = strlen(e->d_name);
        if (strncmp(e->d_name, "step-", 5) != 0 || length < sizeof partial ||
            strcmp(e->d_name + length - strlen(partial), partial) != 0)
            continue;
        snprintf(path, sizeof path, "%s/%s", folder, e->d_name);
        remove_folder(path);
    }
    closedir(d);
}

/* Takes a checkpoint out of the folder's history, in one moment, then its files away. */
static status remove_checkpoint(const char *path) {
    char gone[CHECKPOINT_PATH_BYTES + 32];
    snprintf(gone, sizeof gone, "%s.gone%s", path, partial);
    if (rename(path, gone) != 0) return status_fail(STATUS_IO, "cannot remove %s: %s", path, strerror(errno));
    remove_folder(gone);
    return STATUS_OK;
}

static bool is_ours(const char *path, const char *run) {
    char theirs[RUN_ID_BYTES];
    bool ours = checkpoint_run_of(theirs, path) == STATUS_OK && strcmp(theirs, run) == 0;
    status_clear();
    return ours;
}

/* The folder gets its name. One of that step is there when the run went back before it: it is replaced. */
static status give_name(const checkpoint_source *source, int64_t step) {
    char from[CHECKPOINT_PATH_BYTES], to[CHECKPOINT_PATH_BYTES], folder[CHECKPOINT_PATH_BYTES];
    checkpoint_path(from, source->config, step, false);
    checkpoint_path(to, source->config, step, true);
    checkpoint_folder(folder, source->config);
    TRY(file_sync_folder(from));
    if (file_exists(to)) {
        if (!is_ours(to, source->run))
            return status_fail(STATUS_IO, "%s exists and is not this run's: it is not overwritten", to);
        TRY(remove_checkpoint(to));
    }
    if (rename(from, to) != 0) return status_fail(STATUS_IO, "cannot name %s: %s", to, strerror(errno));
    return file_sync_folder(folder);
}

status checkpoint_set_latest(const config *c, int64_t step) {
    char path[CHECKPOINT_PATH_BYTES + 32], name[CHECKPOINT_NAME_BYTES + 1];
    checkpoint_name(name, step);
    strcat(name, "\n");
    checkpoint_folder(path, c);
    strcat(path, "/latest");
    return file_write_atomic(path, name, strlen(name));
}

/* Of this run's checkpoints up to that step the newest `keep` stay, and each keep_every-th. Those of other runs, and
 * those behind the step that the run went back to, are not touched. */
static void prune(const checkpoint_source *source, int64_t step) {
    const config *c = source->config;
    char folder[CHECKPOINT_PATH_BYTES], path[CHECKPOINT_PATH_BYTES];
    int64_t *steps, kept = 0, every = c->checkpoint.keep_every;
    int count;
    checkpoint_folder(folder, c);
    status s = checkpoint_list(folder, &steps, &count);
    for (int i = 0; i < count && s == STATUS_OK; i++) {
        checkpoint_path(path, c, steps[i], true);
        if (steps[i] > step || !is_ours(path, source->run)) continue;
        if (kept++ < c->checkpoint.keep || (every && steps[i] % every == 0)) continue;
        s = remove_checkpoint(path);
    }
    if (s != STATUS_OK) log_warn("old checkpoints stay: %s", status_message());
    status_clear();
    free(steps);
}

/* ---------------------------------------------------------------- publishing */

/* Every row up to the step is in the database, or patience has ended. */
static void wait_for_database(const checkpoint_source *source, int64_t step) {
    double end = clock_now_s() + source->database_patience_s;
    while (channel_confirmed(source->records) < step) {
        bool broken = channel_sender_status(source->records) != STATUS_OK;
        status_clear();
        if (broken || clock_now_s() > end) {
            log_warn("step %ld: the database has not said that its rows are in: the checkpoint is ahead of it",
                     (long)step);
            event_post(source->records, step, "warn", "checkpoint", "the database was behind by more than %g s",
                       broken ? 0.0 : source->database_patience_s);
            return;
        }
        nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
    }
}

static status publish(const checkpoint_source *source, const checkpoint_state *state) {
    char folder[CHECKPOINT_PATH_BYTES];
    checkpoint_path(folder, source->config, state->step, false);
    TRY(write_config(source->config, folder));
    TRY(write_manifest(source, state, folder));
    wait_for_database(source, state->step);
    TRY(give_name(source, state->step));
    return checkpoint_set_latest(source->config, state->step);
}

status checkpoint_publish(const checkpoint_source *source, const checkpoint_state *state) {
    char name[CHECKPOINT_NAME_BYTES];
    status s = publish(source, state);
    if (s != STATUS_OK) {
        checkpoint_discard(source->config, state->step);
        return s;
    }
    checkpoint_name(name, state->step);
    log_info("checkpoint %s", name);
    event_post(source->records, state->step, "info", "checkpoint", "%s", name);
    prune(source, state->step);
    checkpoint_clean(source->config); /* of what failed and could not even be removed */
    return STATUS_OK;
}
