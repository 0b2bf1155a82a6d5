/* bulkhead version [--verbose]: what the program is, what it was built with and what it finds here. */
#include "comm/roles.h"
#include "core/ops/ops.h"
#include "trainer/cli/command.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const char help[] = "usage: bulkhead version [--verbose]\n"
                           "\n"
                           "Prints the program's version.\n"
                           "\n"
                           "  --verbose   also what it was built with, and the devices, driver and libraries\n"
                           "              that it finds\n"
                           "\n"
                           "Exit codes: 0 done, 64 usage.\n";

/* 13000 is CUDA 13.0. */
static void print_cuda(const char *what, int version) {
    printf("%s CUDA %d.%d", what, version / 1000, version % 1000 / 10);
}

/* 22809 is NCCL 2.28.9. */
static void print_nccl(const char *what, int version) {
    printf("%s NCCL %d.%d.%d", what, version / 10000, version / 100 % 100, version % 100);
}

/* The kernel module's version, "" where there is none. */
static void read_driver(char *out, int bytes) {
    out[0] = '\0';
    FILE *f = fopen("/sys/module/nvidia/version", "r");
    if (!f) return;
    if (fgets(out, bytes, f)) out[strcspn(out, "\n")] = '\0';
    fclose(f);
}

static void print_built(int nccl) {
    printf("built with  gcc %s, MPI %d.%d, %s", __VERSION__, MPI_VERSION, MPI_SUBVERSION, ops_cpu_blas());
    if (ops_cuda_built()) print_cuda(",", ops_cuda_built());
    if (nccl) print_nccl(",", nccl);
    puts(ops_cuda_built() ? "" : ", no CUDA");
}

static void print_devices(void) {
    char driver[64];
    int gpus = ops_cuda_devices();
    printf("devices     cpu (%ld cores), %d NVIDIA GPU%s\n", sysconf(_SC_NPROCESSORS_ONLN), gpus, gpus == 1 ? "" : "s");
    for (int i = 0; i < gpus; i++) {
        ops_gpu gpu;
        if (!ops_cuda_gpu(&gpu, i)) continue;
        printf("  gpu %d     %s, compute capability %d.%d, %.1f GiB\n", i, gpu.name, gpu.major, gpu.minor,
               (double)gpu.memory_bytes / 0x1p30);
    }
    read_driver(driver, sizeof driver);
    if (ops_cuda_driver()) {
        print_cuda("driver     ", ops_cuda_driver());
        printf("%s%s\n", driver[0] ? ", " : "", driver);
    }
}

/* Last, since an MPI that cannot start ends the process in its own words. */
static status print_mpi(int argc, char **argv) {
    char library[MPI_MAX_LIBRARY_VERSION_STRING] = "";
    int length = 0;
    MPI_Get_library_version(library, &length);
    library[strcspn(library, ",\n")] = '\0';
    printf("mpi         %s\n", library);
    fflush(stdout);
    TRY(comm_start(&argc, &argv));
    puts("threads     MPI_THREAD_MULTIPLE");
    comm_stop();
    return STATUS_OK;
}

status cmd_version(int argc, char **argv) {
    bool verbose = argc == 2 && strcmp(argv[1], "--verbose") == 0;
    if (argc == 2 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)) {
        fputs(help, stdout);
        return STATUS_OK;
    }
    if (argc > 2 || (argc == 2 && !verbose))
        return status_fail(STATUS_USAGE, "'%s' is not understood; the only option is --verbose", argv[1]);
    printf("bulkhead %s\n", BULKHEAD_VERSION);
    if (!verbose) return STATUS_OK;
    int built = 0, found = 0;
    comm_nccl_versions(&built, &found);
    print_built(built);
    print_devices();
    if (found) {
        print_nccl("nccl       ", found);
        puts("");
    }
    return print_mpi(argc, argv);
}
