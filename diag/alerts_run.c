/* Programs that alerts start: no shell, no waiting, no part in the job. What they print goes to a file of the run's,
 * since mpirun would wait for whoever holds its pipes. */
#define _GNU_SOURCE
#include "diag/alerts_run.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MOST_PROGRAMS = 16, VARIABLES = 12, VARIABLE_BYTES = 512 };

struct alerts_programs {
    char *run_name, *run_dir, *output;
    pid_t running[MOST_PROGRAMS]; /* 0: free */
};

typedef char variable[VARIABLE_BYTES]; /* NAME=VALUE */

status alerts_programs_open(alerts_programs **out, const char *run_name, const char *run_dir) {
    alerts_programs *p = calloc(1, sizeof *p);
    *out = p;
    if (p) {
        p->run_name = strdup(run_name);
        p->run_dir = strdup(run_dir);
        if (asprintf(&p->output, "%s/alerts.log", run_dir) < 0) p->output = NULL;
    }
    if (p && p->run_name && p->run_dir && p->output) return STATUS_OK;
    alerts_programs_close(p);
    *out = NULL;
    return status_fail(STATUS_INTERNAL, "out of memory for the alerts");
}

static void make_variables(const alerts_programs *p, const alerts_firing *f, variable v[VARIABLES]) {
    const maps_matrix *m = f->worst;
    snprintf(v[0], sizeof v[0], "BULKHEAD_RUN=%s", p->run_name);
    snprintf(v[1], sizeof v[1], "BULKHEAD_RUN_DIR=%s", p->run_dir);
    snprintf(v[2], sizeof v[2], "BULKHEAD_RULE=%s", f->rule->text);
    snprintf(v[3], sizeof v[3], "BULKHEAD_STEP=%lld", (long long)f->step);
    snprintf(v[4], sizeof v[4], "BULKHEAD_FORM=%s", maps_form_names[m->form]);
    snprintf(v[5], sizeof v[5], "BULKHEAD_PART=%s", maps_part_names[m->part]);
    snprintf(v[6], sizeof v[6], "BULKHEAD_TENSOR=%s", m->tensor);
    snprintf(v[7], sizeof v[7], "BULKHEAD_LAYER=%d", m->layer);
    snprintf(v[8], sizeof v[8], "BULKHEAD_HEAD=%d", m->head);
    snprintf(v[9], sizeof v[9], "BULKHEAD_COLUMN=%s", spectrum_columns[f->rule->column].name);
    snprintf(v[10], sizeof v[10], "BULKHEAD_VALUE=%.17g", f->value);
    snprintf(v[11], sizeof v[11], "BULKHEAD_MATRICES=%d", f->matrices);
}

/* Ours replace what is there; with the launcher's variables a program of MPI's would take itself for a rank. */
static bool is_replaced(const char *entry, const variable ours[VARIABLES]) {
    static const char *const launchers[] = {"OMPI_", "PMIX_", "PRTE_", "PMI_"};
    for (int i = 0; i < 4; i++)
        if (strncmp(entry, launchers[i], strlen(launchers[i])) == 0) return true;
    for (int i = 0; i < VARIABLES; i++)
        if (strncmp(entry, ours[i], strcspn(ours[i], "=") + 1) == 0) return true;
    return false;
}

/* The environment; its strings are others'. The caller frees the list. */
static char **make_environment(variable ours[VARIABLES]) {
    size_t count = 0, n = 0;
    while (environ && environ[count]) count++;
    char **list = malloc((count + VARIABLES + 1) * sizeof *list);
    if (!list) return NULL;
    for (int i = 0; i < VARIABLES; i++) list[n++] = ours[i];
    for (size_t i = 0; i < count; i++)
        if (!is_replaced(environ[i], (const variable *)ours)) list[n++] = environ[i];
    list[n] = NULL;
    return list;
}

/* A process group of its own, standard signals, no standard input, output to the run's file. */
static int spawn(const alerts_programs *p, char **arguments, char **environment, pid_t *pid) {
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attributes;
    sigset_t standard, none;
    int error = posix_spawn_file_actions_init(&files);
    if (error) return error;
    error = posix_spawnattr_init(&attributes);
    if (error) {
        posix_spawn_file_actions_destroy(&files);
        return error;
    }
    sigemptyset(&none);
    sigemptyset(&standard);
    sigaddset(&standard, SIGPIPE);
    sigaddset(&standard, SIGXFSZ);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setsigdefault(&attributes, &standard);
    posix_spawnattr_setpgroup(&attributes, 0);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP);
    error = posix_spawn_file_actions_addopen(&files, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    if (!error)
        error = posix_spawn_file_actions_addopen(&files, STDOUT_FILENO, p->output, O_WRONLY | O_CREAT | O_APPEND, 0666);
    if (!error) error = posix_spawn_file_actions_adddup2(&files, STDOUT_FILENO, STDERR_FILENO);
    if (!error) error = posix_spawnp(pid, arguments[0], &files, &attributes, arguments, environment);
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&files);
    return error;
}

status alerts_programs_start(alerts_programs *p, const alerts_firing *f) {
    variable ours[VARIABLES];
    int slot = 0;
    while (slot < MOST_PROGRAMS && p->running[slot]) slot++;
    if (slot == MOST_PROGRAMS)
        return status_fail(STATUS_INTERNAL, "%s is not started: %d programs of alerts still run", f->rule->arguments[0],
                           MOST_PROGRAMS);
    make_variables(p, f, ours);
    char **environment = make_environment(ours);
    if (!environment) return status_fail(STATUS_INTERNAL, "out of memory for the environment of a program");
    int error = spawn(p, f->rule->arguments, environment, &p->running[slot]);
    free(environment);
    if (error == 0) return STATUS_OK;
    p->running[slot] = 0;
    return status_fail(STATUS_INTERNAL, "%s does not start: %s", f->rule->arguments[0], strerror(error));
}

bool alerts_programs_failed(alerts_programs *p, char *text, size_t size) {
    for (int i = 0; p && i < MOST_PROGRAMS; i++) {
        int how = 0;
        if (!p->running[i] || waitpid(p->running[i], &how, WNOHANG) == 0) continue;
        p->running[i] = 0;
        if (WIFEXITED(how) && WEXITSTATUS(how) == 0) continue;
        snprintf(text, size, "a program that an alert started ended with %s %d; its output is in %s",
                 WIFSIGNALED(how) ? "signal" : "exit code", WIFSIGNALED(how) ? WTERMSIG(how) : WEXITSTATUS(how),
                 p->output);
        return true;
    }
    return false;
}

void alerts_programs_close(alerts_programs *p) {
    if (!p) return;
    free(p->run_name);
    free(p->run_dir);
    free(p->output);
    free(p);
}
