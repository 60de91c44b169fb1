// SPDX-License-Identifier: BSD-3-Clause
//
// What must hold after every step [figure 3.2, and what this design adds]. The checks know what is
// on each disk and what any server has committed; the cores do not.
#include "sim.h"

// Is entry `index` of `term` on this disk?
static bool holds(const struct sim_node *node, uint64_t index, uint64_t term) {
    const struct sim_disk *disk = &node->disk;
    return index <= disk->base || (index <= disk->last && disk->term_at[index] == term);
}

static uint64_t durable_last(const struct sim_node *node) {
    return node->disk.last > node->disk.base ? node->disk.last : node->disk.base;
}

// A restart forgets no vote.
void sim_check_start(struct sim *sim, const struct sim_node *node) {
    struct cg_raft_status status;
    cg_raft_status(node->raft, &status);
    if (status.term < node->vote_term ||
        (status.term == node->vote_term && status.vote != node->vote_for)) {
        sim_fail(sim,
                 "node %lu starts in term %lu with vote %lu after its vote for %lu in term %lu",
                 node->id, status.term, status.vote, node->vote_for, node->vote_term);
    }
}

// Who has answered a leader does not help another one for an election timeout, restarts or not:
// leases rest on it.
void sim_check_vote(struct sim *sim, const struct sim_node *node,
                    const struct cg_raft_message *message, const struct cg_raft_status *before) {
    struct cg_raft_status after;
    cg_raft_status(node->raft, &after);
    if (message->type != CG_RAFT_VOTE || after.vote != message->from ||
        (before->vote == after.vote && before->term == after.term)) {
        return;
    }
    uint64_t clock = sim_node_clock(sim, node);
    if (!message->forced && node->promised_clock != 0 &&
        clock - node->promised_clock < sim->profile.election_ns) {
        sim_fail(sim, "node %lu votes for %lu, %lu us after it heard a leader", node->id,
                 message->from, (clock - node->promised_clock) / SIM_US);
    }
}

// Promises are on the disk before they are made.
void sim_check_send(struct sim *sim, struct sim_node *node, const struct cg_raft_message *message) {
    const struct sim_disk *disk = &node->disk;
    bool opinion =
        (message->type == CG_RAFT_VOTE || message->type == CG_RAFT_VOTE_REPLY) && message->pre_vote;
    if (!opinion && message->term > disk->term) {
        sim_fail(sim, "node %lu tells term %lu, which is not on its disk", node->id, message->term);
    }
    bool votes = message->type == CG_RAFT_VOTE_REPLY && message->granted && !message->pre_vote;
    bool asks = message->type == CG_RAFT_VOTE && !message->pre_vote;
    uint64_t vote = votes ? message->to : node->id;
    if ((votes || asks) && (disk->term != message->term || disk->vote != vote)) {
        sim_fail(sim, "node %lu votes for %lu in term %lu, and its disk says %lu in term %lu",
                 node->id, vote, message->term, disk->vote, disk->term);
    }
    if (votes || asks) {
        node->vote_term = message->term;
        node->vote_for = vote;
    }
    if (message->type == CG_RAFT_HEARTBEAT_REPLY) {
        node->promised_clock = node->heard_clock;
    }
    if ((message->type == CG_RAFT_APPEND_REPLY || message->type == CG_RAFT_HEARTBEAT_REPLY) &&
        !message->rejected && message->match > durable_last(node)) {
        sim_fail(sim, "node %lu acknowledges %lu, and has %lu on its disk", node->id,
                 message->match, durable_last(node));
    }
    if (message->type == CG_RAFT_TIMEOUT_NOW) {
        struct cg_raft_status status;
        cg_raft_status(node->raft, &status);
        if (!holds(&sim->node[message->to], status.last_index,
                   cg_raft_term_at(node->raft, status.last_index))) {
            sim_fail(sim, "node %lu hands over to %lu, which lacks entries", node->id, message->to);
        }
    }
}

// What a server is told, for the checks.
void sim_check_heard(struct sim *sim, struct sim_node *node,
                     const struct cg_raft_message *message) {
    struct cg_raft_status status;
    cg_raft_status(node->raft, &status);
    if (message->type == CG_RAFT_HEARTBEAT && message->term >= status.term) {
        node->heard_clock = sim_node_clock(sim, node);
    }
    if (message->type == CG_RAFT_VOTE_REPLY && message->pre_vote && message->granted) {
        if (message->term > node->would_elect[message->from]) {
            node->would_elect[message->from] = message->term;
        }
    }
    if (message->type == CG_RAFT_TIMEOUT_NOW) {
        node->told_term = message->term;
    }
    if (message->type == CG_RAFT_APPEND_REPLY || message->type == CG_RAFT_HEARTBEAT_REPLY) {
        node->heard_from[message->from] = sim_node_clock(sim, node);
    }
}

// Whoever was cut off, or removed, disturbs nobody when it is back: it raises its term only if a
// majority would elect it, or if its leader told it to [9.6, 3.10].
static void check_candidate(struct sim *sim, const struct sim_node *node, uint64_t term) {
    const struct cg_raft_config *config = cg_raft_config(node->raft);
    uint32_t voters = 0, for_it = 0;
    for (uint32_t i = 0; i < config->count; i++) {
        if (!config->member[i].learner) {
            uint64_t id = config->member[i].id;
            voters++;
            for_it += id == node->id || node->would_elect[id] == term;
        }
    }
    if (2 * for_it <= voters && node->told_term + 1 != term) {
        sim_fail(sim, "node %lu raises its term to %lu, and %u of %u would elect it", node->id,
                 term, for_it, voters);
    }
}

static void heard_from_all(struct sim_node *node, uint64_t clock) {
    for (uint64_t id = 1; id <= SIM_NODES; id++) {
        if (node->heard_from[id] < clock) {
            node->heard_from[id] = clock;
        }
    }
}

// When a leader leaves off being quiet, which it may be for no longer than an event, it takes all
// for heard of, since nobody was asked. So whoever it heard of last has that moment at the
// earliest.
static uint64_t woken_at(const struct sim_node *node) {
    const struct cg_raft_config *config = cg_raft_config(node->raft);
    uint64_t oldest = UINT64_MAX;
    for (uint32_t i = 0; i < config->count; i++) {
        struct cg_raft_progress progress;
        if (cg_raft_progress(node->raft, config->member[i].id, &progress) &&
            progress.heard_ns < oldest) {
            oldest = progress.heard_ns;
        }
    }
    return oldest != UINT64_MAX ? oldest : 0;
}

// A leader that a majority may have replaced notices it [6.2]: its clients go elsewhere. Right
// after its timer.
void sim_check_quorum(struct sim *sim, struct sim_node *node) {
    struct cg_raft_status status;
    cg_raft_status(node->raft, &status);
    uint64_t clock = sim_node_clock(sim, node);
    if (status.role != CG_RAFT_LEADER || status.quiet) {
        node->alone_since = 0;
        return;
    }
    heard_from_all(node, woken_at(node));
    const struct cg_raft_config *config = cg_raft_config(node->raft);
    uint32_t voters = 0, heard = 0;
    for (uint32_t i = 0; i < config->count; i++) {
        uint64_t id = config->member[i].id;
        if (!config->member[i].learner) {
            voters++;
            heard +=
                id == node->id || clock - node->heard_from[id] <= 5 * sim->profile.election_ns / 2;
        }
    }
    if (2 * heard > voters) {
        node->alone_since = 0;
    } else if (node->alone_since == 0) {
        node->alone_since = clock; // perhaps by a change of members just now
    } else if (clock - node->alone_since > sim->profile.election_ns / 2) {
        sim_fail(sim, "node %lu leads term %lu, and %u of %u were heard of for long", node->id,
                 status.term, heard, voters);
    }
}

// Election safety, and leader completeness: everything committed is in a leader's log.
static void check_leader(struct sim *sim, struct sim_node *node) {
    struct cg_raft_status status;
    cg_raft_status(node->raft, &status);
    if (status.term >= SIM_TERMS) {
        sim_fail(sim, "the simulator has no terms left");
    }
    uint64_t *leader = &sim->leader_of[status.term];
    if (*leader != 0 && *leader != node->id) {
        sim_fail(sim, "nodes %lu and %lu both lead term %lu", *leader, node->id, status.term);
    }
    *leader = node->id;
    heard_from_all(node, sim_node_clock(sim, node));
    for (uint64_t i = status.base_index + 1; i <= sim->committed_last; i++) {
        const struct sim_entry *entry = sim->committed[i];
        if (entry->term < status.term && cg_raft_term_at(node->raft, i) != entry->term) {
            sim_fail(sim, "node %lu leads term %lu without the committed entry %lu of term %lu",
                     node->id, status.term, i, entry->term);
        }
    }
}

void sim_check_role(struct sim *sim, struct sim_node *node) {
    struct cg_raft_status status;
    cg_raft_status(node->raft, &status);
    if (status.role == CG_RAFT_CANDIDATE) {
        check_candidate(sim, node, status.term);
    } else if (status.role == CG_RAFT_LEADER) {
        check_leader(sim, node);
    }
}

static const struct cg_raft_config *config_of(const struct sim_node *node, uint64_t below,
                                              uint64_t *index) {
    const struct sim_checkpoint *base = sim_disk_base(&node->disk);
    for (uint64_t i = below; i > base->index; i--) {
        if (node->log[i] != NULL && node->log[i]->type == CG_RAFT_ENTRY_CONFIG) {
            *index = i;
            return &node->log[i]->config;
        }
    }
    *index = 0;
    return &base->config;
}

// A change rests on what is committed: the configuration before it, and an entry of this term.
static void check_change(struct sim *sim, const struct sim_node *node, uint64_t index,
                         const struct sim_entry *entry) {
    uint64_t before;
    config_of(node, index - 1, &before);
    if (before > sim->committed_last) {
        sim_fail(sim, "node %lu changes members on top of change %lu, which is not committed",
                 node->id, before);
    }
    if (sim->committed_term < entry->term) {
        sim_fail(sim, "node %lu changes members in term %lu, in which nothing is committed",
                 node->id, entry->term);
    }
}

// Log matching: index and term determine the entry and the one before it, hence the whole prefix.
void sim_check_append(struct sim *sim, const struct sim_node *node, uint64_t index) {
    const struct sim_entry *entry = node->log[index];
    if (entry->index != index || cg_raft_term_at(node->raft, index - 1) != entry->prev_term) {
        sim_fail(sim, "node %lu: entry %lu of term %lu follows term %lu, not %lu", node->id, index,
                 entry->term, cg_raft_term_at(node->raft, index - 1), entry->prev_term);
    }
    if (index <= node->commit) {
        sim_fail(sim, "node %lu replaces entry %lu, which is committed", node->id, index);
    }
    if (entry->type == CG_RAFT_ENTRY_CONFIG && sim_node_leads(node)) {
        check_change(sim, node, index, entry);
    }
}

// Would a voter with log `a` get the vote of one with log `b`?
static bool up_to_date(const struct sim_node *a, const struct sim_node *b) {
    uint64_t last_a = durable_last(a), last_b = durable_last(b);
    uint64_t term_a = a->disk.term_at[last_a], term_b = b->disk.term_at[last_b];
    return term_a > term_b || (term_a == term_b && last_a >= last_b);
}

// Nobody without the entry could be elected now: that is what it means to be committed.
static void check_electable(struct sim *sim, const struct cg_raft_config *config, uint64_t index,
                            uint64_t term) {
    for (uint32_t i = 0; i < config->count; i++) {
        const struct sim_node *candidate = &sim->node[config->member[i].id];
        if (config->member[i].learner || candidate->dead || holds(candidate, index, term)) {
            continue;
        }
        uint32_t voters = 0, votes = 0;
        for (uint32_t j = 0; j < config->count; j++) {
            if (!config->member[j].learner) {
                voters++;
                votes += up_to_date(candidate, &sim->node[config->member[j].id]);
            }
        }
        if (2 * votes > voters) {
            sim_fail(sim, "entry %lu of term %lu is committed, and node %lu could lead without it",
                     index, term, candidate->id);
        }
    }
}

static void check_majority(struct sim *sim, const struct sim_node *node, uint64_t index,
                           uint64_t last) {
    uint64_t unused;
    const struct cg_raft_config *config = config_of(node, last, &unused);
    uint32_t voters = 0, have = 0;
    for (uint32_t i = 0; i < config->count; i++) {
        if (!config->member[i].learner) {
            voters++;
            have += holds(&sim->node[config->member[i].id], index, node->log[index]->term);
        }
    }
    if (2 * have <= voters) {
        sim_fail(sim, "node %lu commits %lu, which is on %u disks of %u", node->id, index, have,
                 voters);
    }
    check_electable(sim, config, index, node->log[index]->term);
}

// Nobody else answers reads from its memory now: under a lease a leader knows all that is
// committed.
static void check_leases(struct sim *sim, const struct sim_node *committer, uint64_t index) {
    for (uint64_t id = 1; id <= sim->nodes_made; id++) {
        const struct sim_node *node = &sim->node[id];
        uint64_t known;
        if (node->server != NULL && node != committer) {
            server_check_local(sim, node, index);
        }
        if (node != committer && node->up &&
            cg_raft_read_index(node->raft, sim_node_clock(sim, node), &known) && known < index) {
            sim_fail(sim, "node %lu would read as of %lu under its lease, and node %lu commits %lu",
                     id, known, committer->id, index);
        }
    }
}

// State machine safety: what is committed at an index is committed for ever. A leader commits what
// is on a majority of disks.
void sim_check_commit(struct sim *sim, const struct sim_node *node, uint64_t index) {
    struct cg_raft_status status;
    cg_raft_status(node->raft, &status);
    if (index <= node->commit) {
        sim_fail(sim, "node %lu: committed goes from %lu to %lu", node->id, node->commit, index);
    }
    for (uint64_t i = node->commit + 1; i <= index; i++) {
        if (i > sim->committed_last) {
            sim->committed[i] = node->log[i];
        } else if (sim->committed[i] != node->log[i]) {
            sim_fail(sim, "node %lu commits another entry %lu, of term %lu instead of %lu",
                     node->id, i, node->log[i]->term, sim->committed[i]->term);
        }
    }
    if (index > sim->committed_last) {
        sim->committed_last = index;
        if (!sim->options.wild_clocks) {
            check_leases(sim, node, index);
        }
        sim->committed_term = node->log[index]->term;
        if (status.role == CG_RAFT_LEADER) {
            check_majority(sim, node, index, status.last_index);
        }
    }
}

void sim_check_apply(struct sim *sim, const struct sim_node *node, uint64_t index) {
    if (index > sim->committed_last || sim->committed[index] != node->log[index]) {
        sim_fail(sim, "node %lu applies entry %lu, which is not the committed one", node->id,
                 index);
    }
}

// A read is at least as new as anything that was committed when it came.
void sim_check_read(struct sim *sim, const struct sim_node *node, const struct sim_wait *wait) {
    if (wait->index < wait->committed && !sim->options.wild_clocks) {
        sim_fail(sim, "node %lu reads as of %lu when %lu was committed", node->id, wait->index,
                 wait->committed);
    }
}

// ---- At the end, when faults are over

static bool majority_lives(const struct sim *sim, const struct cg_raft_config *config) {
    uint32_t voters = 0, alive = 0;
    for (uint32_t i = 0; i < config->count; i++) {
        if (!config->member[i].learner) {
            voters++;
            alive += sim->node[config->member[i].id].up;
        }
    }
    return 2 * alive > voters;
}

static void check_member(struct sim *sim, const struct sim_node *leader,
                         const struct sim_node *node) {
    if (node->applied != leader->applied) {
        sim_fail(sim, "node %lu has applied %lu, the leader %lu: %lu", node->id, node->applied,
                 leader->id, leader->applied);
    }
    for (uint32_t i = 0; i < SIM_BLOCKS; i++) {
        if (node->value[i] != leader->value[i]) {
            sim_fail(sim, "block %u is %lu at node %lu and %lu at the leader", i, node->value[i],
                     node->id, leader->value[i]);
        }
    }
}

// A lost disk may have met a change of members half done: then no configuration in anybody's log
// has to be able to go on.
static bool can_go_on(const struct sim *sim) {
    bool any = false;
    for (uint64_t id = 1; id <= sim->nodes_made; id++) {
        const struct sim_node *node = &sim->node[id];
        if (!node->up || cg_raft_config(node->raft)->count == 0) {
            continue;
        }
        any = true;
        if (!majority_lives(sim, cg_raft_config(node->raft))) {
            return false;
        }
    }
    return any;
}

// The leader of the highest term, or NULL.
static const struct sim_node *last_leader(const struct sim *sim, uint64_t *term) {
    const struct sim_node *leader = NULL;
    *term = 0;
    for (uint64_t id = 1; id <= sim->nodes_made; id++) {
        const struct sim_node *node = &sim->node[id];
        if (!sim_node_leads(node)) {
            continue;
        }
        struct cg_raft_status status;
        cg_raft_status(node->raft, &status);
        if (status.term > *term) {
            *term = status.term;
            leader = node;
        }
    }
    return leader;
}

void sim_check_settling(struct sim *sim) {
    (void)last_leader(sim, &sim->settled_term);
}

const struct sim_node *sim_check_settled(struct sim *sim) {
    uint64_t term;
    const struct sim_node *leader = last_leader(sim, &term);
    if (sim->settled_term != 0 && sim->settled_term != term) {
        sim_fail(sim, "the leader of term %lu is disturbed, and term is %lu", sim->settled_term,
                 term);
    }
    if (leader == NULL) {
        if (can_go_on(sim)) {
            sim_fail(sim, "no leader, though a majority lives and nothing disturbs it");
        }
        return NULL;
    }
    const struct cg_raft_config *config = cg_raft_config(leader->raft);
    for (uint32_t i = 0; i < config->count; i++) {
        const struct sim_node *node = &sim->node[config->member[i].id];
        if (node->up) {
            check_member(sim, leader, node);
            server_check_neighbour(sim, node);
        }
    }
    return leader;
}
