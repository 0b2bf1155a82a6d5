#include "core/status.h"

#include <stdarg.h>
#include <stdio.h>

static _Thread_local char message[2048];

/* A message may quote a hostile file: it stays one line and cannot steer a terminal. */
static void make_plain(char *text) {
    for (; *text; text++)
        if ((unsigned char)*text < ' ' || *text == 127) *text = '?';
}

status status_fail(status code, const char *format, ...) {
    if (message[0] == '\0') {
        va_list args;
        va_start(args, format);
        vsnprintf(message, sizeof message, format, args);
        va_end(args);
        make_plain(message);
    }
    return code;
}

const char *status_message(void) {
    return message;
}

const char *status_text(status code) {
    switch (code) {
#define X(name, number, text)                                                                                          \
    case STATUS_##name:                                                                                                \
        return text;
        STATUS_LIST(X)
#undef X
    }
    return "unknown status";
}

void status_clear(void) {
    message[0] = '\0';
}
