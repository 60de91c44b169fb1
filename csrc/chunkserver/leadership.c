// SPDX-License-Identifier: BSD-3-Clause
//
// Who may mutate and read: the leader, once it is ready. While there is none, which takes an
// election at most, and while one hands over, requests are held here, so that their clients need
// not ask around; a new leader goes on with them, a follower redirects them.
#include "base/clock.h"
#include "chunkserver/store_internal.h"

enum cg_gate cg_leadership_gate(const struct cg_copyset *copyset) {
    if (copyset->term_led != 0) {
        // It takes nothing new while it hands over, which is a matter of milliseconds; then it
        // knows whom to redirect to.
        return cg_copyset_log_transferring(copyset->log) ? CG_GATE_HOLD : CG_GATE_OPEN;
    }
    uint64_t leader = cg_copyset_leader(copyset);
    return leader == 0 || leader == copyset->member.self ? CG_GATE_HOLD : CG_GATE_REDIRECT;
}

cg_status cg_leadership_status(const struct cg_copyset *copyset, cg_status status) {
    if (status != STATUS(DISK_FAIL) || copyset->log == NULL) {
        return status;
    }
    struct cg_copyset_log_status log;
    cg_copyset_log_status(copyset->log, &log);
    return log.config.count > 1 ? STATUS(REDIRECTED) : status;
}

static struct cg_op *first_op(const struct cg_copyset *copyset) {
    return cg_list_empty(&copyset->held) ? NULL
                                         : CG_CONTAINER_OF(copyset->held.next, struct cg_op, node);
}

static struct cg_read *first_read(const struct cg_copyset *copyset) {
    return cg_list_empty(&copyset->held_reads)
               ? NULL
               : CG_CONTAINER_OF(copyset->held_reads.next, struct cg_read, node);
}

// For whoever has to leave first.
static void arm(struct cg_copyset *copyset) {
    uint64_t end = UINT64_MAX;
    const struct cg_op *op = first_op(copyset);
    const struct cg_read *read = first_read(copyset);
    if (op != NULL) {
        end = op->held_until;
    }
    if (read != NULL && read->held_until < end) {
        end = read->held_until;
    }
    if (end == UINT64_MAX) {
        cg_timer_disarm(&copyset->hold_timer);
    } else if (cg_timer_arm(copyset->store->reactor, &copyset->hold_timer, end) != 0) {
        cg_leadership_fail(copyset, STATUS(OVERLOAD)); // out of memory: nothing would end them
    }
}

void cg_leadership_hold(struct cg_op *op) {
    struct cg_copyset *copyset = op->request.copyset;
    op->held_until = cg_reactor_now(op->store->reactor) + CG_HOLD_NS;
    cg_list_push_back(&copyset->held, &op->node);
    if (!cg_timer_armed(&copyset->hold_timer)) {
        arm(copyset);
    }
}

void cg_leadership_hold_read(struct cg_read *read) {
    struct cg_copyset *copyset = read->query.copyset;
    read->held_until = cg_reactor_now(read->store->reactor) + CG_HOLD_NS;
    cg_list_push_back(&copyset->held_reads, &read->node);
    if (!cg_timer_armed(&copyset->hold_timer)) {
        arm(copyset);
    }
}

void cg_leadership_timer(struct cg_timer *timer) {
    struct cg_copyset *copyset = CG_CONTAINER_OF(timer, struct cg_copyset, hold_timer);
    uint64_t now = cg_reactor_now(copyset->store->reactor);
    struct cg_op *op;
    while ((op = first_op(copyset)) != NULL && op->held_until <= now) {
        cg_list_remove(&op->node);
        cg_op_released(op);
    }
    struct cg_read *read;
    while ((read = first_read(copyset)) != NULL && read->held_until <= now) {
        cg_list_remove(&read->node);
        cg_read_released(read);
    }
    arm(copyset);
}

// Gives back what was held; what is held meanwhile waits for the next occasion.
static void release(struct cg_copyset *copyset) {
    struct cg_list ops;
    struct cg_list reads;
    cg_list_init(&ops);
    cg_list_init(&reads);
    cg_list_splice_back(&ops, &copyset->held);
    cg_list_splice_back(&reads, &copyset->held_reads);
    struct cg_list *node;
    while ((node = cg_list_pop_front(&ops)) != NULL) {
        cg_op_released(CG_CONTAINER_OF(node, struct cg_op, node));
    }
    while ((node = cg_list_pop_front(&reads)) != NULL) {
        cg_read_released(CG_CONTAINER_OF(node, struct cg_read, node));
    }
    arm(copyset);
}

// What waits for its range was let in by a leader that is none any more. What has its range ends
// when it would be logged, or when the log says that it failed.
static void turn_away(const struct cg_copyset *copyset) {
    struct cg_store *store = copyset->store;
    cg_status status = store->disk_error != 0 ? STATUS(DISK_FAIL) : STATUS(REDIRECTED);
    for (uint32_t i = 0; i < store->chunks_used; i++) {
        struct cg_chunk *chunk = &store->chunks[i];
        if (chunk->state != CG_CHUNK_FREE && chunk->copyset == copyset &&
            !cg_list_empty(&chunk->waiting)) {
            cg_ops_fail_waiting(chunk, status);
        }
    }
}

void cg_leadership_changed(struct cg_copyset *copyset) {
    struct cg_copyset_log_status status;
    cg_copyset_log_status(copyset->log, &status);
    uint64_t led = status.ready ? status.term : 0;
    uint64_t before = copyset->term_led;
    copyset->term_led = led;
    if (before != 0 && before != led) {
        turn_away(copyset);
    }
    if (cg_leadership_gate(copyset) != CG_GATE_HOLD) {
        release(copyset);
    }
}

void cg_leadership_fail(struct cg_copyset *copyset, cg_status status) {
    struct cg_list reads;
    cg_list_init(&reads);
    cg_list_splice_back(&reads, &copyset->held_reads);
    struct cg_list *node;
    while ((node = cg_list_pop_front(&copyset->held)) != NULL) {
        cg_op_end(CG_CONTAINER_OF(node, struct cg_op, node), status, 0);
    }
    while ((node = cg_list_pop_front(&reads)) != NULL) {
        cg_read_end(CG_CONTAINER_OF(node, struct cg_read, node), status);
    }
    cg_timer_disarm(&copyset->hold_timer);
}
