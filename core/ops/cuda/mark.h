/* Private to core/ops/cuda/: the table's marks. */
#pragma once

#include "core/ops/cuda/context.h"

/* As in core/ops/ops.h. */
void cuda_mark(ops *o, ops_mark *m, const char *name);
void cuda_mark_wait(ops *o, const ops_mark *m);
double cuda_mark_span_s(ops *o, const ops_mark *from, const ops_mark *to);
void cuda_mark_release(ops *o, ops_mark *m);
