#define _GNU_SOURCE /* nftw */
#include "core/new_folder.h"

#include "core/file.h"

#include <dirent.h>
#include <errno.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

status new_folder_check(const char *path) {
    struct stat st;
    if (stat(path, &st) != 0) return STATUS_OK;
    if (!S_ISDIR(st.st_mode)) return status_fail(STATUS_USAGE, "-o %s: that is a file; name a folder", path);
    DIR *d = opendir(path);
    if (!d) return status_fail(STATUS_IO, "cannot look into %s: %s", path, strerror(errno));
    int entries = 0;
    while (readdir(d)) entries++;
    closedir(d);
    if (entries <= 2) return STATUS_OK; /* . and .. */
    return status_fail(STATUS_USAGE, "%s is not empty; name another folder with -o, or remove it first", path);
}

/* The folder that path is to be in. */
static status make_parents(const char *path, size_t length) {
    char *parent = strndup(path, length);
    if (!parent) return status_fail(STATUS_INTERNAL, "out of memory for a path");
    char *slash = strrchr(parent, '/');
    status s = STATUS_OK;
    if (slash && slash != parent) {
        *slash = '\0';
        s = file_make_dirs(parent);
    }
    free(parent);
    return s;
}

status new_folder_make(char **partial, const char *path) {
    size_t length = strlen(path);
    while (length > 1 && path[length - 1] == '/') length--;
    *partial = NULL;
    TRY(make_parents(path, length));
    char *made = malloc(length + sizeof NEW_FOLDER_ENDING);
    if (!made) return status_fail(STATUS_INTERNAL, "out of memory for a path");
    memcpy(made, path, length);
    memcpy(made + length, NEW_FOLDER_ENDING, sizeof NEW_FOLDER_ENDING);
    if (!mkdtemp(made)) {
        free(made);
        return status_fail(STATUS_IO, "cannot make the folder %s: %s", path, strerror(errno));
    }
    mode_t mask = umask(0); /* mkdtemp's folders are for their owner alone */
    umask(mask);
    chmod(made, 0777 & ~mask);
    *partial = made;
    return STATUS_OK;
}

static int remove_entry(const char *path, const struct stat *st, int kind, struct FTW *place) {
    remove(path);
    return 0;
}

void new_folder_discard(char *partial) {
    enum { OPEN_AT_ONCE = 8 };
    if (partial) nftw(partial, remove_entry, OPEN_AT_ONCE, FTW_DEPTH | FTW_PHYS);
    free(partial);
}

status new_folder_publish(char *partial, const char *path) {
    if (rename(partial, path) != 0) {
        status s = status_fail(STATUS_IO, "cannot name the folder %s: %s", path, strerror(errno));
        new_folder_discard(partial);
        return s;
    }
    free(partial);
    return STATUS_OK;
}
