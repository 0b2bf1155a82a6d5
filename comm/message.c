/* A packet is a head, then small data; or it carries the descriptor of large ones. The pair keeps packets whole and in
 * order, and what was sent before an end died can still be received. */
#define _GNU_SOURCE /* memfd_create */
#include "comm/message.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MOST_INLINE_BYTES = 32 << 10 };

typedef struct head {
    int64_t kind, sender, step, number;
    uint64_t bytes;
} head;

/* ---- data ---- */

static bool map(channel_message *m) {
    m->data = mmap(NULL, m->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, m->memory, 0);
    if (m->data != MAP_FAILED) return true;
    m->data = NULL;
    return false;
}

/* A name that nothing else has: window.c knows the memory by it. A descriptor of 0 would mean none: it is only free
 * where standard input is closed. */
static bool map_new_memory(channel_message *m) {
    uint64_t number = 0;
    char name[32];
    if (getrandom(&number, sizeof number, 0) != sizeof number) return false;
    snprintf(name, sizeof name, "bulkhead %016llx", (unsigned long long)number);
    m->memory = memfd_create(name, MFD_CLOEXEC);
    if (m->memory > 0 && ftruncate(m->memory, (off_t)m->bytes) == 0 && map(m)) return true;
    if (m->memory >= 0) close(m->memory);
    m->memory = 0;
    return false;
}

bool message_allocate(channel_message *m) {
    m->memory = 0;
    if (m->bytes >= MESSAGE_MEMORY_BYTES && map_new_memory(m)) return true;
    m->data = malloc(m->bytes > 0 ? m->bytes : 1);
    return m->data != NULL;
}

void message_release(channel_message *m) {
    if (m->memory > 0) {
        munmap(m->data, m->bytes);
        close(m->memory);
    } else {
        free(m->data);
    }
    m->data = NULL;
    m->memory = 0;
}

/* ---- packets ---- */

typedef union descriptor_room {
    struct cmsghdr align;
    char bytes[CMSG_SPACE(sizeof(int))];
} descriptor_room;

status message_pair(int ends[2]) {
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0) return STATUS_OK;
    return status_fail(STATUS_IO, "no sockets to the diagnostics worker: %s", strerror(errno));
}

static status send_packet(int socket, const channel_message *m, bool *sent) {
    head h = {m->kind, m->sender, m->step, m->number, m->bytes};
    struct iovec parts[2] = {{&h, sizeof h}, {m->data, m->memory > 0 ? 0 : m->bytes}};
    struct msghdr packet = {.msg_iov = parts, .msg_iovlen = 2};
    descriptor_room room = {0};
    if (m->memory > 0) {
        packet.msg_control = room.bytes;
        packet.msg_controllen = sizeof room.bytes;
        struct cmsghdr *c = CMSG_FIRSTHDR(&packet);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof m->memory);
        memcpy(CMSG_DATA(c), &m->memory, sizeof m->memory);
    }
    ssize_t n;
    do {
        n = sendmsg(socket, &packet, MSG_NOSIGNAL | (sent ? MSG_DONTWAIT : 0));
    } while (n < 0 && errno == EINTR);
    if (sent) *sent = n >= 0;
    if (n >= 0 || (sent && (errno == EAGAIN || errno == EWOULDBLOCK))) return STATUS_OK;
    return status_fail(STATUS_IO, "the other end of the diagnostics worker's socket: %s", strerror(errno));
}

status message_send(int socket, const channel_message *m, bool *sent) {
    if (m->memory > 0 || m->bytes <= MOST_INLINE_BYTES) return send_packet(socket, m, sent);
    channel_message copy = *m;
    if (!map_new_memory(&copy))
        return status_fail(STATUS_INTERNAL, "no memory for a message of %zu bytes: %s", m->bytes, strerror(errno));
    memcpy(copy.data, m->data, m->bytes);
    status result = send_packet(socket, &copy, sent);
    message_release(&copy);
    return result;
}

/* The descriptor that came with a packet; 0: none. */
static int descriptor_of(struct msghdr *packet) {
    int descriptor = 0;
    struct cmsghdr *c = CMSG_FIRSTHDR(packet);
    if (c && c->cmsg_type == SCM_RIGHTS) memcpy(&descriptor, CMSG_DATA(c), sizeof descriptor);
    return descriptor;
}

status message_receive(int socket, channel_message *m, bool *gone) {
    static _Thread_local char data[MOST_INLINE_BYTES];
    head h;
    struct iovec parts[2] = {{&h, sizeof h}, {data, sizeof data}};
    descriptor_room room;
    struct msghdr packet = {
        .msg_iov = parts, .msg_iovlen = 2, .msg_control = room.bytes, .msg_controllen = sizeof room.bytes};
    ssize_t n;
    do {
        n = recvmsg(socket, &packet, MSG_CMSG_CLOEXEC);
    } while (n < 0 && errno == EINTR);
    *m = (channel_message){.kind = CHANNEL_END};
    *gone = n == 0 || (n < 0 && errno == ECONNRESET);
    if (*gone) return STATUS_OK;
    if (n < (ssize_t)sizeof h) return status_fail(STATUS_IO, "the diagnostics worker's socket: %s", strerror(errno));
    *m = (channel_message){.kind = (int)h.kind,
                           .sender = (int)h.sender,
                           .step = h.step,
                           .number = h.number,
                           .bytes = h.bytes,
                           .memory = descriptor_of(&packet)};
    if (m->memory > 0 && map(m)) return STATUS_OK;
    if (m->memory > 0) close(m->memory);
    m->data = m->memory > 0 || h.bytes != (size_t)n - sizeof h ? NULL : malloc(h.bytes + 1);
    m->memory = 0;
    if (!m->data) return status_fail(STATUS_INTERNAL, "no memory for a message of %zu bytes", m->bytes);
    memcpy(m->data, data, h.bytes);
    ((char *)m->data)[h.bytes] = '\0';
    return STATUS_OK;
}
