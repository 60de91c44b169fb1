// SPDX-License-Identifier: GPL-2.0-only
#ifndef CG_FRONTENDS_TGT_COMMAND_H
#define CG_FRONTENDS_TGT_COMMAND_H

#include "frontends/tgt/module.h"

// The LUN's command slots. 0 or -ENOMEM.
int bs_commands_create(struct bs_lun *lun);

// No command runs.
void bs_commands_destroy(struct bs_lun *lun);

#endif
