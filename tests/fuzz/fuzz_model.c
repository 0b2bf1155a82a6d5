/* A model's folder: the input is config.json up to its first zero byte and model.safetensors.index.json behind it; the
 * folder has one small shard, a.safetensors, with the tensors a and b. */
#include "input.h"

#include "core/safetensors.h"
#include "diag/analyze/architecture.h"
#include "diag/analyze/files.h"

#include <fcntl.h>
#include <string.h>

static char folder[64], config_path[96], index_path[96], shard_path[96];

static void remove_folder(void) {
    unlink(config_path);
    unlink(index_path);
    unlink(shard_path);
    rmdir(folder);
}

static void make_folder(void) {
    static const float values[4] = {1, 2, 3, 4};
    const safetensors_entry entries[] = {{"a", SAFETENSORS_F32, 1, {4}, values, sizeof values},
                                         {"b", SAFETENSORS_F32, 2, {2, 2}, values, sizeof values}};
    strcpy(folder, access("/dev/shm", W_OK) == 0 ? "/dev/shm/bulkhead-fuzz-XXXXXX" : "/tmp/bulkhead-fuzz-XXXXXX");
    if (!mkdtemp(folder)) abort();
    snprintf(config_path, sizeof config_path, "%s/config.json", folder);
    snprintf(index_path, sizeof index_path, "%s/model.safetensors.index.json", folder);
    snprintf(shard_path, sizeof shard_path, "%s/a.safetensors", folder);
    if (safetensors_write(shard_path, entries, 2, NULL, 0) != STATUS_OK) FINDING("no shard");
    atexit(remove_folder);
}

static void put(const char *path, const uint8_t *data, size_t bytes) {
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (fd < 0 || write(fd, data, bytes) != (ssize_t)bytes || close(fd) != 0) abort();
}

static void check_config(void) {
    architecture a;
    status_clear();
    status got = architecture_read(&a, config_path, NULL, 0);
    if (got != STATUS_OK) {
        check_refusal(got, STATUS_DATA);
        return;
    }
    const config *c = &a.config;
    if (c->model.layers < 1 || c->model.width < 1 || c->model.heads < 1 || c->model.heads % c->model.kv_heads != 0)
        FINDING("sizes that cannot be");
    architecture_free(&a);
}

static void check_index(void) {
    files f;
    status_clear();
    status got = files_open(&f, folder);
    if (got != STATUS_OK) {
        check_refusal(got, STATUS_DATA);
        return;
    }
    for (int i = 0; i < f.count; i++)
        if (strcmp(f.name[i], "a.safetensors") != 0) FINDING("opened %s", f.name[i]);
    if (!files_find(&f, "a") && !files_find(&f, "b")) FINDING("an index of nothing");
    files_close(&f);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    if (!folder[0]) make_folder();
    const uint8_t *zero = memchr(data, 0, bytes);
    size_t first = zero ? (size_t)(zero - data) : bytes;
    put(config_path, data, first);
    put(index_path, zero ? zero + 1 : data, zero ? bytes - first - 1 : 0);
    check_config();
    check_index();
    return 0;
}
