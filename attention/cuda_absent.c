/* Stands for attention/cuda/, which this version does not have. */
#include "attention/core.h"

#include <stddef.h>

const attn_core *attn_core_cuda(void) {
    return NULL;
}
