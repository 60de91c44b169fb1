// SPDX-License-Identifier: BSD-3-Clause
//
// A volume on its way to being open.
#ifndef CG_VOLUME_OPENING_H
#define CG_VOLUME_OPENING_H

#include "volume/volume.h"

struct epoch_update;

// Zeroed but for the first block.
struct vol_opening {
    struct cg_volume *volume; // of vol_create
    uint64_t timeout_ns;
    char *error; // a sentence of at most error_size bytes on failure
    size_t error_size;
    // It is open, or `result` says why not: then the volume may be freed. Called last.
    void (*ended)(struct vol_opening *opening);

    int result;
    uint64_t deadline_ns;
    struct epoch_update *updates;
    uint32_t update_count;
    uint32_t updates_left; // that have to succeed yet
};

// Begins; `ended` comes once, later. Driver.
void vol_opening_begin(struct vol_opening *opening);

// Ends it now, with -ECANCELED. Driver; not from inside `ended`.
void vol_opening_cancel(struct vol_opening *opening);

// Cancels all that cg_volume_open_start began.
void vol_openings_cancel(struct cg_client *client);

#endif
