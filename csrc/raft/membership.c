// SPDX-License-Identifier: BSD-3-Clause
//
// Who belongs to the group [4]. One server at a time, so that majorities before and after overlap
// [4.1]; learners are fed and not counted [4.2.1]. A configuration counts from the moment it is in
// the log, committed or not, and goes when its entry goes [4.1]. No change before the leader's
// no-op is committed: without that two leaders can each change one server of an old configuration
// and share no majority (Ongaro, raft-dev, July 2015).
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "raft/raft_internal.h"

struct raft_peer *raft_peer(struct cg_raft *raft, uint64_t id) {
    for (uint32_t i = 0; i < raft->peer_count; i++) {
        if (raft->peer[i].id == id) {
            return &raft->peer[i];
        }
    }
    return NULL;
}

bool raft_config_valid(const struct cg_raft_config *config) {
    if (config->count > CG_RAFT_MEMBERS_MAX) {
        return false;
    }
    for (uint32_t i = 0; i < config->count; i++) {
        if (config->member[i].id == 0) {
            return false;
        }
        for (uint32_t j = 0; j < i; j++) {
            if (config->member[j].id == config->member[i].id) {
                return false;
            }
        }
    }
    return true;
}

const struct cg_raft_config *cg_raft_config(const struct cg_raft *raft) {
    uint32_t last = raft->config_count - 1;
    if (CG_RAFT_MUTATED(CONFIG_AT_COMMIT)) {
        while (last > 0 && raft->config[last].index > raft->commit_index) {
            last--;
        }
    }
    return &raft->config[last].config;
}

// Makes the peers those of the last configuration; who stays keeps its progress.
void raft_adopt_config(struct cg_raft *raft) {
    const struct cg_raft_config *config = cg_raft_config(raft);
    raft->voter = false;
    uint32_t kept = 0;
    for (uint32_t i = 0; i < raft->peer_count; i++) { // the removed ones go
        bool stays = false;
        for (uint32_t j = 0; j < config->count; j++) {
            stays = stays || config->member[j].id == raft->peer[i].id;
        }
        if (stays && kept++ != i) {
            raft->peer[kept - 1] = raft->peer[i];
        }
    }
    raft->peer_count = kept;
    for (uint32_t j = 0; j < config->count; j++) {
        const struct cg_raft_member *member = &config->member[j];
        if (member->id == raft->options.id) {
            raft->voter = !member->learner;
            continue;
        }
        struct raft_peer *peer = raft_peer(raft, member->id);
        if (peer == NULL) {
            peer = &raft->peer[raft->peer_count++];
            memset(peer, 0, sizeof(*peer));
            peer->id = member->id;
            raft_reset_peer(raft, peer);
        }
        peer->learner = member->learner;
    }
}

void raft_config_append(struct cg_raft *raft, uint64_t index, const struct cg_raft_config *config) {
    if (raft->config_count == 2) {
        raft->config[0] = raft->config[1];
        raft->config_count = 1;
    }
    raft->config[raft->config_count++] =
        (struct raft_config_entry){.index = index, .config = *config};
    raft_adopt_config(raft);
}

void raft_config_truncate(struct cg_raft *raft, uint64_t first) {
    if (CG_RAFT_MUTATED(CONFIG_NOT_ROLLED_BACK)) {
        return;
    }
    uint32_t before = raft->config_count;
    while (raft->config_count > 1 && raft->config[raft->config_count - 1].index >= first) {
        raft->config_count--;
    }
    if (raft->config_count != before) {
        raft_adopt_config(raft);
    }
}

void raft_config_reset(struct cg_raft *raft, uint64_t index, const struct cg_raft_config *config) {
    raft->config[0] = (struct raft_config_entry){.index = index, .config = *config};
    raft->config_count = 1;
    raft_adopt_config(raft);
}

// ---- Changes

static struct cg_raft_member *member_of(struct cg_raft_config *config, uint64_t id) {
    for (uint32_t i = 0; i < config->count; i++) {
        if (config->member[i].id == id) {
            return &config->member[i];
        }
    }
    return NULL;
}

static uint32_t voters(const struct cg_raft_config *config) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < config->count; i++) {
        count += !config->member[i].learner;
    }
    return count;
}

static int promote(struct cg_raft *raft, struct cg_raft_member *member) {
    const struct raft_peer *peer = raft_peer(raft, member->id);
    if (peer == NULL || peer->state != RAFT_REPLICATE ||
        raft->log.last_index - peer->match > raft->options.promote_lag_max) {
        return -EAGAIN; // a majority that waits for its catching up cannot commit [4.2.1]
    }
    if (peer->match < raft->config[raft->config_count - 1].index) {
        return -EAGAIN; // who knows no configuration, not even as a learner, is no voter
    }
    member->learner = false;
    return 0;
}

static int edit(struct cg_raft *raft, enum cg_raft_change kind, uint64_t id,
                struct cg_raft_config *config) {
    struct cg_raft_member *member = member_of(config, id);
    switch (kind) {
    case CG_RAFT_ADD_LEARNER:
        if (id == 0 || member != NULL) {
            return -EINVAL;
        }
        if (config->count == CG_RAFT_MEMBERS_MAX) {
            return -ENOSPC;
        }
        config->member[config->count++] = (struct cg_raft_member){.id = id, .learner = true};
        return 0;
    case CG_RAFT_PROMOTE:
        if (member == NULL || !member->learner) {
            return -EINVAL;
        }
        return promote(raft, member);
    case CG_RAFT_REMOVE:
        if (member == NULL || (!member->learner && voters(config) == 1)) {
            return -EINVAL;
        }
        *member = config->member[--config->count];
        return 0;
    }
    return -EINVAL;
}

int cg_raft_change(struct cg_raft *raft, uint64_t now_ns, enum cg_raft_change kind, uint64_t id) {
    if (raft->role != CG_RAFT_LEADER) {
        return -EPERM;
    }
    raft->now_ns = now_ns;
    bool pending = raft->config[raft->config_count - 1].index > raft->commit_index;
    if ((!raft_knows_commit(raft) && !CG_RAFT_MUTATED(CONFIG_BEFORE_NOOP)) ||
        (pending && !CG_RAFT_MUTATED(CONFIG_TWO_AT_ONCE)) || raft->transferee != 0) {
        return -EAGAIN;
    }
    struct cg_raft_config config = raft->config[raft->config_count - 1].config;
    int result = edit(raft, kind, id, &config);
    if (result != 0) {
        return result;
    }
    const struct cg_raft_entry entry = {
        .term = raft->term, .type = CG_RAFT_ENTRY_CONFIG, .config = &config};
    if (!raft_append_own(raft, CG_RAFT_FROM_CORE, 1, &entry)) {
        return -EAGAIN;
    }
    raft_wake_up(raft);
    raft->active_ns = now_ns;
    raft_check(raft);
    return 0;
}
