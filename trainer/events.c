#include "trainer/events.h"

#include "core/log.h"
#include "diag/diag.h"

#include <stdarg.h>
#include <stdio.h>

void record_post(channel_sender *sender, int kind, int64_t step, const void *record, size_t bytes) {
    if (!sender || channel_post(sender, kind, step, record, bytes) == STATUS_OK) return;
    log_error("step %ld: a record could not be sent: %s", (long)step, status_message());
    status_clear();
}

void event_post(channel_sender *sender, int64_t step, const char *level, const char *kind, const char *format, ...) {
    diag_event event = {.step = step};
    va_list args;
    snprintf(event.level, sizeof event.level, "%s", level);
    snprintf(event.kind, sizeof event.kind, "%s", kind);
    va_start(args, format);
    vsnprintf(event.message, sizeof event.message, format, args);
    va_end(args);
    record_post(sender, DIAG_EVENT, step, &event, sizeof event);
}
