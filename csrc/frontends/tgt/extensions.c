// SPDX-License-Identifier: GPL-2.0-only
#include "frontends/tgt/module.h"

const struct bs_extension *const bs_extensions[] = {
    NULL,
};
