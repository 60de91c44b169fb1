// SPDX-License-Identifier: BSD-3-Clause
//
// Keeping and closing: session.c keeps the lease, close.c ends it (opening.h: how it begins).
#ifndef CG_VOLUME_SESSION_H
#define CG_VOLUME_SESSION_H

#include "volume/volume.h"

// Takes the lease out of an answer.
void vol_session_take(struct cg_volume *volume, const struct cg_mds_call *call);

// Begins and ends refreshing.
void vol_session_begin(struct cg_volume *volume);
void vol_session_end(struct cg_volume *volume);

// A volume that is not open yet, of options that have been checked. 0 or -ENOMEM.
int vol_create(struct cg_client *client, const struct cg_volume_options *options,
               struct cg_volume **out);

// Takes the volume's shape from what the metadata server tells. False: it makes no sense.
bool vol_take_file(struct cg_volume *volume, const struct cg_mds_file *file);

// Closes the volume on the driver and frees it; the caller's thread waits. If it is being closed
// already (cg_volume_close_start), waits for that.
void vol_close_and_wait(struct cg_volume *volume);

// Frees what an opened or half-opened volume has; nothing may be under way.
void vol_free(struct cg_volume *volume);

#endif
