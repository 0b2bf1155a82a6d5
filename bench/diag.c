/* bench_diag: time of one snapshot's diagnostics: spectra of every matrix, and their rows in the database.
 *
 * usage: bench_diag SIZE VARIANT [THREADS [SNAPSHOTS [section.key=value ...]]]
 *        e.g. bench_diag 130m mha 2 5 diagnostics.scopes=head diagnostics.device=cuda
 * Top pairs are made of those matrices that a run makes them of at every snapshot.
 * Checks first that queries twice as large give singular values twice as large, bit for bit, and that every status is
 * ok; then prints one JSON line: median ms of computing and of writing a snapshot, and bytes a row in the finished
 * file. */
#include "bench/times.h"
#include "core/clock.h"
#include "core/ops/ops.h"
#include "diag/onset.h"
#include "diag/store.h"
#include "tests/unit/snapshots.h"

#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MOST_SNAPSHOTS = 2000, MOST_SETTINGS = 16 };

typedef struct bench {
    config config;
    maps *maps;
    onsets *onsets;
    maps_pairs top;
    svd_device device; /* with diagnostics.device=cuda */
    snapshot snapshot;
    int threads, snapshots;
    double compute_ms[MOST_SNAPSHOTS], write_ms[MOST_SNAPSHOTS];
} bench;

static double now_ms(void) {
    return 1e3 * clock_now_s();
}

static void scale_queries(snapshot *s, float by) {
    for (int i = 0; i < s->count; i++) {
        const char *part = strrchr(s->tensors[i].name, '.');
        if (strcmp(part, ".W_Q") != 0 && strcmp(part, ".W_UQ") != 0) continue;
        for (int64_t k = 0; k < s->tensors[i].rows * s->tensors[i].cols; k++) s->tensors[i].data[k] *= by;
    }
}

static status verify(bench *b) {
    int64_t count = maps_value_count(b->maps);
    spectrum *rows = malloc((size_t)maps_count(b->maps) * sizeof(*rows));
    double *once = malloc((size_t)count * sizeof(double)), *twice = malloc((size_t)count * sizeof(double));
    status s = rows && once && twice ? maps_compute(b->maps, &b->snapshot, rows, once)
                                     : status_fail(STATUS_INTERNAL, "out of memory");
    scale_queries(&b->snapshot, 2);
    if (s == STATUS_OK) s = maps_compute(b->maps, &b->snapshot, rows, twice);
    scale_queries(&b->snapshot, 0.5f);
    for (int i = 0; i < maps_count(b->maps) && s == STATUS_OK; i++) {
        const maps_matrix *m = &maps_matrices(b->maps)[i];
        if (rows[i].status != SPECTRUM_STATUS_ok && rows[i].status != SPECTRUM_STATUS_rank_deficient)
            s = status_fail(STATUS_INTERNAL, "matrix %d is %s", i, spectrum_status_name(rows[i].status));
        if (m->form == MAPS_weight || m->part == MAPS_ov) continue;
        for (int64_t k = m->first_value; k < m->first_value + m->rank && s == STATUS_OK; k++)
            if (twice[k] != 2 * once[k])
                s = status_fail(STATUS_INTERNAL, "matrix %d: %.17g is not twice %.17g", i, twice[k], once[k]);
    }
    free(rows);
    free(once);
    free(twice);
    return s;
}

static status one_snapshot(bench *b, store *to, int i) {
    store_record r = {.kind = STORE_SNAPSHOT, .snapshot = {.step = 10 * i, .status = "done"}};
    double *values = malloc((size_t)maps_value_count(b->maps) * sizeof(double));
    r.snapshot.rows = malloc((size_t)maps_count(b->maps) * sizeof(spectrum));
    if (!values || !r.snapshot.rows) return status_fail(STATUS_INTERNAL, "out of memory");
    double start = now_ms();
    TRY(maps_compute_pairs(b->maps, &b->snapshot, r.snapshot.rows, values, &b->top));
    double computed = now_ms();
    free(values);
    store_add(to, &r);
    TRY(store_flush(to));
    b->compute_ms[i] = computed - start;
    b->write_ms[i] = now_ms() - computed;
    return STATUS_OK;
}

static status measure(bench *b, const char *folder, const char *size, const char *variant) {
    char path[256];
    struct stat info;
    store *to;
    snprintf(path, sizeof(path), "%s/run.db", folder);
    const store_session session = {.config = &b->config,
                                   .device = "cpu",
                                   .hosts = "",
                                   .code_version = "",
                                   .tp = 1,
                                   .dp = 1,
                                   .matrices = maps_matrices(b->maps),
                                   .matrix_count = maps_count(b->maps)};
    TRY(store_open(&to, path, &session));
    status s = STATUS_OK;
    for (int i = 0; i < b->snapshots && s == STATUS_OK; i++) s = one_snapshot(b, to, i);
    status closed = store_close(to);
    if (s == STATUS_OK) s = closed;
    if (s == STATUS_OK && stat(path, &info) != 0) s = status_fail(STATUS_IO, "%s is gone", path);
    unlink(path);
    if (s != STATUS_OK) return s;
    int rows = maps_count(b->maps);
    printf("{\"bench\":\"diag\",\"size\":\"%s\",\"variant\":\"%s\",\"device\":\"%s\",\"threads\":%d,\"rows\":%d,"
           "\"snapshots\":%d,"
           "\"compute_ms\":%.2f,\"write_ms\":%.2f,\"bytes_per_row\":%.1f}\n",
           size, variant, b->device.close ? "cuda" : "cpu", b->threads, rows, b->snapshots,
           times_median(b->compute_ms, b->snapshots), times_median(b->write_ms, b->snapshots),
           (double)info.st_size / rows / b->snapshots);
    return STATUS_OK;
}

static status run(bench *b, int argc, char **argv) {
    char size[64], variant[64], folder[] = "/tmp/bulkhead-bench-XXXXXX";
    const char *settings[MOST_SETTINGS] = {size, variant, "model.vocab=4096"};
    int count = 3;
    if (argc < 3)
        return status_fail(STATUS_USAGE, "bench_diag SIZE VARIANT [THREADS [SNAPSHOTS [section.key=value ...]]]");
    snprintf(size, sizeof(size), "model.size=%s", argv[1]);
    snprintf(variant, sizeof(variant), "attention.variant=%s", argv[2]);
    b->threads = argc > 3 ? atoi(argv[3]) : 1;
    b->snapshots = argc > 4 ? atoi(argv[4]) : 3;
    if (b->threads < 1 || b->snapshots < 1 || b->snapshots > MOST_SNAPSHOTS)
        return status_fail(STATUS_USAGE, "threads from 1 on, snapshots from 1 to %d", MOST_SNAPSHOTS);
    for (int i = 5; i < argc && count < MOST_SETTINGS; i++) settings[count++] = argv[i];
    TRY(config_load(&b->config, NULL, settings, count));
    TRY(maps_open(&b->maps, &b->config, b->threads));
    TRY(onsets_open(&b->onsets, &b->config, maps_matrices(b->maps), maps_count(b->maps)));
    b->top = (maps_pairs){.wanted = onsets_wanted(b->onsets),
                          .pairs = malloc((size_t)maps_pair_count(b->maps) * sizeof(float))};
    if (!b->top.pairs) return status_fail(STATUS_INTERNAL, "out of memory");
    bool cuda = b->config.diagnostics.device == DEVICE_CUDA;
    if (cuda) TRY(svd_cuda(&b->device));
    if (cuda) TRY(maps_use_device(b->maps, &b->device));
    snapshot_fill(&b->snapshot, &b->config, 1);
    TRY(verify(b));
    if (!mkdtemp(folder)) return status_fail(STATUS_IO, "cannot make a folder in /tmp");
    status s = measure(b, folder, argv[1], argv[2]);
    rmdir(folder);
    return s;
}

int main(int argc, char **argv) {
    ops_cpu_begin(argv);
    static bench b;
    status s = run(&b, argc, argv);
    if (s != STATUS_OK) fprintf(stderr, "bench_diag: %s\n", status_message());
    maps_close(b.maps);
    onsets_close(b.onsets);
    free(b.top.pairs);
    if (b.device.close) b.device.close(&b.device);
    snapshot_free(&b.snapshot);
    config_free(&b.config);
    return s;
}
