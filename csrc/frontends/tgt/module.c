// SPDX-License-Identifier: GPL-2.0-only
//
// How tgtd gets to know the store `copygate`: it calls register_bs_module when it finds the module
// in its folder of backing stores; a module that was preloaded registers itself.
#include "frontends/tgt/dispatch.h"
#include "frontends/tgt/lun.h"

CG_API int register_bs_module(void);

static struct backingstore_template store = {
    .name = "copygate",
    .data_size = sizeof(struct bs_lun),
    .init = bs_lun_init,
    .open = bs_lun_open,
    .close = bs_lun_close,
    .exit = bs_lun_exit,
    .submit = bs_lun_submit,
};

CG_API int register_bs_module(void) {
    static bool registered;
    if (!registered) {
        registered = true;
        bs_dispatch_init();
        register_backingstore_template(&store);
    }
    return 0;
}

// tgtd's list of stores is a static, initialised variable: it is there before any constructor. A
// preloaded module is also loaded into the programs that tgtd starts, which have no such list.
#pragma weak register_backingstore_template
__attribute__((constructor)) static void preloaded(void) {
    if (&register_backingstore_template != NULL) {
        register_bs_module();
    }
}
