/* bulkhead train: one rank of a job. */
#include "comm/roles.h"
#include "trainer/cli/command.h"
#include "trainer/cli/config_arguments.h"
#include "trainer/train.h"

#include <stdio.h>

static const char help[] =
    "usage: mpirun -n W bulkhead train CONFIG [--set section.key=value ...]\n"
    "\n"
    "Pretrains the model that CONFIG describes. W is parallel.tensor x parallel.data + diagnostics.ranks;\n"
    "`bulkhead plan CONFIG` prints the launch line. Writes runs/NAME: config.yaml, log.txt, run.db.\n"
    "\n"
    "  --set section.key=value   overrides a key of CONFIG; may be repeated\n"
    "\n"
    "Exit codes: 0 done, 64 usage, 65 bad data, 66 no input, 70 internal or not finite, 74 I/O, 78 configuration.\n";

status cmd_train(int argc, char **argv) {
    config_arguments arguments;
    TRY(config_arguments_parse(&arguments, argc, argv));
    if (arguments.help) {
        fputs(help, stdout);
        return STATUS_OK;
    }
    TRY(comm_start(&argc, &argv));
    train_options options = {arguments.path, arguments.settings, arguments.setting_count};
    status s = train_run(&options);
    int rank = 0;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    /* All ranks hold the same message: one of them prints it, and before any rank ends, since mpirun ends the others as
     * soon as one has exited with a code. */
    if (s != STATUS_OK && rank == 0) command_complain(argv[0]);
    status_clear();
    MPI_Barrier(MPI_COMM_WORLD);
    comm_stop();
    return s;
}
