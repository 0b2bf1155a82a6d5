/* A library to preload: what may befall the process that does the diagnostics' work, and no other of its program.
 * BULKHEAD_HURT is one of
 *   row STEP     it is killed by a signal in the middle of the transaction of that step's snapshot
 *   solver       the same at every singular value decomposition
 *   further      the same, but not where a database is written
 *   memory STEP  it gets no more memory once that snapshot is written, until somebody raises its limit
 *   slow MS      each singular value decomposition takes that much longer
 *   stuck        it does nothing from its start on
 *   start        it ends as soon as it starts, but for the first time (BULKHEAD_HURT_MARK is a file that it makes) */
#define _GNU_SOURCE /* RTLD_NEXT */
#include <dlfcn.h>
#include <fcntl.h>
#include <lapacke.h>
#include <signal.h>
#include <sqlite3.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

static char how[16];
static long long at = -1;
static bool writes; /* this process has a database */

static bool is_worker(void) {
    char line[4096] = "";
    int file = open("/proc/self/cmdline", O_RDONLY);
    ssize_t n = file < 0 ? 0 : read(file, line, sizeof(line) - 1);
    close(file);
    return n > 0 && memmem(line, (size_t)n, "diagnostics-worker", 18);
}

__attribute__((constructor)) static void begin(void) {
    const char *text = getenv("BULKHEAD_HURT"), *mark = getenv("BULKHEAD_HURT_MARK");
    if (!text || !is_worker() || sscanf(text, "%15s %lld", how, &at) < 1) return;
    if (strcmp(how, "stuck") == 0) pause();
    if (strcmp(how, "start") != 0) return;
    if (access(mark, F_OK) == 0) _exit(3);
    close(open(mark, O_CREAT | O_WRONLY, 0666));
}

static void take_memory(void) {
    long long pages = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (f && fscanf(f, "%lld", &pages) == 1) {
        const struct rlimit limit = {(rlim_t)(pages * sysconf(_SC_PAGESIZE)), RLIM_INFINITY};
        setrlimit(RLIMIT_AS, &limit);
    }
    if (f) fclose(f);
}

/* Every snapshot's row is bound through here, its step as the second value, and then those of its spectra. */
int sqlite3_bind_int64(sqlite3_stmt *q, int index, sqlite3_int64 value) {
    static int (*real)(sqlite3_stmt *, int, sqlite3_int64);
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, "sqlite3_bind_int64");
    static bool of_step;
    writes = true;
    if (index == 2 && strncmp(sqlite3_sql(q), "INSERT INTO snapshots", 21) == 0) of_step = value == at;
    bool row = of_step && index == 1 && strncmp(sqlite3_sql(q), "INSERT OR REPLACE INTO spectra", 30) == 0;
    if (row && strcmp(how, "row") == 0) raise(SIGSEGV);
    if (row && strcmp(how, "memory") == 0) take_memory();
    return real(q, index, value);
}

static void befall(void) {
    if (strcmp(how, "slow") == 0) usleep((useconds_t)(1000 * at));
    if (strcmp(how, "solver") == 0 || (strcmp(how, "further") == 0 && !writes)) raise(SIGSEGV);
}

/* The two ways to singular values: of a matrix, and of the bidiagonal one that a top pair is found with. */
lapack_int LAPACKE_dgesdd_work(int layout, char job, lapack_int m, lapack_int n, double *a, lapack_int lda, double *s,
                               double *u, lapack_int ldu, double *vt, lapack_int ldvt, double *work, lapack_int lwork,
                               lapack_int *iwork) {
    static lapack_int (*real)(int, char, lapack_int, lapack_int, double *, lapack_int, double *, double *, lapack_int,
                              double *, lapack_int, double *, lapack_int, lapack_int *);
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, "LAPACKE_dgesdd_work");
    befall();
    return real(layout, job, m, n, a, lda, s, u, ldu, vt, ldvt, work, lwork, iwork);
}

lapack_int LAPACKE_dbdsqr_work(int layout, char uplo, lapack_int n, lapack_int ncvt, lapack_int nru, lapack_int ncc,
                               double *d, double *e, double *vt, lapack_int ldvt, double *u, lapack_int ldu, double *c,
                               lapack_int ldc, double *work) {
    static lapack_int (*real)(int, char, lapack_int, lapack_int, lapack_int, lapack_int, double *, double *, double *,
                              lapack_int, double *, lapack_int, double *, lapack_int, double *);
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, "LAPACKE_dbdsqr_work");
    befall();
    return real(layout, uplo, n, ncvt, nru, ncc, d, e, vt, ldvt, u, ldu, c, ldc, work);
}
