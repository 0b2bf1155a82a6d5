/* The runs of a sweep, started and waited for: one process that starts launchers, and does nothing else.
 *
 * Signals are blocked and taken one at a time by sigtimedwait, so nothing here runs in a handler. A launcher gets a
 * process group of its own, so that Ctrl-C reaches only us (mpirun would give its ranks one second); it is asked for a
 * checkpoint by SIGUSR1, by us or, when we die, by the kernel. */
#include "core/clock.h"
#include "core/file.h"
#include "core/log.h"
#include "core/ops/ops.h"
#include "core/shell.h"
#include "trainer/sweep_gpus.h"
#include "trainer/sweep_private.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { SAME_REQUEST_S = 5, MOST_CRASHES = 2, TICK_MS = 500, ALONE_S = 10, GPU_LIST_BYTES = 1024 };

typedef struct slot {
    pid_t pid; /* of the launcher; 0: nobody */
    int run;
    double since_s;
    char gpus[GPU_LIST_BYTES];
    bool had_ranks; /* the launcher is mpirun, and has had children */
    double alone_since_s;
} slot;

typedef struct execution {
    sweep *s;
    const sweep_options *o;
    sweep_gpus gpus;
    slot *slots;    /* [o->jobs] */
    int *crashes;   /* [s->count] launches that a rank's death has ended */
    bool *given_up; /* [s->count] it failed in this call */
    sigset_t signals, before;
    int requests; /* to stop */
    double asked_s;
} execution;

/* ---------------------------------------------------------------- a launch */

/* The share of this process's cores that belongs to a slot; nothing changes where there are fewer cores than slots. */
static void take_cores(int slot_index, int jobs) {
    cpu_set_t all, mine;
    CPU_ZERO(&mine);
    if (sched_getaffinity(0, sizeof all, &all) != 0) return;
    int count = CPU_COUNT(&all), seen = 0;
    if (count < jobs) return;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &all)) continue;
        if (seen * jobs / count == slot_index) CPU_SET(cpu, &mine);
        seen++;
    }
    sched_setaffinity(0, sizeof mine, &mine);
}

/* The child's way into the launcher; out: where it writes, locked. */
_Noreturn static void become(const execution *e, int slot_index, const sweep_run *run, int out, pid_t parent) {
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGUSR1);
    if (getppid() != parent) _exit(STATUS_RESTART);
    int nothing = open("/dev/null", O_RDONLY);
    dup2(nothing, STDIN_FILENO);
    dup2(out, STDOUT_FILENO);
    dup2(out, STDERR_FILENO);
    if (e->o->jobs > 1 && run->threads == 0) take_cores(slot_index, e->o->jobs);
    if (e->slots[slot_index].gpus[0]) setenv("CUDA_VISIBLE_DEVICES", e->slots[slot_index].gpus, 1);
    signal(SIGPIPE, SIG_DFL);
    signal(SIGXFSZ, SIG_DFL);
    sigprocmask(SIG_SETMASK, &e->before, NULL);
    execvp(run->command[0], run->command);
    dprintf(STDERR_FILENO, "bulkhead sweep: cannot start %s: %s\n", run->command[0], strerror(errno));
    _exit(127);
}

static void write_mark(const sweep_run *run, int out) {
    char *text = NULL, now[32];
    size_t bytes;
    time_t t = time(NULL);
    struct tm utc;
    strftime(now, sizeof now, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&t, &utc));
    FILE *line = open_memstream(&text, &bytes);
    if (!line) return;
    fprintf(line, SWEEP_LAUNCH_MARK "%s", now);
    for (char **word = run->command; *word; word++) {
        fputc(' ', line);
        shell_print_word(line, *word);
    }
    fputc('\n', line);
    fclose(line);
    if (write(out, text, bytes) < 0) log_warn("%s cannot be written: %s", run->output, strerror(errno));
    free(text);
}

/* How many GPUs a run is given: none where there are none, or where they are not all on this host. */
static int gpus_of(const execution *e, const sweep_run *run) {
    bool given = run->may_use_gpus && run->compute_ranks <= e->gpus.count;
    return given ? run->compute_ranks : 0;
}

/* A run that has lost a rank is wanted again, whatever the database heard of it. */
static bool wants(const execution *e, int index) {
    const sweep_run *run = &e->s->runs[index];
    bool crashed = e->crashes[index] > 0 && strcmp(run->status, "failed") == 0;
    return !e->given_up[index] && (crashed || sweep_wants(e->s, index, e->o));
}

/* *started stays false where another process has the run (it holds the lock of the file that its launches write to), it
 * has become done, or too few GPUs are free. */
static status start(execution *e, int slot_index, int index, bool *started) {
    sweep_run *run = &e->s->runs[index];
    slot *to = &e->slots[slot_index];
    int out;
    TRY(file_lock(&out, run->output));
    if (out < 0) return STATUS_OK;
    status s = sweep_look_at(run, false);
    if (s != STATUS_OK || !wants(e, index) || !sweep_gpus_take(&e->gpus, gpus_of(e, run), to->gpus, sizeof to->gpus)) {
        close(out);
        return s;
    }
    bool goes_on = strcmp(run->status, "new") != 0;
    write_mark(run, out);
    pid_t parent = getpid(), pid = fork();
    if (pid == 0) become(e, slot_index, run, out, parent);
    close(out);
    if (pid < 0) {
        sweep_gpus_give(&e->gpus, to->gpus);
        return status_fail(STATUS_INTERNAL, "cannot start a process: %s", strerror(errno));
    }
    setpgid(pid, pid); /* whoever comes first */
    to->pid = pid;
    to->run = index;
    to->since_s = clock_now_s();
    to->had_ranks = false;
    to->alone_since_s = 0;
    snprintf(run->status, sizeof run->status, "running");
    *started = true;
    log_info("%s: %s, %d rank%s%s%s; it writes to %s", run->name, goes_on ? "goes on" : "begins", run->ranks,
             run->ranks == 1 ? "" : "s", to->gpus[0] ? ", GPUs " : "", to->gpus, run->output);
    return STATUS_OK;
}

/* ---------------------------------------------------------------- an end */

static bool rank_died(int code) {
    return code == 134 || code == 137 || code == 139;
}

static void fail(execution *e, int index, int code) {
    sweep_run *run = &e->s->runs[index];
    snprintf(run->status, sizeof run->status, "failed");
    run->exit_code = code;
    sweep_read_last_line(run);
    e->given_up[index] = true;
    log_error("%s: failed, exit code %d: %s", run->name, code, run->last_line);
}

static status take_end(execution *e, slot *from, int code) {
    int index = from->run;
    sweep_run *run = &e->s->runs[index];
    double seconds = clock_now_s() - from->since_s;
    from->pid = 0;
    sweep_gpus_give(&e->gpus, from->gpus);
    TRY(sweep_look_at(run, false));
    bool done = sweep_is_done(run);
    bool saved = code == STATUS_RESTART && strcmp(run->status, "interrupted") == 0;
    if (code == 0 && done)
        log_info("%s: %s after %.0f s", run->name, run->status, seconds);
    else if (e->requests > 0)
        log_info("%s: ended with exit code %d", run->name, code);
    else if (saved)
        log_info("%s: stopped with a checkpoint; it is started again", run->name);
    else if (rank_died(code) && e->crashes[index]++ < MOST_CRASHES)
        log_warn("%s: a rank has died (exit code %d); it is started again", run->name, code);
    else
        fail(e, index, code);
    return STATUS_OK;
}

static status collect(execution *e) {
    for (int i = 0; i < e->o->jobs; i++) {
        int how;
        if (e->slots[i].pid == 0 || waitpid(e->slots[i].pid, &how, WNOHANG) != e->slots[i].pid) continue;
        TRY(take_end(e, &e->slots[i], WIFEXITED(how) ? WEXITSTATUS(how) : 128 + WTERMSIG(how)));
    }
    return STATUS_OK;
}

/* ---------------------------------------------------------------- an mpirun that stays alone */

/* The state and the parent of a process, from /proc. */
static bool read_process(const char *number, char *state, int *parent) {
    char path[300], text[512];
    snprintf(path, sizeof path, "/proc/%s/stat", number);
    FILE *f = fopen(path, "r");
    if (!f) return false;
    size_t bytes = fread(text, 1, sizeof text - 1, f);
    fclose(f);
    text[bytes] = '\0';
    char *name_end = strrchr(text, ')');
    return name_end && sscanf(name_end + 1, " %c %d", state, parent) == 2;
}

static bool has_children(pid_t pid) {
    DIR *processes = opendir("/proc");
    bool found = !processes;
    for (struct dirent *d; !found && (d = readdir(processes));) {
        char state;
        int parent;
        found = isdigit((unsigned char)d->d_name[0]) && read_process(d->d_name, &state, &parent) && parent == pid &&
                state != 'Z';
    }
    if (processes) closedir(processes);
    return found;
}

static bool is_mpirun(const sweep_run *run) {
    const char *slash = strrchr(run->command[0], '/');
    return strcmp(slash ? slash + 1 : run->command[0], "mpirun") == 0;
}

/* A rank that dies while it connects may have its mpirun never end (docs/operations.md). */
static void end_lonely(execution *e) {
    for (int i = 0; i < e->o->jobs; i++) {
        slot *at = &e->slots[i];
        if (at->pid == 0 || !is_mpirun(&e->s->runs[at->run])) continue;
        if (has_children(at->pid)) {
            at->had_ranks = true;
            at->alone_since_s = 0;
        } else if (at->had_ranks && at->alone_since_s == 0) {
            at->alone_since_s = clock_now_s();
        } else if (at->had_ranks && clock_now_s() - at->alone_since_s > ALONE_S) {
            log_warn("%s: mpirun has nobody left to run, but does not end: it is killed", e->s->runs[at->run].name);
            kill(at->pid, SIGKILL);
        }
    }
}

/* ---------------------------------------------------------------- until nothing is left */

static void signal_all(const execution *e, int number) {
    for (int i = 0; i < e->o->jobs; i++)
        if (e->slots[i].pid) kill(e->slots[i].pid, number);
}

/* The first asks for checkpoints; a later one ends the runs, the next kills what is left of them. */
static void take_request(execution *e, int number) {
    static const int hands_on[] = {SIGUSR1, SIGTERM, SIGKILL};
    double now = clock_now_s();
    if (e->requests > 0 && now - e->asked_s <= SAME_REQUEST_S) return;
    int which = e->requests < 2 ? e->requests : 2;
    e->asked_s = now;
    e->requests++;
    log_warn("%s: %s", strsignal(number),
             which == 0 ? "the runs are asked for a checkpoint; again in 5 s or later, and they end without one"
                        : "the runs are ended");
    signal_all(e, hands_on[which]);
}

static void wait_a_while(execution *e) {
    const struct timespec tick = {.tv_nsec = TICK_MS * 1000000L};
    int number = sigtimedwait(&e->signals, NULL, &tick);
    if (number > 0 && number != SIGCHLD) take_request(e, number);
}

static bool is_ours(const execution *e, int index) {
    for (int i = 0; i < e->o->jobs; i++)
        if (e->slots[i].pid && e->slots[i].run == index) return true;
    return false;
}

static int running(const execution *e) {
    int count = 0;
    for (int i = 0; i < e->o->jobs; i++) count += e->slots[i].pid != 0;
    return count;
}

/* Fills the free slots in the order of the runs; *left: runs that wait, for a slot, GPUs or another process. */
static status fill(execution *e, int *left) {
    *left = 0;
    int at = 0;
    for (int i = 0; i < e->s->count; i++) {
        bool started = false;
        if (!wants(e, i) || is_ours(e, i)) continue;
        while (at < e->o->jobs && e->slots[at].pid) at++;
        if (at < e->o->jobs) TRY(start(e, at, i, &started));
        *left += !started && wants(e, i);
    }
    return STATUS_OK;
}

static status tell_stop(const execution *e) {
    int left = 0;
    for (int i = 0; i < e->s->count; i++) left += wants(e, i);
    return left > 0 ? status_fail(STATUS_RESTART, "stopped; %d run%s to do, start the sweep again to go on", left,
                                  left == 1 ? " is" : "s are")
                    : STATUS_OK;
}

static status go(execution *e) {
    for (;;) {
        int left = 0;
        TRY(collect(e));
        if (e->requests == 0) TRY(fill(e, &left));
        if (running(e) + left == 0) return e->requests > 0 ? tell_stop(e) : STATUS_OK;
        wait_a_while(e);
        end_lonely(e);
    }
}

/* ---------------------------------------------------------------- the door */

static void announce(const execution *e) {
    int done = 0, failed = 0, elsewhere = 0, wanted = 0;
    for (int i = 0; i < e->s->count; i++) {
        bool wants = sweep_wants(e->s, i, e->o), fails = strcmp(e->s->runs[i].status, "failed") == 0;
        wanted += wants;
        elsewhere += wants && strcmp(e->s->runs[i].status, "running") == 0;
        failed += fails && !wants;
        done += !fails && !wants;
    }
    log_info("%d runs: %d done%s, %d failed before, %d to do, %d at a time", e->s->count, done,
             e->o->only >= 0 ? " or left to others" : "", failed, wanted, e->o->jobs);
    if (elsewhere > 0) log_info("%d of them are in the hands of another process, which is waited for", elsewhere);
}

static status check_gpus(const execution *e) {
    for (int i = 0; i < e->s->count && !e->s->launcher; i++) {
        const sweep_run *run = &e->s->runs[i];
        bool wants = run->needs_gpus || (run->may_use_gpus && e->gpus.count > 0);
        if (sweep_wants(e->s, i, e->o) && wants && run->compute_ranks > e->gpus.count)
            return status_fail(STATUS_CONFIG,
                               "run %s: %d compute ranks, but this host shows %d GPUs; lower parallel.tensor or "
                               "parallel.data, set run.device: cpu, or give a launcher that reaches more hosts",
                               run->name, run->compute_ranks, e->gpus.count);
    }
    return STATUS_OK;
}

static void open_gpus(execution *e) {
    bool any = false;
    for (int i = 0; i < e->s->count; i++) any = any || e->s->runs[i].may_use_gpus;
    sweep_gpus_open(&e->gpus, any ? ops_cuda_devices() : 0, getenv("CUDA_VISIBLE_DEVICES"));
}

static void block_signals(execution *e) {
    static const int numbers[] = {SIGCHLD, SIGINT, SIGTERM, SIGHUP, SIGUSR1};
    sigemptyset(&e->signals);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) sigaddset(&e->signals, numbers[i]);
    signal(SIGCHLD, SIG_DFL);
    sigprocmask(SIG_BLOCK, &e->signals, &e->before);
}

/* After a fault of ours no run is left alone. */
static void end_all(execution *e) {
    signal_all(e, SIGUSR1);
    while (running(e) > 0) {
        if (collect(e) != STATUS_OK) log_error("%s", status_message());
        wait_a_while(e);
    }
}

status sweep_execute(sweep *s, const sweep_options *o) {
    execution e = {.s = s, .o = o};
    e.slots = calloc((size_t)o->jobs, sizeof *e.slots);
    e.crashes = calloc((size_t)s->count, sizeof *e.crashes);
    e.given_up = calloc((size_t)s->count, sizeof *e.given_up);
    status result =
        e.slots && e.crashes && e.given_up ? STATUS_OK : status_fail(STATUS_INTERNAL, "out of memory for the sweep");
    open_gpus(&e);
    if (result == STATUS_OK) result = check_gpus(&e);
    if (result == STATUS_OK) result = file_make_dirs(s->folder);
    if (result == STATUS_OK) {
        announce(&e);
        block_signals(&e);
        result = go(&e);
        if (running(&e) > 0) {
            e.requests = 1;
            end_all(&e);
        }
        sigprocmask(SIG_SETMASK, &e.before, NULL);
    }
    sweep_gpus_close(&e.gpus);
    free(e.slots);
    free(e.crashes);
    free(e.given_up);
    return result;
}
