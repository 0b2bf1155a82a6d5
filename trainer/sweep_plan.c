/* What each run of a sweep is and needs, before any is started, and what became of it. */
#include "core/file.h"
#include "diag/run_status.h"
#include "trainer/plan.h"
#include "trainer/sweep_private.h"
#include "trainer/vocab.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static status out_of_memory(void) {
    return status_fail(STATUS_INTERNAL, "out of memory for the sweep");
}

/* ---------------------------------------------------------------- a list of words */

typedef struct words {
    char **list; /* NULL behind the last */
    int count;
} words;

static void free_words(words *w) {
    for (int i = 0; i < w->count; i++) free(w->list[i]);
    free(w->list);
}

__attribute__((format(printf, 2, 3))) static status add_word(words *w, const char *format, ...) {
    char **more = realloc(w->list, (size_t)(w->count + 2) * sizeof *more), *text = NULL;
    if (!more) return out_of_memory();
    w->list = more;
    va_list args;
    va_start(args, format);
    if (vasprintf(&text, format, args) < 0) text = NULL;
    va_end(args);
    w->list[w->count] = text;
    w->list[w->count + 1] = NULL;
    if (!text) return out_of_memory();
    w->count++;
    return STATUS_OK;
}

/* ---------------------------------------------------------------- what became of a run */

/* Whether another process goes on with the run. */
static status is_held(const sweep_run *run, bool *held) {
    int fd;
    *held = false;
    if (!file_exists(run->output)) return STATUS_OK;
    TRY(file_lock(&fd, run->output));
    *held = fd < 0;
    if (fd >= 0) close(fd);
    return STATUS_OK;
}

/* mpirun's frame around what a rank said is no reason. */
static bool is_reason(const char *line) {
    return line[0] && line[strspn(line, "- ")];
}

void sweep_read_last_line(sweep_run *run) {
    static const char ours[] = "bulkhead train: ";
    enum { END_BYTES = 16384 };
    char text[END_BYTES + 1], *rest = NULL;
    run->last_line[0] = '\0';
    FILE *f = fopen(run->output, "r");
    if (!f) return;
    if (fseek(f, -END_BYTES, SEEK_END) != 0) rewind(f);
    size_t bytes = fread(text, 1, END_BYTES, f);
    fclose(f);
    for (size_t i = 0; i < bytes; i++)
        if (text[i] == '\0') text[i] = '?';
    text[bytes] = '\0';
    bool said = false;
    for (char *line = strtok_r(text, "\r\n", &rest); line; line = strtok_r(NULL, "\r\n", &rest)) {
        bool is_ours = strncmp(line, ours, strlen(ours)) == 0;
        if (strncmp(line, SWEEP_LAUNCH_MARK, strlen(SWEEP_LAUNCH_MARK)) == 0) {
            said = false;
            run->last_line[0] = '\0';
            continue;
        }
        if (!is_ours && (said || !is_reason(line))) continue;
        said = said || is_ours;
        snprintf(run->last_line, sizeof run->last_line, "%s", line);
    }
}

/* A session that was killed stays `running` in its database. */
status sweep_look_at(sweep_run *run, bool held) {
    run_status is;
    TRY(run_status_read(run->dir, &is));
    const char *word = held                              ? "running"
                       : is.word[0] == '\0'              ? "new"
                       : strcmp(is.word, "running") == 0 ? "interrupted"
                                                         : is.word;
    snprintf(run->status, sizeof run->status, "%s", word);
    run->exit_code = (int)is.exit_code;
    if (strcmp(word, "failed") == 0) sweep_read_last_line(run);
    return STATUS_OK;
}

/* ---------------------------------------------------------------- configuration and command */

/* section.key=value of all that the run sets, those of the person behind its own. */
static status list_settings(const sweep_run *run, const char *const *settings, int setting_count, words *to) {
    for (int i = 0; i < run->setting_count; i++)
        TRY(add_word(to, "%s=%s", run->settings[i].key, run->settings[i].value));
    for (int i = 0; i < setting_count; i++) TRY(add_word(to, "%s", settings[i]));
    TRY(add_word(to, "run.name=%s", run->name));
    return add_word(to, "run.dir=%s", run->dir);
}

/* One word of the launcher, its {ranks} filled in. */
static status add_launcher_word(words *to, const char *word, int length, int ranks) {
    static const char mark[] = "{ranks}";
    char text[4096];
    size_t used = 0;
    for (int i = 0; i < length && used + 16 < sizeof text;) {
        bool here = strncmp(word + i, mark, strlen(mark)) == 0;
        used += here ? (size_t)snprintf(text + used, 16, "%d", ranks) : 1;
        if (!here) text[used - 1] = word[i];
        i += here ? (int)strlen(mark) : 1;
    }
    return add_word(to, "%.*s", (int)used, text);
}

static status add_launcher(const sweep *s, int ranks, words *to) {
    const char *launcher = s->launcher;
    if (!launcher)
        launcher = geteuid() == 0 ? "mpirun --allow-run-as-root --oversubscribe --bind-to none -n {ranks}"
                                  : "mpirun --oversubscribe --bind-to none -n {ranks}";
    for (const char *p = launcher + strspn(launcher, " "); *p; p += strspn(p, " ")) {
        int length = (int)strcspn(p, " ");
        TRY(add_launcher_word(to, p, length, ranks));
        p += length;
    }
    return STATUS_OK;
}

static status make_command(const sweep *s, sweep_run *run, const words *settings, const char *program) {
    words command = {0};
    status result = add_launcher(s, run->ranks, &command);
    if (result == STATUS_OK) result = add_word(&command, "%s", program);
    if (result == STATUS_OK) result = add_word(&command, "train");
    if (result == STATUS_OK) result = add_word(&command, "%s", s->config);
    for (int i = 0; i < settings->count; i++) {
        if (result == STATUS_OK) result = add_word(&command, "--set");
        if (result == STATUS_OK) result = add_word(&command, "%s", settings->list[i]);
    }
    if (result == STATUS_OK) result = add_word(&command, "--resume");
    if (result == STATUS_OK) result = add_word(&command, "auto");
    run->command = command.list;
    return result;
}

/* The run's configuration, whole. */
static status load(const sweep *s, const words *settings, config *c) {
    dataset_info info;
    TRY(config_load(c, s->config, (const char *const *)settings->list, settings->count));
    status result = vocab_resolve(c, &info);
    if (result != STATUS_OK) config_free(c);
    return result;
}

static status take_plan(sweep_run *run, const config *c) {
    plan p;
    TRY(plan_make(&p, c));
    run->ranks = p.world;
    run->compute_ranks = p.tp * p.dp;
    run->may_use_gpus = c->run.device != DEVICE_CPU;
    run->needs_gpus = c->run.device == DEVICE_CUDA;
    run->threads = (int)c->run.threads;
    return STATUS_OK;
}

/* With the run's name before the message. */
static status fail_run(const sweep *s, const sweep_run *run, status code) {
    char why[1600];
    snprintf(why, sizeof why, "%s", status_message());
    status_clear();
    return status_fail(code, "%s: run %s: %s", s->path, run->name, why);
}

static status plan_run(sweep *s, sweep_run *run, const char *const *settings, int setting_count, const char *program) {
    words all = {0};
    config c;
    bool held = false;
    if (asprintf(&run->dir, "%s/%s", s->folder, run->name) < 0) run->dir = NULL;
    if (asprintf(&run->output, "%s/%s.out", s->folder, run->name) < 0) run->output = NULL;
    if (!run->dir || !run->output) return out_of_memory();
    status result = list_settings(run, settings, setting_count, &all);
    if (result == STATUS_OK) result = load(s, &all, &c);
    if (result == STATUS_OK) {
        result = take_plan(run, &c);
        if (result == STATUS_OK) result = is_held(run, &held);
        if (result == STATUS_OK) result = sweep_look_at(run, held);
        if (result == STATUS_OK && sweep_is_done(run)) result = run_status_compare(run->dir, &c);
        if (result == STATUS_OK && c.run.group[0] == '\0') result = add_word(&all, "run.group=%s", s->name);
        config_free(&c);
    }
    if (result == STATUS_OK) result = make_command(s, run, &all, program);
    free_words(&all);
    return result == STATUS_OK ? result : fail_run(s, run, result);
}

static status plan_runs(sweep *s, const char *const *settings, int setting_count, const char *program) {
    for (int i = 0; i < s->count; i++) TRY(plan_run(s, &s->runs[i], settings, setting_count, program));
    return STATUS_OK;
}

status sweep_plan(sweep *s, const char *const *settings, int setting_count, const char *program) {
    if (!s->inline_config) return plan_runs(s, settings, setting_count, program);
    bool is_new = !file_exists(s->folder);
    TRY(file_make_dirs(s->folder));
    status result = file_write_atomic(s->config, s->inline_config, strlen(s->inline_config));
    if (result == STATUS_OK) result = plan_runs(s, settings, setting_count, program);
    if (result != STATUS_OK && is_new) { /* what never began leaves nothing */
        unlink(s->config);
        rmdir(s->folder);
    }
    return result;
}

bool sweep_is_done(const sweep_run *run) {
    return strcmp(run->status, "finished") == 0 || strcmp(run->status, "stopped") == 0;
}

status sweep_find(const sweep *s, const char *word, int *index) {
    char *end = NULL;
    long number = strtol(word, &end, 10);
    *index = end != word && !*end && number >= 1 && number <= s->count ? (int)number - 1 : -1;
    for (int i = 0; *index < 0 && i < s->count; i++)
        if (strcmp(s->runs[i].name, word) == 0) *index = i;
    if (*index >= 0) return STATUS_OK;
    return status_fail(STATUS_USAGE, "--only %s: the runs are 1 to %d, or their names; --dry-run lists them", word,
                       s->count);
}

bool sweep_wants(const sweep *s, int index, const sweep_options *o) {
    const sweep_run *run = &s->runs[index];
    if (o->only >= 0 && o->only != index) return false;
    return !sweep_is_done(run) && (o->retry_failed || strcmp(run->status, "failed") != 0);
}
