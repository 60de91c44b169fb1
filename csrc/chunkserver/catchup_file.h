// SPDX-License-Identifier: BSD-3-Clause
//
// A chunk file that is made anew from copied blocks: under a name of its own, synced, then put in
// the place of what is there. So a chunk file is whole at any time, and one of its versions. All
// calls block: they belong on a pool thread, one at a time.
#ifndef CG_CHUNKSERVER_CATCHUP_FILE_H
#define CG_CHUNKSERVER_CATCHUP_FILE_H

#include "base/disk.h"
#include "chunkserver/chunk_format.h"

#define CG_COPY_PATH_MAX 96U

struct cg_copy_file {
    struct cg_disk *disk;
    char path[CG_COPY_PATH_MAX];
    char temporary[CG_COPY_PATH_MAX];
    int handle;    // -1: not open
    uint8_t *slot; // aligned, CG_CHUNK_SLOT_SIZE
};

// `folder` is the copyset's. No IO. Returns 0 or -ENOMEM.
int cg_copy_file_init(struct cg_copy_file *file, struct cg_disk *disk);
void cg_copy_file_free(struct cg_copy_file *file);

// Begins anew for a chunk of chunk_size bytes. Returns 0 or -errno.
int cg_copy_file_begin(struct cg_copy_file *file, const char *folder, uint64_t chunk_id,
                       uint32_t chunk_size);

// Writes `count` blocks at block `first`. `data` is aligned to blocks.
int cg_copy_file_write(struct cg_copy_file *file, uint32_t first, uint32_t count,
                       const uint8_t *data);

// Writes the metadata, syncs, and puts the file in its place; the folder is not synced.
int cg_copy_file_finish(struct cg_copy_file *file, const struct cg_chunk_header *header,
                        const uint8_t *allocated, const uint32_t *crcs);

// Removes what was begun and not finished, if anything was.
void cg_copy_file_abandon(struct cg_copy_file *file);

// Is this the name of a file that was begun and not finished?
bool cg_copy_file_is_temporary(const char *name);

#endif
