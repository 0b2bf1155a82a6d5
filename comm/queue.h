/* Private to comm/: a queue of messages between two threads. It ends in one of two ways: its writer ends it, and the
 * reader sees CHANNEL_END after the last message; or either side fails it, and the first reason is kept for both. */
#pragma once

#include "comm/channel.h"

typedef struct queue queue;

/* NULL: out of memory. Each owner frees it once. */
queue *queue_open(int owners);
void queue_free(queue *q);

/* Takes message->data when it returns OK. Fails with the queue's reason, or when it has ended. */
status queue_push(queue *q, const channel_message *message);

/* The next message, CHANNEL_END when there will be none; waits. What came before a failure is still handed out. */
status queue_pop(queue *q, channel_message *message);

/* Whether queue_pop() need not wait. */
bool queue_is_ready(queue *q);

void queue_end(queue *q);
void queue_fail(queue *q, status code, const char *reason);

/* Readable while queue_pop() need not wait. -1: there are no descriptors. */
int queue_descriptor(queue *q);

/* The reader's word to the writer: all up to that step is recorded. The last one, -1: none. */
void queue_confirm(queue *q, int64_t step);
int64_t queue_confirmed(queue *q);

/* The queue's failure, with its reason as this thread's message; OK while there is none. */
status queue_status(queue *q);
