#include "comm/queue.h"

#include "comm/message.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

typedef struct node {
    channel_message message;
    struct node *next;
} node;

struct queue {
    pthread_mutex_t lock; /* guards all below */
    pthread_cond_t changed;
    int owners;
    node *first, **last;
    bool ended;
    int64_t confirmed;
    int descriptor; /* an eventfd; -1: nobody has asked for it */
    status failure;
    char reason[512];
};

queue *queue_open(int owners) {
    queue *q = calloc(1, sizeof *q);
    if (!q) return NULL;
    pthread_mutex_init(&q->lock, NULL);
    pthread_cond_init(&q->changed, NULL);
    q->owners = owners;
    q->confirmed = -1;
    q->descriptor = -1;
    q->last = &q->first;
    return q;
}

void queue_free(queue *q) {
    if (!q) return;
    pthread_mutex_lock(&q->lock);
    int left = --q->owners;
    pthread_mutex_unlock(&q->lock);
    if (left > 0) return;
    while (q->first) {
        node *n = q->first;
        q->first = n->next;
        message_release(&n->message);
        free(n);
    }
    if (q->descriptor >= 0) close(q->descriptor);
    pthread_cond_destroy(&q->changed);
    pthread_mutex_destroy(&q->lock);
    free(q);
}

/* Call with the lock held. */
static status failure(const queue *q) {
    return q->failure == STATUS_OK ? STATUS_OK : status_fail(q->failure, "%s", q->reason);
}

/* Likewise. */
static bool is_ready(const queue *q) {
    return q->first || q->ended || q->failure != STATUS_OK;
}

/* Call with the lock held, when what a reader may be waiting for has changed. */
static void tell(queue *q) {
    uint64_t one = 1;
    pthread_cond_broadcast(&q->changed);
    if (q->descriptor < 0) return;
    bool ready = is_ready(q);
    /* Neither can fail: the counter is 0 or 1. */
    if (read(q->descriptor, &one, sizeof one) < 0) one = 1;
    if (ready && write(q->descriptor, &one, sizeof one) < 0) one = 0;
}

int queue_descriptor(queue *q) {
    pthread_mutex_lock(&q->lock);
    if (q->descriptor < 0) q->descriptor = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    tell(q);
    pthread_mutex_unlock(&q->lock);
    return q->descriptor;
}

status queue_push(queue *q, const channel_message *message) {
    node *n = malloc(sizeof *n);
    if (!n) return status_fail(STATUS_INTERNAL, "out of memory for a message");
    *n = (node){.message = *message};
    pthread_mutex_lock(&q->lock);
    status result = failure(q);
    if (result == STATUS_OK && q->ended)
        result = status_fail(STATUS_INTERNAL, "a message was sent after the end of its channel");
    if (result == STATUS_OK) {
        *q->last = n;
        q->last = &n->next;
        tell(q);
    }
    pthread_mutex_unlock(&q->lock);
    if (result != STATUS_OK) free(n);
    return result;
}

status queue_pop(queue *q, channel_message *message) {
    *message = (channel_message){.kind = CHANNEL_END};
    pthread_mutex_lock(&q->lock);
    while (!is_ready(q)) pthread_cond_wait(&q->changed, &q->lock);
    node *n = q->first;
    status result = n ? STATUS_OK : failure(q);
    if (n) {
        q->first = n->next;
        if (!q->first) q->last = &q->first;
        tell(q);
    }
    pthread_mutex_unlock(&q->lock);
    if (n) *message = n->message;
    free(n);
    return result;
}

bool queue_is_ready(queue *q) {
    pthread_mutex_lock(&q->lock);
    bool ready = is_ready(q);
    pthread_mutex_unlock(&q->lock);
    return ready;
}

void queue_end(queue *q) {
    pthread_mutex_lock(&q->lock);
    q->ended = true;
    tell(q);
    pthread_mutex_unlock(&q->lock);
}

void queue_fail(queue *q, status code, const char *reason) {
    pthread_mutex_lock(&q->lock);
    if (q->failure == STATUS_OK) {
        q->failure = code;
        snprintf(q->reason, sizeof q->reason, "%s", reason);
    }
    tell(q);
    pthread_mutex_unlock(&q->lock);
}

void queue_confirm(queue *q, int64_t step) {
    pthread_mutex_lock(&q->lock);
    q->confirmed = step;
    pthread_mutex_unlock(&q->lock);
}

int64_t queue_confirmed(queue *q) {
    pthread_mutex_lock(&q->lock);
    int64_t step = q->confirmed;
    pthread_mutex_unlock(&q->lock);
    return step;
}

status queue_status(queue *q) {
    pthread_mutex_lock(&q->lock);
    status result = failure(q);
    pthread_mutex_unlock(&q->lock);
    return result;
}
