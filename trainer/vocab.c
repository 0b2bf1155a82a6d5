#include "trainer/vocab.h"

status vocab_resolve(config *c, dataset_info *info) {
    *info = (dataset_info){0};
    if (c->data.train.count > 0 && dataset_info_load(info, c->data.train.items[0]) != STATUS_OK) {
        status_clear();
        *info = (dataset_info){0};
    }
    if (c->model.vocab == 0) {
        if (info->vocab == 0)
            return status_fail(
                STATUS_CONFIG,
                "model.vocab is not set and there is no dataset.json beside data.train to take it from; set it");
        c->model.vocab = info->vocab;
    }
    if (info->vocab > c->model.vocab)
        return status_fail(STATUS_CONFIG,
                           "model.vocab: %ld is smaller than the dataset's %ld tokens; set model.vocab=%ld",
                           (long)c->model.vocab, (long)info->vocab, (long)info->vocab);
    return STATUS_OK;
}
