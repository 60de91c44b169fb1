// SPDX-License-Identifier: BSD-3-Clause
//
// The files that say what a disk's folder is and how far its log has been applied: "format",
// written once, and "checkpoint", replaced by each checkpoint. docs/formats.md describes the bytes.
// And how any such file is replaced.
#ifndef CG_CHUNKSERVER_FOLDER_H
#define CG_CHUNKSERVER_FOLDER_H

#include <stddef.h>
#include <stdint.h>

#include "base/disk.h"

struct cg_folder_format {
    uint8_t uuid[16];
    uint32_t chunk_size; // bytes
    uint32_t block_size; // bytes; 4096
};

// Reads the format. If the folder holds nothing but the lock, writes one with a new uuid and
// `chunk_size`. Returns 0; -ENOTEMPTY for a folder that is not empty and not ours; -EBADMSG for a
// damaged or unknown format; or the disk's error. `error` gets a sentence.
int cg_folder_open(struct cg_disk *disk, uint32_t chunk_size, struct cg_folder_format *out,
                   char *error, size_t error_size);

#define CG_CHECKPOINT_MAX     (1U << 30) // bytes
#define CG_CHECKPOINT_VERSION 2U         // of the payload

// The checkpoint's payload is the caller's. *data is to be freed; *length 0 and *data NULL if there
// is none yet. *version is 1 or CG_CHECKPOINT_VERSION. Returns 0, -EBADMSG or the disk's error.
int cg_checkpoint_load(struct cg_disk *disk, uint8_t **data, size_t *length, uint32_t *version);

// Replaces the checkpoint durably. Blocking; from a pool thread too.
int cg_checkpoint_save(struct cg_disk *disk, const uint8_t *data, size_t length);

// Replaces the file `name` in `folder` ("" is the disk's own) durably, by way of `name`.tmp there.
// Blocking; from a pool thread too.
int cg_replace_file(struct cg_disk *disk, const char *folder, const char *name, const uint8_t *data,
                    size_t length);

#endif
