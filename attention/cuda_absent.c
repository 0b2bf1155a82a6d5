/* Stands for attention/cuda/ in a program built without CUDA. */
#include "attention/core.h"

#include <stddef.h>

const attn_core *attn_core_cuda(void) {
    return NULL;
}

const attn_core *attn_core_cuda_family(const char *name) {
    (void)name;
    return NULL;
}
