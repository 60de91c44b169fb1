// SPDX-License-Identifier: GPL-2.0-only
#include "frontends/tgt/cdb.h"
#include "frontends/tgt/identity.h"
#include "frontends/tgt/unit.h"

#define CDB_EVPD  0x01
#define CDB_CMDDT 0x02 // obsolete

static uint8_t tpgs(void) {
    uint8_t bits = 0;
    for (unsigned i = 0; bs_extensions[i] != NULL; i++) {
        bits |= bs_extensions[i]->inquiry_tpgs;
    }
    return bits;
}

int bs_inquiry(struct bs_lun *lun, struct scsi_cmd *cmd) {
    const uint8_t *cdb = cmd->cdb;
    uint8_t data[IDENTITY_MAX];
    uint32_t length = 0;
    struct identity identity = {
        .uuid = lun->info.uuid,
        .target = lun->lu->target->name,
        .block_size = lun->options.block_size,
        .group = lun->options.group,
        .port = lun->options.port,
        .tpgs = tpgs(),
        .thin = lun->lu->attributes.thin != 0,
        // tgtd gives commands for LUNs that do not exist to the target's first one.
        .present = lun->lu->lun == cmd->device_id,
    };
    if ((cdb[1] & CDB_EVPD) != 0) {
        length = identity_page(&identity, cdb[2], data);
    } else if (cdb[2] == 0) {
        length = identity_standard(&identity, data);
    }
    if (length == 0 || (cdb[1] & CDB_CMDDT) != 0) {
        return bs_sense(cmd, KEY_ILLEGAL_REQUEST, ASC_INVALID_FIELD_IN_CDB);
    }
    return bs_reply(cmd, data, length, cdb_get16(cdb + 3));
}
