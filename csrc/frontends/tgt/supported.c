// SPDX-License-Identifier: GPL-2.0-only
//
// REPORT SUPPORTED OPERATION CODES, out of the same table that commands are run from.
#include <string.h>

#include "frontends/tgt/cdb.h"
#include "frontends/tgt/dispatch.h"
#include "frontends/tgt/unit.h"

#define CDB_RCTD        0x80
#define OPCODE_UNMAP    0x42
#define TIMEOUTS_LENGTH 12U
#define DATA_MAX        4096U

#define SUPPORTED   3
#define UNSUPPORTED 1

struct listing {
    const struct bs_lun *lun;
    uint8_t *at;
    const uint8_t *end;
    bool timeouts;
};

static bool available(const struct bs_lun *lun, const struct bs_opcode *op) {
    return op->opcode != OPCODE_UNMAP || lun->lu->attributes.thin;
}

// No timeouts are known: the descriptor says 0.
static uint8_t *put_timeouts(uint8_t *at) {
    memset(at, 0, TIMEOUTS_LENGTH);
    cdb_put16(at, TIMEOUTS_LENGTH - 2);
    return at + TIMEOUTS_LENGTH;
}

static void list(const struct bs_opcode *op, void *context) {
    struct listing *listing = context;
    if (!available(listing->lun, op) ||
        (size_t)(listing->end - listing->at) < 8 + TIMEOUTS_LENGTH) {
        return;
    }
    uint8_t *at = listing->at;
    bool action = op->action != BS_NO_ACTION;
    memset(at, 0, 8);
    at[0] = op->opcode;
    cdb_put16(at + 2, action ? op->action : 0);
    at[5] = (uint8_t)((listing->timeouts ? 0x02 : 0) | (action ? 0x01 : 0));
    cdb_put16(at + 6, op->length);
    listing->at = listing->timeouts ? put_timeouts(at + 8) : at + 8;
}

static int report_all(struct bs_lun *lun, struct scsi_cmd *cmd, bool timeouts) {
    uint8_t data[DATA_MAX];
    struct listing listing = {lun, data + 4, data + sizeof(data), timeouts};
    bs_opcode_each(list, &listing);
    uint32_t length = (uint32_t)(listing.at - data);
    cdb_put32(data, length - 4);
    return bs_reply(cmd, data, length, cdb_get32(cmd->cdb + 6));
}

static int report_one(struct bs_lun *lun, struct scsi_cmd *cmd, unsigned option, bool timeouts) {
    uint8_t data[64] = {0};
    bool known = false;
    const struct bs_opcode *op = bs_opcode_find(cmd->cdb[3], cdb_get16(cmd->cdb + 4), &known);
    const struct bs_opcode *first = op;
    for (uint16_t action = 0; known && first == NULL && action < 32; action++) {
        first = bs_opcode_find(cmd->cdb[3], action, &known);
    }
    bool has_actions = first != NULL && first->action != BS_NO_ACTION;
    // Asked without a service action for an opcode that has some, or the other way round.
    if (known && ((option == 1 && has_actions) || (option == 2 && !has_actions))) {
        return bs_sense(cmd, KEY_ILLEGAL_REQUEST, ASC_INVALID_FIELD_IN_CDB);
    }
    if (op != NULL && option == 3 && !has_actions && cdb_get16(cmd->cdb + 4) != 0) {
        op = NULL;
    }
    if (op == NULL || !available(lun, op)) {
        data[1] = UNSUPPORTED;
        return bs_reply(cmd, data, 4, cdb_get32(cmd->cdb + 6));
    }
    data[1] = (uint8_t)((timeouts ? 0x80 : 0) | SUPPORTED);
    cdb_put16(data + 2, op->length);
    data[4] = op->opcode;
    memcpy(data + 5, op->usage, op->length - 1U);
    if (op->action != BS_NO_ACTION) {
        data[5] = (uint8_t)((data[5] & 0xe0) | op->action);
    }
    uint8_t *at = data + 4 + op->length;
    at = timeouts ? put_timeouts(at) : at;
    return bs_reply(cmd, data, (uint32_t)(at - data), cdb_get32(cmd->cdb + 6));
}

int bs_report_opcodes(struct bs_lun *lun, struct scsi_cmd *cmd) {
    unsigned option = cmd->cdb[2] & 0x07;
    bool timeouts = (cmd->cdb[2] & CDB_RCTD) != 0;
    if (option > 3) {
        return bs_sense(cmd, KEY_ILLEGAL_REQUEST, ASC_INVALID_FIELD_IN_CDB);
    }
    return option == 0 ? report_all(lun, cmd, timeouts) : report_one(lun, cmd, option, timeouts);
}
