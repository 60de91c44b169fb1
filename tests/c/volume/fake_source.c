// SPDX-License-Identifier: BSD-3-Clause
//
// What a CurveBS cluster does for a lazy clone.
#include <stdlib.h>
#include <string.h>

#include "fake_internal.h"
#include "gateway/proto/nameserver2.pb.h"

void fake_fill_source(struct fake *fake, uint64_t index, uint8_t value) {
    uint32_t count = fake->segment_size / fake->chunk_size;
    pthread_mutex_lock(&fake->lock);
    fake->source_segments[index] = fake->next_chunk;
    for (uint32_t i = 0; i < count; i++) {
        struct fake_chunk *chunk = &fake->chunks[fake->next_chunk++];
        chunk->data = malloc(fake->chunk_size);
        chunk->allocated = calloc(1, fake->chunk_size / 4096);
        memset(chunk->data, (int)(value + i), fake->chunk_size);
    }
    pthread_mutex_unlock(&fake->lock);
}

static bool decode_name(pb_istream_t *stream, const pb_field_t *field, void **arg) {
    (void)field;
    struct fake_source_name *name = *arg;
    size_t length = stream->bytes_left;
    if (length >= sizeof(name->text)) {
        return false;
    }
    name->text[length] = '\0';
    return pb_read(stream, (pb_byte_t *)name->text, length);
}

void fake_source_decode(curve_chunkserver_ChunkRequest *request, struct fake_source_name *name) {
    request->cloneFileSource = (pb_callback_t){.funcs.decode = decode_name, .arg = name};
}

bool fake_source_tell(pb_ostream_t *stream, const pb_field_t *field, void *const *arg) {
    const struct fake *fake = *arg;
    for (uint64_t i = 0; i < FAKE_CHUNKS_MAX; i++) {
        if (fake->source_segments[i] != 0 && (!pb_encode_tag_for_field(stream, field) ||
                                              !pb_encode_varint(stream, i * fake->segment_size))) {
            return false;
        }
    }
    return true;
}

// The chunk's index in the volume, or -1: it is the source's.
static int64_t index_of(const struct fake *fake, uint64_t id) {
    uint64_t count = fake->segment_size / fake->chunk_size;
    for (uint64_t i = 0; i < FAKE_CHUNKS_MAX; i++) {
        if (fake->segments[i] != 0 && id >= fake->segments[i] && id < fake->segments[i] + count) {
            return (int64_t)(i * count + (id - fake->segments[i]));
        }
    }
    return -1;
}

bool fake_source_named(const struct fake *fake, const curve_chunkserver_ChunkRequest *request,
                       const char *name, bool read_or_write) {
    int64_t index = index_of(fake, request->chunkId);
    uint64_t start = (uint64_t)index * fake->chunk_size;
    bool expected = fake->clone_source != NULL && read_or_write && index >= 0 &&
                    fake->file_status == curve_mds_FileStatus_kFileCloneMetaInstalled &&
                    fake->source_segments[start / fake->segment_size] != 0 &&
                    start - start % fake->segment_size < fake->clone_length;
    if (!expected) {
        return name[0] == '\0' && !request->has_cloneFileOffset;
    }
    return strcmp(name, fake->clone_source) == 0 && request->has_cloneFileOffset &&
           request->cloneFileOffset == start;
}

void fake_source_fetch(struct fake *fake, const curve_chunkserver_ChunkRequest *request) {
    struct fake_chunk *chunk = &fake->chunks[request->chunkId % FAKE_CHUNKS_MAX];
    if (!request->has_cloneFileOffset || chunk->data != NULL) {
        return;
    }
    uint64_t first = fake->source_segments[request->cloneFileOffset / fake->segment_size];
    uint64_t id = first + request->cloneFileOffset % fake->segment_size / fake->chunk_size;
    chunk->data = malloc(fake->chunk_size);
    chunk->allocated = calloc(1, fake->chunk_size / 4096);
    memcpy(chunk->data, fake->chunks[id].data, fake->chunk_size);
}
