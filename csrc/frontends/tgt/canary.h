// SPDX-License-Identifier: GPL-2.0-only
#ifndef CG_FRONTENDS_TGT_CANARY_H
#define CG_FRONTENDS_TGT_CANARY_H

#include "frontends/tgt/tgt_abi.h"

// Looks whether a new logical unit, as tgtd hands it to the store's `init`, is laid out as
// tgt_abi.h says. Returns NULL, or what was not as expected: the module must not touch it then.
const char *bs_canary(struct scsi_lu *lu, const struct backingstore_template *store);

#endif
