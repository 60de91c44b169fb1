// SPDX-License-Identifier: BSD-3-Clause
//
// Another copyset on a server's disk, of which the server is the only member: its records share
// batches and segments with the first one's, its entries the memory. They bear serial numbers; what
// was answered once has to be there after every restart.
#include <string.h>

#include "server.h"

#define SERIALS_MAX 600U

static bool committed(void *context, struct cg_log_entry *entry, struct cg_log_proposal *proposal) {
    struct sim_server *server = context;
    struct server_neighbour *n = &server->neighbour;
    if (entry->index != n->delivered + 1) {
        sim_fail(server->sim, "node %lu: its neighbour's entry %lu comes after %lu",
                 server->node->id, entry->index, n->delivered);
    }
    n->delivered = entry->index;
    if (entry->type == CG_ENTRY_NOOP) {
        return true;
    }
    uint64_t serial = 0;
    if (entry->meta_length == sizeof(serial)) {
        memcpy(&serial, entry->meta, sizeof(serial));
    }
    uint8_t wanted[CG_WAL_BLOCK];
    memset(wanted, (int)(serial % 251), sizeof(wanted));
    if (serial <= n->serial || entry->payload_length != CG_WAL_BLOCK ||
        memcmp(entry->payload, wanted, CG_WAL_BLOCK) != 0) {
        sim_fail(server->sim, "node %lu: its neighbour's entry %lu is another one",
                 server->node->id, entry->index);
    }
    n->serial = serial;
    if (proposal != NULL) {
        n->busy = false;
        n->answered = serial;
    }
    return true;
}

static void nothing(void *context) {
    (void)context;
}

static void no_copy(void *context, uint64_t member) {
    struct sim_server *server = context;
    sim_fail(server->sim, "node %lu: its neighbour has no member %lu", server->node->id, member);
}

static void no_lease(void *context, uint64_t end_ns) {
    (void)context;
    (void)end_ns;
}

int neighbour_create(struct sim_server *server) {
    struct server_neighbour *n = &server->neighbour;
    const struct cg_copyset_log_options options = {
        .group = NEIGHBOUR_GROUP,
        .self = server->node->id,
        .disk = server->disk,
        .events = {.committed = committed,
                   .role_changed = nothing,
                   .copy_state = no_copy,
                   .lease = no_lease,
                   .context = server},
    };
    if (n->saved.config.count == 0) {
        n->saved.config =
            (struct cg_raft_config){.count = 1, .member = {{server->node->id, false}}};
    }
    n->busy = false;
    n->delivered = n->saved.index;
    n->serial = n->saved_serial;
    return cg_copyset_log_create(&options, &n->saved, &n->log);
}

static void failed(struct cg_log_proposal *proposal, int error) {
    struct server_neighbour *n = CG_CONTAINER_OF(proposal, struct server_neighbour, proposal);
    (void)error;
    n->busy = false;
}

void neighbour_ask(struct sim_server *server) {
    struct server_neighbour *n = &server->neighbour;
    struct sim *sim = server->sim;
    if (n->busy || sim->calm || n->asked == SERIALS_MAX || sim_below(sim, 8) != 0 ||
        !cg_copyset_log_ready(n->log)) {
        return;
    }
    struct cg_buffer *buffer = cg_buffer_alloc(server->pool, CG_WAL_BLOCK);
    if (buffer == NULL) {
        return;
    }
    uint64_t serial = ++n->asked;
    memset(buffer->data, (int)(serial % 251), CG_WAL_BLOCK);
    n->proposal = (struct cg_log_proposal){
        .entry = cg_log_entry_make(1, 0, 0, &serial, sizeof(serial), buffer, buffer->data,
                                   CG_WAL_BLOCK, NULL),
        .failed = failed,
    };
    cg_list_init(&n->proposal.node);
    cg_buffer_unref(buffer);
    n->busy = cg_copyset_log_propose(n->log, &n->proposal) == 0;
    if (!n->busy) {
        cg_log_entry_unref(n->proposal.entry);
    }
}

void server_check_neighbour(struct sim *sim, const struct sim_node *node) {
    if (node->server != NULL && node->server->neighbour.serial < node->server->neighbour.answered) {
        sim_fail(sim, "node %lu: its neighbour has %lu, and has answered %lu", node->id,
                 node->server->neighbour.serial, node->server->neighbour.answered);
    }
}
