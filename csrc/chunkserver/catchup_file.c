// SPDX-License-Identifier: BSD-3-Clause
#include "chunkserver/catchup_file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PREFIX "copy_"

int cg_copy_file_init(struct cg_copy_file *file, struct cg_disk *disk) {
    *file = (struct cg_copy_file){.disk = disk, .handle = -1};
    file->slot = aligned_alloc(CG_BLOCK_SIZE, CG_CHUNK_SLOT_SIZE);
    return file->slot != NULL ? 0 : -ENOMEM;
}

void cg_copy_file_free(struct cg_copy_file *file) {
    free(file->slot);
    file->slot = NULL;
}

bool cg_copy_file_is_temporary(const char *name) {
    return strncmp(name, PREFIX, strlen(PREFIX)) == 0;
}

// Past the page cache: what is copied is not read soon, and its writeback would be in the way of
// others all at once.
static int open_temporary(struct cg_copy_file *file) {
    const struct cg_disk_ops *ops = file->disk->ops;
    int handle = ops->open(file->disk, file->temporary, O_RDWR | O_CREAT | O_DIRECT);
    if (handle == -EINVAL) { // the file system refuses O_DIRECT
        handle = ops->open(file->disk, file->temporary, O_RDWR | O_CREAT);
    }
    return handle;
}

int cg_copy_file_begin(struct cg_copy_file *file, const char *folder, uint64_t chunk_id,
                       uint32_t chunk_size) {
    const struct cg_disk_ops *ops = file->disk->ops;
    snprintf(file->path, sizeof(file->path), "%s/chunk_%" PRIu64, folder, chunk_id);
    snprintf(file->temporary, sizeof(file->temporary), "%s/" PREFIX "%" PRIu64, folder, chunk_id);
    int result = ops->unlink(file->disk, file->temporary);
    if (result != 0 && result != -ENOENT) {
        return result;
    }
    file->handle = open_temporary(file);
    if (file->handle < 0) {
        return file->handle;
    }
    return ops->truncate(file->disk, file->handle, CG_CHUNK_DATA_OFFSET + (uint64_t)chunk_size);
}

static int write_all(struct cg_copy_file *file, const uint8_t *data, uint64_t length,
                     uint64_t offset) {
    uint64_t done = 0;
    while (done < length) {
        int64_t written = file->disk->ops->write(file->disk, file->handle, data + done,
                                                 length - done, offset + done);
        if (written == -EINTR) {
            continue;
        }
        if (written <= 0) {
            return written < 0 ? (int)written : -EIO;
        }
        done += (uint64_t)written;
    }
    return 0;
}

int cg_copy_file_write(struct cg_copy_file *file, uint32_t first, uint32_t count,
                       const uint8_t *data) {
    return write_all(file, data, (uint64_t)count * CG_BLOCK_SIZE,
                     CG_CHUNK_DATA_OFFSET + (uint64_t)first * CG_BLOCK_SIZE);
}

int cg_copy_file_finish(struct cg_copy_file *file, const struct cg_chunk_header *header,
                        const uint8_t *allocated, const uint32_t *crcs) {
    const struct cg_disk_ops *ops = file->disk->ops;
    cg_chunk_slot_encode(header, allocated, crcs, file->slot);
    int result = write_all(file, file->slot, CG_CHUNK_SLOT_SIZE, 0);
    if (result == 0) {
        result = ops->sync(file->disk, file->handle);
    }
    if (result == 0) {
        ops->close(file->disk, file->handle);
        file->handle = -1;
        result = ops->rename(file->disk, file->temporary, file->path);
    }
    return result;
}

void cg_copy_file_abandon(struct cg_copy_file *file) {
    if (file->handle >= 0) {
        file->disk->ops->close(file->disk, file->handle);
        file->handle = -1;
    }
    if (file->temporary[0] != '\0') {
        // If it stays, the next start removes it.
        file->disk->ops->unlink(file->disk, file->temporary);
        file->temporary[0] = '\0';
    }
}
