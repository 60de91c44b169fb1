// SPDX-License-Identifier: BSD-3-Clause
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/crc32c.h"
#include "chunkserver/bytes.h"
#include "chunkserver/copyset_log_record.h"
#include "chunkserver/copyset_state.h"
#include "chunkserver/folder.h"

// u64 magic, u32 version, u32 CRC of the file with this field zero, u32 mark, u32 length of the
// members, u32 length of windows and epochs, u32 zero, u64 index, u64 its term; then these.
#define MAGIC          UINT64_C(0x3145544154534743) // "CGSTATE1"
#define VERSION        1U
#define HEAD           48U
#define FILE_MAX       (128U << 20)
#define PATH_MAX_BYTES 96U

void cg_copyset_state_clear(struct cg_copyset_state *state) {
    free(state->bytes);
    *state = (struct cg_copyset_state){0};
}

static uint32_t crc_of(const uint8_t *data, size_t length) {
    uint8_t head[HEAD];
    memcpy(head, data, HEAD);
    cg_put_u32(head + 12, 0);
    return cg_crc32c(cg_crc32c(0, head, HEAD), data + HEAD, length - HEAD);
}

static int decode(const uint8_t *data, size_t length, enum cg_copy_mark *mark,
                  struct cg_copyset_state *state) {
    if (length < HEAD || cg_get_u64(data) != MAGIC || cg_get_u32(data + 8) != VERSION ||
        cg_get_u32(data + 12) != crc_of(data, length)) {
        return -EBADMSG;
    }
    uint32_t kind = cg_get_u32(data + 16);
    if (kind == CG_COPY_MARK_COPYING) {
        *mark = CG_COPY_MARK_COPYING;
        return 0;
    }
    size_t members = cg_get_u32(data + 20);
    size_t bytes = cg_get_u32(data + 24);
    if (kind != CG_COPY_MARK_COMPLETE || members > length || bytes > length ||
        HEAD + members + bytes != length ||
        cg_log_config_decode(data + HEAD, members, &state->log.config) != (int64_t)members) {
        return -EBADMSG;
    }
    state->log.index = cg_get_u64(data + 32);
    state->log.index_term = cg_get_u64(data + 40);
    state->bytes = malloc(bytes > 0 ? bytes : 1);
    if (state->bytes == NULL) {
        return -ENOMEM;
    }
    memcpy(state->bytes, data + HEAD + members, bytes);
    state->length = (uint32_t)bytes;
    *mark = CG_COPY_MARK_COMPLETE;
    return 0;
}

static int read_whole(struct cg_disk *disk, int handle, uint8_t **data, size_t *length) {
    int64_t size = disk->ops->size(disk, handle);
    if (size < 0 || size > FILE_MAX) {
        return size < 0 ? (int)size : -EBADMSG;
    }
    *length = (size_t)size;
    *data = malloc(*length + 1);
    if (*data == NULL) {
        return -ENOMEM;
    }
    int64_t got = disk->ops->read(disk, handle, *data, *length, 0);
    if (got != size) {
        free(*data);
        return got < 0 ? (int)got : -EBADMSG;
    }
    return 0;
}

int cg_copy_mark_load(struct cg_disk *disk, const char *folder, enum cg_copy_mark *mark,
                      struct cg_copyset_state *state) {
    *mark = CG_COPY_MARK_NONE;
    *state = (struct cg_copyset_state){0};
    char path[PATH_MAX_BYTES];
    snprintf(path, sizeof(path), "%s/copy", folder);
    int handle = disk->ops->open(disk, path, O_RDWR);
    if (handle < 0) {
        return handle == -ENOENT ? 0 : handle;
    }
    uint8_t *data = NULL;
    size_t length = 0;
    int result = read_whole(disk, handle, &data, &length);
    disk->ops->close(disk, handle);
    if (result == 0) {
        result = decode(data, length, mark, state);
        free(data);
    }
    return result;
}

int cg_copy_mark_save(struct cg_disk *disk, const char *folder,
                      const struct cg_copyset_state *state) {
    size_t room = HEAD + (state != NULL ? CG_LOG_CONFIG_SIZE_MAX + (size_t)state->length : 0);
    uint8_t *data = calloc(1, room);
    if (data == NULL) {
        return -ENOMEM;
    }
    size_t length = HEAD;
    cg_put_u64(data, MAGIC);
    cg_put_u32(data + 8, VERSION);
    cg_put_u32(data + 16, state != NULL ? CG_COPY_MARK_COMPLETE : CG_COPY_MARK_COPYING);
    if (state != NULL) {
        size_t members = cg_log_config_encode(&state->log.config, data + HEAD);
        cg_put_u32(data + 20, (uint32_t)members);
        cg_put_u32(data + 24, state->length);
        cg_put_u64(data + 32, state->log.index);
        cg_put_u64(data + 40, state->log.index_term);
        memcpy(data + HEAD + members, state->bytes, state->length);
        length += members + state->length;
    }
    cg_put_u32(data + 12, crc_of(data, length));
    int result = cg_replace_file(disk, folder, "copy", data, length);
    free(data);
    return result;
}

int cg_copy_mark_remove(struct cg_disk *disk, const char *folder) {
    char path[PATH_MAX_BYTES];
    snprintf(path, sizeof(path), "%s/copy", folder);
    int result = disk->ops->unlink(disk, path);
    return result == 0 || result == -ENOENT ? disk->ops->sync_directory(disk, folder) : result;
}
