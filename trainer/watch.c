#include "trainer/watch.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char *const bars[] = {" ", "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"}, *const plain_bars[] = {" ", "_", ".",
                                                                                                        "-", "=", "+",
                                                                                                        "*", "%", "#"};
enum { MAP_LABEL = 6, BARS = sizeof bars / sizeof *bars };
/* From low to high, as many as levels. */
static const char shades[] = ".,:;-=+*o#%@";
_Static_assert(sizeof shades == WATCH_LEVELS + 1, "a character a level");

/* ---------------------------------------------------------------- the frame */

status watch_frame_open(watch_frame *f, int rows, int columns) {
    *f = (watch_frame){.rows = rows, .columns = columns};
    f->cells = calloc((size_t)rows * (size_t)columns + 1, sizeof *f->cells);
    return f->cells ? STATUS_OK : status_fail(STATUS_INTERNAL, "out of memory for %d x %d characters", rows, columns);
}

void watch_frame_free(watch_frame *f) {
    free(f->cells);
    *f = (watch_frame){0};
}

static void set(watch_frame *f, int row, int column, const char *glyph, int level) {
    if (row < 0 || row >= f->rows || column < 0 || column >= f->columns) return;
    watch_cell *c = &f->cells[row * f->columns + column];
    snprintf(c->glyph, sizeof c->glyph, "%s", glyph);
    c->level = (signed char)level;
}

static void clear(watch_frame *f) {
    for (int i = 0; i < f->rows * f->columns; i++) f->cells[i] = (watch_cell){.glyph = " ", .level = -1};
}

/* Bytes of the character at text, 0 where it is none that can be shown. */
static int character_bytes(const char *text) {
    unsigned char c = (unsigned char)text[0];
    int n = c < 0x80 ? 1 : c >= 0xf0 ? 4 : c >= 0xe0 ? 3 : c >= 0xc2 ? 2 : 0;
    if (n == 1) return c >= ' ' && c != 127;
    if (n == 2 && c == 0xc2 && (unsigned char)text[1] < 0xa0) return 0; /* control characters of Latin 1 */
    for (int i = 1; i < n; i++)
        if (((unsigned char)text[i] & 0xc0) != 0x80) return 0;
    return n;
}

/* Text from a column on, as far as there is room; one cell a character. */
static void put(watch_frame *f, int row, int column, const watch_look *look, const char *text) {
    while (*text && column < f->columns) {
        char glyph[WATCH_GLYPH_BYTES] = "?";
        int n = character_bytes(text);
        if (n == 1 || (n > 1 && look->utf8)) snprintf(glyph, sizeof glyph, "%.*s", n, text);
        set(f, row, column++, glyph, -1);
        text += n > 0 ? n : 1;
    }
}

static void make_strong(watch_frame *f, int row) {
    for (int i = 0; row < f->rows && i < f->columns; i++) f->cells[row * f->columns + i].strong = true;
}

/* ---------------------------------------------------------------- numbers */

void watch_duration(double seconds, char text[32]) {
    if (isnan(seconds) || seconds > 1e9) {
        snprintf(text, 32, "?");
        return;
    }
    long s = (long)(seconds + 0.5);
    if (s < 60)
        snprintf(text, 32, "%ld s", s);
    else if (s < 3600)
        snprintf(text, 32, "%ld min %ld s", s / 60, s % 60);
    else if (s < 86400)
        snprintf(text, 32, "%ld h %ld min", s / 3600, s % 3600 / 60);
    else
        snprintf(text, 32, "%ld d %ld h", s / 86400, s % 86400 / 3600);
}

/* A number after its name, nothing where there is none. */
static void add_number(char *text, size_t room, const char *format, double value) {
    size_t used = strlen(text);
    if (isnan(value)) return;
    if (used > 0 && used + 2 < room) used += (size_t)snprintf(text + used, room - used, "  ");
    snprintf(text + used, room - used, format, value);
}

static void step_text(const glance *g, char *text, size_t room) {
    if (g->step < 0)
        snprintf(text, room, "no step yet");
    else if (g->steps > 0)
        snprintf(text, room, "step %lld/%lld", (long long)g->step, (long long)g->steps);
    else
        snprintf(text, room, "step %lld", (long long)g->step);
}

static double share_done(const glance *g) {
    return g->step >= 0 && g->steps > 0 ? fmin(1, (double)g->step / (double)g->steps) : 0;
}

static void snapshot_text(const glance *g, char *text, size_t room) {
    int used = snprintf(text, room, "snapshots %lld", (long long)g->snapshots);
    if (g->waiting > 0) used += snprintf(text + used, room - (size_t)used, ", %lld waiting", (long long)g->waiting);
    if (g->missed > 0) used += snprintf(text + used, room - (size_t)used, ", %lld missed", (long long)g->missed);
    if (!isnan(g->lag_ms))
        used += snprintf(text + used, room - (size_t)used, ", lag %.0f ms at step %lld", g->lag_ms,
                         (long long)g->snapshot_step);
    if (!isnan(g->compute_ms)) snprintf(text + used, room - (size_t)used, ", computed in %.0f ms", g->compute_ms);
}

/* The run's status; of one that is silent for long, since when. */
static void status_words(const glance *g, char *text, size_t room) {
    enum { SILENT_S = 60 };
    char since[32];
    int used = snprintf(text, room, "%s", g->status);
    if (g->exit_code >= 0) snprintf(text + used, room - (size_t)used, ", exit code %lld", (long long)g->exit_code);
    if (glance_has_ended(g) || !(g->idle_s > SILENT_S)) return;
    watch_duration(g->idle_s, since);
    snprintf(text + used, room - (size_t)used, ", nothing written for %s", since);
}

void watch_print_line(const glance *g, FILE *out) {
    char text[512] = "", step[64], left[32], words[96], snapshots[160];
    step_text(g, step, sizeof step);
    status_words(g, words, sizeof words);
    add_number(text, sizeof text, "%.1f%%", g->steps > 0 && g->step >= 0 ? 100 * share_done(g) : NAN);
    add_number(text, sizeof text, "loss %.4f", g->loss);
    add_number(text, sizeof text, "validation %.4f", g->validation_loss);
    add_number(text, sizeof text, "%.0f tokens/s", g->tokens_per_s);
    fprintf(out, "%s: %s  %s", g->name, words, step);
    if (text[0]) fprintf(out, "  %s", text);
    if (!glance_has_ended(g) && !isnan(g->seconds_left)) {
        watch_duration(g->seconds_left, left);
        fprintf(out, "  %s left", left);
    }
    snapshot_text(g, snapshots, sizeof snapshots);
    if (g->snapshots + g->waiting + g->missed > 0) fprintf(out, "  %s", snapshots);
}

/* ---------------------------------------------------------------- curve and map */

/* Least and greatest of the finite values; false: there are none. */
static bool range_of(const double *values, int n, double *low, double *high) {
    *low = INFINITY;
    *high = -INFINITY;
    for (int i = 0; i < n; i++) {
        if (!isfinite(values[i])) continue;
        *low = fmin(*low, values[i]);
        *high = fmax(*high, values[i]);
    }
    return *low <= *high;
}

/* Mean of the finite values of [from, to) of a row; NaN: none. */
static double mean_of(const double *values, int from, int to) {
    double sum = 0;
    int n = 0;
    for (int i = from; i < to; i++)
        if (isfinite(values[i])) {
            sum += values[i];
            n++;
        }
    return n > 0 ? sum / n : NAN;
}

/* n values over `width` places: the first and the one behind the last value of a place. */
static void place(int at, int n, int width, int *from, int *to) {
    *from = (int)((int64_t)at * n / width);
    *to = (int)((int64_t)(at + 1) * n / width);
    if (*to == *from) ++*to;
}

static int least_of(int a, int b) {
    return a < b ? a : b;
}

/* 0 ... count - 1 */
static int level_of(double value, double low, double high, int count) {
    double x = high > low ? (value - low) / (high - low) : 0.5;
    return (int)fmin(count - 1, floor(x * count));
}

static void draw_curve(watch_frame *f, int row, const glance *g, const watch_look *look) {
    enum { LABEL = 20, SHORTEST = 10 };
    double low, high, shown[REPORT_BINS];
    char label[64];
    int n = g->loss_bins.count, width = least_of(f->columns - LABEL, n);
    if (width < least_of(SHORTEST, n)) return;
    for (int i = 0; i < width; i++) {
        int from, to;
        place(i, n, width, &from, &to);
        shown[i] = mean_of(g->losses, from, to);
    }
    if (!range_of(shown, width, &low, &high)) return;
    const char *const *drawn_with = look->utf8 ? bars : plain_bars;
    for (int i = 0; i < width; i++)
        set(f, row, i, isnan(shown[i]) ? " " : drawn_with[1 + level_of(shown[i], low, high, BARS - 1)], -1);
    snprintf(label, sizeof label, "%.4g ... %.4g", low, high);
    put(f, row, width + 1, look, label);
}

/* A cell of the map, which stands for some layers and bins; NaN: none has a value. */
static double map_value(const glance *g, int y, int height, int x, int width) {
    int first, behind, from, to, layers = 0;
    double sum = 0;
    place(y, g->layers, height, &first, &behind);
    place(x, g->map_bins.count, width, &from, &to);
    for (int layer = first; layer < behind; layer++) {
        double value = mean_of(g->map + layer * g->map_bins.count, from, to);
        if (isnan(value)) continue;
        sum += value;
        layers++;
    }
    return layers > 0 ? sum / layers : NAN;
}

/* One row of the map behind its first layer's number. */
static void draw_map_row(watch_frame *f, int row, const glance *g, const watch_look *look, int y, int height, int width,
                         double low, double high) {
    int first, behind;
    char label[16];
    place(y, g->layers, height, &first, &behind);
    snprintf(label, sizeof label, "%5d", first);
    put(f, row, 0, look, label);
    for (int x = 0; x < width; x++) {
        double value = map_value(g, y, height, x, width);
        if (isnan(value)) continue;
        int level = level_of(value, low, high, WATCH_LEVELS);
        const char shade[2] = {shades[level], '\0'};
        set(f, row, MAP_LABEL + x, look->colours ? " " : shade, look->colours ? level : -1);
    }
}

/* The map's title, then layers from the top, several in a row where they are more than rows. */
static void draw_map(watch_frame *f, int row, int rows, const glance *g, const watch_look *look) {
    char title[200];
    double low = INFINITY, high = -INFINITY;
    int bins = g->map_bins.count, width = least_of(f->columns - MAP_LABEL, bins),
        height = least_of(rows - 1, g->layers);
    if (height < 1 || width < 1) return;
    for (int y = 0; y < height; y++)
        for (int x = 0; x < width; x++) {
            double value = map_value(g, y, height, x, width);
            low = fmin(low, value);
            high = fmax(high, value);
        }
    if (low > high)
        snprintf(title, sizeof title, "%s: no values yet", g->column);
    else
        snprintf(title, sizeof title, "%s, median over heads: %.4g ... %.4g, steps %lld to %lld", g->column, low, high,
                 (long long)g->map_bins.first[0], (long long)g->map_bins.last[bins - 1]);
    put(f, row, 0, look, title);
    for (int y = 0; y < height && low <= high; y++) draw_map_row(f, row + 1 + y, g, look, y, height, width, low, high);
}

/* ---------------------------------------------------------------- the picture */

static void draw_bar(watch_frame *f, int row, const glance *g, const watch_look *look) {
    char text[128], left[32], step[64];
    step_text(g, step, sizeof step);
    watch_duration(g->seconds_left, left);
    int used = snprintf(text, sizeof text, " %5.1f%%  %s", 100 * share_done(g), step);
    if (!glance_has_ended(g) && !isnan(g->seconds_left))
        snprintf(text + used, sizeof text - (size_t)used, ", %s left", left);
    int width = f->columns - (int)strlen(text) - 2, full = (int)(share_done(g) * width);
    if (width < 4) {
        put(f, row, 0, look, text + 1);
        return;
    }
    put(f, row, 0, look, "[");
    for (int i = 0; i < width; i++) set(f, row, 1 + i, i < full ? "#" : "-", -1);
    put(f, row, 1 + width, look, "]");
    put(f, row, 2 + width, look, text);
}

static void draw_events(watch_frame *f, int row, int rows, const glance *g, const watch_look *look) {
    int first = g->event_count - rows;
    for (int i = first > 0 ? first : 0; i < g->event_count && rows > 0; i++, row++) {
        const glance_event *e = &g->events[i];
        char text[400];
        snprintf(text, sizeof text, "%.8s step %lld %s %s: %s", strlen(e->time) > 18 ? e->time + 11 : e->time,
                 (long long)e->step, e->level, e->kind, e->message);
        put(f, row, 0, look, text);
        if (strcmp(e->level, "info") != 0) make_strong(f, row);
    }
}

static void draw_numbers(watch_frame *f, int row, const glance *g, const watch_look *look) {
    char text[400] = "";
    add_number(text, sizeof text, "loss %.4f", g->loss);
    add_number(text, sizeof text, "validation %.4f", g->validation_loss);
    add_number(text, sizeof text, "%.0f tokens/s", g->tokens_per_s);
    add_number(text, sizeof text, "gradient %.3g", g->grad_norm);
    add_number(text, sizeof text, "rate %.2e", g->lr);
    put(f, row, 0, look, text);
}

static void draw_head(watch_frame *f, const glance *g, const watch_look *look) {
    char text[400], words[96];
    status_words(g, words, sizeof words);
    snprintf(text, sizeof text, "%s (%s)  %s", g->name, g->variant, words);
    put(f, 0, 0, look, text);
    make_strong(f, 0);
    int at = f->columns - (int)strlen(look->clock);
    if (at > (int)strlen(text)) put(f, 0, at, look, look->clock);
}

static void draw_foot(watch_frame *f, const watch_look *look) {
    put(f, f->rows - 1, 0, look,
        look->paused ? "paused; p goes on, q quits" : "q quits, arrows or c: another column, p: pause");
    if (!look->trouble || f->rows < 2) return;
    for (int i = 0; i < f->columns; i++) set(f, f->rows - 1, i, " ", -1);
    put(f, f->rows - 1, 0, look, look->trouble);
    make_strong(f, f->rows - 1);
}

void watch_draw(watch_frame *f, const glance *g, const watch_look *look) {
    clear(f);
    if (f->rows < 1) return;
    if (!g) {
        char text[400];
        snprintf(text, sizeof text, "waiting for %s", look->path);
        put(f, 0, 0, look, text);
        if (f->rows > 1) draw_foot(f, look);
        return;
    }
    /* Head, bar, numbers, curve, snapshots, foot take a row each; map and events share the rest. */
    char snapshots[160];
    int rest = f->rows - 6, map = 0;
    if (rest > 2 && g->layers > 0) map = least_of(g->layers + 1, rest - least_of(rest / 3, g->event_count));
    draw_head(f, g, look);
    draw_bar(f, 1, g, look);
    draw_numbers(f, 2, g, look);
    draw_curve(f, 3, g, look);
    draw_map(f, 4, map, g, look);
    snapshot_text(g, snapshots, sizeof snapshots);
    put(f, 4 + map, 0, look, snapshots);
    draw_events(f, 5 + map, rest - map, g, look);
    if (f->rows > 3) draw_foot(f, look);
}
