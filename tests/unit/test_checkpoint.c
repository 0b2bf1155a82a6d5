/* What checkpoints rest on and one process can show: names, reading at every shape what another shape owned, manifests
 * that lie, when a loss is a spike. Whole runs: tests/e2e/test_resume.py. */
#include "check.h"
#include "folder.h"
#include "inputs.h"

#include "core/file.h"
#include "core/json.h"
#include "trainer/checkpoint.h"

/* ---- names ---- */

static void names_and_steps(void **state) {
    static const char *const others[] = {"step-1000",     "step-00001000.partial", "step-0000100x",
                                         "step--0001000", "step-000000001000",     "step-",
                                         "latest",        "Step-00001000"};
    const int64_t steps[] = {0, 7, 99999999, 100000000, 123456789012};
    char name[CHECKPOINT_NAME_BYTES];
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        checkpoint_name(name, steps[i]);
        assert_true(checkpoint_step_of(name) == steps[i]);
    }
    checkpoint_name(name, 1000);
    assert_string_equal(name, "step-00001000");
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) assert_true(checkpoint_step_of(others[i]) == -1);
}

/* By number, not by name: step 100000000 has one digit more. */
static void a_folder_is_listed_by_step(void **state) {
    static const char *const names[] = {"step-00000020", "step-100000000", "step-00000003.partial", "else",
                                        "step-00000100"};
    static const int64_t want[] = {100000000, 100, 20};
    folder f = folder_make();
    int64_t *steps;
    int count;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        check_status(file_make_dirs(folder_path(&f, names[i])), STATUS_OK);
    check_status(checkpoint_list(f.path, &steps, &count), STATUS_OK);
    assert_int_equal(count, 3);
    for (int i = 0; i < count; i++) assert_true(steps[i] == want[i]);
    free(steps);
    check_status(checkpoint_list(folder_path(&f, "absent"), &steps, &count), STATUS_OK);
    assert_int_equal(count, 0);
    folder_remove(&f);
}

static void latest_names_a_step_or_none(void **state) {
    folder f = folder_make();
    const char *path = folder_path(&f, "latest");
    assert_true(checkpoint_latest(f.path) == -1);
    check_status(file_write_atomic(path, "step-00000042\n", 14), STATUS_OK);
    assert_true(checkpoint_latest(f.path) == 42);
    check_status(file_write_atomic(path, "../step-00000042\n", 17), STATUS_OK);
    assert_true(checkpoint_latest(f.path) == -1);
    check_status(file_write_atomic(path, "", 0), STATUS_OK);
    assert_true(checkpoint_latest(f.path) == -1);
    assert_string_equal(status_message(), "");
    folder_remove(&f);
}

/* ---- a checkpoint of some shape ---- */

typedef struct shape {
    int tp, dp, pieces; /* pieces: dp with ZeRO, else 1 */
} shape;

static params table(shape s, int rank) {
    static const param_spec specs[] = {
        {.name = "rows", .rows = 10, .cols = 6, .shard = PARAM_BY_ROWS, .init = PARAM_NORMAL, .std = 1},
        {.name = "gain", .rows = 1, .cols = 70, .init = PARAM_ONES},
        {.name = "cols", .rows = 37, .cols = 11, .shard = PARAM_BY_COLS, .init = PARAM_NORMAL, .std = 1},
        {.name = "shared", .rows = 41, .cols = 7, .partial = true, .init = PARAM_NORMAL, .std = 1},
    };
    params p = {0};
    params_new_bucket(&p);
    for (size_t i = 0; i < sizeof specs / sizeof *specs; i++)
        check_status(params_add(&p, "layers.1.", &specs[i]), STATUS_OK);
    check_status(params_layout(&p, rank % s.tp, s.tp, s.pieces == 1 ? 0 : rank / s.tp, s.pieces), STATUS_OK);
    return p;
}

static comm_roles roles_of(shape s, int rank) {
    return (comm_roles){.tp = s.tp, .dp = s.dp, .compute_rank = rank, .tp_rank = rank % s.tp, .dp_rank = rank / s.tp};
}

/* Of every element another one. */
static float value_of(int i, int kind, int64_t row, int64_t col) {
    return (float)(((i * 3 + kind) * 64 + row) * 128 + col + 1);
}

enum { MOST_BOXES = 512 };

typedef struct shard {
    int count;
    char names[MOST_BOXES][128];
    safetensors_entry entries[MOST_BOXES];
} shard;

static void add_box(shard *t, json_t *boxes, const params *p, const owned_box *b, int kind, int file) {
    const param *q = &p->list[b->param];
    int64_t count = b->n_rows * b->n_cols;
    float *values = malloc((size_t)count * sizeof *values);
    char hash[BOX_HASH_BYTES];
    for (int64_t r = 0; r < b->n_rows; r++)
        for (int64_t c = 0; c < b->n_cols; c++)
            values[r * b->n_cols + c] = value_of(b->param, kind, b->row + r, b->col + c);
    box_hash(hash, values, (size_t)count * sizeof *values);
    int i = t->count++;
    snprintf(t->names[i], sizeof t->names[i], "%s/%s@%ld:%ld", q->name, checkpoint_kind_names[kind], (long)b->row,
             (long)b->col);
    t->entries[i] = (safetensors_entry){.name = t->names[i],
                                        .type = SAFETENSORS_F32,
                                        .rank = 2,
                                        .shape = {b->n_rows, b->n_cols},
                                        .data = values,
                                        .bytes = (size_t)count * sizeof *values};
    json_array_append_new(boxes,
                          json_pack("{s:s, s:s, s:i, s:I, s:I, s:I, s:I, s:I, s:I, s:s}", "name", q->name, "kind",
                                    checkpoint_kind_names[kind], "file", file, "rows", (json_int_t)q->spec.rows, "cols",
                                    (json_int_t)q->spec.cols, "row", (json_int_t)b->row, "col", (json_int_t)b->col,
                                    "n_rows", (json_int_t)b->n_rows, "n_cols", (json_int_t)b->n_cols, "xxh3", hash));
}

static json_t *write_shard(folder *f, shape s, int rank, json_t *boxes) {
    static shard t;
    char name[32];
    params p = table(s, rank);
    comm_roles roles = roles_of(s, rank);
    owned own;
    t.count = 0;
    check_status(owned_list(&own, &p, &roles), STATUS_OK);
    for (int kind = 0; kind < CHECKPOINT_KINDS; kind++)
        for (int i = 0; i < own.count; i++) add_box(&t, boxes, &p, &own.boxes[i], kind, rank);
    snprintf(name, sizeof name, "rank-%05d.safetensors", rank);
    const char *path = folder_path(f, name);
    check_status(safetensors_write(path, t.entries, t.count, NULL, 0), STATUS_OK);
    for (int i = 0; i < t.count; i++) free((void *)t.entries[i].data);
    char *text;
    size_t bytes;
    check_status(file_read_all(&text, &bytes, path, 1 << 24), STATUS_OK);
    free(text);
    owned_free(&own);
    params_free(&p);
    return json_pack("{s:s, s:I}", "name", name, "bytes", (json_int_t)bytes);
}

static void write_manifest(const char *path, json_t *content) {
    char hash[BOX_HASH_BYTES], *text = json_dumps(content, JSON_COMPACT);
    box_hash(hash, text, strlen(text));
    free(text);
    json_t *root = json_pack("{s:s, s:i, s:s, s:O}", "format", "bulkhead-checkpoint", "version", 1, "xxh3", hash,
                             "content", content);
    check_status(json_write_file(path, root), STATUS_OK);
    json_decref(root);
}

static json_t *write_checkpoint(folder *f, shape s) {
    json_t *files = json_array(), *boxes = json_array();
    for (int rank = 0; rank < s.tp * s.dp; rank++) json_array_append_new(files, write_shard(f, s, rank, boxes));
    json_t *content =
        json_pack("{s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:f, s:n, s:{s:b, s:[f, f]}, s:{}, s:o, s:o}", "run",
                  "0123456789abcdef0123456789abcdef", "step", 9, "updates", 8, "left_out", 1, "tokens", 900, "windows",
                  77, "tensor", s.tp, "data", s.dp, "loss", 2.5, "validation_loss", "spikes", "above", 1, "losses",
                  1.25, 0.1, "config", "files", files, "boxes", boxes);
    assert_non_null(content);
    write_manifest(folder_path(f, "manifest.json"), content);
    return content;
}

static void check_values(const params *p, const float *values, int kind) {
    for (int i = 0; i < p->count; i++) {
        const param *q = &p->list[i];
        param_range own = params_owned(p, i);
        for (int64_t k = 0; k < own.count; k++) {
            int64_t r = (own.first + k) / q->cols, c = (own.first + k) % q->cols;
            bool valid = r < q->n_rows && c < q->n_cols;
            float want = valid ? value_of(i, kind, q->row + r, q->col + c) : 0;
            if (values[own.at + k] != want)
                fail_msg("%s kind %d [%ld, %ld]: %g, not %g", q->name, kind, (long)r, (long)c,
                         (double)values[own.at + k], (double)want);
        }
    }
}

/* Every piece of storage of a rank of that shape. */
static void check_read(const char *path, shape s, int rank) {
    ops o;
    checkpoint k;
    params p = table(s, rank);
    check_status(ops_cpu(&o, 1), STATUS_OK);
    arena measure = {0};
    params_reserve(&p, DTYPE_F32, &measure);
    arena memory = {.base = calloc(1, measure.used_bytes), .size_bytes = measure.used_bytes};
    params_reserve(&p, DTYPE_F32, &memory);
    check_status(checkpoint_read(&k, path), STATUS_OK);
    check_status(checkpoint_load(&k, &p, &o), STATUS_OK);
    assert_true(k.state.step == 9 && k.state.updates == 8 && k.state.left_out == 1 && k.windows == 77);
    assert_true(k.state.loss == 2.5 && isnan(k.state.validation_loss));
    assert_true(k.state.spikes.above && k.state.spikes.count == 2 && k.state.spikes.losses[1] == 0.1);
    check_values(&p, p.master, CHECKPOINT_MASTER);
    check_values(&p, p.moment1, CHECKPOINT_MOMENT1);
    check_values(&p, p.moment2, CHECKPOINT_MOMENT2);
    checkpoint_free(&k);
    free(memory.base);
    params_free(&p);
}

static const shape shapes[] = {{1, 1, 1}, {2, 1, 1}, {4, 1, 1}, {1, 2, 1}, {1, 3, 3}, {2, 2, 2}, {3, 2, 1}, {3, 4, 4}};
enum { SHAPES = sizeof shapes / sizeof *shapes };

static void any_shape_reads_what_any_other_owned(void **state) {
    for (int from = 0; from < SHAPES; from++) {
        folder f = folder_make();
        json_decref(write_checkpoint(&f, shapes[from]));
        for (int to = 0; to < SHAPES; to++)
            for (int rank = 0; rank < shapes[to].tp * shapes[to].dp; rank++) check_read(f.path, shapes[to], rank);
        folder_remove(&f);
    }
}

/* ---- manifests that lie, with the right hash ---- */

static void set_number(json_t *line, const char *key, int value) {
    json_object_set_new(line, key, json_integer(value));
}

static void check_refused(folder *f, json_t *content, const char *says) {
    checkpoint k;
    write_manifest(f->paths[f->used - 1], content);
    check_status(checkpoint_read(&k, f->path), STATUS_DATA);
    if (!strstr(status_message(), says)) fail_msg("\"%s\" does not say \"%s\"", status_message(), says);
    status_clear();
    checkpoint_free(&k);
}

static void manifests_that_lie_are_refused(void **state) {
    static const struct {
        const char *key;
        int value;
    } lies[] = {{"file", 1},  {"file", -1},  {"row", -1},     {"row", 1},     {"col", 1},
                {"cols", 99}, {"n_rows", 0}, {"n_rows", 100}, {"n_cols", -5}, {"rows", 1 << 30}};
    folder f = folder_make();
    json_t *content = write_checkpoint(&f, (shape){1, 1, 1});
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        json_t *lie = json_deep_copy(content);
        set_number(json_array_get(json_object_get(lie, "boxes"), 0), lies[i].key, lies[i].value);
        check_refused(&f, lie, "its manifest is not one");
        json_decref(lie);
    }
    checkpoint k;
    json_t *outside = json_deep_copy(content);
    json_object_set_new(json_array_get(json_object_get(outside, "files"), 0), "name", json_string("../x"));
    check_refused(&f, outside, "its manifest is not one");
    json_decref(outside);
    json_t *longer = json_deep_copy(content);
    set_number(json_array_get(json_object_get(longer, "files"), 0), "bytes", 5);
    check_refused(&f, longer, "5 were written");
    json_decref(longer);
    write_manifest(f.paths[f.used - 1], content);
    check_status(checkpoint_read(&k, f.path), STATUS_OK);
    checkpoint_free(&k);
    json_decref(content);
    folder_remove(&f);
}

/* ---- spikes ---- */

static void feed(spikes *s, int count, double level, double width) {
    double usual;
    for (int i = 0; i < count; i++) {
        float z;
        inputs_normal(&z, 1, width);
        assert_false(spikes_note(s, level + fmax(-3 * width, fmin(3 * width, z)), &usual));
    }
}

static void a_spike_is_told_once(void **state) {
    spikes s = {0};
    double usual = 0;
    feed(&s, SPIKES_WINDOW, 4, 0.05);
    assert_true(spikes_note(&s, 6, &usual));
    check_near(usual, 4, 0.05);
    assert_false(spikes_note(&s, 6.5, &usual));
    assert_false(spikes_note(&s, NAN, &usual));
    assert_false(spikes_note(&s, INFINITY, &usual));
    assert_false(spikes_note(&s, 4, &usual));
    assert_true(spikes_note(&s, 6, &usual));
}

/* Not before the window is full, not a low loss, not what is within 1% of losses that hardly differ. */
static void what_is_no_spike(void **state) {
    spikes s = {0};
    double usual = 0;
    feed(&s, SPIKES_WINDOW - 1, 4, 0.05);
    assert_false(spikes_note(&s, 400, &usual));
    assert_false(spikes_note(&s, 0.1, &usual));
    for (int i = 0; i < SPIKES_WINDOW; i++) spikes_note(&s, 2, &usual);
    assert_false(spikes_note(&s, 2.019, &usual));
    assert_true(spikes_note(&s, 2.021, &usual));
}

/* Losses that fall as in early training are none, at any noise that is usual there. */
static void learning_is_no_spike(void **state) {
    spikes s = {0};
    double usual = 0;
    for (int i = 0; i < 2000; i++) {
        float z;
        inputs_normal(&z, 1, 0.05);
        if (spikes_note(&s, 2 + 6 * exp(-i / 200.0) + fmax(-0.2, fmin(0.2, z)), &usual)) fail_msg("at %d", i);
    }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(names_and_steps),
    cmocka_unit_test(a_folder_is_listed_by_step),
    cmocka_unit_test(latest_names_a_step_or_none),
    cmocka_unit_test(any_shape_reads_what_any_other_owned),
    cmocka_unit_test(manifests_that_lie_are_refused),
    cmocka_unit_test_setup(a_spike_is_told_once, inputs_start),
    cmocka_unit_test_setup(what_is_no_spike, inputs_start),
    cmocka_unit_test_setup(learning_is_no_spike, inputs_start),
};
TEST_MAIN(tests)
