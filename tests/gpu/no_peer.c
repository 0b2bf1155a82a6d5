/* A library to preload: rank 1 of a group of GPUs never joins it. */
#include <nccl.h>
#include <unistd.h>

ncclResult_t ncclCommInitRankConfig(ncclComm_t *comm, int size, ncclUniqueId id, int rank, ncclConfig_t *config) {
    while (rank == 1) pause();
    return pncclCommInitRankConfig(comm, size, id, rank, config);
}
