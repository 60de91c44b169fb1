// SPDX-License-Identifier: GPL-2.0-only
#include "frontends/tgt/lun_state.h"

#include <errno.h>
#include <pb_decode.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "frontends/tgt/client.h"
#include "frontends/tgt/nexus.h"

int lun_state_create(struct bs_lun *lun, struct lun_state **out) {
    struct lun_state *state = calloc(1, sizeof(*state));
    if (state == NULL)
        return -ENOMEM;
    state->lun = lun;
    cg_list_init(&state->changes);
    cg_list_init(&state->takers);
    state->now = calloc(1, sizeof(*state->now));
    state->next = calloc(1, sizeof(*state->next));
    state->follow_buffer = malloc(CG_STATE_MAX);
    state->set_buffer = malloc(CG_STATE_MAX);
    *out = state;
    if (state->now == NULL || state->next == NULL || state->follow_buffer == NULL ||
        state->set_buffer == NULL) {
        lun_state_free(state);
        *out = NULL;
        return -ENOMEM;
    }
    return 0;
}

void lun_state_free(struct lun_state *state) {
    free(state->now);
    free(state->next);
    free(state->follow_buffer);
    free(state->set_buffer);
    free(state);
}

struct alua_own lun_state_own(const struct lun_state *state) {
    const struct bs_options *options = &state->lun->options;
    return (struct alua_own){options->gateway, options->group, options->port, state->role};
}

bool lun_state_nexus(const struct lun_state *state, const struct scsi_cmd *cmd,
                     char name[RESERVATION_NAME_SIZE], struct reservation_nexus *out) {
    *out = (struct reservation_nexus){name, state->lun->options.port};
    return nexus_name(cmd->target->tid, cmd->nexus_id, name);
}

bool lun_state_decode(const uint8_t *data, size_t length, lun_shared_state *out) {
    memset(out, 0, sizeof(*out));
    pb_istream_t stream = pb_istream_from_buffer(data, length);
    return pb_decode(&stream, copygate_iscsi_LunState_fields, out) &&
           reservation_valid(&out->reservations);
}

// --- Telling initiators

static void tell(struct lun_state *state, const struct reservation_notice *notice) {
    struct scsi_lu *lu = state->lun->lu;
    CG_LIST_FOREACH (node, &lu->nexuses) {
        struct tgt_nexus_lu *one = CG_CONTAINER_OF(node, struct tgt_nexus_lu, lu_siblings);
        char name[RESERVATION_NAME_SIZE];
        if (nexus_name(lu->target->tid, one->nexus_id, name) &&
            strcmp(name, notice->initiator_port) == 0)
            ua_sense_add_it_nexus(one->nexus_id, lu, notice->code);
    }
}

// Returns whether commands have to be aborted: those that run are waited for instead, since what
// was sent to the store cannot be called back.
static bool tell_all(struct lun_state *state, const reservation_state *after) {
    static struct reservation_notice notices[RESERVATION_REGISTRATIONS_MAX];
    unsigned count = reservation_notices(&state->now->reservations, after, notices);
    bool abort = false;
    for (unsigned i = 0; i < count; i++) {
        if (notices[i].target_port != state->lun->options.port)
            continue;
        tell(state, &notices[i]);
        abort |= notices[i].abort;
    }
    return abort;
}

// --- The barrier

static bool began_before(const struct lun_state *state, const struct bs_command *command) {
    // Slots are used again; a command's deadline says when it began. What has no `next` does no IO.
    uint64_t limit = state->barrier_ns + state->lun->options.timeout_s * CG_NS_PER_S;
    return command->cmd != NULL && command->next != NULL && command->deadline_ns <= limit;
}

bool lun_state_draining(struct lun_state *state) {
    if (state->barrier_ns == 0)
        return false;
    for (unsigned i = 0; i < BS_COMMANDS_MAX; i++) {
        if (began_before(state, &state->lun->commands[i]))
            return true;
    }
    state->barrier_ns = 0;
    return false;
}

// --- Following

void lun_state_take(struct lun_state *state, const lun_shared_state *next, uint64_t revision) {
    if (state->known && revision <= state->revision)
        return;
    bool first = !state->known;
    // After an opening anything may have happened: its own sessions are told at their login, and
    // who was there before is told by the difference all the same.
    bool abort = tell_all(state, &next->reservations);
    if (abort || reservation_forbids_more(&state->now->reservations, &next->reservations))
        state->barrier_ns = cg_now_ns();
    memcpy(state->now, next, sizeof(*state->now));
    state->revision = revision;
    state->known = true;
    if (first)
        lun_state_role_known(state);
    // The epoch tells who is behind: a claim by an older owner can arrive after we took over.
    if (state->owner && next->has_active_gateway &&
        strcmp(next->active_gateway, state->lun->options.gateway) != 0 &&
        next->active_epoch > state->lun->info.epoch)
        lun_state_lost(state);
}

static void keep_locally(struct lun_state *state) {
    if (!state->local)
        bs_lun_log(state->lun, false,
                   "the metadata server keeps no shared state: reservations last as long as this "
                   "process and are not seen by other gateways");
    state->local = true;
    state->known = true;
    lun_state_role_known(state);
}

static void told(struct lun_state *state, const struct cg_state_call *call) {
    lun_shared_state *next = malloc(sizeof(*next));
    if (next == NULL || !lun_state_decode(state->follow_buffer, call->buffer_length, next)) {
        bs_lun_log(state->lun, true, "the shared state of revision %llu cannot be read: %s",
                   (unsigned long long)call->revision,
                   next == NULL ? "no memory" : "it is not one of this version");
        state->known = false;
        state->follow_after_ns = cg_now_ns() + LUN_STATE_RETRY_NS;
    } else {
        lun_state_take(state, next, call->revision);
    }
    free(next);
}

static void on_followed(struct cg_state_call *call) {
    struct lun_state *state = call->user;
    state->following = false;
    if (state->stopping)
        return;
    switch (call->result) {
    case -ESHUTDOWN: // the volume is being closed; its successor is followed next
        break;
    case 0:
        told(state, call);
        break;
    case -ENOTSUP:
        keep_locally(state);
        break;
    case -ESTALE:
        lun_state_lost(state);
        break;
    default:
        bs_lun_log(state->lun, true, "cannot follow the shared state: %s", strerror(-call->result));
        state->follow_after_ns = cg_now_ns() + LUN_STATE_RETRY_NS;
        break;
    }
    lun_state_advance(state);
}

void lun_state_follow(struct lun_state *state) {
    if (state->following || state->local || state->lun->volume == NULL ||
        cg_now_ns() < state->follow_after_ns || lun_state_draining(state))
        return;
    state->following = true;
    state->follow = (struct cg_state_call){
        .op = CG_STATE_FOLLOW,
        .revision_known = state->known ? state->revision : CG_STATE_UNKNOWN,
        .buffer = state->follow_buffer,
        .capacity = CG_STATE_MAX,
        .done = on_followed,
        .user = state,
    };
    cg_state_submit(state->lun->volume, &state->follow);
    bs_client_kick(state->lun->client);
}

void lun_state_advance(struct lun_state *state) {
    if (state->stopping)
        return;
    lun_state_role_advance(state);
    lun_state_change_advance(state);
    lun_state_follow(state);
}
