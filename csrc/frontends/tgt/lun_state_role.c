// SPDX-License-Identifier: GPL-2.0-only
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "frontends/tgt/client.h"
#include "frontends/tgt/lun_state.h"

static void end_takers(struct lun_state *state, struct bs_status status) {
    struct cg_list *node;
    while ((node = cg_list_pop_front(&state->takers)) != NULL)
        bs_command_end(CG_CONTAINER_OF(node, struct bs_command, node), status);
}

static struct bs_status set_failed(void) {
    return BS_CHECK(KEY_HARDWARE_ERROR, ASC_SET_GROUPS_FAILED);
}

static void become_active(struct lun_state *state) {
    if (state->role != ALUA_TRANSITIONING)
        return;
    state->role = ALUA_OPTIMIZED;
    // The nexus that asked for it has its answer; all others are told. No session has id 0.
    ua_sense_add_other_it_nexus(state->taker_nexus, state->lun->lu, ASC_ACCESS_STATE_CHANGED);
    state->taker_nexus = 0;
    bs_lun_log(state->lun, false, "this gateway, %s, serves the volume now (epoch %llu)",
               state->lun->options.gateway, (unsigned long long)state->lun->info.epoch);
    end_takers(state, BS_GOOD);
}

static void become_standby(struct lun_state *state) {
    if (state->role == ALUA_STANDBY || state->lun->options.read_only)
        return;
    if (state->role == ALUA_OPTIMIZED) {
        bs_lun_attention(state->lun, ASC_ACCESS_STATE_CHANGED);
        bs_lun_log(state->lun, false, "another client has taken the volume over: standby");
    }
    state->role = ALUA_STANDBY;
    state->taker_nexus = 0;
    end_takers(state, set_failed());
}

// --- The group in the shared state, and the claim of who opened for writing

static uint64_t claimed_epoch(const struct lun_state *state) {
    return state->owner && !state->local ? state->lun->info.epoch : 0;
}

static void publish(struct lun_state *state);

static struct bs_status apply_publish(struct lun_state_change *change, lun_shared_state *next,
                                      bool *changed) {
    struct lun_state *state = change->state;
    if (change->epoch != claimed_epoch(state))
        return (struct bs_status){.status = SAM_BUSY}; // the volume is another one by now
    struct alua_own own = lun_state_own(state);
    int result = alua_publish(next, &own, NULL, changed);
    if (result == -EEXIST)
        bs_lun_log(state->lun, true,
                   "group=%u or port=%u is another gateway's: give each gateway its own", own.group,
                   own.port);
    else if (result != 0)
        bs_lun_log(state->lun, true, "group=%u has as many ports as it can have", own.group);
    if (change->epoch == 0 && !(state->local && state->owner))
        return BS_GOOD;
    if (next->has_active_gateway && next->active_epoch == state->lun->info.epoch &&
        strcmp(next->active_gateway, own.gateway) == 0)
        return BS_GOOD;
    next->has_active_gateway = true;
    strcpy(next->active_gateway, own.gateway);
    next->has_active_epoch = true;
    next->active_epoch = state->lun->info.epoch;
    *changed = true;
    return BS_GOOD;
}

static void end_publish(struct lun_state_change *change, struct bs_status status) {
    struct lun_state *state = change->state;
    uint64_t epoch = change->epoch;
    free(change);
    state->publishing = false;
    if (state->stopping)
        return;
    // The volume may be another one by now, and what was published not what this one needs.
    bool same_volume = epoch == claimed_epoch(state);
    if (status.status == SAM_GOOD && same_volume) {
        state->published = true;
        if (state->owner)
            become_active(state);
    } else if (status.status == SAM_CHECK_CONDITION && state->owner && same_volume) {
        lun_state_lost(state);
    } else if (same_volume) {
        state->publish_after_ns = cg_now_ns() + LUN_STATE_RETRY_NS;
    } else {
        publish(state);
    }
}

static void publish(struct lun_state *state) {
    if (!state->known || state->published || state->publishing ||
        cg_now_ns() < state->publish_after_ns)
        return;
    struct lun_state_change *change = calloc(1, sizeof(*change));
    if (change == NULL)
        return; // the next event tries again
    cg_list_init(&change->node);
    change->apply = apply_publish;
    change->end = end_publish;
    change->epoch = claimed_epoch(state);
    // The epoch fences the one before, wherever it is. A gateway that died is not waited for.
    change->forbids_nothing = true;
    state->publishing = true;
    lun_state_submit(state, change);
}

// --- Opening

static void closed(void *user) {
    (void)user;
}

static void let_go(struct cg_volume *volume) {
    // Only a client with a thread of its own refuses this.
    if (volume != NULL)
        (void)cg_volume_close_start(volume, closed, NULL);
}

static void on_opened(void *user, int result, struct cg_volume *volume, const char *error) {
    struct lun_state *state = user;
    state->opening = false;
    if (result == -ECANCELED)
        return; // whoever cancels it goes on
    if (result == 0) {
        state->arrived = volume;
    } else {
        bs_lun_log(state->lun, true, "cannot open the volume: %s", error);
        state->open_after_ns = cg_now_ns() + LUN_STATE_RETRY_NS;
        if (state->opening_to_write)
            become_standby(state);
    }
    lun_state_advance(state);
}

static int open_volume(struct lun_state *state, bool to_write) {
    struct bs_lun *lun = state->lun;
    struct cg_volume_options options = {
        .struct_size = sizeof(options),
        .path = lun->name,
        .flags = to_write ? 0 : CG_OPEN_READ_ONLY,
        .inflight_max = BS_COMMANDS_MAX + 1,
        .io_timeout_ms = lun->options.timeout_s * 1000,
    };
    int result = cg_volume_open_start(bs_client_core(lun->client), &options, on_opened, state);
    if (result == 0) {
        state->opening = true;
        state->opening_to_write = to_write;
        bs_client_kick(lun->client);
        return 0;
    }
    bs_lun_log(lun, true, "cannot open the volume: %s", strerror(-result));
    state->open_after_ns = cg_now_ns() + LUN_STATE_RETRY_NS;
    return result;
}

// The volume that was opened becomes the LUN's. The old one closes by itself; what waits for its
// state ends with -ESHUTDOWN.
static void swap(struct lun_state *state) {
    struct cg_volume *old = bs_lun_adopt(state->lun, state->arrived);
    state->arrived = NULL;
    state->owner = state->opening_to_write;
    state->known = false;
    state->local = false;
    state->published = false;
    state->publish_after_ns = 0;
    state->follow_after_ns = 0;
    let_go(old);
}

void lun_state_take_over(struct lun_state *state, struct bs_command *command) {
    if (command != NULL) {
        cg_list_push_back(&state->takers, &command->node);
        state->taker_nexus = command->cmd->nexus_id;
    }
    if (state->role == ALUA_TRANSITIONING)
        return; // under way
    if (state->lun->options.read_only) {
        state->role = ALUA_TRANSITIONING;
        become_active(state);
        return;
    }
    if (state->opening)
        cg_volume_open_cancel(bs_client_core(state->lun->client), state);
    if (state->arrived != NULL) {
        let_go(state->arrived);
        state->arrived = NULL;
    }
    state->role = ALUA_TRANSITIONING;
    if (open_volume(state, true) != 0)
        become_standby(state);
}

void lun_state_lost(struct lun_state *state) {
    let_go(bs_lun_adopt(state->lun, NULL));
    state->owner = false;
    state->known = false;
    state->published = false;
    // A takeover that is under way goes on: it is about the volume that comes.
    if (!state->opening && state->arrived == NULL)
        become_standby(state);
}

void lun_state_role_start(struct lun_state *state) {
    const struct bs_options *options = &state->lun->options;
    state->starting = true;
    state->owner = !options->standby && !options->read_only;
    state->role = options->standby && !options->read_only ? ALUA_STANDBY : ALUA_OPTIMIZED;
}

void lun_state_role_known(struct lun_state *state) {
    // A gateway that was the active one and comes back, or is the first, needs nobody to tell it
    // so. Only at the start: one that was fenced must not take the volume back by itself.
    bool mine = !state->now->has_active_gateway ||
                strcmp(state->now->active_gateway, state->lun->options.gateway) == 0;
    if (state->starting && state->role == ALUA_STANDBY && mine)
        lun_state_take_over(state, NULL);
    state->starting = false;
}

static void end_late_takers(struct lun_state *state) {
    if (cg_list_empty(&state->takers))
        return;
    uint64_t now = cg_now_ns();
    CG_LIST_FOREACH_SAFE (node, following, &state->takers) {
        struct bs_command *command = CG_CONTAINER_OF(node, struct bs_command, node);
        if (command->deadline_ns > now)
            continue;
        cg_list_remove(&command->node);
        bs_command_end(command, BS_CHECK(KEY_NOT_READY, ASC_TRANSITION));
    }
}

void lun_state_role_advance(struct lun_state *state) {
    if (state->arrived != NULL && !state->setting)
        swap(state);
    if (state->lun->volume == NULL && !state->opening && state->arrived == NULL &&
        cg_now_ns() >= state->open_after_ns)
        (void)open_volume(state, false);
    end_late_takers(state);
    publish(state);
}

void lun_state_role_stop(struct lun_state *state) {
    struct cg_client *core = bs_client_core(state->lun->client);
    state->stopping = true;
    if (state->opening)
        cg_volume_open_cancel(core, state);
    cg_volume_close(state->arrived);
    state->arrived = NULL;
    cg_volume_close(bs_lun_adopt(state->lun, NULL));
    // Calls that belong to a volume which was let go before end when its closing does.
    while (state->following || state->setting) {
        struct pollfd descriptor = {.fd = cg_client_fd(core), .events = POLLIN};
        (void)poll(&descriptor, 1, 10);
        (void)cg_client_progress(core);
    }
    struct cg_list *node;
    while ((node = cg_list_pop_front(&state->changes)) != NULL) {
        struct lun_state_change *change = CG_CONTAINER_OF(node, struct lun_state_change, node);
        change->end(change, (struct bs_status){.status = SAM_BUSY});
    }
    if (state->making != NULL)
        state->making->end(state->making, (struct bs_status){.status = SAM_BUSY});
    state->making = NULL;
}
