// SPDX-License-Identifier: GPL-2.0-only
#include "frontends/tgt/cdb.h"
#include "frontends/tgt/limits.h"
#include "frontends/tgt/lun.h"
#include "frontends/tgt/unit.h"

#define CDB_PMI 0x01 // obsolete
#define LBPME   0x80
#define LBPRZ   0x40
#define DATA_10 8
#define DATA_16 32

int bs_read_capacity_10(struct bs_lun *lun, struct scsi_cmd *cmd) {
    uint64_t last = bs_lun_blocks(lun) - 1;
    uint8_t data[DATA_10];
    if ((cmd->cdb[8] & CDB_PMI) == 0 && cdb_get32(cmd->cdb + 2) != 0) {
        return bs_sense(cmd, KEY_ILLEGAL_REQUEST, ASC_INVALID_FIELD_IN_CDB);
    }
    cdb_put32(data, last > UINT32_MAX ? UINT32_MAX : (uint32_t)last);
    cdb_put32(data + 4, lun->options.block_size);
    return bs_reply(cmd, data, sizeof(data), sizeof(data));
}

int bs_read_capacity_16(struct bs_lun *lun, struct scsi_cmd *cmd) {
    uint8_t data[DATA_16] = {0};
    cdb_put64(data, bs_lun_blocks(lun) - 1);
    cdb_put32(data + 8, lun->options.block_size);
    data[13] = lun->options.block_size < BS_PHYSICAL_BLOCK ? 3 : 0; // 2^3 logical in a physical
    data[14] = lun->lu->attributes.thin ? LBPME | LBPRZ : 0;
    return bs_reply(cmd, data, sizeof(data), cdb_get32(cmd->cdb + 10));
}
