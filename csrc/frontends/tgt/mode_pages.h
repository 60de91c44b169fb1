// SPDX-License-Identifier: GPL-2.0-only
//
// Mode parameters. There is no write cache to switch on (WCE is 0 and stays 0); what an initiator
// may change is SWP, the software write protection. Pure.
#ifndef CG_FRONTENDS_TGT_MODE_PAGES_H
#define CG_FRONTENDS_TGT_MODE_PAGES_H

#include <stdbool.h>
#include <stdint.h>

#include "frontends/tgt/sense.h"

#define MODE_DATA_MAX 256U

struct mode_state {
    uint64_t blocks;
    uint32_t block_size;
    bool protected; // the WP bit: for whatever reason
    bool software_write_protect;
};

enum mode_control {
    MODE_CURRENT = 0,
    MODE_CHANGEABLE = 1,
    MODE_DEFAULT = 2,
    MODE_SAVED = 3,
};

// The answer to the MODE SENSE (6 or 10) in `cdb`; its length goes to `length`. `out` has
// MODE_DATA_MAX bytes.
struct bs_status mode_sense(const struct mode_state *state, const uint8_t *cdb, uint8_t *out,
                            uint32_t *length);

// Takes the parameter list of the MODE SELECT (6 or 10) in `cdb`. All of it is checked before
// `software_write_protect` is set.
struct bs_status mode_select(const struct mode_state *state, const uint8_t *cdb,
                             const uint8_t *list, uint32_t length, bool *software_write_protect);

#endif
