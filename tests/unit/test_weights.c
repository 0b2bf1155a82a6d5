/* Weights from a file: every element lands where the table says, for every cut; a file that is not the model's is
 * refused by the tensor's name. */
#include "check.h"
#include "folder.h"

#include "trainer/weights.h"

static const param_spec specs[] = {
    {.name = "rows", .rows = 10, .cols = 6, .shard = PARAM_BY_ROWS, .init = PARAM_NORMAL, .std = 1},
    {.name = "cols", .rows = 3, .cols = 10, .shard = PARAM_BY_COLS, .init = PARAM_NORMAL, .std = 1},
    {.name = "gain", .rows = 1, .cols = 6, .init = PARAM_ONES},
    {.name = "shared", .rows = 4, .cols = 6, .partial = true, .init = PARAM_NORMAL, .std = 1},
};
enum { SPECS = sizeof specs / sizeof *specs, MOST = 60 };

/* Element i of a global tensor: tells tensor and place. */
static float element(int spec, int64_t i) {
    return (float)(1000 * (spec + 1) + i);
}

typedef struct fixture {
    folder folder;
    const char *path;
    float values[SPECS + 1][MOST];
    safetensors_entry entries[SPECS + 1]; /* the last is no parameter */
} fixture;

static void make(fixture *x) {
    x->folder = folder_make();
    x->path = folder_path(&x->folder, "weights.safetensors");
    for (int i = 0; i < SPECS; i++) {
        int64_t count = specs[i].rows * specs[i].cols;
        for (int64_t k = 0; k < count; k++) x->values[i][k] = element(i, k);
        x->entries[i] = (safetensors_entry){.name = specs[i].name,
                                            .type = SAFETENSORS_F32,
                                            .rank = 2,
                                            .shape = {specs[i].rows, specs[i].cols},
                                            .data = x->values[i],
                                            .bytes = (size_t)count * sizeof(float)};
    }
    x->entries[SPECS] = x->entries[0];
    x->entries[SPECS].name = "surplus";
}

typedef struct loaded {
    ops ops;
    params params;
    arena memory;
} loaded;

/* Rank `rank` of `size` with the first `count` entries of the fixture as its file. */
static status load(loaded *l, const fixture *x, int count, int rank, int size) {
    check_status(safetensors_write(x->path, x->entries, count, NULL, 0), STATUS_OK);
    *l = (loaded){0};
    check_status(ops_cpu(&l->ops, 1), STATUS_OK);
    for (int i = 0; i < SPECS; i++) check_status(params_add(&l->params, "", &specs[i]), STATUS_OK);
    check_status(params_layout(&l->params, rank, size, 0, 1), STATUS_OK);
    l->memory = (arena){.size_bytes = 1 << 16, .base = l->ops.alloc(&l->ops, 1 << 16)};
    params_reserve(&l->params, DTYPE_F32, &l->memory);
    status_clear();
    return weights_load_path(&l->params, &l->ops, x->path);
}

static void release(loaded *l) {
    l->ops.release(&l->ops, l->memory.base);
    params_free(&l->params);
}

static void refused(const fixture *x, int count, const char *says, const char *also) {
    loaded l;
    status got = load(&l, x, count, 0, 1);
    if (got != STATUS_DATA || !strstr(status_message(), says) || !strstr(status_message(), also))
        fail_msg("%s (%s), want \"%s\" and \"%s\"", status_text(got), status_message(), says, also);
    release(&l);
}

static void test_every_cut_reads_its_boxes(void **state) {
    fixture x;
    make(&x);
    for (int size = 1; size <= 5; size++)
        for (int rank = 0; rank < size; rank++) {
            loaded l;
            check_status(load(&l, &x, SPECS, rank, size), STATUS_OK);
            for (int i = 0; i < SPECS; i++) {
                const param *q = &l.params.list[i];
                for (int64_t r = 0; r < q->rows; r++)
                    for (int64_t c = 0; c < q->cols; c++) {
                        bool valid = r < q->n_rows && c < q->n_cols;
                        float want = valid ? element(i, (q->row + r) * q->spec.cols + q->col + c) : 0;
                        check_near(l.params.master[q->offset + r * q->cols + c], want, 0);
                    }
            }
            release(&l);
        }
    folder_remove(&x.folder);
}

static void test_other_float_types_are_read(void **state) {
    fixture x;
    make(&x);
    uint16_t halves[6];
    for (int i = 0; i < 6; i++) halves[i] = (uint16_t)(0x3f80 + 0x80 * i); /* bf16: 1, 2, 4, ... */
    x.entries[2].type = SAFETENSORS_BF16;
    x.entries[2].data = halves;
    x.entries[2].bytes = sizeof halves;
    loaded l;
    check_status(load(&l, &x, SPECS, 0, 1), STATUS_OK);
    for (int i = 0; i < 6; i++) check_near(l.params.master[l.params.list[2].offset + i], 1 << i, 0);
    release(&l);
    folder_remove(&x.folder);
}

static void test_a_tensor_too_few_or_too_many(void **state) {
    fixture x;
    make(&x);
    refused(&x, SPECS - 1, "no tensor shared", "weights.safetensors");
    refused(&x, SPECS + 1, "no parameter surplus", "weights.safetensors");
    folder_remove(&x.folder);
}

static void test_another_shape(void **state) {
    fixture x;
    make(&x);
    x.entries[1].shape[0] = 10, x.entries[1].shape[1] = 3;
    refused(&x, SPECS, "cols is 10 x 3", "3 x 10");
    x.entries[1].rank = 1, x.entries[1].shape[0] = 30;
    refused(&x, SPECS, "cols has 1 dimensions", "3 x 10");
    folder_remove(&x.folder);
}

static void test_values_that_are_no_weights(void **state) {
    fixture x;
    make(&x);
    x.values[3][8] = NAN;
    refused(&x, SPECS, "shared: element [1, 2]", "nan");
    x.values[3][8] = 0;
    x.entries[0].type = SAFETENSORS_I32;
    refused(&x, SPECS, "rows is I32", "float");
    folder_remove(&x.folder);
}

static void test_no_file(void **state) {
    loaded l = {0};
    status_clear();
    check_status(weights_load_path(&l.params, &l.ops, "/nowhere/weights.safetensors"), STATUS_NO_INPUT);
    assert_non_null(strstr(status_message(), "/nowhere/weights.safetensors"));
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_every_cut_reads_its_boxes),    cmocka_unit_test(test_other_float_types_are_read),
    cmocka_unit_test(test_a_tensor_too_few_or_too_many), cmocka_unit_test(test_another_shape),
    cmocka_unit_test(test_values_that_are_no_weights),   cmocka_unit_test(test_no_file),
};
TEST_MAIN(tests)
