// SPDX-License-Identifier: BSD-3-Clause
//
// The highest epoch known of each volume: part of a copyset's replicated state. Pure bookkeeping.
#ifndef CG_CHUNKSERVER_EPOCH_TABLE_H
#define CG_CHUNKSERVER_EPOCH_TABLE_H

#include <stddef.h>
#include <stdint.h>

#define CG_EPOCHS_MAX (1U << 20) // volumes

struct cg_epoch {
    uint64_t file_id;
    uint64_t epoch; // 0: a free place
};

struct cg_epoch_table {
    struct cg_epoch *place; // open addressing, linear probing; a power of two of them, or NULL
    uint32_t capacity;
    uint32_t count;
};

void cg_epoch_table_init(struct cg_epoch_table *table);
void cg_epoch_table_clear(struct cg_epoch_table *table);

// The epoch of a volume; 0 if none is known.
uint64_t cg_epoch_get(const struct cg_epoch_table *table, uint64_t file_id);

// Raises the epoch; a lower one changes nothing. Returns 0, -ENOMEM, or -ENOSPC past CG_EPOCHS_MAX.
int cg_epoch_raise(struct cg_epoch_table *table, uint64_t file_id, uint64_t epoch);

size_t cg_epoch_table_size(const struct cg_epoch_table *table);
size_t cg_epoch_table_encode(const struct cg_epoch_table *table, uint8_t *out);
// Returns the bytes read, -EBADMSG or -ENOMEM; `table` must be empty.
int64_t cg_epoch_table_decode(struct cg_epoch_table *table, const uint8_t *in, size_t length);

#endif
