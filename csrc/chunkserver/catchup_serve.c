// SPDX-License-Identifier: BSD-3-Clause
//
// Answering replicas that copy from this one. What is said of a chunk, and its blocks, are as they
// are applied here at some moment after the request came, checked against their CRCs.
#include <errno.h>
#include <pb_decode.h>
#include <stdlib.h>
#include <string.h>

#include "chunkserver/catchup_internal.h"

#define WAITING_MAX 256U // requests for blocks; more are to come later

static struct cg_catchup *catchup_of(const struct cg_server_request *request) {
    return request->method->context;
}

static void answer(struct cg_server_request *request, copygate_CopyStatus status) {
    copygate_CopyReply reply = {.status = status};
    cg_server_reply(request, copygate_CopyReply_fields, &reply, NULL, 0, NULL, NULL);
}

// What a reply's attachment stands in until it is sent.
struct parcel {
    struct cg_buffer *buffer; // may be NULL
    uint8_t bytes[];
};

static struct parcel *parcel_make(size_t length, struct cg_buffer *buffer) {
    struct parcel *parcel = malloc(sizeof(*parcel) + length);
    if (parcel != NULL) {
        parcel->buffer = buffer != NULL ? cg_buffer_ref(buffer) : NULL;
    }
    return parcel;
}

static void parcel_release(void *argument) {
    struct parcel *parcel = argument;
    cg_buffer_unref(parcel->buffer);
    free(parcel);
}

static void answer_bytes(struct cg_server_request *request, const copygate_CopyReply *reply,
                         const struct iovec *iov, int iovcnt, struct parcel *parcel) {
    cg_server_reply(request, copygate_CopyReply_fields, reply, iov, iovcnt, parcel_release, parcel);
}

// ---- CopyBlocks

// A request for blocks, in its scratch space.
struct blocks {
    uint64_t group;
    uint64_t chunk_id;
    uint64_t index;
    uint32_t first;
    uint32_t count;
    enum cg_copy_urgency urgency;
};
_Static_assert(sizeof(struct blocks) <= CG_SERVER_SCRATCH, "it fits into the scratch");

static struct blocks *blocks_of(struct cg_server_request *request) {
    return (struct blocks *)(void *)request->scratch;
}

static void describe(const struct cg_chunk *chunk, uint64_t sn, struct cg_copy_chunk *out) {
    out->id = chunk->id;
    out->sn = sn;
    out->file_id = chunk->file_id;
    out->applied_index = chunk->applied_index;
    memcpy(out->allocated, chunk->slot->allocated, sizeof(out->allocated));
}

static void answer_record(struct cg_server_request *request, const struct cg_chunk *chunk,
                          uint64_t sn) {
    struct parcel *parcel = parcel_make(CG_COPY_RECORD_SIZE, NULL);
    if (parcel == NULL) {
        answer(request, CG_COPY(LATER));
        return;
    }
    struct cg_copy_chunk info;
    describe(chunk, sn, &info);
    cg_copy_chunk_encode(&info, parcel->bytes);
    copygate_CopyReply reply = {.status = CG_COPY(OK)};
    struct iovec iov = {parcel->bytes, CG_COPY_RECORD_SIZE};
    answer_bytes(request, &reply, &iov, 1, parcel);
}

// `data` NULL: the block, one alone, is damaged.
static void answer_blocks(struct cg_server_request *request, const struct cg_chunk *chunk,
                          const uint8_t *data, struct cg_buffer *buffer) {
    const struct blocks *blocks = blocks_of(request);
    struct cg_copy_head head = {0};
    uint32_t size = cg_copy_head_size(blocks->count);
    struct parcel *parcel = parcel_make(size, buffer);
    if (parcel == NULL) {
        answer(request, CG_COPY(LATER));
        return;
    }
    struct iovec iov[1 + CG_COPY_BLOCKS_MAX / 2 + 1] = {{parcel->bytes, size}};
    int count = 1;
    for (uint32_t at = 0; at < blocks->count;) {
        uint32_t block = blocks->first + at;
        uint32_t run = cg_blockmap_run(chunk->slot->allocated, block, blocks->count - at);
        if (cg_blockmap_test(chunk->slot->allocated, block)) {
            for (uint32_t i = at; i < at + run; i++) {
                head.mask |= UINT64_C(1) << i;
                head.crc[i] = chunk->slot->crc[blocks->first + i];
            }
            if (data != NULL) {
                // The bytes are only read from here on.
                iov[count++] =
                    (struct iovec){(void *)(uintptr_t)(data + (size_t)at * CG_BLOCK_SIZE),
                                   (size_t)run * CG_BLOCK_SIZE};
            }
        }
        at += run;
    }
    cg_copy_head_encode(&head, blocks->count, parcel->bytes);
    copygate_CopyReply reply = {
        .status = data != NULL ? CG_COPY(OK) : CG_COPY(DAMAGED),
        .has_torn = true,
        .torn = !cg_copyset_recovered(chunk->copyset),
    };
    catchup_of(request)->stats.sent_bytes +=
        (uint64_t)__builtin_popcountll(head.mask) * CG_BLOCK_SIZE;
    answer_bytes(request, &reply, iov, count, parcel);
}

static void blocks_read(void *user, const struct cg_read_result *result) {
    struct cg_server_request *request = user;
    struct cg_catchup *catchup = catchup_of(request);
    const struct blocks *blocks = blocks_of(request);
    catchup->reads--;
    struct cg_copyset *copyset = cg_copyset_of_group(catchup->store, blocks->group);
    const struct cg_chunk *chunk =
        copyset != NULL ? cg_chunk_find(copyset, blocks->chunk_id) : NULL;
    bool in_memory = chunk != NULL && chunk->state == CG_CHUNK_READY && chunk->exists;
    switch (result->status) {
    case STATUS(SUCCESS):
        if (!in_memory) {
            answer(request, CG_COPY(LATER));
        } else if (blocks->count == 0) {
            answer_record(request, chunk, result->sn);
        } else {
            answer_blocks(request, chunk, result->data, result->buffer);
        }
        break;
    case STATUS(CHUNK_NOTEXIST):
        answer(request, CG_COPY(NO_CHUNK));
        break;
    case STATUS(CRC_FAIL):
        if (blocks->count == 1 && in_memory) {
            answer_blocks(request, chunk, NULL, NULL);
        } else {
            answer(request, CG_COPY(DAMAGED));
        }
        break;
    default:
        answer(request, CG_COPY(LATER));
        break;
    }
    cg_catchup_ended(catchup);
}

static void read_blocks(struct cg_server_request *request) {
    struct cg_catchup *catchup = catchup_of(request);
    const struct blocks *blocks = blocks_of(request);
    struct cg_copyset *copyset = cg_copyset_of_group(catchup->store, blocks->group);
    if (copyset == NULL) {
        answer(request, CG_COPY(UNKNOWN));
        return;
    }
    if (cg_copyset_applied(copyset) < blocks->index) {
        answer(request, CG_COPY(LATER)); // while it waited another replica took the place
        return;
    }
    struct cg_query query = {
        .kind = CG_READ_DATA,
        .copyset = copyset,
        .chunk_id = blocks->chunk_id,
        .offset = blocks->first * CG_BLOCK_SIZE,
        .size = blocks->count * CG_BLOCK_SIZE,
        .local = true,
        .torn = true,
        .done = blocks_read,
        .user = request,
    };
    catchup->reads++;
    cg_store_read(catchup->store, &query);
}

void cg_serve_pump(struct cg_catchup *catchup) {
    struct cg_reactor *reactor = catchup->store->reactor;
    while (!cg_list_empty(&catchup->serving)) {
        uint64_t now = cg_reactor_now(reactor);
        struct cg_server_request *request =
            CG_CONTAINER_OF(catchup->serving.next, struct cg_server_request, node);
        enum cg_copy_urgency urgency = blocks_of(request)->urgency;
        uint64_t wait = catchup->stopped ? 0 : cg_copy_pause(&catchup->pace, urgency, now);
        if (wait > 0) {
            // The tick looks again, should there be no memory for the timer.
            cg_timer_arm(reactor, &catchup->serve_timer, now + wait);
            return;
        }
        cg_list_remove(&request->node);
        catchup->serving_count--;
        if (catchup->stopped) {
            answer(request, CG_COPY(LATER));
            continue;
        }
        cg_copy_charge(&catchup->pace, (uint64_t)blocks_of(request)->count * CG_BLOCK_SIZE, urgency,
                       cg_catchup_busy(catchup), now);
        read_blocks(request);
    }
}

void cg_serve_timer(struct cg_timer *timer) {
    cg_serve_pump(CG_CONTAINER_OF(timer, struct cg_catchup, serve_timer));
}

static void serve_blocks(struct cg_catchup *catchup, struct cg_copyset *copyset,
                         struct cg_server_request *request, const copygate_CopyRequest *asked) {
    uint32_t blocks = catchup->store->format.chunk_size / CG_BLOCK_SIZE;
    if (asked->first > blocks || asked->count > CG_COPY_BLOCKS_MAX ||
        asked->count > blocks - asked->first) {
        cg_server_reply_error(request, CG_RPC_EREQUEST, "the blocks are not in a chunk");
        return;
    }
    // A page of chunks may take longer than a member may be silent.
    struct cg_copy_lead *lead = cg_copy_lead_of(catchup, copyset, asked->copying, asked->from);
    if (lead != NULL) {
        lead->heard_ns = cg_reactor_now(catchup->store->reactor);
    }
    if (cg_copyset_incomplete(copyset) || cg_copyset_applied(copyset) < asked->index ||
        catchup->serving_count >= WAITING_MAX) {
        answer(request, CG_COPY(LATER));
        return;
    }
    *blocks_of(request) = (struct blocks){
        .group = copyset->group,
        .chunk_id = asked->chunk_id,
        .index = asked->index,
        .first = asked->first,
        .count = asked->count,
        .urgency = asked->urgency < CG_COPY_HURRIES ? (enum cg_copy_urgency)asked->urgency
                                                    : CG_COPY_HURRIES,
    };
    if (blocks_of(request)->urgency == CG_COPY_HURRIES) {
        cg_list_push_front(&catchup->serving, &request->node);
    } else {
        cg_list_push_back(&catchup->serving, &request->node);
    }
    catchup->serving_count++;
    cg_serve_pump(catchup);
}

// ---- CopyBytes

static void serve_bytes(struct cg_server_request *request, struct cg_copy_lead *lead,
                        const copygate_CopyRequest *asked) {
    if (asked->first > lead->state.length || asked->count > lead->state.length - asked->first ||
        asked->count > CG_COPY_BLOCKS_MAX * CG_BLOCK_SIZE) {
        cg_server_reply_error(request, CG_RPC_EREQUEST, "the state has no such bytes");
        return;
    }
    struct parcel *parcel = parcel_make(asked->count, NULL);
    if (parcel == NULL) {
        answer(request, CG_COPY(LATER));
        return;
    }
    memcpy(parcel->bytes, lead->state.bytes + asked->first, asked->count);
    copygate_CopyReply reply = {.status = CG_COPY(OK)};
    struct iovec iov = {parcel->bytes, asked->count};
    answer_bytes(request, &reply, &iov, 1, parcel);
}

// ---- CopyChunks

static void metadata_read(void *user, const struct cg_read_result *result);

// A page of the list on its way: the chunks' metadata are read one after the other.
struct page {
    struct cg_copy_lead *lead; // it stays while page is there
    struct cg_server_request *request;
    uint32_t first;
    uint32_t covered;
    uint32_t records;
    bool failed;
    bool inside;   // cg_store_read
    bool answered; // it has called back
    struct parcel *parcel;
};

static void page_end(struct page *page, const copygate_CopyReply *reply) {
    struct cg_copy_lead *lead = page->lead;
    struct iovec iov = {page->parcel->bytes, (size_t)page->records * CG_COPY_RECORD_SIZE};
    answer_bytes(page->request, reply, &iov, page->records > 0, page->parcel);
    free(page);
    cg_copy_lead_release(lead);
}

// True if the next step can be taken at once.
static bool page_step(struct page *page) {
    struct cg_copy_lead *lead = page->lead;
    if (lead->over || page->failed) {
        copygate_CopyReply reply = {.status = lead->over ? CG_COPY(UNKNOWN) : CG_COPY(LATER)};
        page->records = 0;
        page_end(page, &reply);
        return false;
    }
    uint32_t at = page->first + page->covered;
    if (page->covered == CG_COPY_PAGE || at == lead->id_count) {
        copygate_CopyReply reply = {
            .status = CG_COPY(OK),
            .has_covered = true,
            .covered = page->covered,
            .has_last_id = page->covered > 0,
            .last_id = page->covered > 0 ? lead->ids[at - 1] : 0,
        };
        page_end(page, &reply);
        return false;
    }
    struct cg_query query = {
        .kind = CG_READ_DATA, // of no bytes: it does not wait for what is being applied
        .copyset = lead->copyset,
        .chunk_id = lead->ids[at],
        .local = true,
        .torn = true,
        .done = metadata_read,
        .user = page,
    };
    page->inside = true;
    page->answered = false;
    lead->catchup->reads++;
    cg_store_read(lead->catchup->store, &query);
    page->inside = false;
    return page->answered;
}

static void page_run(struct page *page) {
    while (page_step(page)) {
    }
}

static void metadata_read(void *user, const struct cg_read_result *result) {
    struct page *page = user;
    struct cg_copy_lead *lead = page->lead;
    lead->catchup->reads--;
    uint64_t id = lead->ids[page->first + page->covered];
    const struct cg_chunk *chunk = cg_chunk_find(lead->copyset, id);
    if (result->status == STATUS(SUCCESS) && chunk != NULL) {
        struct cg_copy_chunk info;
        describe(chunk, result->sn, &info);
        cg_copy_chunk_encode(&info,
                             page->parcel->bytes + (size_t)page->records * CG_COPY_RECORD_SIZE);
        page->records++;
    } else if (result->status != STATUS(CHUNK_NOTEXIST)) {
        page->failed = true; // short of memory, or damaged: then it is being mended
    }
    page->covered++;
    page->answered = true;
    if (!page->inside) {
        page_run(page);
    }
}

static void serve_chunks(struct cg_server_request *request, struct cg_copy_lead *lead,
                         const copygate_CopyRequest *asked) {
    if (asked->first > lead->id_count) {
        cg_server_reply_error(request, CG_RPC_EREQUEST, "the list has no such position");
        return;
    }
    struct page *page = calloc(1, sizeof(*page));
    struct parcel *parcel = parcel_make((size_t)CG_COPY_PAGE * CG_COPY_RECORD_SIZE, NULL);
    if (page == NULL || parcel == NULL) {
        free(page);
        free(parcel);
        answer(request, CG_COPY(LATER));
        return;
    }
    *page =
        (struct page){.lead = lead, .request = request, .first = asked->first, .parcel = parcel};
    lead->uses++;
    page_run(page);
}

// ---- All methods

// A member has been told to copy by its leader.
static void serve_state(struct cg_catchup *catchup, struct cg_copyset *copyset,
                        struct cg_server_request *request) {
    answer(request, catchup->stopped ? CG_COPY(LATER) : CG_COPY(OK));
    if (!catchup->stopped) {
        cg_copy_receive(catchup, copyset);
    }
}

static void serve_lead(struct cg_catchup *catchup, struct cg_copyset *copyset,
                       struct cg_server_request *request, enum cg_copy_method method,
                       const copygate_CopyRequest *asked) {
    struct cg_copy_lead *lead = cg_copy_lead_of(catchup, copyset, asked->copying, asked->from);
    if (lead == NULL) {
        answer(request, CG_COPY(UNKNOWN));
        return;
    }
    lead->heard_ns = cg_reactor_now(catchup->store->reactor);
    if (method == CG_COPY_BYTES) {
        serve_bytes(request, lead, asked);
    } else if (method == CG_COPY_CHUNKS) {
        serve_chunks(request, lead, asked);
    } else {
        answer(request, CG_COPY(OK));
        cg_copy_lead_end(lead, asked->complete);
    }
}

static void serve(struct cg_server_request *request, enum cg_copy_method method) {
    struct cg_catchup *catchup = catchup_of(request);
    copygate_CopyRequest asked = copygate_CopyRequest_init_zero;
    pb_istream_t stream = pb_istream_from_buffer(request->message, request->message_length);
    if (!pb_decode(&stream, copygate_CopyRequest_fields, &asked)) {
        cg_server_reply_error(request, CG_RPC_EREQUEST, "the request cannot be read");
        return;
    }
    struct cg_copyset *copyset =
        catchup->store != NULL ? cg_copyset_of_group(catchup->store, asked.group) : NULL;
    if (copyset == NULL || cg_copyset_member(copyset) != asked.to || asked.to == 0) {
        answer(request, CG_COPY(UNKNOWN));
        return;
    }
    switch (method) {
    case CG_COPY_STATE:
        serve_state(catchup, copyset, request);
        break;
    case CG_COPY_BEGIN:
        cg_copy_lead_begin(catchup, copyset, request, asked.from);
        break;
    case CG_COPY_BLOCKS:
        serve_blocks(catchup, copyset, request, &asked);
        break;
    default:
        serve_lead(catchup, copyset, request, method, &asked);
        break;
    }
}

static void serve_copy_state(struct cg_server_request *request) {
    serve(request, CG_COPY_STATE);
}

static void serve_copy_begin(struct cg_server_request *request) {
    serve(request, CG_COPY_BEGIN);
}

static void serve_copy_bytes(struct cg_server_request *request) {
    serve(request, CG_COPY_BYTES);
}

static void serve_copy_chunks(struct cg_server_request *request) {
    serve(request, CG_COPY_CHUNKS);
}

static void serve_copy_blocks(struct cg_server_request *request) {
    serve(request, CG_COPY_BLOCKS);
}

static void serve_copy_end(struct cg_server_request *request) {
    serve(request, CG_COPY_END);
}

void cg_catchup_methods(struct cg_catchup *catchup, struct cg_server_method *out) {
    static const char service[] = "copygate.RaftService";
    const struct cg_server_method methods[CG_CATCHUP_METHODS] = {
        {.service = service, .name = "CopyState", .handle = serve_copy_state},
        {.service = service, .name = "CopyBegin", .handle = serve_copy_begin},
        {.service = service, .name = "CopyBytes", .handle = serve_copy_bytes},
        {.service = service, .name = "CopyChunks", .handle = serve_copy_chunks},
        {.service = service, .name = "CopyBlocks", .handle = serve_copy_blocks},
        {.service = service, .name = "CopyEnd", .handle = serve_copy_end},
    };
    memcpy(out, methods, sizeof(methods));
    for (unsigned i = 0; i < CG_CATCHUP_METHODS; i++) {
        out[i].context = catchup;
    }
}
