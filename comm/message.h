/* Private to comm/ and the supervisor in diag/: a message's data, and the way of whole messages between two processes
 * of one host over a pair of sockets. Large data lie in a file of memory, which is handed over and not copied. */
#pragma once

#include "comm/channel.h"

enum { MESSAGE_MEMORY_BYTES = 64 << 10 };

/* Room for m->bytes: m->data, and m->memory where they are MESSAGE_MEMORY_BYTES or more and there are descriptors.
 * false: out of memory. */
bool message_allocate(channel_message *m);
void message_release(channel_message *m);

/* What a worker process says beside records (channel_worker_open). */
enum {
    MESSAGE_OPENED = -3,   /* step: a status; data: its text, or where the database stands (channel_progress) */
    MESSAGE_TAKES = -4,    /* number: of the message that it works on, from now on or still */
    MESSAGE_PROGRESS = -5, /* data: channel_progress */
    MESSAGE_CONFIRM = -6,  /* step */
    MESSAGE_ASK = -7,      /* step: channel_request bits */
    MESSAGE_CLOSED = -8    /* as MESSAGE_OPENED; nothing follows */
};

/* Both ends of a pair. IO when there are no descriptors. */
status message_pair(int ends[2]);

/* Sends a message; m stays the caller's. sent NULL: waits for room; otherwise *sent is false where there was none. IO
 * when the other end is gone, INTERNAL without memory. */
status message_send(int socket, const channel_message *m, bool *sent);

/* The next message, whole, m->data NUL-terminated where it is not in a file of memory; waits. *gone: the other end is.
 */
status message_receive(int socket, channel_message *m, bool *gone);
