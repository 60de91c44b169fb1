// SPDX-License-Identifier: BSD-3-Clause
//
// A leader and the members that need its state. The raft core says which (cg_copyset_log_options:
// copy_state); each is told, and then asks by itself, as one does that finds its state half-copied
// after a restart. While it copies, the log from its index on is kept.
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/log.h"
#include "chunkserver/catchup_internal.h"

#define ASK_NS    (10 * CG_NS_PER_S) // a member that was told asks within this
#define SILENT_NS (30 * CG_NS_PER_S) // one that copies asks for something within this
#define APPLY_NS  (5 * CG_NS_PER_S)  // what is delivered is applied within this
#define POLL_NS   (2 * CG_NS_PER_MS)

// Perhaps not ready: the first entry of its term may need the member that copies.
static bool leads(struct cg_copyset *copyset) {
    struct cg_copyset_log_status status;
    if (cg_copyset_raft(copyset) == NULL) {
        return false;
    }
    cg_copyset_log_status(cg_copyset_raft(copyset), &status);
    return status.role == CG_RAFT_LEADER;
}

static struct cg_reactor *reactor_of(const struct cg_catchup *catchup) {
    return catchup->store->reactor;
}

// ---- Members that are to be told

static void want_free(struct cg_copy_want *want) {
    cg_list_remove(&want->node);
    free(want);
}

static void told(struct cg_copy_call *call) {
    struct cg_copy_want *want = CG_CONTAINER_OF(call, struct cg_copy_want, call);
    if (want->over) {
        want_free(want);
        return;
    }
    bool heard = call->status == 0 && call->reply.status == CG_COPY(OK);
    want->due_ns = cg_reactor_now(reactor_of(want->catchup)) + (heard ? ASK_NS : CG_COPY_RETRY_NS);
}

static void want_end(struct cg_copy_want *want) {
    want->over = true;
    if (want->call.active) {
        cg_copy_cancel(&want->call); // told frees it
    } else {
        want_free(want);
    }
}

static struct cg_copy_want *want_of(const struct cg_catchup *catchup,
                                    const struct cg_copyset *copyset, uint64_t member) {
    CG_LIST_FOREACH (node, &catchup->wants) {
        struct cg_copy_want *want = CG_CONTAINER_OF(node, struct cg_copy_want, node);
        if (want->copyset == copyset && want->member == member && !want->over) {
            return want;
        }
    }
    return NULL;
}

static struct cg_copy_lead *lead_of_member(const struct cg_catchup *catchup,
                                           const struct cg_copyset *copyset, uint64_t member) {
    CG_LIST_FOREACH (node, &catchup->leads) {
        struct cg_copy_lead *lead = CG_CONTAINER_OF(node, struct cg_copy_lead, node);
        if (lead->copyset == copyset && lead->member == member && !lead->over) {
            return lead;
        }
    }
    return NULL;
}

void cg_catchup_copy_state(struct cg_catchup *catchup, struct cg_copyset *copyset,
                           uint64_t member) {
    if (catchup->store == NULL || catchup->stopped || want_of(catchup, copyset, member) != NULL ||
        lead_of_member(catchup, copyset, member) != NULL) {
        return;
    }
    struct cg_copy_want *want = calloc(1, sizeof(*want));
    if (want == NULL) {
        cg_log(CG_LOG_ERROR,
               "out of memory: a member of copyset %" PRIu32 "-%" PRIu32
               " is not told to copy its state",
               copyset->pool, copyset->id);
        return;
    }
    want->catchup = catchup;
    want->copyset = copyset;
    want->member = member;
    want->due_ns = UINT64_MAX;
    want->call.done = told;
    cg_list_push_back(&catchup->wants, &want->node);
    cg_copy_ask(catchup, copyset, member, CG_COPY_STATE, &want->call);
}

// ---- Members that copy

static void lead_free(struct cg_copy_lead *lead) {
    struct cg_catchup *catchup = lead->catchup;
    cg_list_remove(&lead->node);
    catchup->lead_count--;
    cg_copyset_state_clear(&lead->state);
    free(lead->ids);
    free(lead);
    cg_catchup_ended(catchup);
}

void cg_copy_lead_release(struct cg_copy_lead *lead) {
    if (--lead->uses == 0 && lead->over) {
        lead_free(lead);
    }
}

struct cg_copy_lead *cg_copy_lead_of(const struct cg_catchup *catchup,
                                     const struct cg_copyset *copyset, uint64_t number,
                                     uint64_t member) {
    struct cg_copy_lead *lead = lead_of_member(catchup, copyset, member);
    return lead != NULL && lead->number == number && lead->beginning == NULL ? lead : NULL;
}

static void answer(struct cg_server_request *request, copygate_CopyStatus status) {
    copygate_CopyReply reply = {.status = status};
    cg_server_reply(request, copygate_CopyReply_fields, &reply, NULL, 0, NULL, NULL);
}

void cg_copy_lead_end(struct cg_copy_lead *lead, bool complete) {
    assert(!lead->over);
    struct cg_copyset *copyset = lead->copyset;
    lead->over = true;
    cg_timer_disarm(&lead->timer);
    if (lead->beginning != NULL) {
        answer(lead->beginning, CG_COPY(LATER));
        lead->beginning = NULL;
    }
    cg_log(CG_LOG_INFO,
           "copyset %" PRIu32 "-%" PRIu32 ": member %" PRIu64
           " has %s the state up to entry %" PRIu64,
           copyset->pool, copyset->id, lead->member, complete ? "copied" : "not copied",
           lead->state.log.index);
    cg_copyset_log_copied(cg_copyset_raft(copyset), lead->member, lead->state.log.index, complete);
    if (lead->uses == 0) {
        lead_free(lead);
    }
}

static int note_chunk(void *context, const char *name) {
    struct cg_copy_lead *lead = context;
    return cg_copy_note_chunk(name, &lead->ids, &lead->id_count, &lead->id_capacity);
}

static void list_call(struct cg_file_op *op) {
    struct cg_copy_lead *lead = CG_CONTAINER_OF(op, struct cg_copy_lead, op);
    struct cg_disk *disk = lead->catchup->store->disk;
    char folder[CG_CHUNK_PATH_MAX];
    cg_copyset_folder(lead->copyset, folder);
    op->result = disk->ops->list(disk, folder, note_chunk, lead);
    cg_copy_sort_ids(lead->ids, lead->id_count);
}

static void answer_begun(struct cg_copy_lead *lead) {
    const struct cg_copyset_log_saved *log = &lead->state.log;
    struct cg_copyset_log_status status;
    cg_copyset_log_status(cg_copyset_raft(lead->copyset), &status);
    copygate_CopyReply reply = {
        .status = CG_COPY(OK),
        .has_copying = true,
        .copying = lead->number,
        .has_index = true,
        .index = log->index,
        .has_index_term = true,
        .index_term = log->index_term,
        .has_term = true,
        .term = status.term,
        .members_count = (pb_size_t)log->config.count,
        .has_bytes = true,
        .bytes = lead->state.length,
        .has_chunks = true,
        .chunks = lead->id_count,
    };
    for (uint32_t i = 0; i < log->config.count; i++) {
        reply.members[i] =
            (copygate_CopyMember){log->config.member[i].id, log->config.member[i].learner};
    }
    struct cg_server_request *request = lead->beginning;
    lead->beginning = NULL;
    cg_server_reply(request, copygate_CopyReply_fields, &reply, NULL, 0, NULL, NULL);
}

static void listed(struct cg_file_op *op) {
    struct cg_copy_lead *lead = CG_CONTAINER_OF(op, struct cg_copy_lead, op);
    if (!lead->over && op->result != 0) {
        cg_log(CG_LOG_ERROR, "cannot list the chunks of copyset %" PRIu32 "-%" PRIu32 ": %s",
               lead->copyset->pool, lead->copyset->id, strerror((int)-op->result));
        cg_copy_lead_end(lead, false);
    } else if (!lead->over) {
        answer_begun(lead);
    }
    cg_copy_lead_release(lead);
}

// The list has to have all chunks that entries up to the state's index made, and the blocks that
// are read have to have them, too.
static void look_applied(struct cg_timer *timer) {
    struct cg_copy_lead *lead = CG_CONTAINER_OF(timer, struct cg_copy_lead, timer);
    struct cg_store *store = lead->catchup->store;
    uint64_t now = cg_reactor_now(store->reactor);
    if (cg_copyset_applied(lead->copyset) < lead->state.log.index) {
        if (now - lead->began_ns > APPLY_NS ||
            cg_timer_arm(store->reactor, &lead->timer, now + POLL_NS) != 0) {
            cg_copy_lead_end(lead, false);
        }
        return;
    }
    lead->uses++;
    lead->op = (struct cg_file_op){.opcode = CG_FILE_CALL, .call = list_call, .done = listed};
    store->disk->ops->submit(store->disk, &lead->op);
}

void cg_copy_lead_begin(struct cg_catchup *catchup, struct cg_copyset *copyset,
                        struct cg_server_request *request, uint64_t member) {
    if (!leads(copyset)) {
        answer(request, CG_COPY(NOT_LEADER));
        return;
    }
    struct cg_copy_want *want = want_of(catchup, copyset, member);
    if (want != NULL) {
        want_end(want);
    }
    struct cg_copy_lead *before = lead_of_member(catchup, copyset, member);
    if (before != NULL) {
        cg_copy_lead_end(before, false); // it has begun anew
    }
    struct cg_copy_lead *lead = NULL;
    if (!catchup->stopped && catchup->lead_count < CG_COPY_LEADS_MAX) {
        lead = calloc(1, sizeof(*lead));
    }
    if (lead == NULL || cg_copyset_state_get(copyset, &lead->state) != 0) {
        free(lead);
        answer(request, CG_COPY(LATER));
        return;
    }
    lead->catchup = catchup;
    lead->copyset = copyset;
    lead->member = member;
    lead->number = catchup->next_number++;
    lead->began_ns = cg_reactor_now(catchup->store->reactor);
    lead->heard_ns = lead->began_ns;
    lead->beginning = request;
    lead->timer.fire = look_applied;
    cg_list_push_back(&catchup->leads, &lead->node);
    catchup->lead_count++;
    cg_copyset_log_copying(cg_copyset_raft(copyset), member, lead->state.log.index);
    look_applied(&lead->timer);
}

// ---- Time

void cg_leads_tick(struct cg_catchup *catchup) {
    uint64_t now = cg_reactor_now(reactor_of(catchup));
    CG_LIST_FOREACH_SAFE (node, next, &catchup->leads) {
        struct cg_copy_lead *lead = CG_CONTAINER_OF(node, struct cg_copy_lead, node);
        if (!lead->over && (!leads(lead->copyset) || now - lead->heard_ns > SILENT_NS)) {
            cg_copy_lead_end(lead, false);
        }
    }
    CG_LIST_FOREACH_SAFE (node, next, &catchup->wants) {
        struct cg_copy_want *want = CG_CONTAINER_OF(node, struct cg_copy_want, node);
        if (!want->over && now >= want->due_ns) {
            struct cg_copyset *copyset = want->copyset;
            uint64_t member = want->member;
            want_end(want);
            // The core looks at what the member has, and asks again, perhaps inside this call.
            cg_copyset_log_copied(cg_copyset_raft(copyset), member, 0, false);
        }
    }
}

void cg_leads_stop(struct cg_catchup *catchup, const struct cg_copyset *copyset) {
    CG_LIST_FOREACH_SAFE (node, next, &catchup->leads) {
        struct cg_copy_lead *lead = CG_CONTAINER_OF(node, struct cg_copy_lead, node);
        if (!lead->over && (copyset == NULL || lead->copyset == copyset)) {
            cg_copy_lead_end(lead, false);
        }
    }
    CG_LIST_FOREACH_SAFE (node, next, &catchup->wants) {
        struct cg_copy_want *want = CG_CONTAINER_OF(node, struct cg_copy_want, node);
        if (!want->over && (copyset == NULL || want->copyset == copyset)) {
            want_end(want);
        }
    }
}
