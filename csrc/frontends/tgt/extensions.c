// SPDX-License-Identifier: GPL-2.0-only
#include "frontends/tgt/lun_state.h"

const struct bs_extension *const bs_extensions[] = {
    &lun_state_extension,
    NULL,
};
