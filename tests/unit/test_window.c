/* Memory of one process, read by another: the right one, all of it, and also after its owner was killed. */
#include "check.h"

#include "comm/message.h"
#include "comm/window.h"

#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { BYTES = (5 << 20) + 12345 };

static unsigned char pattern(size_t i) {
    return (unsigned char)(i * 7 + i / 4096);
}

static channel_message make(size_t bytes) {
    channel_message m = {.bytes = bytes};
    assert_true(message_allocate(&m));
    return m;
}

static channel_message make_filled(void) {
    channel_message m = make(BYTES);
    for (size_t i = 0; i < BYTES; i++) ((unsigned char *)m.data)[i] = pattern(i);
    return m;
}

/* A process that owns such memory, says where it lies, and waits to be killed. */
static pid_t start_owner(window_place *place) {
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        channel_message m = make_filled();
        if (!window_locate(&m, place) || write(ends[1], place, sizeof *place) != sizeof *place) _exit(1);
        alarm(20); /* where the test has failed */
        for (;;) pause();
    }
    assert_int_equal(read(ends[0], place, sizeof *place), sizeof *place);
    close(ends[0]);
    close(ends[1]);
    return child;
}

static void kill_owner(pid_t owner) {
    int how;
    assert_int_equal(kill(owner, SIGKILL), 0);
    assert_int_equal(waitpid(owner, &how, 0), owner);
}

/* Bytes [from, from + first) and then [rest_from, rest_from + rest), as the shares of a snapshot are. */
static void check_read(int window, size_t from, size_t first, size_t rest_from, size_t rest) {
    channel_message m = make(first + rest);
    assert_true(window_read(window, from, first, &m, 0));
    assert_true(window_read(window, rest_from, rest, &m, first));
    const unsigned char *got = m.data;
    for (size_t i = 0; i < first; i++)
        if (got[i] != pattern(from + i)) fail_msg("byte %zu of the first %zu", i, first);
    for (size_t i = 0; i < rest; i++)
        if (got[first + i] != pattern(rest_from + i)) fail_msg("byte %zu of the last %zu", i, rest);
    message_release(&m);
}

static void what_a_killed_process_owned_is_read_to_its_end(void **state) {
    window_place place;
    pid_t owner = start_owner(&place);
    int window = window_open(&place);
    assert_true(window >= 0);
    check_read(window, 0, BYTES, 0, 0);
    check_read(window, 5000, 100, BYTES - 300000, 300000);
    check_read(window, 1, 99, 4097, 7); /* small enough for no file of memory */
    kill_owner(owner);
    check_read(window, 3, 4 << 20, BYTES - 99, 99);
    struct stat file;
    assert_int_equal(fstat(window, &file), 0);
    assert_int_equal(file.st_nlink, 0); /* no folder holds it: it goes with the descriptor */
    close(window);
    assert_int_equal(window_open(&place), -1);
}

static void more_than_there_is_cannot_be_read(void **state) {
    channel_message from = make_filled(), large = make(BYTES + 1), small = make(100);
    window_place place;
    assert_true(window_locate(&from, &place));
    int window = window_open(&place);
    assert_true(window >= 0);
    assert_false(window_read(window, 0, BYTES + 1, &large, 0));
    assert_false(window_read(window, BYTES - 99, 100, &small, 0));
    assert_true(window_read(window, BYTES - 100, 100, &small, 0));
    close(window);
    message_release(&from);
    message_release(&large);
    message_release(&small);
}

/* The same numbers mean something else on another host, or in a container that counts processes from one. */
static void anything_else_is_refused(void **state) {
    channel_message mine = make_filled(), other = make_filled(), small = make(100);
    window_place place, elsewhere;
    assert_false(window_locate(&small, &place));
    assert_true(window_locate(&mine, &place));
    elsewhere = place;
    elsewhere.descriptor = other.memory; /* alike, and made by the same program */
    assert_int_equal(window_open(&elsewhere), -1);
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    elsewhere.descriptor = ends[1]; /* opening one may wait */
    assert_int_equal(window_open(&elsewhere), -1);
    elsewhere = place;
    elsewhere.process = (int64_t)1 << 30; /* more than Linux counts to */
    assert_int_equal(window_open(&elsewhere), -1);
    close(ends[0]);
    close(ends[1]);
    message_release(&mine);
    message_release(&other);
    message_release(&small);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(what_a_killed_process_owned_is_read_to_its_end),
    cmocka_unit_test(more_than_there_is_cannot_be_read),
    cmocka_unit_test(anything_else_is_refused),
};

TEST_MAIN(tests)
