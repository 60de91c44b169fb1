// SPDX-License-Identifier: GPL-2.0-only
//
// What a LUN shares with the volume's other gateways (LunState), and this gateway's part in it. The
// MDS keeps the state; each gateway has a copy, acts by it alone, and follows it: the MDS tells a
// change to its maker only when every gateway that follows acts by it.
//
//   lun_state.c         the copy: following, taking over a new state, telling initiators
//   lun_state_change.c  changes, one at a time, by compare-and-set
//   lun_state_role.c    active or standby: opening for writing, being fenced
//   reservation_commands.c, alua_commands.c   the commands
//   lun_state_extension.c   what the module calls
//
// Everything runs on tgtd's one thread. lun_state_advance is what moves things; it is called after
// everything that could have changed something.
#ifndef COPYGATE_TGT_LUN_STATE_H
#define COPYGATE_TGT_LUN_STATE_H

#include "frontends/tgt/alua.h"
#include "frontends/tgt/module.h"
#include "frontends/tgt/reservation.h"

struct lun_state;

// A change that waits for its turn or for the MDS. It is applied to a copy of the newest state,
// again if somebody else was quicker.
struct lun_state_change {
    struct cg_list node;
    // Changes `next`. Not GOOD: ends the change so. *changed: whether there is something to keep.
    struct bs_status (*apply)(struct lun_state_change *change, lun_shared_state *next,
                              bool *changed);
    // The change is kept, and no IO that it forbids is under way here or elsewhere; or it failed.
    // Frees the change.
    void (*end)(struct lun_state_change *change, struct bs_status status);
    struct lun_state *state;
    struct bs_command *command; // that asked for it, or NULL
    uint64_t epoch;             // not 0: only for the owner with this epoch
    bool forbids_nothing;       // it is enough that it is kept: others may hear of it later
};

struct lun_state {
    struct bs_lun *lun;
    enum alua_state role;

    // The copy. `known`: it was told since the volume was opened; nothing runs before.
    lun_shared_state *now;
    uint64_t revision;
    bool known;
    bool local; // a CurveBS cluster keeps no state: it is this process's alone

    struct cg_state_call follow;
    uint8_t *follow_buffer;
    bool following;
    uint64_t follow_after_ns; // not before, after a failure

    // IO that began before is waited for until what forbids it is acknowledged. 0: none.
    uint64_t barrier_ns;

    struct cg_list changes;          // struct lun_state_change.node
    struct lun_state_change *making; // the one that the MDS has; or that waits for the barrier
    struct cg_state_call set;
    uint8_t *set_buffer;
    lun_shared_state *next;
    bool setting;
    bool made; // `making` is kept

    // A volume that is being opened, and why.
    bool opening;
    bool opening_to_write;
    struct cg_volume *arrived; // opened; waits until no change is under way
    uint64_t open_after_ns;    // not before, after a failure
    struct cg_list takers;     // struct bs_command.node: SET TARGET PORT GROUPS that wait for it
    uint64_t taker_nexus;      // 0: nobody; is not told of the new state
    bool published;            // the group is in the state, or cannot be
    bool publishing;
    uint64_t publish_after_ns; // not before, after a failure
    bool starting;             // the state was not told since the LUN was made
    bool owner;                // lun->volume was opened for writing, and not fenced
    bool stopping;
};

extern const struct bs_extension lun_state_extension;

struct lun_state *lun_state_of(struct bs_lun *lun);

// The target port of this LUN, and its gateway's group.
struct alua_own lun_state_own(const struct lun_state *state);

// The nexus that a command came by; `name` keeps its text. False: it is not known.
bool lun_state_nexus(const struct lun_state *state, const struct scsi_cmd *cmd,
                     char name[RESERVATION_NAME_SIZE], struct reservation_nexus *out);

void lun_state_advance(struct lun_state *state);

// --- lun_state.c
int lun_state_create(struct bs_lun *lun, struct lun_state **out);
void lun_state_free(struct lun_state *state);
void lun_state_follow(struct lun_state *state);
// Acts by a new state from now on.
void lun_state_take(struct lun_state *state, const lun_shared_state *next, uint64_t revision);
// Decodes what the MDS told; false if it makes no sense.
bool lun_state_decode(const uint8_t *data, size_t length, lun_shared_state *out);
// Whether IO from before the barrier is still under way.
bool lun_state_draining(struct lun_state *state);

// --- lun_state_change.c
// `change` is allocated by the caller with malloc; `end` comes exactly once, perhaps inside.
void lun_state_submit(struct lun_state *state, struct lun_state_change *change);
void lun_state_change_advance(struct lun_state *state);

// --- lun_state_role.c
void lun_state_role_start(struct lun_state *state);
// Opens the volume for writing and becomes active. `command` (may be NULL) is ended with the
// result.
void lun_state_take_over(struct lun_state *state, struct bs_command *command);
// Somebody else has the volume.
void lun_state_lost(struct lun_state *state);
// The state was told: is the volume to be taken, the group to be published?
void lun_state_role_known(struct lun_state *state);
void lun_state_role_advance(struct lun_state *state);
void lun_state_role_stop(struct lun_state *state);

#define LUN_STATE_RETRY_NS (500 * 1000000ULL)

#endif
