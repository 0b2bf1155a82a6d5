#include "trainer/resume.h"

#include "core/file.h"
#include "core/log.h"
#include "trainer/events.h"
#include "trainer/run_folder.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* For the log when say() is called, and an event later. */
__attribute__((format(printf, 3, 4))) static void note(resume *r, bool warn, const char *format, ...) {
    resume_note *more = realloc(r->notes, ((size_t)r->note_count + 1) * sizeof *more);
    if (!more) return; /* nothing else is possible then; the start goes on or fails for its own reasons */
    r->notes = more;
    resume_note *new = &r->notes[r->note_count++];
    new->warn = warn;
    va_list args;
    va_start(args, format);
    vsnprintf(new->text, sizeof new->text, format, args);
    va_end(args);
}

static void say(resume *r) {
    for (; r->said < r->note_count; r->said++)
        log_line(r->notes[r->said].warn ? LOG_WARN : LOG_INFO, "%s", r->notes[r->said].text);
}

/* ---------------------------------------------------------------- what there is */

/* The newest first. Those behind the one that `latest` names belong to a future that the run has left. */
static status list_candidates(resume *r) {
    TRY(checkpoint_list(r->folder, &r->steps, &r->count));
    int64_t latest = checkpoint_latest(r->folder);
    while (latest >= 0 && r->next < r->count && r->steps[r->next] > latest) r->next++;
    return STATUS_OK;
}

/* One checkpoint, named by its folder. */
static status take_one(resume *r, const char *path) {
    char whole[CHECKPOINT_PATH_BYTES];
    snprintf(whole, sizeof whole, "%s", path);
    for (size_t n = strlen(whole); n > 1 && whole[n - 1] == '/';) whole[--n] = '\0';
    char *slash = strrchr(whole, '/');
    int64_t step = checkpoint_step_of(slash ? slash + 1 : whole);
    if (step < 0)
        return status_fail(STATUS_NO_INPUT, "--resume %s: a checkpoint's folder is named step- and eight digits", path);
    r->steps = malloc(sizeof *r->steps);
    if (!r->steps) return status_fail(STATUS_INTERNAL, "out of memory");
    r->steps[0] = step;
    r->count = 1;
    if (slash) *slash = '\0';
    snprintf(r->folder, sizeof r->folder, "%s", !slash ? "." : slash == whole ? "/" : whole);
    return STATUS_OK;
}

static bool holds(const char *folder, const char *name) {
    char *path = file_join(folder, name);
    bool there = path && file_exists(path);
    free(path);
    return there;
}

static status take_named(resume *r, const char *path) {
    static const char latest[] = "/latest";
    size_t length = strlen(path), end = strlen(latest);
    r->any_run = true;
    if (holds(path, "manifest.json")) return take_one(r, path);
    if (length > end && strcmp(path + length - end, latest) == 0 && file_exists(path))
        snprintf(r->folder, sizeof r->folder, "%.*s", (int)(length - end), path);
    else
        snprintf(r->folder, sizeof r->folder, "%s%s", path, holds(path, "checkpoints") ? "/checkpoints" : "");
    TRY(list_candidates(r));
    if (r->count > r->next) return STATUS_OK;
    return status_fail(STATUS_NO_INPUT, "--resume %s: there is no checkpoint", path);
}

status resume_find(resume *r, const config *c, const char *how) {
    *r = (resume){0};
    if (!how) return STATUS_OK;
    r->adopts = file_exists(c->run.dir);
    if (r->adopts) TRY(run_folder_read_id(c, r->run));
    if (r->run[0]) TRY(run_folder_hold(c));
    if (strcmp(how, "auto") != 0) {
        TRY(take_named(r, how));
    } else if (r->adopts) {
        checkpoint_folder(r->folder, c);
        TRY(list_candidates(r));
    }
    r->reads = r->count > r->next;
    if (r->adopts && !r->reads) note(r, false, "%s has no checkpoint: the run begins again", c->run.dir);
    say(r);
    return STATUS_OK;
}

/* ---------------------------------------------------------------- whether it may */

typedef struct comparison {
    resume *resume;
    const checkpoint *checkpoint;
    status result;
} comparison;

static bool is_in(const char *key, const char *section) {
    return strncmp(key, section, strlen(section)) == 0 && key[strlen(section)] == '.';
}

/* Without these it would be another run. A size's name stands for the keys that it sets. */
static bool must_match(const char *key) {
    if (strcmp(key, "model.size") == 0) return false;
    return is_in(key, "model") || is_in(key, "attention") || is_in(key, "data") || strcmp(key, "run.seed") == 0;
}

static void compare_key(void *user, const char *key, const char *value) {
    comparison *k = user;
    const char *was = json_string_value(json_object_get(k->checkpoint->config, key));
    if (!was || strcmp(was, value) == 0 || strcmp(key, "run.dir") == 0 || k->result != STATUS_OK) return;
    if (must_match(key)) {
        k->result =
            status_fail(STATUS_CONFIG,
                        "%s: the checkpoint %s was made with \"%s\", this configuration says \"%s\"; a run goes "
                        "on with the same model, attention, data and seed",
                        key, k->checkpoint->path, was, value);
        return;
    }
    note(k->resume, false, "%s: \"%s\" before, \"%s\" from here on", key, was, value);
}

static status check_config(resume *r, const checkpoint *k, const config *c, int64_t windows) {
    comparison compared = {.resume = r, .checkpoint = k};
    config_visit(c, compare_key, &compared);
    TRY(compared.result);
    if (k->windows == windows) return STATUS_OK;
    return status_fail(STATUS_CONFIG,
                       "data.train: the shards hold %ld samples, and held %ld when the checkpoint %s was made; a run "
                       "goes on with the same data",
                       (long)windows, (long)k->windows, k->path);
}

static status check_run(const resume *r, const checkpoint *k) {
    if (!r->run[0] || strcmp(k->run, r->run) == 0) return STATUS_OK;
    return status_fail(r->any_run ? STATUS_CONFIG : STATUS_DATA,
                       "%s: it is a checkpoint of another run than the run folder's%s", k->path,
                       r->any_run ? "; choose another run.dir" : "");
}

/* ---------------------------------------------------------------- reading */

/* Damaged or not there: the one before it may be whole. */
static bool may_skip(status s) {
    return s == STATUS_DATA || s == STATUS_NO_INPUT;
}

/* What was noted of that checkpoint alone goes with it. */
static void note_skipped(resume *r) {
    r->note_count = r->said;
    note(r, true, "a checkpoint is left out: %s", status_message());
    say(r);
    status_clear();
}

static void set_aside(resume *r, const char *path) {
    char aside[CHECKPOINT_PATH_BYTES + 128];
    snprintf(aside, sizeof aside, "%s.left", path);
    for (int n = 2; file_exists(aside); n++) snprintf(aside, sizeof aside, "%s.left-%d", path, n);
    if (rename(path, aside) == 0)
        note(r, true, "%s is no part of this run any more: it is now %s, to be removed by hand", path,
             strrchr(aside, '/') + 1);
    else
        note(r, true, "%s is no part of this run any more, but cannot be renamed: %s", path, strerror(errno));
}

/* The run goes on from that step in its own folder. Later checkpoints of it are damaged or of a future that it leaves:
 * they would count as its newest ones, and a later start could take one for its own. Another run's stay. */
static void leave_later(resume *r, const config *c, int64_t step) {
    char folder[CHECKPOINT_PATH_BYTES], path[CHECKPOINT_PATH_BYTES], run[RUN_ID_BYTES];
    int64_t *steps;
    int count;
    checkpoint_folder(folder, c);
    status s = checkpoint_list(folder, &steps, &count);
    for (int i = 0; i < count && s == STATUS_OK && steps[i] > step; i++) {
        checkpoint_path(path, c, steps[i], true);
        bool others = checkpoint_run_of(run, path) == STATUS_OK && strcmp(run, r->run) != 0;
        if (!others) set_aside(r, path);
    }
    status_clear();
    free(steps);
}

/* Rank 0: the next one that looks whole; its path is "" when there is none. */
static status next_candidate(resume *r, const config *c, int64_t windows, checkpoint *k) {
    for (; r->next < r->count; r->next++) {
        char path[CHECKPOINT_PATH_BYTES + 64], name[CHECKPOINT_NAME_BYTES];
        checkpoint_name(name, r->steps[r->next]);
        snprintf(path, sizeof path, "%s/%s", r->folder, name);
        status s = checkpoint_read(k, path);
        if (s == STATUS_OK) s = check_run(r, k);
        if (s == STATUS_OK) {
            r->next++;
            return check_config(r, k, c, windows);
        }
        checkpoint_free(k);
        if (!may_skip(s)) return s;
        note_skipped(r);
    }
    return STATUS_OK;
}

status resume_load(resume *r, const config *c, int64_t windows, params *p, ops *o, const comm_roles *roles,
                   checkpoint_state *state) {
    bool first = roles->compute_rank == 0;
    for (;;) {
        checkpoint k = {0};
        char path[CHECKPOINT_PATH_BYTES] = "";
        status s = comm_agree(roles->compute, first ? next_candidate(r, c, windows, &k) : STATUS_OK);
        if (first && s == STATUS_OK) snprintf(path, sizeof path, "%s", k.path);
        if (s == STATUS_OK && MPI_Bcast(path, sizeof path, MPI_CHAR, 0, roles->compute) != MPI_SUCCESS)
            s = status_fail(STATUS_INTERNAL, "passing on the checkpoint's path failed");
        if (s == STATUS_OK && !path[0])
            s = status_fail(STATUS_DATA,
                            "%s: no checkpoint is whole; what each lacks is said above. Bring one back, or begin in "
                            "another run.dir",
                            c->run.dir);
        if (s != STATUS_OK) {
            checkpoint_free(&k);
            return s;
        }
        if (!first) s = checkpoint_read(&k, path);
        if (s == STATUS_OK) s = checkpoint_load(&k, p, o);
        s = comm_agree(roles->compute, s);
        *state = k.state;
        if (s == STATUS_OK && first) {
            note(r, false, "the run goes on from %s, written by tensor %d x data %d ranks", path, k.tp, k.dp);
            if (r->adopts && !holds(c->run.dir, "run.db"))
                note(r, true, "%s/run.db is gone: rows up to step %ld are lost", c->run.dir, (long)k.state.step);
            if (r->adopts && strcmp(k.run, r->run) == 0) leave_later(r, c, k.state.step);
            say(r);
        }
        checkpoint_free(&k);
        if (s == STATUS_OK || !may_skip(s)) return s;
        if (first)
            note_skipped(r);
        else
            status_clear();
    }
}

void resume_tell(const resume *r, channel_sender *records, int64_t step) {
    for (int i = 0; i < r->note_count; i++)
        event_post(records, step, r->notes[i].warn ? "warn" : "info", "resume", "%s", r->notes[i].text);
}

void resume_free(resume *r) {
    free(r->steps);
    free(r->notes);
    *r = (resume){0};
}
