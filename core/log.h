/* Log lines on stderr and, once a run folder exists, in its log.txt. Thread-safe; a line is written with one write(2).
 */
#pragma once

#include "core/status.h"

typedef enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR } log_level;

/* who is put before each line ("rank 3"; "" for none). Lines below least are dropped. */
void log_setup(const char *who, log_level least);

/* From now on lines go to the file at path too (appended), behind those of before the first such call, of many the
 * first. IO when it cannot be opened. */
status log_to_file(const char *path);

/* Flushes and closes the log file. */
void log_close(void);

__attribute__((format(printf, 2, 3))) void log_line(log_level level, const char *format, ...);

#define log_debug(...) log_line(LOG_DEBUG, __VA_ARGS__)
#define log_info(...)  log_line(LOG_INFO, __VA_ARGS__)
#define log_warn(...)  log_line(LOG_WARN, __VA_ARGS__)
#define log_error(...) log_line(LOG_ERROR, __VA_ARGS__)
