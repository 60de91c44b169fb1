// SPDX-License-Identifier: BSD-3-Clause
//
// Opening a volume: OpenFile; for the exclusive writer IncreaseFileEpoch, and the new epoch told to
// the chunkservers that may hold a part of the volume, until every copyset has it: from then on
// they refuse whoever had it before.
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <pb_decode.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gateway/proto/chunk.pb.h"
#include "gateway/proto/nameserver2.pb.h"
#include "volume/client.h"
#include "volume/clone.h"
#include "volume/opening.h"
#include "volume/session.h"
#include "volume/volume.h"

#define EPOCH_TIMEOUT_NS (1 * CG_NS_PER_S)
#define EPOCH_RETRY_NS   (100 * CG_NS_PER_MS)
#define FEATURE_NATIVE   1U // FileInfo.features: operations and fields from 1000 on

static const struct cg_rpc_method update_epoch = {"curve.chunkserver.ChunkService", "UpdateEpoch"};

struct epoch_update {
    struct cg_rpc_call call;
    struct cg_timer timer;
    struct vol_opening *opening;
    struct vol_server *server;
    bool in_flight;
};

// ---- Ends

static void stop_updates(struct vol_opening *opening) {
    for (uint32_t i = 0; i < opening->update_count; i++) {
        struct epoch_update *update = &opening->updates[i];
        cg_timer_disarm(&update->timer);
        if (update->in_flight) {
            cg_channel_cancel(update->server->channel, &update->call);
        }
    }
    free(opening->updates);
    opening->updates = NULL;
    opening->update_count = 0;
}

static void finish(struct vol_opening *opening, int result) {
    struct cg_volume *volume = opening->volume;
    stop_updates(opening);
    cg_mds_call_free(&volume->session_call);
    volume->opening = NULL;
    opening->result = result;
    if (result == 0) {
        cg_list_push_back(&volume->client->volumes, &volume->node);
        vol_local_open(volume);
        vol_session_begin(volume);
    }
    opening->ended(opening); // it may free the volume
}

static void __attribute__((format(printf, 3, 4)))
fail(struct vol_opening *opening, int result, const char *format, ...) {
    if (opening->error_size > 0) {
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(opening->error, opening->error_size, format, arguments);
        va_end(arguments);
    }
    finish(opening, result);
}

// ---- The epoch

static void send_update(struct epoch_update *update);

static void on_update_timer(struct cg_timer *timer) {
    send_update(CG_CONTAINER_OF(timer, struct epoch_update, timer));
}

static const char *update_problem(const struct cg_rpc_call *call) {
    if (call->status == -EREMOTEIO) {
        return call->error_text;
    }
    return call->status == -ETIMEDOUT ? "no answer in time" : strerror(-call->status);
}

static void retry_update(struct epoch_update *update, const char *problem) {
    struct vol_opening *opening = update->opening;
    struct cg_volume *volume = opening->volume;
    uint64_t at = cg_reactor_now(volume->reactor) + EPOCH_RETRY_NS;
    if (at >= opening->deadline_ns) {
        fail(
            opening, -ETIMEDOUT,
            "%s: the chunkserver at %s did not take the volume's new epoch (%s), so another client "
            "may still be writing; start it, or remove it from the cluster",
            volume->path, update->server->address, problem);
    } else if (cg_timer_arm(volume->reactor, &update->timer, at) != 0) {
        fail(opening, -ENOMEM, "%s: no memory", volume->path);
    }
}

static void on_update(struct cg_rpc_call *call) {
    struct epoch_update *update = CG_CONTAINER_OF(call, struct epoch_update, call);
    struct vol_opening *opening = update->opening;
    update->in_flight = false;
    if (call->status == -ECANCELED) {
        return;
    }
    if (call->status != 0) {
        retry_update(update, update_problem(call));
        return;
    }
    curve_chunkserver_UpdateEpochResponse m = curve_chunkserver_UpdateEpochResponse_init_zero;
    pb_istream_t stream = pb_istream_from_buffer(call->reply, call->reply_length);
    if (!pb_decode(&stream, curve_chunkserver_UpdateEpochResponse_fields, &m)) {
        retry_update(update, "an answer that makes no sense");
    } else if (m.status == curve_chunkserver_CHUNK_OP_STATUS_CHUNK_OP_STATUS_EPOCH_TOO_OLD) {
        fail(opening, -ESTALE, "%s: another client took the volume over meanwhile",
             opening->volume->path);
    } else if (m.status != curve_chunkserver_CHUNK_OP_STATUS_CHUNK_OP_STATUS_SUCCESS) {
        char problem[32];
        snprintf(problem, sizeof(problem), "status %d", (int)m.status);
        retry_update(update, problem);
    } else if (--opening->updates_left == 0) {
        finish(opening, 0);
    }
}

static void send_update(struct epoch_update *update) {
    struct vol_opening *opening = update->opening;
    struct cg_volume *volume = opening->volume;
    uint64_t now = cg_reactor_now(volume->reactor);
    uint64_t left = opening->deadline_ns > now ? opening->deadline_ns - now : 1;
    curve_chunkserver_UpdateEpochRequest m = {.fileId = volume->file_id, .epoch = volume->epoch};
    update->timer.fire = on_update_timer;
    update->call.method = &update_epoch;
    update->call.request_fields = curve_chunkserver_UpdateEpochRequest_fields;
    update->call.request = &m;
    update->call.timeout_ns = left < EPOCH_TIMEOUT_NS ? left : EPOCH_TIMEOUT_NS;
    update->call.done = on_update;
    update->in_flight = true;
    cg_channel_call(update->server->channel, &update->call);
}

// How many chunkservers have to say that their copysets have the epoch. It is in each copyset's
// log, so that one replica of each is enough: when fewer are silent than a copyset has replicas,
// none is left out. A server that does not replicate epochs does not tell: then all have to.
static uint32_t answers_needed(const struct cg_mds_call *call) {
    uint32_t may_miss = call->replicas > 0 ? call->replicas - 1 : 0;
    return call->server_count > may_miss ? call->server_count - may_miss : 1;
}

static void tell_epoch(struct vol_opening *opening, const struct cg_mds_call *call) {
    struct cg_volume *volume = opening->volume;
    if (call->server_count == 0) {
        finish(opening, 0);
        return;
    }
    opening->updates = calloc(call->server_count, sizeof(*opening->updates));
    if (opening->updates == NULL) {
        fail(opening, -ENOMEM, "%s: no memory", volume->path);
        return;
    }
    for (uint32_t i = 0; i < call->server_count; i++) {
        struct epoch_update *update = &opening->updates[i];
        update->opening = opening;
        update->server = vol_server_get(volume->client, call->servers[i].external);
        if (update->server == NULL) {
            fail(opening, -EIO, "%s: the metadata server names a chunkserver \"%s\"", volume->path,
                 call->servers[i].external);
            return;
        }
    }
    opening->update_count = call->server_count;
    opening->updates_left = answers_needed(call);
    for (uint32_t i = 0; i < opening->update_count; i++) {
        send_update(&opening->updates[i]);
    }
}

// ---- The metadata server

static void fail_mds(struct vol_opening *opening, const struct cg_mds_call *call, int result) {
    struct cg_volume *volume = opening->volume;
    if (result != 0) {
        fail(opening, result, "%s: no metadata server answers (%s); is it running, is mds= right?",
             volume->path,
             call->last_text[0] != '\0' ? call->last_text : strerror(-call->last_error));
        return;
    }
    int error = cg_mds_status_errno(call->status);
    switch (error) {
    case -ENOENT:
        fail(opening, error, "there is no volume %s", volume->path);
        break;
    case -EACCES:
        fail(opening, error, "%s: owner \"%s\" may not open it", volume->path,
             volume->client->mds.owner);
        break;
    case -EBUSY:
        fail(opening, error, "%s: the volume is in use", volume->path);
        break;
    default:
        fail(opening, error, "%s: the metadata server refuses with status %d", volume->path,
             call->status);
        break;
    }
}

static void on_raised(struct cg_mds_call *call, int result) {
    struct cg_volume *volume = CG_CONTAINER_OF(call, struct cg_volume, session_call);
    struct vol_opening *opening = volume->opening;
    if (result != 0 || call->status != curve_mds_StatusCode_kOK) {
        fail_mds(opening, call, result);
        return;
    }
    if (!call->file.present || call->file.epoch == 0 || call->file.id != volume->file_id) {
        fail(opening, -EIO, "%s: the metadata server does not say the new epoch", volume->path);
        return;
    }
    volume->epoch = call->file.epoch;
    volume->seq = call->file.seq > volume->seq ? call->file.seq : volume->seq;
    tell_epoch(opening, call);
}

// `volume` is the one to open, or its source.
static void start_call(struct vol_opening *opening, struct cg_volume *volume, enum cg_mds_op op,
                       void (*done)(struct cg_mds_call *call, int result)) {
    struct cg_mds_call *call = &volume->session_call;
    cg_mds_call_free(call);
    call->mds = &volume->client->mds;
    call->op = op;
    call->path = volume->path;
    call->deadline_ns = opening->deadline_ns;
    call->done = done;
    cg_mds_call_start(call);
}

// "the same on every gateway": a UUID of version 8 out of the file's id, where none was told.
static void derive_uuid(uint64_t id, uint8_t uuid[16]) {
    static const uint8_t prefix[8] = {'c', 'g', 'v', 'o', 'l', 0, 0x80, 0};
    memcpy(uuid, prefix, sizeof(prefix));
    for (unsigned i = 0; i < 8; i++) {
        uuid[8 + i] = (uint8_t)(id >> (56 - 8 * i));
    }
    uuid[8] = (uint8_t)((uuid[8] & 0x3f) | 0x80);
}

static bool sane(struct cg_volume *volume, const struct cg_mds_file *file) {
    if (cg_layout_init(&volume->layout, file->chunk_size, file->stripe_unit, file->stripe_count) !=
        0) {
        return false;
    }
    bool block_fits = file->block_size == 0 ||
                      (file->block_size <= VOL_BLOCK && VOL_BLOCK % file->block_size == 0);
    return block_fits && file->chunk_size % VOL_BLOCK == 0 &&
           volume->layout.stripe_unit % VOL_BLOCK == 0 && file->segment_size != 0 &&
           file->segment_size % file->chunk_size == 0 &&
           file->segment_size / file->chunk_size <= CG_MDS_CHUNKS_MAX &&
           file->length / file->segment_size <= VOL_SEGMENTS_MAX && file->length % VOL_BLOCK == 0;
}

bool vol_take_file(struct cg_volume *volume, const struct cg_mds_file *file) {
    if (!sane(volume, file)) {
        return false;
    }
    volume->file_id = file->id;
    volume->size = file->length;
    volume->epoch = file->epoch;
    volume->seq = file->seq;
    volume->block_size = VOL_BLOCK;
    volume->segment_size = file->segment_size;
    volume->chunks_per_segment = file->segment_size / file->chunk_size;
    volume->native = (file->features & FEATURE_NATIVE) != 0;
    volume->max_request = volume->native ? VOL_REQUEST_NATIVE : VOL_REQUEST_CURVEBS;
    if (file->has_uuid) {
        memcpy(volume->uuid, file->uuid, sizeof(volume->uuid));
    } else {
        derive_uuid(file->id, volume->uuid);
    }
    return true;
}

// The shape is known: the exclusive writer makes itself the only one.
static void take_over(struct vol_opening *opening) {
    if (opening->volume->exclusive) {
        start_call(opening, opening->volume, CG_MDS_RAISE_EPOCH, on_raised);
    } else {
        finish(opening, 0);
    }
}

// The source of a clone (clone.c).
static void on_source(struct cg_mds_call *call, int result) {
    struct cg_volume *source = CG_CONTAINER_OF(call, struct cg_volume, session_call);
    struct vol_opening *opening = source->opening;
    source->opening = NULL;
    if (result != 0) {
        fail_mds(opening, call, result);
        return;
    }
    result = vol_clone_take_source(opening->volume, call, opening->error, opening->error_size);
    if (result != 0) {
        finish(opening, result);
    } else {
        take_over(opening);
    }
}

static void on_opened(struct cg_mds_call *call, int result) {
    struct cg_volume *volume = CG_CONTAINER_OF(call, struct cg_volume, session_call);
    struct vol_opening *opening = volume->opening;
    if (result != 0 || call->status != curve_mds_StatusCode_kOK) {
        fail_mds(opening, call, result);
        return;
    }
    if (!call->file.present || call->file.type != curve_mds_FileType_INODE_PAGEFILE) {
        fail(opening, -EINVAL, "%s is not a volume", volume->path);
        return;
    }
    if (!vol_take_file(volume, &call->file)) {
        fail(opening, -EINVAL,
             "%s has a shape that is not supported: %" PRIu64
             " bytes, segments of %u, chunks of %u, "
             "stripes of %" PRIu64 " times %" PRIu64 ", blocks of %u",
             volume->path, call->file.length, call->file.segment_size, call->file.chunk_size,
             call->file.stripe_unit, call->file.stripe_count, call->file.block_size);
        return;
    }
    memcpy(volume->session, call->session, sizeof(volume->session));
    vol_session_take(volume, call);
    result = vol_clone_take(volume, call, opening->error, opening->error_size);
    if (result < 0) {
        finish(opening, result);
    } else if (result == 1) {
        volume->clone->source->opening = opening;
        start_call(opening, volume->clone->source, CG_MDS_INFO, on_source);
    } else {
        take_over(opening);
    }
}

void vol_opening_begin(struct vol_opening *opening) {
    opening->volume->opening = opening;
    opening->deadline_ns = cg_reactor_now(opening->volume->reactor) + opening->timeout_ns;
    start_call(opening, opening->volume, CG_MDS_OPEN, on_opened);
}

void vol_opening_cancel(struct vol_opening *opening) {
    struct cg_volume *volume = opening->volume;
    cg_mds_call_cancel(&volume->session_call);
    if (volume->clone != NULL) {
        cg_mds_call_cancel(&volume->clone->source->session_call);
        cg_mds_call_free(&volume->clone->source->session_call);
    }
    fail(opening, -ECANCELED, "%s: the opening was cancelled", volume->path);
}
