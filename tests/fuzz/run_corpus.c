/* Gives a fuzz target the files of a corpus, without libFuzzer: what was found once is looked for by any compiler, and
 * a target that its parser has left behind does not build. */
#include "input.h"

#include <dirent.h>
#include <string.h>

enum { MOST_BYTES = 1 << 20 };

static void run_file(const char *path) {
    FILE *f = fopen(path, "rb");
    uint8_t *data = malloc(MOST_BYTES);
    if (!f || !data) FINDING("%s cannot be read", path);
    size_t bytes = fread(data, 1, MOST_BYTES, f);
    if (bytes == MOST_BYTES || ferror(f)) FINDING("%s cannot be read, or is no small input", path);
    fclose(f);
    uint8_t *input = realloc(data, bytes + !bytes); /* of its own size: a sanitizer sees what is read behind it */
    if (!input) FINDING("out of memory");
    LLVMFuzzerTestOneInput(input, bytes);
    free(input);
}

int main(int argc, char **argv) {
    int ran = 0;
    DIR *folder = argc == 2 ? opendir(argv[1]) : NULL;
    if (!folder) FINDING("usage: %s CORPUS-FOLDER", argv[0]);
    for (struct dirent *e; (e = readdir(folder));) {
        char path[4096];
        if (e->d_name[0] == '.') continue;
        snprintf(path, sizeof path, "%s/%s", argv[1], e->d_name);
        printf("%s\n", path);
        fflush(stdout);
        run_file(path);
        ran++;
    }
    closedir(folder);
    return ran > 0 ? 0 : 1;
}
