/* Effective maps: the oracle's cases laid out as production lays out its snapshots, and products formed in full. */
#include "spectra_models.h"

/* ---------------------------------------------------------------- the oracle's cases */

static int find_matrix(const maps *m, const char *form, const char *part, const char *scope, int layer, int head,
                       const char *name) {
    const maps_matrix *x = maps_matrices(m);
    for (int i = 0; i < maps_count(m); i++)
        if (strcmp(maps_form_names[x[i].form], form) == 0 && strcmp(maps_part_names[x[i].part], part) == 0 &&
            strcmp(maps_scope_names[x[i].scope], scope) == 0 && x[i].layer == layer && x[i].head == head &&
            strcmp(x[i].tensor, name) == 0)
            return i;
    fail_msg("no matrix %s %s %s %d %d %s", form, part, scope, layer, head, name);
    return -1;
}

static void oracle_models(void **state) {
    int done = 0;
    spectra_case c;
    for (size_t i = 0; spectra_case_open(&c, i); i++) {
        if (strcmp(c.kind, "matrix") != 0 && strcmp(c.kind, "chain") != 0) {
            snapshot s = {0};
            config k = case_config(&c, &s);
            computed q = compute(&k, &s, NULL, 1);
            size_t r;
            json_t *want;
            json_array_foreach(json_object_get(c.json, "results"), r, want) {
                const json_t *head = json_object_get(want, "head");
                int index = find_matrix(q.maps, json_string_value(json_object_get(want, "form")),
                                        json_string_value(json_object_get(want, "part")),
                                        json_string_value(json_object_get(want, "scope")), 0,
                                        json_is_integer(head) ? (int)json_integer_value(head) : -1, "");
                const maps_matrix *x = &maps_matrices(q.maps)[index];
                assert_int_equal(x->rank, spectra_int(want, "r", 0));
                assert_int_equal(x->rows, spectra_int(want, "rows", 0));
                assert_int_equal(x->cols, spectra_int(want, "cols", 0));
                spectra_compare(&c, want, &q.rows[index], q.values + x->first_value);
                done++;
            }
            release(&q);
            snapshot_free(&s);
        }
        spectra_case_close(&c);
    }
    assert_int_equal(done, 52);
}

/* ---------------------------------------------------------------- products formed in full */

static const float *weight(const snapshot *s, int layer, const char *part) {
    char name[64];
    snprintf(name, sizeof(name), "layers.%d.%s", layer, part);
    const snapshot_tensor *t = snapshot_find(s, name);
    assert_non_null(t);
    return t->data;
}

/* Singular values of sum over heads [first, last) of A_h^T B_h of an mha layer, formed as d x d. */
static void full_product(const config *c, const snapshot *s, int layer, int first, int last, double *values) {
    int d = (int)c->model.width, D = (int)c->model.head_dim, group = (int)(c->model.heads / c->model.kv_heads);
    const float *Q = weight(s, layer, "attention.W_Q"), *K = weight(s, layer, "attention.W_K");
    const float *g = weight(s, layer, "attention_norm");
    double *X = calloc((size_t)d * (size_t)d, sizeof(double));
    for (int h = first; h < last; h++)
        for (int r = 0; r < D; r++)
            for (int i = 0; i < d; i++)
                for (int j = 0; j < d; j++)
                    X[i * d + j] += (double)g[i] * Q[(h * D + r) * d + i] * g[j] * K[(h / group * D + r) * d + j];
    spectrum_work w;
    check_status(spectrum_work_open(&w, d, d), STATUS_OK);
    assert_int_equal(spectrum_solve(&w, X, d, d), SPECTRUM_STATUS_ok);
    memcpy(values, w.values, (size_t)d * sizeof(double));
    spectrum_work_close(&w);
    free(X);
}

static void check_against_product(int heads, int kv_heads, int head_dim, int width) {
    config c = diagnostics_config(VARIANT_MHA, 2, heads, head_dim, width);
    c.model.kv_heads = kv_heads;
    snapshot s = {0};
    snapshot_fill(&s, &c, 7);
    computed q = compute(&c, &s, NULL, 2);
    double want[64];
    for (int layer = 0; layer < 2; layer++)
        for (int h = -1; h < heads; h++) {
            full_product(&c, &s, layer, h < 0 ? 0 : h, h < 0 ? heads : h + 1, want);
            int i = find_matrix(q.maps, "score", "full", h < 0 ? "layer" : "head", layer, h, "");
            const maps_matrix *x = &maps_matrices(q.maps)[i];
            for (int k = 0; k < x->rank; k++) check_near(q.values[x->first_value + k], want[k], 1e-13 * want[0]);
            for (int k = x->rank; k < width; k++) check_near(want[k], 0, 1e-13 * want[0]);
        }
    release(&q);
    snapshot_free(&s);
}

/* Narrow heads go through QR factors, a wide layer or head through the product; grouped heads share a key. */
static void cores_are_the_products(void **state) {
    check_against_product(4, 4, 8, 48);
    check_against_product(4, 2, 8, 24);
    check_against_product(4, 1, 6, 24);
    check_against_product(2, 2, 12, 24);
    check_against_product(1, 1, 24, 24);
    check_against_product(2, 1, 20, 16);
}

/* Any number of workers gives the same numbers; so does a layer on its own. */
static void workers_do_not_matter(void **state) {
    config c = diagnostics_config(VARIANT_MLA_DECOUPLED, 3, 2, 8, 32);
    snapshot s = {0};
    snapshot_fill(&s, &c, 5);
    computed one = compute(&c, &s, NULL, 1), two = compute(&c, &s, NULL, 2);
    assert_memory_equal(one.values, two.values, (size_t)maps_value_count(one.maps) * sizeof(double));
    release(&one);
    release(&two);
    snapshot_free(&s);
}

static char *part_words[] = {"full", "content", "rope", "ov"};
static const config_list all_parts = {4, part_words};

/* Every shape that a config can have is computed, and every spectrum of noise is plausible. */
static void every_wiring_has_its_spectra(void **state) {
    for (int kind = 0; kind < 6; kind++) {
        config c = diagnostics_config(kind == 0  ? VARIANT_MHA
                                      : kind < 3 ? VARIANT_MLA_PREROPE
                                                 : VARIANT_MLA_DECOUPLED,
                                      2, 4, 8, 32);
        if (kind == 2) c.attention.prerope_source = SOURCE_HIDDEN;
        if (kind == 4) c.attention.q_lora_rank = 7;
        if (kind == 5) c.attention.latent_norm = false;
        c.diagnostics.parts = all_parts;
        snapshot s = {0};
        snapshot_fill(&s, &c, 3);
        for (int i = 0; i < s.count; i++) assert_true(maps_wants(&c, s.tensors[i].name));
        computed q = compute(&c, &s, NULL, 2);
        maps_size size;
        check_status(maps_measure(&c, &size), STATUS_OK);
        assert_true(size.rows == maps_count(q.maps) && size.values == maps_value_count(q.maps) &&
                    size.pairs == maps_pair_count(q.maps));
        for (int i = 0; i < maps_count(q.maps); i++) {
            const maps_matrix *x = &maps_matrices(q.maps)[i];
            if (q.rows[i].status != SPECTRUM_STATUS_ok)
                fail_msg("%s %s: %s", maps_form_names[x->form], maps_part_names[x->part],
                         spectrum_status_name(q.rows[i].status));
            assert_true(q.rows[i].numerical_rank == x->rank && q.rows[i].stable_rank <= x->rank + 1e-9);
        }
        release(&q);
        snapshot_free(&s);
    }
}

/* The spectra and top pairs of scores, everything recorded or scores alone: then the keys of a latent are not formed.
 */
static void check_scores_alone(config c, const snapshot *s) {
    char *score[] = {"score"};
    computed q[2];
    float *pairs[2];
    for (int alone = 0; alone < 2; alone++) {
        if (alone) c.diagnostics.forms = (config_list){1, score};
        q[alone] = compute(&c, s, NULL, 1);
        bool *wanted = calloc((size_t)maps_count(q[alone].maps), sizeof *wanted);
        pairs[alone] = calloc((size_t)maps_pair_count(q[alone].maps), sizeof **pairs);
        for (int i = 0; i < maps_count(q[alone].maps); i++) wanted[i] = true;
        check_status(
            maps_compute_pairs(q[alone].maps, s, q[alone].rows, q[alone].values, &(maps_pairs){wanted, pairs[alone]}),
            STATUS_OK);
        free(wanted);
    }
    for (int i = 0; i < maps_count(q[1].maps); i++) {
        const maps_matrix *x = &maps_matrices(q[1].maps)[i], *beside = &maps_matrices(q[0].maps)[i]; /* scores first */
        assert_true(x->form == beside->form && x->part == beside->part && x->layer == beside->layer &&
                    x->head == beside->head);
        assert_int_equal(q[1].rows[i].status, q[0].rows[i].status);
        const double *got = q[1].values + x->first_value, *want = q[0].values + beside->first_value;
        const float *u = pairs[1] + x->first_pair, *then = pairs[0] + beside->first_pair;
        double left = 0, right = 0;
        for (int k = 0; k < x->rank; k++)
            if (isnan(want[0]))
                assert_true(isnan(got[k]));
            else
                check_near(got[k], want[k], 1e-12 * want[0]);
        for (int k = 0; k < x->left; k++) left += (double)u[k] * then[k];
        for (int k = x->left; k < x->left + x->right; k++) right += (double)u[k] * then[k];
        if (isnan(want[0]))
            assert_true(isnan(u[0]) && isnan(then[0]));
        else
            check_near(left * right, 1, 1e-5);
    }
    for (int k = 0; k < 2; k++) {
        release(&q[k]);
        free(pairs[k]);
    }
}

static void what_is_recorded_beside_does_not_matter(void **state) {
    for (int kind = 0; kind < 7; kind++) {
        config c = diagnostics_config(kind < 2 ? VARIANT_MLA_PREROPE : VARIANT_MLA_DECOUPLED, 2, 4, 8, 32);
        if (kind == 1) c.attention.prerope_source = SOURCE_HIDDEN;
        if (kind == 3) c.attention.q_lora_rank = 7;
        if (kind == 4) c.attention.latent_norm = false;
        if (kind == 5) c.attention.kv_lora_rank = 5;  /* less than a head's rows */
        if (kind == 6) c.attention.kv_lora_rank = 30; /* with the rotary rows wider than the model */
        c.diagnostics.parts = all_parts;
        snapshot s = {0};
        snapshot_fill(&s, &c, 11 + (uint64_t)kind);
        check_scores_alone(c, &s);
        bool hidden = kind == 1;
        float *down = snapshot_find(&s, kind > 1 ? "layers.1.attention.W_DKV"
                                        : hidden ? "layers.1.attention.W_D"
                                                 : "layers.1.attention.W_DK")
                          ->data;
        down[3] = INFINITY;
        check_scores_alone(c, &s);
        snapshot_free(&s);
    }
}

static void only_the_chain_travels(void **state) {
    config c = diagnostics_config(VARIANT_MHA, 2, 4, 8, 32);
    assert_true(maps_wants(&c, "layers.1.attention.W_Q") && maps_wants(&c, "layers.12.attention_norm"));
    const char *const others[] = {"layers.1.attention.W_V",  "layers.1.attention.W_O", "layers.1.ffn.gate", "embedding",
                                  "layers.1.attention.W_QX", "layers..attention.W_Q",  "layers.1.",         ""};
    for (size_t i = 0; i < sizeof(others) / sizeof(*others); i++) assert_false(maps_wants(&c, others[i]));
    c.diagnostics.parts = all_parts;
    assert_true(maps_wants(&c, "layers.1.attention.W_V") && maps_wants(&c, "layers.1.attention.W_O"));
    c.diagnostics.parts.count = 3;
    c.attention.variant = VARIANT_MLA_PREROPE;
    assert_true(maps_wants(&c, "layers.0.attention.W_V") && maps_wants(&c, "layers.0.attention.latent_norm"));
    assert_false(maps_wants(&c, "layers.0.attention.W_UV"));
    c.attention.prerope_source = SOURCE_HIDDEN;
    assert_false(maps_wants(&c, "layers.0.attention.W_V"));
}

/* Every top pair belongs to s_1: exact to fp32 for a weight, whose rows are known here, of norm 1 for all. */
static void top_pairs_belong_to_the_largest_value(void **state) {
    config c = diagnostics_config(VARIANT_MLA_DECOUPLED, 2, 2, 8, 32);
    c.diagnostics.parts = all_parts;
    snapshot s = {0};
    snapshot_fill(&s, &c, 4);
    computed q = compute(&c, &s, NULL, 1);
    int count = maps_count(q.maps), checked = 0;
    bool *wanted = calloc((size_t)count, sizeof(*wanted));
    float *pairs = calloc((size_t)maps_pair_count(q.maps), sizeof(*pairs));
    for (int i = 0; i < count; i++) wanted[i] = i % 3 != 1;
    check_status(maps_compute_pairs(q.maps, &s, q.rows, q.values, &(maps_pairs){wanted, pairs}), STATUS_OK);
    for (int i = 0; i < count; i++) {
        const maps_matrix *m = &maps_matrices(q.maps)[i];
        const float *u = pairs + m->first_pair, *v = u + m->left;
        double of_u = 0, of_v = 0;
        for (int k = 0; k < m->left; k++) of_u += (double)u[k] * u[k];
        for (int k = 0; k < m->right; k++) of_v += (double)v[k] * v[k];
        check_near(of_u, wanted[i], 1e-6);
        check_near(of_v, wanted[i], 1e-6);
        if (!wanted[i] || strcmp(m->tensor, "W_DKV") != 0) continue;
        const float *W = weight(&s, m->layer, "attention.W_DKV");
        for (int row = 0; row < m->rows; row++) {
            double sum = 0;
            for (int k = 0; k < m->cols; k++) sum += (double)W[row * m->cols + k] * v[k];
            check_near(sum / q.values[m->first_value], u[row], 1e-6);
        }
        checked++;
    }
    assert_true(checked > 0);
    free(wanted);
    free(pairs);
    release(&q);
    snapshot_free(&s);
}

/* A NaN in one place makes exactly the matrices that contain it nonfinite; the others keep their values. */
static void a_nan_stays_where_it_is(void **state) {
    config c = diagnostics_config(VARIANT_MLA_DECOUPLED, 2, 2, 8, 32);
    snapshot s = {0};
    snapshot_fill(&s, &c, 9);
    computed clean = compute(&c, &s, NULL, 1);
    float *Q = snapshot_find(&s, "layers.1.attention.W_Q")->data;
    Q[(1 * 12 + 3) * 32 + 5] = NAN; /* layer 1, head 1, content row 3 */
    computed q = compute(&c, &s, NULL, 1);
    int hurt = 0;
    for (int i = 0; i < maps_count(q.maps); i++) {
        const maps_matrix *x = &maps_matrices(q.maps)[i];
        bool inside = x->layer == 1 && x->head != 0 && x->part != MAPS_rope;
        if (x->form == MAPS_weight) inside = x->layer == 1 && x->head == 1 && strcmp(x->tensor, "W_Q") == 0;
        hurt += inside;
        assert_int_equal(q.rows[i].status, inside ? SPECTRUM_STATUS_nonfinite : SPECTRUM_STATUS_ok);
        for (int k = 0; k < x->rank; k++) {
            double got = q.values[x->first_value + k], want = clean.values[x->first_value + k];
            if (inside)
                assert_true(isnan(got));
            else
                check_near(got, want, 1e-13 * clean.values[x->first_value]);
        }
    }
    assert_int_equal(hurt, 2 + 2 + 2 + 1); /* score, channel and layer: full and content; the weight */
    release(&q);
    release(&clean);
    snapshot_free(&s);
}

static void a_zero_map_has_status_zero(void **state) {
    config c = diagnostics_config(VARIANT_MLA_DECOUPLED, 1, 2, 8, 32);
    snapshot s = {0};
    snapshot_fill(&s, &c, 9);
    snapshot_tensor *t = (snapshot_tensor *)snapshot_find(&s, "layers.0.attention.W_DKV");
    memset(t->data, 0, (size_t)(t->rows * t->cols) * sizeof(float));
    computed q = compute(&c, &s, NULL, 1);
    assert_int_equal(q.rows[find_matrix(q.maps, "score", "content", "head", 0, 0, "")].status, SPECTRUM_STATUS_zero);
    assert_int_equal(q.rows[find_matrix(q.maps, "score", "rope", "head", 0, 0, "")].status, SPECTRUM_STATUS_ok);
    assert_int_equal(q.rows[find_matrix(q.maps, "score", "full", "head", 0, 0, "")].status,
                     SPECTRUM_STATUS_rank_deficient);
    release(&q);
    snapshot_free(&s);
}

/* Order, count and shapes of the list; weights of a grouped model have one key a kv head. */
static void matrices_are_listed_in_order(void **state) {
    config c = diagnostics_config(VARIANT_MHA, 2, 4, 8, 48);
    c.model.kv_heads = 2;
    maps *m;
    check_status(maps_open(&m, &c, 1), STATUS_OK);
    assert_int_equal(maps_count(m), 2 * 4 + 2 + 2 * 4 + 2 * (4 + 2));
    const maps_matrix *x = maps_matrices(m);
    for (int i = 1; i < maps_count(m); i++) {
        const maps_matrix *a = &x[i - 1], *b = &x[i];
        int before[] = {a->form, a->part, a->scope, a->layer, a->head},
            after[] = {b->form, b->part, b->scope, b->layer, b->head};
        int k = 0;
        while (k < 5 && before[k] == after[k]) k++;
        assert_true(k == 5 ? a->form == MAPS_weight : before[k] < after[k]);
        assert_int_equal(b->first_value, a->first_value + a->rank);
    }
    int key = find_matrix(m, "weight", "full", "head", 1, 1, "W_K"),
        layer = find_matrix(m, "score", "full", "layer", 0, -1, "");
    assert_true(x[key].rows == 8 && x[key].cols == 48 && x[layer].rank == 16);
    maps_close(m);
}

/* A latent of one dimension: its weight is one row, and no gain. */
static void a_weight_of_one_row_is_recorded(void **state) {
    config c = diagnostics_config(VARIANT_MLA_PREROPE, 1, 2, 8, 16);
    c.attention.prerope_source = SOURCE_HIDDEN;
    c.attention.kv_lora_rank = 1;
    snapshot s = {0};
    snapshot_fill(&s, &c, 2);
    computed q = compute(&c, &s, NULL, 1);
    int i = find_matrix(q.maps, "weight", "full", "layer", 0, -1, "W_D");
    assert_true(maps_matrices(q.maps)[i].rows == 1 && maps_matrices(q.maps)[i].cols == 16);
    assert_int_equal(q.rows[i].status, SPECTRUM_STATUS_too_small);
    release(&q);
    snapshot_free(&s);
}

static void wrong_snapshots_and_lists_are_refused(void **state) {
    config c = diagnostics_config(VARIANT_MHA, 2, 4, 8, 32);
    snapshot s = {0};
    snapshot_fill(&s, &c, 1);
    maps *m;
    spectrum rows[64];
    static double values[1024];
    check_status(maps_open(&m, &c, 1), STATUS_OK);
    assert_true(maps_count(m) <= 64 && maps_value_count(m) <= 1024);
    s.count--; /* the last layer's W_K */
    check_status(maps_compute(m, &s, rows, values), STATUS_DATA);
    assert_non_null(strstr(status_message(), "layers.1.attention.W_K"));
    status_clear();
    s.count++;
    s.tensors[1].rows--;
    check_status(maps_compute(m, &s, rows, values), STATUS_DATA);
    status_clear();
    maps_close(m);
    snapshot_free(&s);
    char *wrong[] = {"score", "scores"};
    c.diagnostics.forms = (config_list){2, wrong};
    check_status(maps_open(&m, &c, 1), STATUS_CONFIG);
    assert_non_null(strstr(status_message(), "\"scores\""));
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(oracle_models),
    cmocka_unit_test(cores_are_the_products),
    cmocka_unit_test(workers_do_not_matter),
    cmocka_unit_test(every_wiring_has_its_spectra),
    cmocka_unit_test(what_is_recorded_beside_does_not_matter),
    cmocka_unit_test(only_the_chain_travels),
    cmocka_unit_test(top_pairs_belong_to_the_largest_value),
    cmocka_unit_test(a_nan_stays_where_it_is),
    cmocka_unit_test(a_zero_map_has_status_zero),
    cmocka_unit_test(matrices_are_listed_in_order),
    cmocka_unit_test(a_weight_of_one_row_is_recorded),
    cmocka_unit_test(wrong_snapshots_and_lists_are_refused),
};

TEST_MAIN(tests)
