#include "diag/last_word.h"

#include "diag/store.h"

#include <stdio.h>

status last_word(const config *c, const worker_session *session, const diag_finish *finish, const char *why) {
    char path[sizeof(session->run_dir) + 16];
    store *s;
    const store_session same = {.config = c,
                                .device = session->device,
                                .hosts = session->hosts,
                                .code_version = BULKHEAD_VERSION,
                                .tp = session->tp,
                                .dp = session->dp,
                                .start = STORE_SESSION_GOES_ON};
    store_record end = {.kind = STORE_FINISH, .finish = *finish};
    if (end.finish.exit_code == STATUS_OK) end.finish.exit_code = STATUS_IO;
    snprintf(path, sizeof(path), "%s/run.db", session->run_dir);
    TRY(store_open(&s, path, &same));
    store_event(s, finish->last_step, "error", "fault", "%s", why);
    store_add(s, &end);
    return store_close(s);
}
