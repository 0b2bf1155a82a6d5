/* Status codes: what every fallible call returns, and the exit code of the program (docs/design.md section 8).
 *
 * A call that fails records one message for the person in front of the terminal and returns the code; callers pass the
 * code up unchanged. The first message of a thread is kept until status_clear(). Only main prints it and ends the
 * process. */
#pragma once

#define STATUS_LIST(X)                                                                                                 \
    X(OK, 0, "ok")                                                                                                     \
    X(USAGE, 64, "wrong usage")                                                                                        \
    X(DATA, 65, "bad data")                                                                                            \
    X(NO_INPUT, 66, "no input")                                                                                        \
    X(INTERNAL, 70, "internal error")                                                                                  \
    X(IO, 74, "I/O error")                                                                                             \
    X(RESTART, 75, "stopped after a checkpoint; start again to go on")                                                 \
    X(CONFIG, 78, "bad configuration")

typedef enum status {
#define X(name, code, text) STATUS_##name = code,
    STATUS_LIST(X)
#undef X
} status;

/* Records the printf-style message unless this thread already holds one; returns code. Control characters in it become
 * question marks. */
__attribute__((format(printf, 2, 3))) status status_fail(status code, const char *format, ...);

/* This thread's first failure message, "" when there is none. Valid until the thread's next status_ call. */
const char *status_message(void);

/* Short text of a code, for logs. */
const char *status_text(status code);

void status_clear(void);

/* Returns from the calling function when expr is not STATUS_OK. Use where there is nothing to clean up. */
#define TRY(expr)                                                                                                      \
    do {                                                                                                               \
        status try_status_ = (expr);                                                                                   \
        if (try_status_ != STATUS_OK) return try_status_;                                                              \
    } while (0)
