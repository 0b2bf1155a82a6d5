#include "trainer/agreement.h"

status agreement_make(comm_group *all, agreement *a) {
    double values[] = {a->signal, a->stop, a->writing, a->failed};
    comm_all_reduce(all, values, sizeof values / sizeof *values, DTYPE_F64, COMM_MAX, "the step's agreement", -1);
    *a =
        (agreement){.signal = (int)values[0], .stop = values[1] > 0, .writing = values[2] > 0, .failed = values[3] > 0};
    return comm_status(all);
}
