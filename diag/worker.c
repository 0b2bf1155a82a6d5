/* The worker's side of diag/worker.h. */
#define _GNU_SOURCE /* memfd_create */
#include "diag/serve.h"
#include "diag/worker_private.h"

#include "core/log.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

/* The status and its message, which a supervisor passes on. */
static void say(int kind, status s, const void *data, size_t bytes) {
    char text[1024];
    channel_message m = {.kind = kind, .step = s, .data = (void *)data, .bytes = bytes};
    if (s != STATUS_OK) {
        snprintf(text, sizeof(text), "%s", status_message());
        m.data = text;
        m.bytes = strlen(text) + 1;
    }
    if (message_send(WORKER_SOCKET, &m, NULL) != STATUS_OK) log_error("diagnostics worker: %s", status_message());
}

/* config_load reads files. */
static status load_config(config *c, const char *yaml) {
    char path[64];
    int file = memfd_create("configuration", MFD_CLOEXEC);
    size_t bytes = strlen(yaml);
    if (file < 0 || write(file, yaml, bytes) != (ssize_t)bytes)
        return status_fail(STATUS_INTERNAL, "the configuration does not reach the diagnostics: %s", strerror(errno));
    snprintf(path, sizeof(path), "/proc/self/fd/%d", file);
    status s = config_load(c, path, NULL, 0);
    close(file);
    return s;
}

static status receive_session(worker_session *session, config *c) {
    channel_message m;
    bool gone = false;
    TRY(message_receive(WORKER_SOCKET, &m, &gone));
    if (gone || m.kind != WORKER_SESSION || m.bytes <= sizeof(*session))
        return status_fail(STATUS_USAGE, DIAG_WORKER_COMMAND " is not for you: `bulkhead train` starts it");
    memcpy(session, m.data, sizeof(*session));
    status s = load_config(c, (const char *)m.data + sizeof(*session));
    message_release(&m);
    return s;
}

static void open_log(const worker_session *session) {
    char path[4200];
    snprintf(path, sizeof(path), "%s/log.txt", session->run_dir);
    log_setup("diagnostics", LOG_INFO);
    if (log_to_file(path) == STATUS_OK) return;
    log_warn("%s", status_message());
    status_clear();
}

static status open_service(diag **out, const config *c, const worker_session *s, channel_sender *first) {
    if (s->rank > 0) return diag_open_further(out, c, s->rank, first);
    return diag_open(out, c, s->run_dir, s->device, s->tp, s->dp, s->hosts, s->resume_step);
}

static status serve(diag *d, channel_receiver *receiver, const worker_session *session) {
    const channel_progress progress = diag_recorded(d);
    say(MESSAGE_OPENED, STATUS_OK, &progress, sizeof(progress));
    TRY(diag_serve(d, receiver, session->tp * session->dp)); /* left as by a death: another worker goes on */
    status s = diag_close(d);
    say(MESSAGE_CLOSED, s, NULL, 0);
    return s;
}

status diag_worker_main(void) {
    worker_session session;
    config c;
    channel_sender *first = NULL;
    channel_receiver *receiver = NULL;
    diag *d = NULL;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    TRY(receive_session(&session, &c));
    if (getppid() != session.supervisor) return STATUS_INTERNAL; /* it died before */
    open_log(&session);
    status s = channel_worker_open(&first, &receiver, WORKER_SOCKET);
    if (s == STATUS_OK) s = open_service(&d, &c, &session, first);
    if (s == STATUS_OK)
        s = serve(d, receiver, &session);
    else
        say(MESSAGE_OPENED, s, NULL, 0);
    if (first) channel_sender_close(first);
    if (receiver) channel_receiver_close(receiver);
    config_free(&c);
    log_close();
    status_clear(); /* the supervisor tells it */
    return s;
}
