/* Messages between two processes, and the ends of a channel that are made of them. */
#include "check.h"

#include "comm/message.h"
#include "comm/queue.h"

#include <poll.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

static const size_t sizes[] = {0, 1, 1000, 32 << 10, (32 << 10) + 1, (64 << 10) - 1, 64 << 10, 3 << 20};
enum { SIZES = sizeof sizes / sizeof *sizes };

static unsigned char pattern(size_t size, size_t i) {
    return (unsigned char)(i * 7 + i / 4096 + size);
}

static channel_message make(size_t bytes, int64_t number) {
    channel_message m = {.kind = 3, .sender = 2, .step = -5, .bytes = bytes, .number = number};
    assert_true(message_allocate(&m));
    for (size_t i = 0; i < bytes; i++) ((unsigned char *)m.data)[i] = pattern(bytes, i);
    return m;
}

static void check_message(const channel_message *m, size_t bytes, int64_t number) {
    assert_int_equal(m->kind, 3);
    assert_int_equal(m->sender, 2);
    assert_int_equal(m->step, -5);
    assert_int_equal(m->number, number);
    assert_int_equal(m->bytes, bytes);
    for (size_t i = 0; i < bytes; i++)
        if (((unsigned char *)m->data)[i] != pattern(bytes, i)) fail_msg("byte %zu of %zu", i, bytes);
}

/* A process that sends every size once and ends. */
static pid_t start_sender(int socket) {
    pid_t child = fork();
    assert_true(child >= 0);
    if (child > 0) return child;
    for (int i = 0; i < SIZES; i++) {
        channel_message m = make(sizes[i], i);
        if (message_send(socket, &m, NULL) != STATUS_OK) _exit(1);
        message_release(&m);
    }
    _exit(0);
}

/* Of every size, also when the sender has ended meanwhile; then its end is seen. */
static void messages_arrive_whole(void **state) {
    int ends[2], how;
    channel_message m;
    bool gone = false;
    check_status(message_pair(ends), STATUS_OK);
    pid_t child = start_sender(ends[1]);
    close(ends[1]);
    for (int i = 0; i < SIZES; i++) {
        check_status(message_receive(ends[0], &m, &gone), STATUS_OK);
        assert_false(gone);
        check_message(&m, sizes[i], i);
        if (i == 0) waitpid(child, &how, 0);
        message_release(&m);
    }
    assert_int_equal(how, 0);
    check_status(message_receive(ends[0], &m, &gone), STATUS_OK);
    assert_true(gone);
    m = make(10, 0);
    check_status(message_send(ends[0], &m, NULL), STATUS_IO);
    status_clear();
    message_release(&m);
    close(ends[0]);
}

/* A full socket is told, and takes nothing of the message. */
static void a_sender_need_not_wait(void **state) {
    int ends[2], count = 0;
    bool sent = true, gone;
    check_status(message_pair(ends), STATUS_OK);
    channel_message m = make(20000, 0), got;
    for (; sent && count < 10000; count++) {
        m.number = count;
        check_status(message_send(ends[0], &m, &sent), STATUS_OK);
    }
    assert_in_range(count, 2, 9999);
    for (int i = 0; i < count - 1; i++) {
        check_status(message_receive(ends[1], &got, &gone), STATUS_OK);
        check_message(&got, 20000, i);
        message_release(&got);
    }
    check_status(message_send(ends[0], &m, &sent), STATUS_OK);
    assert_true(sent);
    message_release(&m);
    close(ends[0]);
    close(ends[1]);
}

static bool is_readable(int descriptor) {
    struct pollfd p = {.fd = descriptor, .events = POLLIN};
    return poll(&p, 1, 0) == 1;
}

static void a_queue_tells_poll_when_there_is_something(void **state) {
    queue *q = queue_open(1);
    channel_message m = make(8, 0);
    check_status(queue_push(q, &m), STATUS_OK); /* before anybody asks */
    int descriptor = queue_descriptor(q);
    assert_true(is_readable(descriptor));
    m = make(8, 1);
    check_status(queue_push(q, &m), STATUS_OK);
    for (int i = 0; i < 2; i++) {
        assert_true(is_readable(descriptor));
        check_status(queue_pop(q, &m), STATUS_OK);
        message_release(&m);
    }
    assert_false(is_readable(descriptor));
    queue_end(q);
    assert_true(is_readable(descriptor));
    check_status(queue_pop(q, &m), STATUS_OK);
    assert_int_equal(m.kind, CHANNEL_END);
    assert_int_equal(queue_descriptor(q), descriptor);
    queue_free(q);
    q = queue_open(1);
    descriptor = queue_descriptor(q);
    assert_false(is_readable(descriptor));
    queue_fail(q, STATUS_INTERNAL, "the test says so");
    assert_true(is_readable(descriptor));
    queue_free(q);
}

/* What the supervisor hears of a worker's ends of the channel. */
static void check_word(int socket, int kind, int64_t step, int64_t number, size_t bytes) {
    channel_message m;
    bool gone = true;
    check_status(message_receive(socket, &m, &gone), STATUS_OK);
    assert_false(gone);
    assert_int_equal(m.kind, kind);
    assert_int_equal(m.step, step);
    assert_int_equal(m.number, number);
    assert_int_equal(m.bytes, bytes);
    message_release(&m);
}

static void a_worker_says_what_it_does(void **state) {
    int ends[2];
    channel_sender *first;
    channel_receiver *receiver;
    channel_message m = make(70000, 17), got;
    const channel_progress progress = {17, 4, 5};
    check_status(message_pair(ends), STATUS_OK);
    check_status(channel_worker_open(&first, &receiver, ends[1]), STATUS_OK);
    check_status(message_send(ends[0], &m, NULL), STATUS_OK);
    message_release(&m);
    check_status(channel_receive(receiver, &got), STATUS_OK);
    check_message(&got, 70000, 17);
    channel_release(receiver, &got);
    check_word(ends[0], MESSAGE_TAKES, -5, 17, 0);
    channel_grant(receiver); /* the supervisor's business */
    channel_report(receiver, &progress);
    check_word(ends[0], MESSAGE_PROGRESS, 4, 17, sizeof progress);
    channel_confirm(receiver, 4);
    check_word(ends[0], MESSAGE_CONFIRM, 4, 17, 0);
    channel_ask(receiver, CHANNEL_STOP | CHANNEL_CHECKPOINT);
    check_word(ends[0], MESSAGE_ASK, CHANNEL_STOP | CHANNEL_CHECKPOINT, 17, 0);
    check_status(channel_post(first, 9, 4, "four", 5), STATUS_OK);
    check_word(ends[0], 9, 4, 0, 5);
    close(ends[0]);
    check_status(channel_receive(receiver, &got), STATUS_INTERNAL);
    assert_non_null(strstr(status_message(), "gone"));
    check_status(channel_sender_close(first), STATUS_OK);
    channel_receiver_close(receiver);
    close(ends[1]);
}

/* A message that there is no memory for is not taken, but which one it is becomes known. */
static void a_message_without_room_is_named(void **state) {
    int ends[2], how = -1;
    channel_message m = {.kind = 3, .bytes = (size_t)256 << 20, .number = 21};
    check_status(message_pair(ends), STATUS_OK);
    assert_true(message_allocate(&m));
    check_status(message_send(ends[0], &m, NULL), STATUS_OK);
    message_release(&m);
    pid_t child = fork();
    if (child == 0) {
        const struct rlimit limit = {(rlim_t)128 << 20, (rlim_t)128 << 20};
        channel_sender *first;
        channel_receiver *receiver;
        status s = channel_worker_open(&first, &receiver, ends[1]);
        if (s != STATUS_OK || setrlimit(RLIMIT_AS, &limit) != 0) _exit(1);
        _exit(channel_receive(receiver, &m) == STATUS_INTERNAL ? 0 : 2);
    }
    waitpid(child, &how, 0);
    assert_int_equal(how, 0);
    check_word(ends[0], MESSAGE_TAKES, 0, 21, 0);
    close(ends[0]);
    close(ends[1]);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(messages_arrive_whole),
    cmocka_unit_test(a_sender_need_not_wait),
    cmocka_unit_test(a_queue_tells_poll_when_there_is_something),
    cmocka_unit_test(a_worker_says_what_it_does),
    cmocka_unit_test(a_message_without_room_is_named),
};

TEST_MAIN(tests)
