/* bulkhead version [--verbose]: what the program is, what it was built with and what it finds. */
#include "core/ops/ops.h"
#include "trainer/cli/command.h"

#include <mpi.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

status cmd_version(int argc, char **argv) {
    bool verbose = argc == 2 && strcmp(argv[1], "--verbose") == 0;
    if (argc == 2 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)) {
        puts("usage: bulkhead version [--verbose]");
        return STATUS_OK;
    }
    if (argc > 2 || (argc == 2 && !verbose))
        return status_fail(STATUS_USAGE, "'%s' is not understood; the only option is --verbose", argv[1]);
    printf("bulkhead %s\n", BULKHEAD_VERSION);
    if (!verbose) return STATUS_OK;
    char library[MPI_MAX_LIBRARY_VERSION_STRING] = "";
    int length = 0;
    MPI_Get_library_version(library, &length);
    library[strcspn(library, ",\n")] = '\0';
    printf("compiler   gcc %s\n", __VERSION__);
    printf("mpi        %s\n", library);
    printf("blas       %s\n", ops_cpu_blas());
    printf("devices    cpu (%ld cores), %d NVIDIA GPUs\n", sysconf(_SC_NPROCESSORS_ONLN), ops_cuda_devices());
    return STATUS_OK;
}
