/* A reader holds a descriptor and maps nothing. What it copies into a file of memory goes from file to file: a third
 * less time than through a mapping, whose pages would be cleared before they are written. */
#include "comm/window.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <unistd.h>

enum { PATH_BYTES = 64 };

static void find_path(const window_place *p, char path[PATH_BYTES]) {
    snprintf(path, PATH_BYTES, "/proc/%lld/fd/%lld", (long long)p->process, (long long)p->descriptor);
}

static bool find_name(const char *path, char name[WINDOW_NAME_BYTES]) {
    ssize_t length = readlink(path, name, WINDOW_NAME_BYTES);
    if (length <= 0 || length >= WINDOW_NAME_BYTES) return false;
    memset(name + length, 0, (size_t)(WINDOW_NAME_BYTES - length));
    return true;
}

bool window_locate(const channel_message *m, window_place *out) {
    char path[PATH_BYTES];
    *out = (window_place){.process = getpid(), .descriptor = m->memory};
    find_path(out, path);
    return m->memory > 0 && find_name(path, out->name);
}

/* The name is compared before anything is opened: what has this number elsewhere may be a pipe. */
int window_open(const window_place *place) {
    char path[PATH_BYTES], name[WINDOW_NAME_BYTES];
    find_path(place, path);
    if (!find_name(path, name) || memcmp(name, place->name, sizeof name) != 0) return -1;
    return open(path, O_RDONLY | O_CLOEXEC);
}

bool window_read(int window, size_t from, size_t bytes, channel_message *m, size_t at) {
    if (m->memory > 0 && lseek(m->memory, (off_t)at, SEEK_SET) < 0) return false;
    for (size_t done = 0; done < bytes;) {
        off_t begin = (off_t)(from + done);
        ssize_t n = m->memory > 0 ? sendfile(m->memory, window, &begin, bytes - done)
                                  : pread(window, (char *)m->data + at + done, bytes - done, begin);
        if (n == 0 || (n < 0 && errno != EINTR)) return false;
        if (n > 0) done += (size_t)n;
    }
    return true;
}
