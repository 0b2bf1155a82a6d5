#include "trainer/trained.h"

#include "core/file.h"
#include "data/info.h"
#include "trainer/device.h"
#include "trainer/foreign.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static const char WEIGHTS[] = "model.safetensors", CONFIG[] = "config.yaml", MANIFEST[] = "manifest.json",
                  FOREIGN[] = "config.json";
static const char *const TOKENIZERS[] = {"tokenizer.model", "tokenizer.json"};

/* ---- finding ---- */

static bool holds(const char *folder, const char *name) {
    char path[TRAINED_PATH_BYTES];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return file_exists(path);
}

static bool is_folder(const char *path) {
    struct stat info;
    return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

/* The folder of the model that the path names. */
static status find_folder(trained *t, const char *path) {
    char checkpoints[CHECKPOINT_PATH_BYTES + 16];
    if (strlen(path) >= sizeof t->folder - 64) return status_fail(STATUS_USAGE, "the path is too long: %.80s...", path);
    if (!file_exists(path)) return status_fail(STATUS_NO_INPUT, "there is no %s", path);
    if (!is_folder(path))
        return status_fail(STATUS_DATA,
                           "%s is no folder; a model is named by its run's folder, by that of a checkpoint, or by one "
                           "with %s and %s",
                           path, WEIGHTS, CONFIG);
    snprintf(t->folder, sizeof t->folder, "%s", path);
    snprintf(checkpoints, sizeof checkpoints, "%s/checkpoints", path);
    if (holds(path, MANIFEST) || holds(path, FOREIGN) || !is_folder(checkpoints)) return STATUS_OK;
    int64_t step = checkpoint_latest(checkpoints);
    if (step < 0) return status_fail(STATUS_NO_INPUT, "%s has no whole checkpoint yet", path);
    char name[CHECKPOINT_NAME_BYTES];
    checkpoint_name(name, step);
    snprintf(t->folder, sizeof t->folder, "%s/checkpoints/%s", path, name);
    return STATUS_OK;
}

static status set_text(char **at, const char *text) {
    char *copy = strdup(text);
    if (!copy) return status_fail(STATUS_INTERNAL, "out of memory");
    free(*at);
    *at = copy;
    return STATUS_OK;
}

/* Alone: how the run was cut over ranks, and what its training kept in memory, is of no concern. bf16 is what GPUs
 * compute in unless they are told otherwise. */
static void run_alone(config *c, const trained_options *options) {
    c->parallel.tensor = c->parallel.data = 1;
    c->parallel.zero = 0;
    c->train.recompute = RECOMPUTE_FULL;
    c->run.threads = options->threads > 0 ? options->threads : device_cores();
    if (c->train.precision == PRECISION_BF16) c->train.precision = PRECISION_AUTO;
}

/* The configuration that lies beside the weights, of either kind. */
static status load_config(trained *t, const trained_options *options) {
    char path[TRAINED_PATH_BYTES], device[64];
    const char *setting = device;
    int settings = options->device != NULL;
    foreign f;
    if (options->device) snprintf(device, sizeof device, "run.device=%s", options->device);
    if (!holds(t->folder, FOREIGN)) {
        snprintf(path, sizeof path, "%s/%s", t->folder, CONFIG);
        return config_load(&t->config, path, &setting, settings);
    }
    TRY(foreign_open(&f, t->folder, &setting, settings));
    t->config = f.architecture.config;
    files_close(&f.files);
    return STATUS_OK;
}

/* Where the weights are, as train.init_from says it. */
static status set_weights(trained *t) {
    char path[TRAINED_PATH_BYTES];
    bool in_folder = holds(t->folder, MANIFEST) || holds(t->folder, FOREIGN);
    snprintf(path, sizeof path, "%s/%s", t->folder, WEIGHTS);
    return set_text(&t->config.train.init_from, in_folder ? t->folder : path);
}

status trained_find(trained *out, const char *path, const trained_options *options) {
    *out = (trained){0};
    TRY(find_folder(out, path));
    if (!holds(out->folder, CONFIG) && !holds(out->folder, FOREIGN))
        return status_fail(STATUS_NO_INPUT, "%s holds no model: there is neither %s nor %s", out->folder, CONFIG,
                           FOREIGN);
    TRY(load_config(out, options));
    run_alone(&out->config, options);
    status s = set_weights(out);
    if (s == STATUS_OK && out->config.model.vocab == 0)
        s = status_fail(STATUS_CONFIG, "%s/%s does not say model.vocab", out->folder, CONFIG);
    if (s != STATUS_OK) config_free(&out->config);
    return s;
}

/* ---- loading ---- */

status trained_load(trained *t, int64_t batch, int64_t context) {
    const comm_roles alone = {.local_compute_ranks = 1};
    const attn_core *core;
    comm_self(&t->alone);
    TRY(device_open(&t->ops, &core, &t->config, &alone));
    config c = t->config;
    if (context > 0) c.model.context = context;
    TRY(model_create(&t->model, &c, &t->ops, core, &t->alone, &t->alone, batch));
    return model_status(&t->model);
}

void trained_close(trained *t) {
    model_free(&t->model);
    device_close(&t->ops);
    config_free(&t->config);
    *t = (trained){0};
}

/* ---- the tokenizer ---- */

/* Beside the training data, with the hash that it must have. False: there is none. */
static bool dataset_tokenizer(const config *c, char path[TRAINED_PATH_BYTES], dataset_info *info) {
    if (c->data.train.count == 0) return false;
    const char *shard = c->data.train.items[0], *slash = strrchr(shard, '/');
    status s = dataset_info_load(info, shard);
    status_clear();
    if (s != STATUS_OK) return false;
    snprintf(path, TRAINED_PATH_BYTES, "%.*s%s", slash ? (int)(slash - shard) + 1 : 0, shard, info->tokenizer);
    return true;
}

/* With the hash that it must have in info, or none. */
static status find_tokenizer(const trained *t, char path[TRAINED_PATH_BYTES], dataset_info *info) {
    if (t->config.data.tokenizer[0]) {
        snprintf(path, TRAINED_PATH_BYTES, "%s", t->config.data.tokenizer);
        return STATUS_OK;
    }
    if (dataset_tokenizer(&t->config, path, info)) return STATUS_OK;
    for (int i = 0; i < 2; i++) {
        snprintf(path, TRAINED_PATH_BYTES, "%s/%s", t->folder, TOKENIZERS[i]);
        if (file_exists(path)) return STATUS_OK;
    }
    return status_fail(STATUS_NO_INPUT,
                       "the tokenizer of %s is not found: neither data.tokenizer nor a dataset.json beside data.train "
                       "names one, and there is no %s; --tokenizer does",
                       t->folder, TOKENIZERS[0]);
}

status trained_tokenizer_file(const trained *t, char out[TRAINED_PATH_BYTES]) {
    dataset_info info = {0};
    return find_tokenizer(t, out, &info);
}

static status check_tokenizer(const trained *t, const tokenizer *k, const char *path, const dataset_info *info) {
    if (info->tokenizer_hash[0] && strcmp(info->tokenizer_hash, tokenizer_hash(k)) != 0)
        return status_fail(STATUS_DATA, "%s is not the tokenizer that the dataset was made with", path);
    if (tokenizer_vocab(k) <= t->config.model.vocab) return STATUS_OK;
    return status_fail(STATUS_DATA, "%s has %lld pieces, the model only %lld: it is another model's tokenizer", path,
                       (long long)tokenizer_vocab(k), (long long)t->config.model.vocab);
}

status trained_tokenizer(const trained *t, const char *path, tokenizer **out) {
    char found[TRAINED_PATH_BYTES];
    dataset_info info = {0};
    *out = NULL;
    if (!path) {
        TRY(find_tokenizer(t, found, &info));
        path = found;
    }
    TRY(tokenizer_load(out, path));
    status s = check_tokenizer(t, *out, path, &info);
    if (s == STATUS_OK) return s;
    tokenizer_free(*out);
    *out = NULL;
    return s;
}

int32_t trained_document_start(const tokenizer *t) {
    return tokenizer_bos(t) >= 0 ? tokenizer_bos(t) : tokenizer_eos(t);
}
