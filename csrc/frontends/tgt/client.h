// SPDX-License-Identifier: GPL-2.0-only
//
// The IO core in tgtd's event loop: one client for all LUNs of the process with the same metadata
// servers, owner and password, so that they share connections.
#ifndef CG_FRONTENDS_TGT_CLIENT_H
#define CG_FRONTENDS_TGT_CLIENT_H

#include <stddef.h>

#include "frontends/tgt/module.h"

// Joins or makes the client for lun->options; lun->client and lun->node are set. Returns 0, or
// -errno with a sentence in `error`.
int bs_client_join(struct bs_lun *lun, char *error, size_t error_size);

// The last LUN that leaves ends the client. Harmless without one.
void bs_client_leave(struct bs_lun *lun);

// Lets the core work before tgtd waits for events the next time: everything that was submitted in
// this round goes out together, and no descriptor has to become readable for it.
void bs_client_kick(struct bs_client *client);

#endif
