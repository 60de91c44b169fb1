// SPDX-License-Identifier: BSD-3-Clause
#include "chunkserver/folder.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/crc32c.h"
#include "base/log.h"
#include "chunkserver/bytes.h"
#include "chunkserver/chunk_format.h"

#define FORMAT_MAGIC     UINT64_C(0x544d464f46474743) // "CGGFOFMT"
#define CHECKPOINT_MAGIC UINT64_C(0x54504b4343474743) // "CGGCCKPT"
#define FORMAT_VERSION   1U
#define FORMAT_SIZE      64U
#define CHECKPOINT_HEAD  32U
#define PATH_LENGTH_MAX  128U

// "format": u64 magic, u32 version, u32 CRC of the file with this field zero, 16 bytes uuid, u32
// chunk size, u32 block size, zeros up to 64 bytes.

static uint32_t format_crc(const uint8_t *data) {
    uint8_t copy[FORMAT_SIZE];
    memcpy(copy, data, sizeof(copy));
    cg_put_u32(copy + 12, 0);
    return cg_crc32c(0, copy, sizeof(copy));
}

// Writes a whole new file under a name of its own, then puts it in place. What is there under that
// name is overwritten: on a full disk its space is all there is.
int cg_replace_file(struct cg_disk *disk, const char *folder, const char *name, const uint8_t *data,
                    size_t length) {
    char path[PATH_LENGTH_MAX];
    char temporary[PATH_LENGTH_MAX];
    const char *slash = folder[0] != '\0' ? "/" : "";
    snprintf(path, sizeof(path), "%s%s%s", folder, slash, name);
    snprintf(temporary, sizeof(temporary), "%s%s%s.tmp", folder, slash, name);
    int handle = disk->ops->open(disk, temporary, O_RDWR | O_CREAT);
    if (handle < 0) {
        return handle;
    }
    int result = 0;
    int64_t written = disk->ops->write(disk, handle, data, length, 0);
    if (written != (int64_t)length) {
        result = written < 0 ? (int)written : -EIO;
    }
    if (result == 0) {
        result = disk->ops->truncate(disk, handle, length);
    }
    if (result == 0) {
        result = disk->ops->sync(disk, handle);
    }
    disk->ops->close(disk, handle);
    if (result == 0) {
        result = disk->ops->rename(disk, temporary, path);
    }
    return result == 0 ? disk->ops->sync_directory(disk, folder) : result;
}

static int note_foreign(void *context, const char *name) {
    (void)context;
    // What an interrupted first start may have left is ours.
    if (strcmp(name, "lock") == 0 || strcmp(name, "format.tmp") == 0 ||
        strcmp(name, "lost+found") == 0) {
        return 0;
    }
    return 1;
}

static int make_format(struct cg_disk *disk, uint32_t chunk_size, struct cg_folder_format *out,
                       char *error, size_t error_size) {
    int foreign = disk->ops->list(disk, "", note_foreign, NULL);
    if (foreign != 0) {
        snprintf(error, error_size,
                 "the folder is neither empty nor a chunkserver's: no \"format\"");
        return foreign < 0 ? foreign : -ENOTEMPTY;
    }
    *out = (struct cg_folder_format){.chunk_size = chunk_size, .block_size = CG_BLOCK_SIZE};
    if (getrandom(out->uuid, sizeof(out->uuid), 0) != (ssize_t)sizeof(out->uuid)) {
        snprintf(error, error_size, "no random numbers for the folder's uuid");
        return -EIO;
    }
    out->uuid[6] = (uint8_t)((out->uuid[6] & 0x0f) | 0x40); // RFC 9562: version 4
    out->uuid[8] = (uint8_t)((out->uuid[8] & 0x3f) | 0x80);
    uint8_t data[FORMAT_SIZE] = {0};
    cg_put_u64(data, FORMAT_MAGIC);
    cg_put_u32(data + 8, FORMAT_VERSION);
    memcpy(data + 16, out->uuid, sizeof(out->uuid));
    cg_put_u32(data + 32, out->chunk_size);
    cg_put_u32(data + 36, out->block_size);
    cg_put_u32(data + 12, format_crc(data));
    int result = cg_replace_file(disk, "", "format", data, sizeof(data));
    if (result != 0) {
        snprintf(error, error_size, "cannot write the folder's format: %s", strerror(-result));
    }
    return result;
}

int cg_folder_open(struct cg_disk *disk, uint32_t chunk_size, struct cg_folder_format *out,
                   char *error, size_t error_size) {
    int handle = disk->ops->open(disk, "format", O_RDWR);
    if (handle == -ENOENT) {
        return make_format(disk, chunk_size, out, error, error_size);
    }
    if (handle < 0) {
        snprintf(error, error_size, "cannot open the folder's format: %s", strerror(-handle));
        return handle;
    }
    uint8_t data[FORMAT_SIZE];
    int64_t length = disk->ops->read(disk, handle, data, sizeof(data), 0);
    disk->ops->close(disk, handle);
    if (length < 0) {
        snprintf(error, error_size, "cannot read the folder's format: %s", strerror((int)-length));
        return (int)length;
    }
    if (length != FORMAT_SIZE || cg_get_u64(data) != FORMAT_MAGIC ||
        cg_get_u32(data + 12) != format_crc(data)) {
        snprintf(error, error_size, "the folder's format is damaged");
        return -EBADMSG;
    }
    if (cg_get_u32(data + 8) != FORMAT_VERSION) {
        snprintf(error, error_size, "the folder has format version %u; this program knows %u",
                 cg_get_u32(data + 8), FORMAT_VERSION);
        return -EBADMSG;
    }
    memcpy(out->uuid, data + 16, sizeof(out->uuid));
    out->chunk_size = cg_get_u32(data + 32);
    out->block_size = cg_get_u32(data + 36);
    if (out->block_size != CG_BLOCK_SIZE || out->chunk_size == 0 ||
        out->chunk_size > CG_CHUNK_SIZE_MAX || out->chunk_size % (8 * CG_BLOCK_SIZE) != 0) {
        snprintf(error, error_size, "the folder has chunks of %u and blocks of %u bytes",
                 out->chunk_size, out->block_size);
        return -EBADMSG;
    }
    return 0;
}

// "checkpoint": u64 magic, u32 version, u32 CRC of everything with this field zero, u64 payload
// length, u64 zero, then the payload.

static uint32_t checkpoint_crc(const uint8_t *head, const uint8_t *data, size_t length) {
    uint8_t copy[CHECKPOINT_HEAD];
    memcpy(copy, head, sizeof(copy));
    cg_put_u32(copy + 12, 0);
    return cg_crc32c(cg_crc32c(0, copy, sizeof(copy)), data, length);
}

static int read_checkpoint(struct cg_disk *disk, int handle, uint8_t **data, size_t *length,
                           uint32_t *version) {
    int64_t size = disk->ops->size(disk, handle);
    if (size < 0) {
        return (int)size;
    }
    if (size < (int64_t)CHECKPOINT_HEAD || size > (int64_t)CG_CHECKPOINT_MAX) {
        return -EBADMSG;
    }
    uint8_t *all = malloc((size_t)size);
    if (all == NULL) {
        return -ENOMEM;
    }
    int result = 0;
    int64_t got = disk->ops->read(disk, handle, all, (uint64_t)size, 0);
    size_t payload = (size_t)size - CHECKPOINT_HEAD;
    if (got != size) {
        result = got < 0 ? (int)got : -EBADMSG;
    } else if (cg_get_u64(all) != CHECKPOINT_MAGIC || cg_get_u32(all + 8) == 0 ||
               cg_get_u32(all + 8) > CG_CHECKPOINT_VERSION || cg_get_u64(all + 16) != payload ||
               cg_get_u32(all + 12) != checkpoint_crc(all, all + CHECKPOINT_HEAD, payload)) {
        result = -EBADMSG;
    }
    if (result != 0) {
        free(all);
        return result;
    }
    *version = cg_get_u32(all + 8);
    memmove(all, all + CHECKPOINT_HEAD, payload);
    *data = all;
    *length = payload;
    return 0;
}

int cg_checkpoint_load(struct cg_disk *disk, uint8_t **data, size_t *length, uint32_t *version) {
    *data = NULL;
    *length = 0;
    int handle = disk->ops->open(disk, "checkpoint", O_RDWR);
    if (handle < 0) {
        return handle == -ENOENT ? 0 : handle;
    }
    int result = read_checkpoint(disk, handle, data, length, version);
    disk->ops->close(disk, handle);
    return result;
}

// Takes the space that the replaced checkpoint has given back, before others do. Without it the
// next one has to find some.
static void make_next(struct cg_disk *disk, size_t length) {
    int handle = disk->ops->open(disk, "checkpoint.tmp", O_RDWR | O_CREAT);
    int result = handle;
    if (handle >= 0) {
        result = disk->ops->allocate(disk, handle, 0, length);
        disk->ops->close(disk, handle);
    }
    if (result < 0) {
        cg_log(CG_LOG_DEBUG, "no space is set aside for the next checkpoint: %s",
               strerror(-result));
    }
}

int cg_checkpoint_save(struct cg_disk *disk, const uint8_t *data, size_t length) {
    if (length > CG_CHECKPOINT_MAX - CHECKPOINT_HEAD) {
        return -EFBIG;
    }
    uint8_t *all = calloc(1, CHECKPOINT_HEAD + length);
    if (all == NULL) {
        return -ENOMEM;
    }
    cg_put_u64(all, CHECKPOINT_MAGIC);
    cg_put_u32(all + 8, CG_CHECKPOINT_VERSION);
    cg_put_u64(all + 16, length);
    if (length > 0) {
        memcpy(all + CHECKPOINT_HEAD, data, length);
    }
    cg_put_u32(all + 12, checkpoint_crc(all, data, length));
    int result = cg_replace_file(disk, "", "checkpoint", all, CHECKPOINT_HEAD + length);
    free(all);
    if (result == 0) {
        make_next(disk, CHECKPOINT_HEAD + length);
    }
    return result;
}
