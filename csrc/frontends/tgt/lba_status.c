// SPDX-License-Identifier: GPL-2.0-only
//
// GET LBA STATUS, from what the store says is allocated.
#include <string.h>

#include "frontends/tgt/medium.h"

#define HEADER      8U
#define DESCRIPTOR  16U
#define EXTENTS_MAX 256U
#define RANGE_MAX   (1ULL << 34) // bytes looked at for one answer
#define MAPPED      0
#define DEALLOCATED 1

// Descriptors count whole logical blocks: of a block that is partly allocated, all is.
static unsigned describe(const struct cg_io *io, unsigned shift, uint8_t *out) {
    unsigned count = 0;
    uint64_t from = io->offset >> shift;
    uint64_t last =
        io->extents[io->extent_count - 1].offset + io->extents[io->extent_count - 1].length;
    for (uint32_t i = 0; i < io->extent_count; i++) {
        const struct cg_extent *extent = &io->extents[i];
        bool hole = (extent->flags & CG_EXTENT_HOLE) != 0;
        uint64_t end = extent->offset + extent->length;
        uint64_t to = hole || end == last ? end >> shift : (end + (1UL << shift) - 1) >> shift;
        if (to <= from) {
            continue;
        }
        uint8_t *at = out + count++ * DESCRIPTOR;
        memset(at, 0, DESCRIPTOR);
        cdb_put64(at, from);
        cdb_put32(at + 8, (uint32_t)(to - from));
        at[12] = hole ? DEALLOCATED : MAPPED;
        from = to;
    }
    return count;
}

static void answer(struct bs_command *command) {
    struct scsi_cmd *cmd = command->cmd;
    if (command->io.result != 0) {
        bs_command_end_result(command, command->io.result);
        return;
    }
    uint8_t *data = (uint8_t *)command->scratch + EXTENTS_MAX * sizeof(struct cg_extent);
    unsigned count = describe(&command->io, command->lun->lu->block_shift, data + HEADER);
    uint32_t length = HEADER + count * DESCRIPTOR;
    memset(data, 0, HEADER);
    cdb_put32(data, length - 4);
    bs_reply(cmd, data, length, cdb_get32(cmd->cdb + 10));
    bs_command_end(command, BS_GOOD);
}

int bs_get_lba_status(struct bs_lun *lun, struct scsi_cmd *cmd) {
    uint64_t lba = cdb_get64(cmd->cdb + 2);
    if (lba >= bs_lun_blocks(lun)) {
        return bs_sense(cmd, KEY_ILLEGAL_REQUEST, ASC_LBA_OUT_OF_RANGE);
    }
    if (cdb_get32(cmd->cdb + 10) < HEADER + DESCRIPTOR) {
        return bs_sense(cmd, KEY_ILLEGAL_REQUEST, ASC_INVALID_FIELD_IN_CDB);
    }
    int status = 0;
    struct bs_command *command = bs_medium_begin(
        lun, cmd, EXTENTS_MAX * (sizeof(struct cg_extent) + DESCRIPTOR) + HEADER, &status);
    if (command == NULL) {
        return status;
    }
    uint64_t left = lun->lu->size - (lba << lun->lu->block_shift);
    command->io.op = CG_OP_BLOCK_STATUS;
    command->io.offset = lba << lun->lu->block_shift;
    command->io.length = left < RANGE_MAX ? left : RANGE_MAX;
    command->io.extents = command->scratch;
    command->io.extent_capacity = EXTENTS_MAX;
    command->next = answer;
    bs_command_submit(command);
    return BS_PENDING;
}
