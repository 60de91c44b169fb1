// SPDX-License-Identifier: BSD-3-Clause
//
// Clients read and write blocks, one operation at a time each, and try again elsewhere when no
// answer comes. A write keeps its sequence through all tries. After some tries a client gives up:
// nobody knows then whether the write took place.
#include <errno.h>

#include "sim.h"

#define TRIES_MAX 12U

// ---- Server

void sim_answer(struct sim *sim, struct sim_node *node, const struct sim_request *request, bool ok,
                uint64_t value) {
    struct sim_mail *mail = sim_compose(sim);
    mail->kind = SIM_REPLY;
    mail->from = node->id;
    mail->to = 0;
    mail->request = *request;
    mail->ok = ok;
    mail->value = value;
    sim_send(sim, mail);
}

static void serve_write(struct sim *sim, struct sim_node *node, const struct sim_request *request) {
    enum cg_dedup_answer seen = cg_dedup_check(&node->window, request->client + 1, request->op + 1);
    if (seen != CG_DEDUP_NEW && sim->options.mutation != SIM_MUTATION_NO_DEDUP) {
        sim_answer(sim, node, request, seen == CG_DEDUP_DONE, 0);
        return;
    }
    if (node->server != NULL) {
        server_write(sim, node, request);
        return;
    }
    uint64_t index;
    if (cg_raft_propose(node->raft, sim_node_clock(sim, node), 1, &index) != 0) {
        sim_answer(sim, node, request, false, 0);
        return;
    }
    struct sim_entry *entry = sim_entry_make(sim);
    struct cg_raft_status status;
    cg_raft_status(node->raft, &status);
    *entry = (struct sim_entry){
        .index = index,
        .term = status.term,
        .prev_term = cg_raft_term_at(node->raft, index - 1),
        .client = request->client,
        .sequence = request->op + 1,
        .settled_below = request->settled_below,
        .block = request->block,
        .value = request->value,
    };
    if (index < SIM_INDEX) {
        node->log[index] = entry;
        node->proposal[index] = *request;
        node->proposal_term[index] = entry->term;
    }
    sim_node_drain(sim, node, NULL);
}

// Entries without a client: a long tail in the log of a leader that may be about to be deposed.
void sim_flood(struct sim *sim, struct sim_node *node, uint32_t count) {
    if (node->server != NULL) {
        server_flood(sim, node, count);
        return;
    }
    uint64_t first;
    if (sim->pool_used + 256 > SIM_INDEX ||
        cg_raft_propose(node->raft, sim_node_clock(sim, node), count, &first) != 0) {
        return;
    }
    struct cg_raft_status status;
    cg_raft_status(node->raft, &status);
    for (uint64_t index = first; index < first + count && index < SIM_INDEX; index++) {
        struct sim_entry *entry = sim_entry_make(sim);
        *entry = (struct sim_entry){.index = index,
                                    .term = status.term,
                                    .prev_term = cg_raft_term_at(node->raft, index - 1),
                                    .client = SIM_CLIENTS};
        node->log[index] = entry;
        node->proposal_term[index] = 0;
    }
    sim_node_drain(sim, node, NULL);
}

static void serve_read(struct sim *sim, struct sim_node *node, const struct sim_request *request) {
    uint32_t slot = 0;
    while (slot < SIM_READS && node->read[slot].used) {
        slot++;
    }
    struct cg_raft_status status;
    cg_raft_status(node->raft, &status);
    if (slot == SIM_READS || status.role != CG_RAFT_LEADER) {
        sim_answer(sim, node, request, false, 0);
        return;
    }
    struct sim_wait *wait = &node->read[slot];
    *wait = (struct sim_wait){.used = true, .request = *request, .committed = sim->committed_last};
    uint64_t clock = sim_node_clock(sim, node);
    if (cg_raft_read_index(node->raft, clock, &wait->index)) {
        wait->confirmed = true;
        sim_check_read(sim, node, wait);
        sim_node_settle_reads(sim, node);
    } else if (cg_raft_read(node->raft, clock, slot) != 0) {
        wait->used = false;
        sim_answer(sim, node, request, false, 0);
    }
    sim_node_drain(sim, node, NULL);
}

void sim_serve(struct sim *sim, struct sim_node *node, const struct sim_request *request) {
    if (request->read && node->server != NULL) {
        server_read(sim, node, request);
    } else if (request->read) {
        serve_read(sim, node, request);
    } else {
        serve_write(sim, node, request);
    }
}

// ---- Client

static void attempt(struct sim *sim, uint32_t number) {
    struct sim_client *client = &sim->client[number];
    uint32_t op = client->next - 1;
    struct sim_mail *mail = sim_compose(sim);
    mail->kind = SIM_REQUEST;
    mail->from = 0;
    mail->to = client->target;
    mail->request = (struct sim_request){
        .client = number,
        .op = op,
        .attempt = client->attempt,
        .read = client->op[op].read,
        .block = client->op[op].block,
        .value = client->op[op].value,
        .settled_below = op + 1,
    };
    sim_send(sim, mail);
    sim_push(sim, sim->now + sim_spread(sim, sim->profile.patience_ns), SIM_CLIENT_RETRY, 0,
             number + SIM_CLIENTS * client->attempt);
}

void sim_client_start(struct sim *sim, uint32_t number) {
    struct sim_client *client = &sim->client[number];
    if (client->next == SIM_OPS || sim->pool_used + 256 > SIM_INDEX ||
        (sim->calm && sim->now > sim->quiet_at)) {
        return;
    }
    uint32_t i = client->next++;
    if (sim->options.drop_op[number][i]) {
        client->op[i].given_up = true;
        client->op[i].read = true;
        sim_push(sim, sim->now + sim->profile.think_ns, SIM_CLIENT_START, 0, number);
        return;
    }
    uint64_t dice = sim_mix(sim->options.seed, 1000000 + number * SIM_OPS + i);
    struct sim_op *op = &client->op[i];
    *op = (struct sim_op){
        .read = dice % 2 == 0,
        .block = (uint32_t)(dice / 2 % SIM_BLOCKS),
        .invoked = sim->step,
    };
    op->value = op->read ? 0 : number * SIM_OPS + i + 1;
    client->busy = true;
    client->attempt++;
    client->deadline = client->attempt + TRIES_MAX;
    if (client->target == 0) {
        client->target = 1 + sim_below(sim, sim->nodes_made);
    }
    attempt(sim, number);
}

static void finish(struct sim *sim, uint32_t number) {
    sim->client[number].busy = false;
    sim_push(sim, sim->now + sim_spread(sim, sim->profile.think_ns), SIM_CLIENT_START, 0, number);
}

void sim_client_retry(struct sim *sim, uint32_t number, uint32_t tried) {
    struct sim_client *client = &sim->client[number];
    if (!client->busy || client->attempt != tried) {
        return;
    }
    if (client->attempt >= client->deadline) {
        client->op[client->next - 1].given_up = true;
        client->attempt++;
        finish(sim, number);
        return;
    }
    client->attempt++;
    client->target = 1 + sim_below(sim, sim->nodes_made);
    attempt(sim, number);
}

void sim_client_reply(struct sim *sim, const struct sim_mail *mail) {
    uint32_t number = mail->request.client;
    struct sim_client *client = &sim->client[number];
    uint32_t i = mail->request.op;
    if (!client->busy || i != client->next - 1) {
        return;
    }
    struct sim_op *op = &client->op[i];
    if (!mail->ok) {
        if (mail->request.attempt == client->attempt) { // soon, elsewhere
            sim_push(sim, sim->now + sim_spread(sim, 2 * SIM_MS), SIM_CLIENT_RETRY, 0,
                     number + SIM_CLIENTS * client->attempt);
        }
        return;
    }
    op->done = true;
    op->returned = sim->step;
    if (op->read) {
        op->value = mail->value;
    }
    sim_trace(sim, "client %u: %s of block %u: %lu", number, op->read ? "read" : "write", op->block,
              op->value);
    client->attempt++;
    finish(sim, number);
}
