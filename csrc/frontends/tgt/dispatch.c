// SPDX-License-Identifier: GPL-2.0-only
#include "frontends/tgt/dispatch.h"

#include <string.h>

#include "frontends/tgt/lun.h"
#include "frontends/tgt/opcodes.h"

#define ACTIONS 32

// What an opcode leads to: an entry without service action, or a row of them.
static const struct bs_opcode *plain[TGT_OPCODES];
static const struct bs_opcode *const *rows[TGT_OPCODES];

// Opcodes with service actions are few.
#define ROWS_MAX 8
static const struct bs_opcode *row_memory[ROWS_MAX][ACTIONS];
static unsigned row_count;

static void add(const struct bs_opcode *op) {
    if (op->action == BS_NO_ACTION) {
        plain[op->opcode] = op;
        return;
    }
    if (rows[op->opcode] == NULL) {
        if (row_count == ROWS_MAX) {
            log_error("copygate: opcode %02x has no room in the index\n", op->opcode);
            return;
        }
        rows[op->opcode] = row_memory[row_count++];
    }
    for (unsigned i = 0; i < row_count; i++) {
        if (rows[op->opcode] == row_memory[i]) {
            row_memory[i][op->action % ACTIONS] = op;
        }
    }
}

void bs_dispatch_init(void) {
    for (unsigned i = 0; i < bs_opcode_count; i++) {
        add(&bs_opcodes[i]);
    }
    for (unsigned i = 0; bs_extensions[i] != NULL; i++) {
        for (unsigned j = 0; j < bs_extensions[i]->opcode_count; j++) {
            add(&bs_extensions[i]->opcodes[j]);
        }
    }
}

const struct bs_opcode *bs_opcode_find(uint8_t opcode, uint16_t action, bool *known) {
    const struct bs_opcode *const *row = rows[opcode];
    *known = row != NULL || plain[opcode] != NULL;
    if (row == NULL) {
        return plain[opcode];
    }
    return action < ACTIONS ? row[action] : NULL;
}

void bs_opcode_each(void (*visit)(const struct bs_opcode *op, void *context), void *context) {
    for (unsigned opcode = 0; opcode < TGT_OPCODES; opcode++) {
        if (plain[opcode] != NULL) {
            visit(plain[opcode], context);
        }
        for (unsigned action = 0; rows[opcode] != NULL && action < ACTIONS; action++) {
            if (rows[opcode][action] != NULL) {
                visit(rows[opcode][action], context);
            }
        }
    }
}

int bs_dispatch(int host, struct scsi_cmd *cmd) {
    (void)host;
    struct bs_lun *lun = bs_lun_of(cmd->dev);
    bool known = false;
    const struct bs_opcode *op = bs_opcode_find(cmd->cdb[0], cmd->cdb[1] & 0x1f, &known);
    if (op == NULL) {
        return bs_sense(cmd, KEY_ILLEGAL_REQUEST,
                        known ? ASC_INVALID_FIELD_IN_CDB : ASC_INVALID_OPCODE);
    }
    for (unsigned i = 0; bs_extensions[i] != NULL; i++) {
        int status = bs_extensions[i]->admit != NULL ? bs_extensions[i]->admit(lun, cmd, op) : 0;
        if (status != 0) {
            tgt_set_in_length(cmd, 0);
            return status;
        }
    }
    if ((op->flags & BS_OP_MEDIUM) != 0 && lun->volume == NULL) {
        return bs_sense(cmd, KEY_NOT_READY, ASC_BECOMING_READY);
    }
    if ((op->flags & BS_OP_WRITES) != 0 && bs_lun_protected(lun)) {
        return bs_sense(cmd, KEY_DATA_PROTECT, ASC_WRITE_PROTECTED);
    }
    return op->perform(lun, cmd);
}
