// SPDX-License-Identifier: GPL-2.0-only
//
// Reservations and port groups as the module meets them (module.h).
#include <errno.h>
#include <poll.h>

#include "base/clock.h"
#include "frontends/tgt/nexus.h"
#include "frontends/tgt/reservation_commands.h"

#define SETTLE_NS (5 * CG_NS_PER_S)

static unsigned own_index(void) {
    static unsigned index = BS_EXTENSIONS_MAX;
    for (unsigned i = 0; index == BS_EXTENSIONS_MAX && bs_extensions[i] != NULL; i++) {
        if (bs_extensions[i] == &lun_state_extension)
            index = i;
    }
    return index;
}

struct lun_state *lun_state_of(struct bs_lun *lun) {
    return lun->extension[own_index()];
}

// tgtd waits for the opening of a LUN anyway. With the state known when it ends the first command
// of the first session finds the unit ready; without, sessions are told that it is becoming so.
static void settle(struct lun_state *state) {
    struct cg_client *core = bs_client_core(state->lun->client);
    uint64_t until = cg_now_ns() + SETTLE_NS;
    while ((!state->known || state->role == ALUA_TRANSITIONING) && cg_now_ns() < until) {
        if (cg_client_progress(core) < 0)
            return; // as at every later call, the module logs it
        lun_state_advance(state);
        struct pollfd descriptor = {.fd = cg_client_fd(core), .events = POLLIN};
        (void)poll(&descriptor, 1, 10);
    }
}

static int start(struct bs_lun *lun) {
    if (!nexus_names_known()) {
        bs_lun_log(lun, true, "this tgtd does not tell the names of initiators");
        return -ENOTSUP;
    }
    struct lun_state *state;
    int result = lun_state_create(lun, &state);
    if (result != 0)
        return result;
    lun->extension[own_index()] = state;
    lun_state_role_start(state);
    lun_state_advance(state);
    settle(state);
    return 0;
}

static void stop(struct bs_lun *lun) {
    struct lun_state *state = lun_state_of(lun);
    lun_state_role_stop(state);
    lun->extension[own_index()] = NULL;
    lun_state_free(state);
}

// What is answered before the shared state is known: what finds the unit, and nothing that goes by
// the state.
static bool needs_state(const struct lun_state *state, const uint8_t *cdb) {
    // A gateway that was just fenced still knows the groups, and may be told to take over again.
    bool groups_known = state->local || state->revision != 0;
    switch (cdb[0]) {
    case 0x5e: // PERSISTENT RESERVE IN
    case 0x5f: // PERSISTENT RESERVE OUT
        return true;
    case 0xa4: // SET TARGET PORT GROUPS
        return !groups_known;
    case 0xa3:
        return (cdb[1] & 0x1f) == 0x0a && !groups_known; // REPORT TARGET PORT GROUPS
    default:
        return alua_access(ALUA_STANDBY, cdb).status != SAM_GOOD;
    }
}

static int admit(struct bs_lun *lun, struct scsi_cmd *cmd, const struct bs_opcode *op) {
    (void)op;
    struct lun_state *state = lun_state_of(lun);
    struct bs_status status = alua_access(state->role, cmd->cdb);
    if (status.status == SAM_GOOD && !state->known && needs_state(state, cmd->cdb))
        status = BS_CHECK(KEY_NOT_READY,
                          state->role == ALUA_TRANSITIONING ? ASC_TRANSITION : ASC_BECOMING_READY);
    if (status.status == SAM_GOOD)
        status = reservation_admit(state, cmd);
    return bs_finish(cmd, status);
}

static bool failed(struct bs_lun *lun, int error, struct bs_status *status) {
    struct lun_state *state = lun_state_of(lun);
    switch (error) {
    case -ESTALE:
        if (state->owner)
            lun_state_lost(state);
        *status = BS_CHECK(KEY_NOT_READY, ASC_STANDBY);
        return true;
    case -ESHUTDOWN: // the volume was given up or replaced meanwhile
        *status = BS_CHECK(KEY_NOT_READY,
                           state->role == ALUA_TRANSITIONING ? ASC_TRANSITION : ASC_STANDBY);
        return true;
    case -EAGAIN: // the state is another one: the initiator's repetition is checked by that
        *status = (struct bs_status){.status = SAM_BUSY};
        return true;
    default:
        return false;
    }
}

static void progress(struct bs_lun *lun) {
    lun_state_advance(lun_state_of(lun));
}

#define PR_IN(service)                                                                             \
    {                                                                                              \
        .opcode = 0x5e, .length = 10, .action = (service), .perform = reservation_perform_in,      \
        .usage = {                                                                                 \
            0x1f,                                                                                  \
            0,                                                                                     \
            0,                                                                                     \
            0,                                                                                     \
            0,                                                                                     \
            0,                                                                                     \
            0xff,                                                                                  \
            0xff,                                                                                  \
            0x04                                                                                   \
        }                                                                                          \
    }
#define PR_OUT(service)                                                                            \
    {                                                                                              \
        .opcode = 0x5f, .length = 10, .action = (service), .perform = reservation_perform_out,     \
        .usage = {                                                                                 \
            0x1f,                                                                                  \
            0xff,                                                                                  \
            0,                                                                                     \
            0,                                                                                     \
            0xff,                                                                                  \
            0xff,                                                                                  \
            0xff,                                                                                  \
            0xff,                                                                                  \
            0x04                                                                                   \
        }                                                                                          \
    }

static const struct bs_opcode opcodes[] = {
    PR_IN(0),
    PR_IN(1),
    PR_IN(2),
    PR_IN(3),
    PR_OUT(PR_REGISTER),
    PR_OUT(PR_RESERVE),
    PR_OUT(PR_RELEASE),
    PR_OUT(PR_CLEAR),
    PR_OUT(PR_PREEMPT),
    PR_OUT(PR_PREEMPT_AND_ABORT),
    PR_OUT(PR_REGISTER_AND_IGNORE),
    PR_OUT(PR_REGISTER_AND_MOVE),
    {.opcode = 0x16,
     .length = 6,
     .action = BS_NO_ACTION,
     .perform = reservation_perform_reserve,
     .usage = {0x11, 0, 0, 0, 0x04}},
    {.opcode = 0x56,
     .length = 10,
     .action = BS_NO_ACTION,
     .perform = reservation_perform_reserve,
     .usage = {0x13, 0, 0, 0, 0, 0, 0, 0, 0x04}},
    {.opcode = 0x17,
     .length = 6,
     .action = BS_NO_ACTION,
     .perform = reservation_perform_release,
     .usage = {0x11, 0, 0, 0, 0x04}},
    {.opcode = 0x57,
     .length = 10,
     .action = BS_NO_ACTION,
     .perform = reservation_perform_release,
     .usage = {0x13, 0, 0, 0, 0, 0, 0, 0, 0x04}},
    {.opcode = 0xa3,
     .length = 12,
     .action = 0x0a,
     .perform = alua_perform_report,
     .usage = {0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0x04}},
    {.opcode = 0xa4,
     .length = 12,
     .action = 0x0a,
     .perform = alua_perform_set,
     .usage = {0x1f, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0x04}},
};

const struct bs_extension lun_state_extension = {
    .name = "reservations",
    .start = start,
    .stop = stop,
    .admit = admit,
    .failed = failed,
    .progress = progress,
    .inquiry_tpgs = ALUA_TPGS_BITS,
    .opcodes = opcodes,
    .opcode_count = sizeof(opcodes) / sizeof(opcodes[0]),
};
