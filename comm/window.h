/* Private to comm/: a snapshot buffer as another process of its host reads it. The buffer lies in a file of memory
 * (message_allocate), which has no name in any file system: a reader finds it through the owner's descriptor in /proc,
 * and it goes with its last descriptor, however its owner ended. */
#pragma once

#include "comm/channel.h"

enum { WINDOW_NAME_BYTES = 64 };

/* Where a buffer is to be found. It is sent as it stands. */
typedef struct window_place {
    int64_t process, descriptor;
    char name[WINDOW_NAME_BYTES]; /* what /proc says of it: nothing else on any host is called so */
} window_place;

/* false: the message lies in no file of memory, or /proc does not show it. */
bool window_locate(const channel_message *m, window_place *out);

/* A descriptor of the memory at that place, the caller's to close. -1: it cannot be had from this process, which is on
 * another host, numbers processes in a space of its own, or may not look. */
int window_open(const window_place *place);

/* Copies bytes [from, from + bytes) of an open window to m->data + at; m is from message_allocate and has room for
 * them. false: not all could be read. */
bool window_read(int window, size_t from, size_t bytes, channel_message *m, size_t at);
