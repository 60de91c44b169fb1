// SPDX-License-Identifier: GPL-2.0-only
#include "frontends/tgt/reservation_commands.h"

#include <stdlib.h>
#include <string.h>

// A command that changes reservations.
struct reservation_change {
    struct lun_state_change change;
    char name[RESERVATION_NAME_SIZE];
    struct reservation_nexus nexus;
    struct reservation_request request;
    uint8_t *parameters; // what request.transport_ids points into
    uint8_t cdb[16];
    struct bs_status (*simple)(reservation_state *state, const struct reservation_nexus *nexus,
                               const uint8_t *cdb); // RESERVE, RELEASE
};

static struct reservation_change *of_change(struct lun_state_change *change) {
    return CG_CONTAINER_OF(change, struct reservation_change, change);
}

static void free_change(struct reservation_change *change) {
    free(change->parameters);
    free(change);
}

static struct bs_status apply(struct lun_state_change *base, lun_shared_state *next,
                              bool *changed) {
    struct reservation_change *change = of_change(base);
    reservation_state *reservations = &next->reservations;
    struct bs_status status;
    if (change->simple != NULL) {
        status = change->simple(reservations, &change->nexus, change->cdb);
    } else {
        static struct reservation_ports ports;
        alua_ports(next, &ports);
        status = reservation_out(reservations, &change->nexus, &change->request, &ports);
    }
    *changed = status.status == SAM_GOOD &&
               memcmp(reservations, &base->state->now->reservations, sizeof(*reservations)) != 0;
    return status;
}

// tgtd forgets who reserved a unit at a reset and when the session ends, by zeroing this: so the
// number tells of events that it tells the module nothing of.
static void mark_reserved(struct lun_state *state, const struct bs_command *command) {
    const reservation_state *now = &state->now->reservations;
    bool ours = now->has_reserved_by && now->reserved_port == state->lun->options.port;
    if (!ours) {
        state->lun->lu->reserve_id = 0;
        return;
    }
    char name[RESERVATION_NAME_SIZE];
    struct reservation_nexus nexus;
    if (lun_state_nexus(state, command->cmd, name, &nexus) && strcmp(name, now->reserved_by) == 0)
        state->lun->lu->reserve_id = command->cmd->nexus_id;
}

static void end(struct lun_state_change *base, struct bs_status status) {
    struct reservation_change *change = of_change(base);
    struct bs_command *command = base->command;
    if (status.status == SAM_GOOD && change->simple != NULL)
        mark_reserved(base->state, command);
    free_change(change);
    bs_command_end(command, status);
}

static struct reservation_change *new_change(struct lun_state *state, struct scsi_cmd *cmd) {
    struct reservation_change *change = calloc(1, sizeof(*change));
    if (change == NULL)
        return NULL;
    cg_list_init(&change->change.node);
    change->change.state = state;
    change->change.apply = apply;
    change->change.end = end;
    memcpy(change->cdb, cmd->cdb, (size_t)cmd->cdb_length < 16 ? (size_t)cmd->cdb_length : 16);
    if (!lun_state_nexus(state, cmd, change->name, &change->nexus)) {
        free(change);
        return NULL;
    }
    return change;
}

static int submit(struct lun_state *state, struct scsi_cmd *cmd,
                  struct reservation_change *change) {
    change->change.command = bs_command_begin(state->lun, cmd);
    if (change->change.command == NULL) {
        free_change(change);
        return BS_FULL;
    }
    lun_state_submit(state, &change->change);
    return BS_PENDING;
}

int reservation_perform_out(struct bs_lun *lun, struct scsi_cmd *cmd) {
    struct lun_state *state = lun_state_of(lun);
    struct reservation_request request;
    size_t length = cmd->out.length;
    const uint8_t *data = tgt_out_buffer(cmd);
    struct bs_status status = reservation_parse_out(cmd->cdb, data, length, &request);
    if (status.status != SAM_GOOD)
        return bs_finish(cmd, status);
    struct reservation_change *change = new_change(state, cmd);
    if (change == NULL)
        return SAM_BUSY;
    change->request = request;
    if (request.transport_ids_length > 0) {
        // The change is applied again whenever somebody else was quicker.
        change->parameters = malloc(request.transport_ids_length);
        if (change->parameters == NULL) {
            free_change(change);
            return SAM_BUSY;
        }
        memcpy(change->parameters, request.transport_ids, request.transport_ids_length);
        change->request.transport_ids = change->parameters;
    }
    return submit(state, cmd, change);
}

static int perform_simple(struct bs_lun *lun, struct scsi_cmd *cmd,
                          struct bs_status (*simple)(reservation_state *state,
                                                     const struct reservation_nexus *nexus,
                                                     const uint8_t *cdb)) {
    struct lun_state *state = lun_state_of(lun);
    struct reservation_change *change = new_change(state, cmd);
    if (change == NULL)
        return SAM_BUSY;
    change->simple = simple;
    return submit(state, cmd, change);
}

int reservation_perform_reserve(struct bs_lun *lun, struct scsi_cmd *cmd) {
    return perform_simple(lun, cmd, reservation_reserve);
}

int reservation_perform_release(struct bs_lun *lun, struct scsi_cmd *cmd) {
    return perform_simple(lun, cmd, reservation_release);
}

int reservation_perform_in(struct bs_lun *lun, struct scsi_cmd *cmd) {
    static uint8_t answer[RESERVATION_IN_MAX];
    size_t length;
    struct bs_status status =
        reservation_in(&lun_state_of(lun)->now->reservations, cmd->cdb, answer, &length);
    if (status.status != SAM_GOOD)
        return bs_finish(cmd, status);
    uint32_t allocation = (uint32_t)cmd->cdb[7] << 8 | cmd->cdb[8];
    return bs_reply(cmd, answer, (uint32_t)length, allocation);
}

// --- Every command

static struct bs_status apply_drop(struct lun_state_change *change, lun_shared_state *next,
                                   bool *changed) {
    (void)change;
    // The copy has lost it already; what the MDS has may not.
    (void)reservation_drop(&next->reservations, NULL);
    *changed = true;
    return BS_GOOD;
}

static void end_drop(struct lun_state_change *change, struct bs_status status) {
    if (status.status != SAM_GOOD)
        bs_lun_log(change->state->lun, true,
                   "the end of a RESERVE could not be told to the metadata server");
    free(change);
}

// RESERVE ends with a reset or its session.
static void drop_ended_reserve(struct lun_state *state) {
    reservation_state *now = &state->now->reservations;
    if (!now->has_reserved_by || now->reserved_port != state->lun->options.port ||
        state->lun->lu->reserve_id != 0 || state->making != NULL)
        return;
    struct lun_state_change *change = calloc(1, sizeof(*change));
    if (change == NULL)
        return; // the next command sees it
    (void)reservation_drop(now, NULL);
    cg_list_init(&change->node);
    change->apply = apply_drop;
    change->end = end_drop;
    change->forbids_nothing = true;
    lun_state_submit(state, change);
}

struct bs_status reservation_admit(struct lun_state *state, const struct scsi_cmd *cmd) {
    const reservation_state *now = &state->now->reservations;
    if (now->has_reserved_by)
        drop_ended_reserve(state);
    if (now->type == PR_NONE && !now->has_reserved_by)
        return BS_GOOD;
    char name[RESERVATION_NAME_SIZE];
    struct reservation_nexus nexus;
    bool known = lun_state_nexus(state, cmd, name, &nexus);
    if (reservation_allows(now, known ? &nexus : NULL, cmd->cdb))
        return BS_GOOD;
    return (struct bs_status){.status = SAM_RESERVATION_CONFLICT};
}
