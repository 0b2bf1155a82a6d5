#include "core/log.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards what follows */
static char who[32];
static log_level least_level = LOG_INFO;
static int file = -1;
static char early[1 << 14]; /* lines of before there was a file */
static size_t early_length;
static bool had_file;

/* A log that cannot be written must not stop the run; there is no better place to report it. */
static void put(int fd, const char *text, size_t length) {
    ssize_t written = write(fd, text, length);
    if (written < 0) return;
}

void log_setup(const char *name, log_level least) {
    pthread_mutex_lock(&lock);
    snprintf(who, sizeof who, "%s", name);
    least_level = least;
    pthread_mutex_unlock(&lock);
}

status log_to_file(const char *path) {
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (fd < 0) return status_fail(STATUS_IO, "cannot write the log %s: %s", path, strerror(errno));
    log_close();
    pthread_mutex_lock(&lock);
    file = fd;
    had_file = true;
    put(file, early, early_length);
    early_length = 0;
    pthread_mutex_unlock(&lock);
    return STATUS_OK;
}

void log_close(void) {
    pthread_mutex_lock(&lock);
    if (file >= 0) close(file);
    file = -1;
    pthread_mutex_unlock(&lock);
}

void log_line(log_level level, const char *format, ...) {
    static const char *const names[] = {"debug", "info", "warn", "error"};
    char text[2200], line[2304];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);

    time_t now = time(NULL);
    struct tm local;
    char clock[16] = "";
    if (localtime_r(&now, &local)) strftime(clock, sizeof clock, "%H:%M:%S", &local);

    pthread_mutex_lock(&lock);
    if (level >= least_level) {
        int length = snprintf(line, sizeof line, "%s %s%s%s%s%s\n", clock, level == LOG_INFO ? "" : names[level],
                              level == LOG_INFO ? "" : ": ", who, who[0] ? ": " : "", text);
        if (length >= (int)sizeof line) {
            length = sizeof line - 1;
            line[length - 1] = '\n';
        }
        put(STDERR_FILENO, line, (size_t)length);
        if (file >= 0) put(file, line, (size_t)length);
        if (!had_file && early_length + (size_t)length <= sizeof early) {
            memcpy(early + early_length, line, (size_t)length);
            early_length += (size_t)length;
        }
    }
    pthread_mutex_unlock(&lock);
}
