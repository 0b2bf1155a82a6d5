#include "core/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

bool file_exists(const char *path) {
    struct stat info;
    return stat(path, &info) == 0;
}

char *file_join(const char *folder, const char *name) {
    size_t room = strlen(folder) + strlen(name) + 2;
    char *path = malloc(room);
    if (path) snprintf(path, room, "%s/%s", folder, name);
    return path;
}

static status make_dir(const char *path) {
    struct stat info;
    if (mkdir(path, 0777) == 0) return STATUS_OK;
    int reason = errno;
    if (stat(path, &info) == 0) {
        if (S_ISDIR(info.st_mode)) return STATUS_OK; /* ours or somebody's who came first */
        reason = ENOTDIR;
    }
    return status_fail(STATUS_IO, "cannot make the folder %s: %s", path, strerror(reason));
}

status file_make_dirs(const char *path) {
    char *parent = strdup(path);
    if (!parent) return status_fail(STATUS_INTERNAL, "out of memory");
    status result = STATUS_OK;
    for (char *slash = parent + (*parent == '/'); result == STATUS_OK && (slash = strchr(slash, '/')); slash++) {
        *slash = '\0';
        if (slash[1] != '/' && slash[1] != '\0') result = make_dir(parent);
        *slash = '/';
    }
    free(parent);
    return result == STATUS_OK ? make_dir(path) : result;
}

/* Reads from fd until the end or until more than limit bytes have come; a pipe has no size to ask for. */
static status read_to_end(int fd, char **data, size_t *length, size_t limit, const char *path) {
    size_t room = 0;
    for (;;) {
        if (*length + 1 >= room) {
            room = room ? 2 * room : 65536;
            char *larger = realloc(*data, room);
            if (!larger) return status_fail(STATUS_INTERNAL, "out of memory reading %s", path);
            *data = larger;
        }
        ssize_t got = read(fd, *data + *length, room - *length - 1);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0 && errno == EISDIR) return status_fail(STATUS_NO_INPUT, "%s is a folder, not a file", path);
        if (got < 0) return status_fail(STATUS_IO, "cannot read %s: %s", path, strerror(errno));
        if (got == 0) break;
        *length += (size_t)got;
        if (*length > limit) return status_fail(STATUS_DATA, "%s has more than %zu bytes", path, limit);
    }
    (*data)[*length] = '\0';
    return STATUS_OK;
}

status file_read_all(char **out, size_t *bytes, const char *path, size_t limit_bytes) {
    char *data = NULL;
    size_t length = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return status_fail(STATUS_NO_INPUT, "cannot open %s: %s", path, strerror(errno));
    status result = read_to_end(fd, &data, &length, limit_bytes, path);
    close(fd);
    if (result != STATUS_OK) {
        free(data);
        return result;
    }
    *out = data;
    if (bytes) *bytes = length;
    return STATUS_OK;
}

status file_lock(int *fd, const char *path) {
    *fd = open(path, O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
    if (*fd < 0) return status_fail(STATUS_IO, "cannot write %s: %s", path, strerror(errno));
    if (flock(*fd, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK) return STATUS_OK;
    close(*fd);
    *fd = -1;
    return STATUS_OK;
}

status file_sync_folder(const char *path) {
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    status result = STATUS_OK;
    /* EINVAL: a file system that cannot sync folders has nothing more to offer. */
    if (fd < 0 || (fsync(fd) != 0 && errno != EINVAL))
        result = status_fail(STATUS_IO, "cannot sync the folder %s: %s", path, strerror(errno));
    if (fd >= 0) close(fd);
    return result;
}

static status sync_folder_of(const char *path) {
    const char *slash = strrchr(path, '/');
    char *folder = slash ? strndup(path, slash == path ? 1 : (size_t)(slash - path)) : strdup(".");
    if (!folder) return status_fail(STATUS_INTERNAL, "out of memory");
    status result = file_sync_folder(folder);
    free(folder);
    return result;
}

static void close_writer(file_writer *w) {
    if (w->fd >= 0) close(w->fd);
    free(w->path);
    free(w->temporary);
    *w = (file_writer){.fd = -1};
}

void file_discard(file_writer *w) {
    if (w->temporary) unlink(w->temporary);
    close_writer(w);
}

status file_begin(file_writer *w, const char *path) {
    size_t room = strlen(path) + 48;
    *w = (file_writer){.fd = -1, .path = strdup(path), .temporary = malloc(room)};
    if (!w->path || !w->temporary) {
        close_writer(w);
        return status_fail(STATUS_INTERNAL, "out of memory");
    }
    /* mkstemp would make a file for its owner alone; O_EXCL steps over names that others took. */
    for (int attempt = 0; attempt < 1000; attempt++) {
        snprintf(w->temporary, room, "%s.tmp-%ld-%d", path, (long)getpid(), attempt);
        w->fd = open(w->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (w->fd >= 0) return STATUS_OK;
        if (errno != EEXIST) break;
    }
    status result = status_fail(STATUS_IO, "cannot write %s: %s", path, strerror(errno));
    close_writer(w);
    return result;
}

status file_put(file_writer *w, const void *data, size_t bytes) {
    const char *from = data;
    while (bytes > 0) {
        ssize_t written = write(w->fd, from, bytes);
        if (written < 0 && errno == EINTR) continue;
        if (written < 0) return status_fail(STATUS_IO, "cannot write %s: %s", w->path, strerror(errno));
        from += written;
        bytes -= (size_t)written;
    }
    return STATUS_OK;
}

status file_commit(file_writer *w) {
    if (fsync(w->fd) != 0 || rename(w->temporary, w->path) != 0) {
        status result = status_fail(STATUS_IO, "cannot write %s: %s", w->path, strerror(errno));
        file_discard(w);
        return result;
    }
    status result = sync_folder_of(w->path);
    close_writer(w);
    return result;
}

status file_write_atomic(const char *path, const void *data, size_t bytes) {
    file_writer w;
    TRY(file_begin(&w, path));
    status result = file_put(&w, data, bytes);
    if (result == STATUS_OK) return file_commit(&w);
    file_discard(&w);
    return result;
}
