/* The serving of one message, apart from the channel that it came through: what diag_serve() loops over, and what tests
 * and benchmarks drive with messages made by hand. */
#pragma once

#include "diag/diag.h"

/* Takes one message from one of `senders` ranks: queues a record for the database, or adds a share to its snapshot and,
 * when that is complete, computes and writes it. Returns the credits to grant: one for each snapshot that was finished
 * or given up. */
int diag_take(diag *d, const channel_message *message, int senders);

/* What alerts have asked compute rank 0 for (channel_request) since the last call. */
int diag_take_requests(diag *d);

/* What of the messages taken is recorded: committed, or on a further rank sent on. */
channel_progress diag_recorded(const diag *d);

/* The last checkpoint's step up to which all is committed; -1: none. */
int64_t diag_confirmed(const diag *d);

/* What is still incomplete will never be complete. Returns the credits, as above. */
int diag_give_up(diag *d, int senders);

/* Behind the last message: what is incomplete is given up, ensembles that rows need are waited for, all is written. */
void diag_end(diag *d, int senders);
