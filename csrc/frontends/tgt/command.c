// SPDX-License-Identifier: GPL-2.0-only
#include "frontends/tgt/command.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "frontends/tgt/client.h"

int bs_commands_create(struct bs_lun *lun) {
    cg_list_init(&lun->free_commands);
    lun->commands = calloc(BS_COMMANDS_MAX, sizeof(*lun->commands));
    if (lun->commands == NULL) {
        return -ENOMEM;
    }
    for (unsigned i = 0; i < BS_COMMANDS_MAX; i++) {
        cg_list_push_back(&lun->free_commands, &lun->commands[i].node);
    }
    return 0;
}

void bs_commands_destroy(struct bs_lun *lun) {
    free(lun->commands);
    lun->commands = NULL;
}

struct bs_command *bs_command_begin(struct bs_lun *lun, struct scsi_cmd *cmd) {
    struct cg_list *node = cg_list_pop_front(&lun->free_commands);
    if (node == NULL) {
        return NULL;
    }
    struct bs_command *command = CG_CONTAINER_OF(node, struct bs_command, node);
    memset(command, 0, sizeof(*command));
    cg_list_init(&command->node);
    command->lun = lun;
    command->cmd = cmd;
    command->deadline_ns = cg_now_ns() + lun->options.timeout_s * CG_NS_PER_S;
    lun->running++;
    cmd->state |= 1UL << TGT_COMMAND_ASYNC;
    return command;
}

uint64_t bs_command_remaining_ms(const struct bs_command *command) {
    uint64_t now = cg_now_ns();
    uint64_t left = command->deadline_ns > now ? command->deadline_ns - now : 0;
    return left > CG_NS_PER_MS ? left / CG_NS_PER_MS : 1;
}

static void on_done(struct cg_io *io) {
    struct bs_command *command = io->user;
    command->next(command);
}

void bs_command_submit(struct bs_command *command) {
    struct bs_lun *lun = command->lun;
    command->io.done = on_done;
    command->io.user = command;
    command->io.timeout_ms = bs_command_remaining_ms(command);
    if (lun->volume == NULL) {
        // It was given up between two IOs of a command.
        bs_command_end(command, BS_CHECK(KEY_NOT_READY, ASC_STANDBY));
        return;
    }
    bs_client_kick(lun->client);
    cg_submit(lun->volume, &command->io);
}

int bs_finish(struct scsi_cmd *cmd, struct bs_status status) {
    if (status.status == SAM_GOOD) {
        return SAM_GOOD;
    }
    // tgtd's buffer is not initialised: nothing of it may leave.
    tgt_set_in_length(cmd, 0);
    if (status.status == SAM_CHECK_CONDITION) {
        memset(cmd->sense, 0, sizeof(cmd->sense));
        if (status.has_info) {
            sense_data_build_with_info(cmd, status.key, status.code, status.info);
        } else {
            sense_data_build(cmd, status.key, status.code);
        }
    }
    return status.status;
}

void bs_command_end(struct bs_command *command, struct bs_status status) {
    struct bs_lun *lun = command->lun;
    struct scsi_cmd *cmd = command->cmd;
    free(command->scratch);
    command->scratch = NULL;
    command->cmd = NULL;
    lun->running--;
    cg_list_push_front(&lun->free_commands, &command->node);
    target_cmd_io_done(cmd, bs_finish(cmd, status));
}

static struct bs_status failed(struct bs_lun *lun, int result, uint64_t mismatch) {
    struct bs_status status = bs_status_of(result, mismatch);
    if (result == -EILSEQ) {
        return status; // an answer, not trouble
    }
    bs_lun_log(lun, true, "a command failed: %s", strerror(-result));
    for (unsigned i = 0; bs_extensions[i] != NULL; i++) {
        if (bs_extensions[i]->failed != NULL && bs_extensions[i]->failed(lun, result, &status)) {
            break;
        }
    }
    return status;
}

void bs_command_end_result(struct bs_command *command, int result) {
    struct bs_status status = BS_GOOD;
    if (result != 0) {
        status = failed(command->lun, result, command->done + command->io.mismatch_offset);
    }
    bs_command_end(command, status);
}

int bs_sense(struct scsi_cmd *cmd, uint8_t key, uint16_t code) {
    return bs_finish(cmd, BS_CHECK(key, code));
}

int bs_reply(struct scsi_cmd *cmd, const void *data, uint32_t length, uint32_t allocation) {
    uint32_t wanted = length < allocation ? length : allocation;
    uint32_t room = wanted < cmd->in.length ? wanted : cmd->in.length;
    if (room > 0) {
        memcpy(tgt_in_buffer(cmd), data, room);
    }
    tgt_set_in_length(cmd, wanted);
    return SAM_GOOD;
}
