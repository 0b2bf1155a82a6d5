/* The picture of a run at every size of terminal, of runs that have anything or nothing to show. */
#include "check.h"
#include "core/rng.h"
#include "trainer/watch.h"

static double draw_number(uint64_t index) {
    return ((double)(rng_u64(3, 5, index) >> 11) + 0.5) / 0x1p53;
}

/* A run of that many layers and bins with values in random places; hostile text. */
static glance make_glance(int layers, int bins) {
    glance g = {.name = "a\x1b[2J\xc3\xbc\xff\xe2\x82",
                .variant = "mha",
                .status = "running",
                .attempt = 1,
                .exit_code = -1,
                .idle_s = 100,
                .step = 40,
                .steps = 1000,
                .loss = 3.25,
                .grad_norm = 1,
                .lr = 1e-3,
                .tokens_per_s = 12345,
                .seconds_left = 75,
                .validation_loss = NAN,
                .validation_step = -1,
                .snapshots = bins,
                .waiting = 2,
                .missed = 1,
                .snapshot_step = 39,
                .lag_ms = 12,
                .compute_ms = NAN,
                .column = "stable_rank",
                .layers = layers,
                .event_count = GLANCE_EVENTS};
    report_bins_begin(&g.loss_bins, bins);
    report_bins_begin(&g.map_bins, bins);
    for (int i = 0; i < bins; i++) {
        report_bins_add(&g.loss_bins, i);
        report_bins_add(&g.map_bins, i);
        g.losses[i] = draw_number((uint64_t)i) < 0.3 ? NAN : 3 + draw_number((uint64_t)i + 1000);
    }
    g.map = calloc((size_t)(layers * bins) + 1, sizeof *g.map);
    assert_non_null(g.map);
    for (int i = 0; i < layers * bins; i++)
        g.map[i] = draw_number((uint64_t)i + 5000) < 0.3 ? NAN : draw_number((uint64_t)i + 9000);
    for (int i = 0; i < GLANCE_EVENTS; i++) {
        g.events[i].step = i;
        snprintf(g.events[i].time, sizeof g.events[i].time, "%s", i % 2 ? "2026-01-01T01:02:03Z" : "");
        snprintf(g.events[i].level, sizeof g.events[i].level, "warn");
        memset(g.events[i].message, i % 2 ? 'x' : '\xe2', sizeof g.events[i].message - 1);
    }
    return g;
}

static const watch_look looks[] = {
    {.utf8 = true, .colours = true, .path = "runs/a", .clock = "01:02:03"},
    {.utf8 = true, .path = "runs/a", .clock = "01:02:03", .trouble = "runs/a/run.db is locked"},
    {.path = "runs/\xc3\xbc", .clock = "01:02:03", .paused = true},
};

static void check_cells(const watch_frame *f, const watch_look *look) {
    for (int i = 0; i < f->rows * f->columns; i++) {
        const watch_cell *c = &f->cells[i];
        assert_true(c->glyph[0] != '\0' && (unsigned char)c->glyph[0] >= ' ' && c->glyph[0] != 127);
        if (!look->utf8) assert_true((unsigned char)c->glyph[0] < 0x80);
        if ((unsigned char)c->glyph[0] < 0x80) assert_int_equal(c->glyph[1], '\0');
        assert_true(c->level >= -1 && c->level < WATCH_LEVELS && (look->colours || c->level == -1));
    }
}

static void every_size_is_drawn(void **state) {
    static const int shapes[][2] = {{0, 0}, {0, 7}, {1, 1}, {2, 5}, {24, REPORT_BINS}, {100, 30}};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        glance g = make_glance(shapes[s][0], shapes[s][1]);
        for (size_t l = 0; l < sizeof looks / sizeof *looks; l++)
            for (int rows = 0; rows <= 40; rows += rows < 12 ? 1 : 7)
                for (int columns = 0; columns <= 300; columns += columns < 40 ? 1 : 37) {
                    watch_frame f;
                    check_status(watch_frame_open(&f, rows, columns), STATUS_OK);
                    watch_draw(&f, rows % 5 == 1 ? NULL : &g, &looks[l]);
                    check_cells(&f, &looks[l]);
                    watch_frame_free(&f);
                }
        glance_free(&g);
    }
}

/* The text of a row, its characters one byte each. */
static const char *row_of(const watch_frame *f, int row) {
    static char text[512];
    for (int i = 0; i < f->columns; i++) text[i] = f->cells[row * f->columns + i].glyph[0];
    text[f->columns] = '\0';
    return text;
}

static void a_map_has_a_row_a_layer_and_a_place_a_bin(void **state) {
    static const char *const want[] = {"    0 .@", "    1  o"}; /* least, greatest; none, in between */
    glance g = make_glance(2, 2);
    g.map[0] = -1;
    g.map[1] = 1;
    g.map[2] = NAN;
    g.map[3] = 0.35;
    watch_frame f;
    check_status(watch_frame_open(&f, 24, 80), STATUS_OK);
    watch_draw(&f, &g, &looks[2]);
    assert_non_null(strstr(row_of(&f, 4), "stable_rank, median over heads: -1 ... 1, steps 0 to 1"));
    for (int y = 0; y < 2; y++) assert_memory_equal(row_of(&f, 5 + y), want[y], 8);
    watch_draw(&f, &g, &looks[0]);
    const watch_cell *c = &f.cells[5 * f.columns + 6];
    assert_int_equal(c[0].level, 0);
    assert_int_equal(c[1].level, WATCH_LEVELS - 1);
    assert_int_equal(c[2].level, -1);
    assert_int_equal(c[f.columns].level, -1);
    watch_frame_free(&f);
    glance_free(&g);
}

/* More layers than rows, more bins than columns: every value counts once, in a mean. */
static void a_small_map_shows_means(void **state) {
    glance g = make_glance(8, 4);
    for (int i = 0; i < 32; i++) g.map[i] = i >= 16 && i % 4 < 2 ? 2 : 0;
    g.map[3 * 4 + 1] = 8; /* the last layer and bin of their places: one 8 of eight values makes 1 */
    g.map[7 * 4 + 3] = 12;
    g.event_count = 0;
    watch_frame f;
    check_status(watch_frame_open(&f, 9, 8), STATUS_OK); /* two rows of the map and two columns */
    watch_draw(&f, &g, &looks[0]);
    const int want[2][2] = {{WATCH_LEVELS / 2, 0}, {WATCH_LEVELS - 1, 3 * WATCH_LEVELS / 4}};
    for (int y = 0; y < 2; y++)
        for (int x = 0; x < 2; x++) assert_int_equal(f.cells[(5 + y) * f.columns + 6 + x].level, want[y][x]);
    watch_frame_free(&f);
    glance_free(&g);
}

static void durations_read_well(void **state) {
    static const struct {
        double seconds;
        const char *text;
    } cases[] = {
        {0.4, "0 s"}, {59.6, "1 min 0 s"}, {185, "3 min 5 s"}, {7800, "2 h 10 min"}, {4 * 86400 + 3 * 3600, "4 d 3 h"},
        {NAN, "?"},   {INFINITY, "?"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[32];
        watch_duration(cases[i].seconds, text);
        assert_string_equal(text, cases[i].text);
    }
}

static void a_line_says_what_there_is(void **state) {
    char *text = NULL;
    size_t bytes;
    glance g = make_glance(1, 3);
    snprintf(g.name, sizeof g.name, "a");
    FILE *out = open_memstream(&text, &bytes);
    watch_print_line(&g, out);
    fclose(out);
    assert_string_equal(text,
                        "a: running, nothing written for 1 min 40 s  step 40/1000  4.0%  loss 3.2500  12345 tokens/s"
                        "  1 min 15 s left  snapshots 3, 2 waiting, 1 missed, lag 12 ms at step 39");
    free(text);
    glance_free(&g);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(every_size_is_drawn),       cmocka_unit_test(a_map_has_a_row_a_layer_and_a_place_a_bin),
    cmocka_unit_test(a_small_map_shows_means),   cmocka_unit_test(durations_read_well),
    cmocka_unit_test(a_line_says_what_there_is),
};

TEST_MAIN(tests)
