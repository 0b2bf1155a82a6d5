#include "trainer/vocab.h"

#include "data/info.h"

status vocab_resolve(config *c) {
    dataset_info info;
    bool known = false;
    if (c->data.train.count > 0) {
        known = dataset_info_load(&info, c->data.train.items[0]) == STATUS_OK;
        status_clear(); /* shards from elsewhere have none; then model.vocab must say it */
    }
    if (c->model.vocab == 0) {
        if (!known)
            return status_fail(
                STATUS_CONFIG,
                "model.vocab is not set and there is no dataset.json beside data.train to take it from; set it");
        c->model.vocab = info.vocab;
    }
    if (known && info.vocab > c->model.vocab)
        return status_fail(STATUS_CONFIG,
                           "model.vocab: %ld is smaller than the dataset's %ld tokens; set model.vocab=%ld",
                           (long)c->model.vocab, (long)info.vocab, (long)info.vocab);
    return STATUS_OK;
}
