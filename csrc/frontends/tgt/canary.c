// SPDX-License-Identifier: GPL-2.0-only
//
// Values that tgtd puts into every new logical unit, looked for where tgt_abi.h has them. Each is
// read only after those before it agreed.
#include "frontends/tgt/canary.h"

#include <malloc.h>
#include <string.h>

#define OPCODE_COMPARE_AND_WRITE 0x89 // tgtd has it switched off
#define MODE_PAGE_CACHING        0x08

const char *bs_canary(struct scsi_lu *lu, const struct backingstore_template *store) {
    size_t wanted = sizeof(*lu) + (size_t)store->data_size;
    size_t usable = malloc_usable_size(lu);
    // An allocation has some bytes more than it was asked for.
    if (usable < wanted || usable > wanted + 64) {
        return "the size of a logical unit";
    }
    if (lu->store != store) {
        return "the place of the backing store";
    }
    if (lu->device.type != TGT_TYPE_DISK || lu->attributes.device_type != TGT_TYPE_DISK) {
        return "the device type (only type disk is served)";
    }
    if (strncmp(lu->attributes.vendor, "IET", sizeof(lu->attributes.vendor)) != 0) {
        return "the place of the vendor";
    }
    if (strncmp(lu->attributes.serial, "beaf", 4) != 0) {
        return "the place of the serial number";
    }
    if (lu->device.operations[OPCODE_COMPARE_AND_WRITE].perform != spc_illegal_op) {
        return "the place of the table of opcodes";
    }
    if (find_mode_page(lu, MODE_PAGE_CACHING, 0) == NULL) {
        return "the place of the mode pages";
    }
    return NULL;
}
