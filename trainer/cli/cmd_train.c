/* bulkhead train: one rank of a job. */
#include "comm/roles.h"
#include "trainer/cli/command.h"
#include "trainer/cli/config_arguments.h"
#include "trainer/train.h"

#include <stdio.h>

static const char help[] = "usage: mpirun -n W bulkhead train CONFIG [OPTION...]\n"
                           "\n"
                           "Pretrains the model that CONFIG describes. W is parallel.tensor x parallel.data\n"
                           "+ diagnostics.ranks; `bulkhead plan CONFIG` prints the launch line. Writes\n"
                           "runs/NAME: config.yaml, log.txt, run.db, checkpoints.\n"
                           "\n"
                           "  --set KEY=VALUE     overrides a key of CONFIG, section.name; may be repeated\n"
                           "  --resume auto|DIR   auto: goes on from the run folder's newest checkpoint that\n"
                           "                      is whole, begins where there is none; DIR: from that\n"
                           "                      checkpoint, or from the newest in that folder\n"
                           "  --profile N         says where the time of N steps goes, from the third on,\n"
                           "                      and records it (table profile)\n"
                           "\n"
                           "SIGTERM and SIGUSR1 end the run behind the step under way, with a checkpoint and\n"
                           "exit code 75; a second one, 5 seconds later or more, ends it at once.\n"
                           "\n"
                           "Exit codes: 0 done, 64 usage, 65 bad data, 66 no input, 70 internal or not\n"
                           "finite, 74 I/O, 75 stopped after a checkpoint, 78 config.\n";

status cmd_train(int argc, char **argv) {
    config_arguments arguments;
    TRY(config_arguments_parse(&arguments, argc, argv, true));
    if (arguments.help) {
        fputs(help, stdout);
        return STATUS_OK;
    }
    TRY(comm_start(&argc, &argv));
    train_options options = {arguments.path, arguments.settings, arguments.setting_count, arguments.profile,
                             arguments.resume};
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
