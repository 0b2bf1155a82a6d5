/* The supervisor's side of diag/worker.h: one thread, which waits for the channel and for the worker at once and never
 * for one of them alone.
 *
 * Messages are numbered as they come and kept in a list until the worker has reported them as recorded; what a database
 * knows of a session (store_messages, its snapshots) says after a death where the next worker goes on. So no row is
 * lost and none comes twice. Credits are granted here, one a snapshot, since a worker does not know what the last one
 * granted. */
#define _GNU_SOURCE /* posix_spawn_file_actions_addclosefrom_np */
#include "diag/last_word.h"
#include "diag/part.h"
#include "diag/worker_private.h"

#include "core/clock.h"
#include "core/log.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

enum {
    MOST_DEATHS = 5, /* within DEATHS_S: then it is not started again */
    DEATHS_S = 60,
    FATAL_DEATHS = 2,     /* at one message: it is left out */
    FIRST_PAUSE_MS = 100, /* before the second start in a row, doubled for each further one */
    BUSY_PAUSE_MS = 2000, /* where the database cannot be opened */
    MOST_STEPS = 8,       /* snapshots that await their credit, or were left out and may still get shares */
    END_S = 150,          /* behind the last message: ensembles that rows wait for, the last rows */
    MOST_SLEEP_S = 1000,
};
static const size_t MOST_ENDED_BYTES = (size_t)512 << 20; /* kept of snapshots that the database does not take */

typedef struct kept {
    channel_message m;
    bool sent, gone; /* gone: its data was let go */
    int deaths;
    struct kept *next;
} kept;

typedef struct steps {
    int64_t step[MOST_STEPS];
    int count;
} steps;

struct diag_worker {
    const config *config;
    channel_message session; /* worker_session and the configuration */
    int rank;
    channel_receiver *channel;
    channel_sender *first;
    pid_t pid;                 /* 0: there is none */
    int socket;                /* -1: likewise */
    bool opened, closed, hung; /* hung: it was killed for that */
    double heard_s;            /* when it said something last, or owed nothing */
    status opening, result;    /* what the worker said of its start, and its end */
    char why[512];
    kept *list, **last;
    int64_t number, at; /* of the last message; of the one that the worker is at, 0: none */
    int64_t last_step;  /* of snapshots that have come */
    steps uncredited, left_out;
    double deaths_s[MOST_DEATHS], start_s;
    int deaths;
    diag_finish finish; /* how the run ended, as soon as that has come */
    bool input_over, hopeless, busy, finished;
};

/* ---------------------------------------------------------------- the process */

static int spawn(pid_t *pid, int socket) {
    char *const arguments[] = {"bulkhead", DIAG_WORKER_COMMAND, NULL};
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attributes;
    sigset_t blocked;
    int error = posix_spawn_file_actions_init(&files);
    if (error) return error;
    error = posix_spawnattr_init(&attributes);
    if (error) {
        posix_spawn_file_actions_destroy(&files);
        return error;
    }
    /* It goes on to the end of the job, as the ranks of a job that a signal ends do. */
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGTERM);
    sigaddset(&blocked, SIGINT);
    sigaddset(&blocked, SIGUSR1);
    sigaddset(&blocked, SIGUSR2);
    posix_spawnattr_setsigmask(&attributes, &blocked);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
    error = posix_spawn_file_actions_adddup2(&files, socket, WORKER_SOCKET);
    if (!error) error = posix_spawn_file_actions_addclosefrom_np(&files, WORKER_SOCKET + 1);
    if (!error) error = posix_spawn(pid, "/proc/self/exe", &files, &attributes, arguments, environ);
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&files);
    return error;
}

static status start(diag_worker *w) {
    int ends[2];
    TRY(message_pair(ends));
    int error = spawn(&w->pid, ends[1]);
    close(ends[1]);
    if (error) {
        close(ends[0]);
        w->pid = 0;
        return status_fail(STATUS_IO, "the diagnostics worker does not start: %s", strerror(error));
    }
    w->socket = ends[0];
    w->opened = w->closed = w->hung = false;
    w->heard_s = clock_now_s();
    w->opening = STATUS_OK;
    w->at = 0;
    for (kept *k = w->list; k; k = k->next) k->sent = false;
    return message_send(w->socket, &w->session, NULL);
}

/* Takes the dead process away and says how it ended. */
static void bury(diag_worker *w, char *how, size_t size) {
    int end = 0;
    if (w->socket >= 0) close(w->socket);
    w->socket = -1;
    while (w->pid && waitpid(w->pid, &end, 0) < 0 && errno == EINTR) continue;
    w->pid = 0;
    if (w->hung)
        snprintf(how, size, "no sign of life for %ld s", (long)w->config->diagnostics.patience);
    else if (WIFSIGNALED(end))
        snprintf(how, size, "signal %d (%s)", WTERMSIG(end), strsignal(WTERMSIG(end)));
    else
        snprintf(how, size, "exit code %d", WEXITSTATUS(end));
}

/* ---------------------------------------------------------------- lists */

static bool contains(const steps *s, int64_t step) {
    for (int i = 0; i < s->count; i++)
        if (s->step[i] == step) return true;
    return false;
}

/* The oldest makes room. */
static void add_step(steps *s, int64_t step) {
    if (s->count == MOST_STEPS) memmove(s->step, s->step + 1, (size_t)--s->count * sizeof(*s->step));
    s->step[s->count++] = step;
}

static bool is_of_snapshot(const channel_message *m) {
    return m->kind == CHANNEL_SNAPSHOT || m->kind == DIAG_PART;
}

static void keep(diag_worker *w, const channel_message *m) {
    kept *k = calloc(1, sizeof(*k));
    channel_message mine = *m;
    if (!k) {
        log_error("out of memory: a message to the diagnostics worker is lost");
        message_release(&mine);
        return;
    }
    k->m = mine;
    k->m.number = ++w->number;
    *w->last = k;
    w->last = &k->next;
}

/* Takes out what the condition is true of. */
static void drop_if(diag_worker *w, bool (*condition)(const channel_message *m, const void *user), const void *user) {
    for (kept **at = &w->list; *at;) {
        kept *k = *at;
        if (!condition(&k->m, user)) {
            at = &k->next;
            continue;
        }
        *at = k->next;
        message_release(&k->m);
        free(k);
    }
    for (w->last = &w->list; *w->last; w->last = &(*w->last)->next) continue;
}

/* A checkpoint stays until it is confirmed: the database knows nothing of it, and may count messages behind it. */
static bool is_recorded(const channel_message *m, const void *user) {
    const channel_progress *p = user;
    if (m->kind == DIAG_CHECKPOINT) return false;
    return is_of_snapshot(m) ? m->step <= p->step : m->kind != CHANNEL_END && m->number <= p->number;
}

static bool is_confirmed(const channel_message *m, const void *user) {
    return m->kind == DIAG_CHECKPOINT && m->step <= *(const int64_t *)user;
}

static bool is_of_step(const channel_message *m, const void *user) {
    return is_of_snapshot(m) && m->step == *(const int64_t *)user;
}

static bool has_number(const channel_message *m, const void *user) {
    return m->number == *(const int64_t *)user;
}

static bool is_any(const channel_message *m, const void *user) {
    return true;
}

/* One credit for each snapshot up to that step that has none yet. */
static void grant_up_to(diag_worker *w, int64_t step) {
    steps left = {.count = 0};
    for (int i = 0; i < w->uncredited.count; i++) {
        if (w->uncredited.step[i] > step)
            add_step(&left, w->uncredited.step[i]);
        else
            channel_grant(w->channel);
    }
    w->uncredited = left;
}

/* ---------------------------------------------------------------- what is told */

/* An event on the way that all records take. */
__attribute__((format(printf, 5, 6))) static void tell(diag_worker *w, int64_t step, const char *level,
                                                       const char *kind, const char *format, ...) {
    diag_event event = {.step = step};
    va_list args;
    va_start(args, format);
    vsnprintf(event.message, sizeof(event.message), format, args);
    va_end(args);
    snprintf(event.level, sizeof(event.level), "%s", level);
    snprintf(event.kind, sizeof(event.kind), "%s", kind);
    log_warn("%s", event.message);
    if (w->rank > 0) {
        if (channel_post(w->first, DIAG_EVENT, step, &event, sizeof(event)) != STATUS_OK) status_clear();
        return;
    }
    channel_message m = {.kind = DIAG_EVENT, .step = step, .bytes = sizeof(event)};
    if (!message_allocate(&m)) return;
    memcpy(m.data, &event, sizeof(event));
    keep(w, &m);
}

/* There will be no spectra of that snapshot from here: the first rank records that, or the worker does. */
static void refuse_snapshot(diag_worker *w, int64_t step, const char *why) {
    drop_if(w, is_of_step, &step);
    if (!contains(&w->left_out, step)) add_step(&w->left_out, step);
    grant_up_to(w, step);
    if (w->rank > 0) {
        part_head head = {.done = 0};
        snprintf(head.why, sizeof(head.why), "%s", why);
        if (channel_post(w->first, DIAG_PART, step, &head, sizeof(head)) != STATUS_OK) status_clear();
    } else if (!w->hopeless) {
        tell(w, step, "error", "drop", "the snapshot of step %lld is left out: %s", (long long)step, why);
    }
}

static void give_up(diag_worker *w, const char *how) {
    w->hopeless = true;
    w->result = STATUS_IO;
    snprintf(w->why, sizeof(w->why),
             "the diagnostics worker died %d times within %d s, the last time with %s, and is not started again: rows "
             "behind step %lld are missing",
             w->deaths, DEATHS_S, how, (long long)(w->list ? w->list->m.step : w->last_step));
    log_error("%s; training goes on without", w->why);
    channel_confirm(w->channel, INT64_MAX); /* a checkpoint need not wait for them */
    while (w->uncredited.count > 0) refuse_snapshot(w, w->uncredited.step[0], "its diagnostics worker has ended");
    drop_if(w, is_any, NULL);
}

/* ---------------------------------------------------------------- a death */

static void leave_out(diag_worker *w, const channel_message *m, const char *how) {
    int64_t number = m->number, step = m->step;
    char why[200];
    snprintf(why, sizeof(why), "%d diagnostics workers died at it, the last with %s", FATAL_DEATHS, how);
    if (m->kind == CHANNEL_END) {
        give_up(w, how);
    } else if (is_of_snapshot(m)) {
        refuse_snapshot(w, step, why);
    } else {
        drop_if(w, has_number, &number);
        tell(w, step, "error", "fault", "a record of step %lld is left out: %s", (long long)step, why);
    }
}

/* What was computed, let go and not written is lost now. */
static void note_lost(diag_worker *w) {
    for (kept *k = w->list; k;) {
        int64_t step = k->m.step;
        bool lost = k->gone;
        k = k->next;
        if (!lost) continue;
        refuse_snapshot(w, step, "its rows waited for the database when the diagnostics worker died");
        k = w->list;
    }
}

/* Counts it. Returns how many there were within DEATHS_S. */
static int count_death(diag_worker *w) {
    double now = clock_now_s();
    int recent = 0;
    for (int i = 0; i < w->deaths; i++)
        if (now - w->deaths_s[i] < DEATHS_S) w->deaths_s[recent++] = w->deaths_s[i];
    w->deaths_s[recent] = now;
    w->deaths = recent + 1;
    return w->deaths;
}

static void take_death(diag_worker *w) {
    char how[64], where[64] = "";
    bool was_open = w->opened;
    bury(w, how, sizeof(how));
    if (w->closed) return;
    if (!was_open && w->opening == STATUS_IO) { /* somebody else's lock, a full disk: that passes */
        if (!w->busy) log_warn("the diagnostics worker does not start again yet: %s", w->why);
        w->busy = true;
        w->start_s = clock_now_s() + 1e-3 * BUSY_PAUSE_MS;
        return;
    }
    kept *k = w->list;
    while (k && k->m.number != w->at) k = k->next;
    if (k && k->m.kind != CHANNEL_END)
        snprintf(where, sizeof(where), " at %s of step %lld", is_of_snapshot(&k->m) ? "the snapshot" : "a record",
                 (long long)k->m.step);
    int deaths = count_death(w);
    if (deaths == MOST_DEATHS) {
        give_up(w, how);
        return;
    }
    tell(w, k ? k->m.step : w->last_step, "warn", "restart",
         "the diagnostics worker ended with %s%s and is started again", how, where);
    if (k && ++k->deaths == FATAL_DEATHS) leave_out(w, &k->m, how);
    if (!w->hopeless) note_lost(w);
    w->start_s = clock_now_s() + (deaths > 1 ? 1e-3 * (FIRST_PAUSE_MS << (deaths - 2)) : 0);
}

/* ---------------------------------------------------------------- what the worker says */

/* Memory is bounded where the database takes nothing for long. */
static void let_go(diag_worker *w, int64_t ended) {
    size_t bytes = 0;
    for (kept *k = w->list; k; k = k->next)
        if (is_of_snapshot(&k->m) && k->m.step <= ended && !k->gone) bytes += k->m.bytes;
    for (kept *k = w->list; k && bytes > MOST_ENDED_BYTES; k = k->next) {
        if (!is_of_snapshot(&k->m) || k->m.step > ended || k->gone) continue;
        bytes -= k->m.bytes;
        message_release(&k->m);
        k->gone = true;
    }
}

static void take_progress(diag_worker *w, const channel_message *m) {
    channel_progress p;
    if (m->bytes < sizeof(p)) return;
    memcpy(&p, m->data, sizeof(p));
    drop_if(w, is_recorded, &p);
    grant_up_to(w, p.ended);
    let_go(w, p.ended);
}

static void take_words(diag_worker *w, const channel_message *m, status *said) {
    *said = (status)m->step;
    if (*said != STATUS_OK) snprintf(w->why, sizeof(w->why), "%s", (const char *)m->data);
}

static void take_answer(diag_worker *w, const channel_message *m) {
    switch (m->kind) {
    case MESSAGE_OPENED:
        take_words(w, m, &w->opening);
        w->opened = w->opening == STATUS_OK;
        if (w->opened && w->busy) log_info("the diagnostics worker goes on");
        w->busy = w->busy && !w->opened;
        if (w->opened) take_progress(w, m);
        break;
    case MESSAGE_TAKES:
        w->at = m->number;
        break;
    case MESSAGE_PROGRESS:
        take_progress(w, m);
        break;
    case MESSAGE_CONFIRM:
        drop_if(w, is_confirmed, &m->step);
        channel_confirm(w->channel, m->step);
        break;
    case MESSAGE_ASK:
        channel_ask(w->channel, (int)m->step);
        break;
    case MESSAGE_CLOSED:
        take_words(w, m, &w->result);
        w->closed = true;
        break;
    default:
        if (w->first && channel_post(w->first, m->kind, m->step, m->data, m->bytes) == STATUS_OK) break;
        log_error("what the diagnostics worker sends is lost: %s", status_message());
        status_clear();
    }
}

/* One answer, or the end of the worker. */
static void take_word(diag_worker *w) {
    channel_message m;
    bool gone = false;
    if (message_receive(w->socket, &m, &gone) != STATUS_OK) {
        log_error("diagnostics worker: %s", status_message());
        status_clear();
        kill(w->pid, SIGKILL); /* nobody can tell any more what it has on record */
        gone = true;
    }
    if (gone) {
        take_death(w);
        return;
    }
    w->heard_s = clock_now_s();
    take_answer(w, &m);
    message_release(&m);
}

/* ---------------------------------------------------------------- a worker that hangs */

/* Within what time a word of the worker is due: that it has opened, takes a message, has closed. 0: none is. */
static double due_within_s(const diag_worker *w) {
    double patience_s = (double)w->config->diagnostics.patience;
    if (!w->opened) return patience_s;
    for (const kept *k = w->list; k; k = k->next)
        if (k->sent && (k->m.number > w->at || k->m.kind == CHANNEL_END))
            return k->m.number > w->at ? patience_s : patience_s + END_S;
    return 0;
}

/* How long it may still be silent; less than 0: too long. */
static double patience_left_s(const diag_worker *w) {
    double due_s = w->pid && !w->hung ? due_within_s(w) : 0;
    return due_s > 0 ? w->heard_s + due_s - clock_now_s() : MOST_SLEEP_S;
}

/* Its socket tells the rest. */
static void end_hung(diag_worker *w) {
    if (patience_left_s(w) >= 0) return;
    log_warn("the diagnostics worker has given no sign of life for %ld s (diagnostics.patience) and is killed",
             (long)w->config->diagnostics.patience);
    w->hung = true;
    kill(w->pid, SIGKILL);
}

/* ---------------------------------------------------------------- what comes through the channel */

static void take_input(diag_worker *w) {
    channel_message m;
    status s = channel_receive(w->channel, &m);
    if (s != STATUS_OK) {
        log_error("diagnostics: %s", status_message());
        status_clear();
        m = (channel_message){.kind = CHANNEL_END};
    }
    w->input_over = m.kind == CHANNEL_END;
    if (m.kind == DIAG_FINISH && m.bytes == sizeof(w->finish)) {
        memcpy(&w->finish, m.data, sizeof(w->finish));
        w->finished = true;
    }
    if (m.kind == CHANNEL_SNAPSHOT && m.step > w->last_step) {
        w->last_step = m.step;
        add_step(&w->uncredited, m.step);
        if (w->hopeless) refuse_snapshot(w, m.step, "its diagnostics worker has ended");
    }
    if (w->hopeless || (is_of_snapshot(&m) && contains(&w->left_out, m.step)))
        message_release(&m);
    else
        keep(w, &m);
}

/* ---------------------------------------------------------------- the door */

static kept *next_unsent(const diag_worker *w) {
    kept *k = w->opened ? w->list : NULL;
    while (k && (k->sent || k->gone)) k = k->next;
    return k;
}

/* A failure here is the worker's death, which its socket will tell. */
static void send_next(diag_worker *w) {
    kept *k = next_unsent(w);
    if (k && due_within_s(w) == 0) w->heard_s = clock_now_s();
    if (k && message_send(w->socket, &k->m, &k->sent) != STATUS_OK) status_clear();
}

/* How long poll() may sleep. */
static int sleep_ms(const diag_worker *w) {
    if (w->hopeless) return -1;
    double left_s = w->pid ? patience_left_s(w) : w->start_s - clock_now_s();
    if (left_s > MOST_SLEEP_S) left_s = MOST_SLEEP_S;
    return left_s > 0 ? (int)(1e3 * left_s) + 1 : 0;
}

static void start_again(diag_worker *w) {
    if (w->pid || w->hopeless || clock_now_s() < w->start_s) return;
    if (start(w) == STATUS_OK) return;
    log_error("%s", status_message());
    status_clear();
    w->start_s = clock_now_s() + 1e-3 * BUSY_PAUSE_MS;
}

/* Without a worker nobody else says in the database how the run ended. */
static void have_last_word(diag_worker *w) {
    if (!w->hopeless || !w->finished || w->rank > 0) return;
    if (last_word(w->config, w->session.data, &w->finish, w->why) != STATUS_OK) log_error("%s", status_message());
    status_clear();
}

static bool is_over(const diag_worker *w) {
    return w->hopeless ? w->input_over : w->closed && !w->pid;
}

status diag_worker_serve(diag_worker *w, channel_receiver *channel, channel_sender *first) {
    w->channel = channel;
    w->first = first;
    int input = channel_receiver_descriptor(channel);
    if (input < 0) return status_fail(STATUS_IO, "no descriptor for the channel: %s", strerror(errno));
    for (int i = 0; i < CHANNEL_SNAPSHOT_CREDITS; i++) channel_grant(channel);
    while (!is_over(w)) {
        start_again(w);
        struct pollfd ready[2] = {{.fd = w->input_over ? -1 : input, .events = POLLIN},
                                  {.fd = w->socket, .events = (short)(POLLIN | (next_unsent(w) ? POLLOUT : 0))}};
        if (poll(ready, 2, sleep_ms(w)) < 0 && errno != EINTR)
            return status_fail(STATUS_INTERNAL, "waiting for the diagnostics worker: %s", strerror(errno));
        if (ready[0].revents) take_input(w);
        if (ready[1].revents & POLLOUT) send_next(w);
        if (ready[1].revents & ~POLLOUT) take_word(w);
        end_hung(w);
    }
    have_last_word(w);
    return STATUS_OK;
}

static status make_session(diag_worker *w, const config *c, const worker_session *session) {
    char *yaml = config_to_yaml(c);
    if (!yaml) return status_fail(STATUS_INTERNAL, "out of memory for the diagnostics worker");
    w->session = (channel_message){.kind = WORKER_SESSION, .bytes = sizeof(*session) + strlen(yaml) + 1};
    bool room = message_allocate(&w->session);
    if (room) {
        memcpy(w->session.data, session, sizeof(*session));
        memcpy((char *)w->session.data + sizeof(*session), yaml, strlen(yaml) + 1);
    }
    free(yaml);
    return room ? STATUS_OK : status_fail(STATUS_INTERNAL, "out of memory for the diagnostics worker");
}

/* Until the worker has opened its service, or has said why not. */
static status await_opening(diag_worker *w) {
    char how[64];
    while (w->socket >= 0 && !w->opened && w->opening == STATUS_OK) {
        channel_message m;
        bool gone = false;
        struct pollfd ready = {.fd = w->socket, .events = POLLIN};
        if (poll(&ready, 1, sleep_ms(w)) <= 0) {
            end_hung(w);
            continue;
        }
        TRY(message_receive(w->socket, &m, &gone));
        if (gone) {
            bury(w, how, sizeof(how));
            return status_fail(STATUS_INTERNAL, "the diagnostics worker ended with %s as it started", how);
        }
        take_answer(w, &m);
        message_release(&m);
    }
    return w->opening == STATUS_OK ? STATUS_OK : status_fail(w->opening, "%s", w->why);
}

status diag_worker_open(diag_worker **out, const config *c, const char *run_dir, const char *device, int tp, int dp,
                        const char *hosts, int rank, int64_t resume_step) {
    worker_session session = {.supervisor = getpid(), .rank = rank, .tp = tp, .dp = dp, .resume_step = resume_step};
    diag_worker *w = calloc(1, sizeof(*w));
    *out = w;
    if (!w) return status_fail(STATUS_INTERNAL, "out of memory for the diagnostics worker");
    w->config = c;
    w->rank = rank;
    w->socket = -1;
    w->last = &w->list;
    w->last_step = -1;
    snprintf(session.run_dir, sizeof(session.run_dir), "%s", run_dir);
    snprintf(session.device, sizeof(session.device), "%s", device);
    snprintf(session.hosts, sizeof(session.hosts), "%s", hosts);
    TRY(make_session(w, c, &session));
    TRY(start(w));
    TRY(await_opening(w));
    /* From now on a worker goes on where the last one died. */
    ((worker_session *)w->session.data)->resume_step = DIAG_AGAIN;
    return STATUS_OK;
}

status diag_worker_close(diag_worker *w) {
    char how[64];
    if (!w) return STATUS_OK;
    if (w->pid) { /* it was never served: without a supervisor's end of the socket it ends */
        close(w->socket);
        w->socket = -1;
        bury(w, how, sizeof(how));
    }
    status s = w->result == STATUS_OK ? STATUS_OK : status_fail(w->result, "%s", w->why);
    drop_if(w, is_any, NULL);
    message_release(&w->session);
    free(w);
    return s;
}
