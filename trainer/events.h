/* Records and events on their way to the database. */
#pragma once

#include "comm/channel.h"

/* Queues a record (diag/diag.h says which); sender NULL: nothing. One that cannot be queued is logged: training goes
 * on.
 */
void record_post(channel_sender *sender, int kind, int64_t step, const void *record, size_t bytes);

/* The same for a row of events. level: info, warn, error. */
__attribute__((format(printf, 5, 6))) void event_post(channel_sender *sender, int64_t step, const char *level,
                                                      const char *kind, const char *format, ...);
