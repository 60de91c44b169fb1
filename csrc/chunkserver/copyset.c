// SPDX-License-Identifier: BSD-3-Clause
//
// Copysets: the folder chunks/<pool>-<copyset> is what says that a copyset is here.
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "chunkserver/store_internal.h"

static struct cg_list *bucket_of(struct cg_store *store, uint64_t group) {
    return &store
                ->copyset_bucket[(group * UINT64_C(0x9e3779b97f4a7c15) >> 32) % CG_COPYSET_BUCKETS];
}

struct cg_copyset *cg_copyset_of_group(struct cg_store *store, uint64_t group) {
    const struct cg_list *bucket = bucket_of(store, group);
    CG_LIST_FOREACH (node, bucket) {
        struct cg_copyset *copyset = CG_CONTAINER_OF(node, struct cg_copyset, bucket);
        if (copyset->group == group) {
            return copyset;
        }
    }
    return NULL;
}

struct cg_copyset *cg_store_copyset(struct cg_store *store, uint32_t pool, uint32_t copyset) {
    return cg_copyset_of_group(store, (uint64_t)pool << 32 | copyset);
}

uint32_t cg_store_copyset_count(const struct cg_store *store) {
    return store->copyset_count;
}

struct cg_copyset *cg_store_copyset_at(struct cg_store *store, uint32_t position) {
    return store->copysets[position];
}

uint64_t cg_copyset_applied(const struct cg_copyset *copyset) {
    return copyset->applied_index;
}

uint64_t cg_copyset_epoch(const struct cg_copyset *copyset, uint64_t file_id) {
    return cg_epoch_get(&copyset->epochs, file_id);
}

void cg_copyset_folder(const struct cg_copyset *copyset, char out[CG_CHUNK_PATH_MAX]) {
    snprintf(out, CG_CHUNK_PATH_MAX, "chunks/%" PRIu32 "-%" PRIu32, copyset->pool, copyset->id);
}

int cg_copyset_create(struct cg_store *store, uint32_t pool, uint32_t id, struct cg_copyset **out) {
    if (store->copyset_count >= CG_COPYSETS_MAX) {
        return -ENOSPC;
    }
    struct cg_copyset *copyset = calloc(1, sizeof(*copyset));
    if (copyset == NULL) {
        return -ENOMEM;
    }
    copyset->store = store;
    copyset->pool = pool;
    copyset->id = id;
    copyset->group = (uint64_t)pool << 32 | id;
    cg_list_init(&copyset->unapplied);
    cg_dedup_init(&copyset->dedup);
    cg_epoch_table_init(&copyset->epochs);
    cg_replica_init(&copyset->replica, copyset->group, 0, 0);
    copyset->replica.wal = store->wal;
    cg_list_push_back(bucket_of(store, copyset->group), &copyset->bucket);
    store->copysets[store->copyset_count++] = copyset;
    if (store->share != NULL) {
        cg_local_share_lease(store->share, copyset->group, CG_LOCAL_NEVER_ENDS); // the only replica
    }
    *out = copyset;
    return 0;
}

void cg_copyset_destroy(struct cg_copyset *copyset) {
    cg_dedup_clear(&copyset->dedup);
    cg_epoch_table_clear(&copyset->epochs);
    free(copyset->captured);
    free(copyset);
}

int cg_store_add_copyset(struct cg_store *store, uint32_t pool, uint32_t id) {
    if (cg_store_copyset(store, pool, id) != NULL) {
        return 0;
    }
    if (store->disk_error != 0) {
        return -store->disk_error;
    }
    if (store->copyset_count >= CG_COPYSETS_MAX) {
        return -ENOSPC;
    }
    char path[CG_CHUNK_PATH_MAX];
    snprintf(path, sizeof(path), "chunks/%" PRIu32 "-%" PRIu32, pool, id);
    int result = store->disk->ops->mkdir(store->disk, path);
    if (result == 0) {
        result = store->disk->ops->sync_directory(store->disk, "chunks");
    }
    if (result == 0) {
        struct cg_copyset *copyset;
        result = cg_copyset_create(store, pool, id, &copyset);
    }
    return result;
}

struct scan {
    struct cg_store *store;
    char *error;
    size_t error_size;
};

static int found_folder(void *context, const char *name) {
    struct scan *scan = context;
    uint32_t pool;
    uint32_t id;
    int used = 0;
    if (sscanf(name, "%" SCNu32 "-%" SCNu32 "%n", &pool, &id, &used) != 2 || name[used] != '\0') {
        snprintf(scan->error, scan->error_size, "chunks/%.100s is no copyset's folder", name);
        return -EBADMSG;
    }
    struct cg_copyset *copyset;
    int result = cg_copyset_create(scan->store, pool, id, &copyset);
    if (result != 0) {
        snprintf(scan->error, scan->error_size, "cannot open copyset %.100s: %s", name,
                 strerror(-result));
    }
    return result;
}

int cg_copysets_scan(struct cg_store *store, char *error, size_t error_size) {
    struct scan scan = {store, error, error_size};
    snprintf(error, error_size, "cannot read the folder \"chunks\"");
    int result = store->disk->ops->mkdir(store->disk, "chunks");
    if (result == 0) {
        result = store->disk->ops->sync_directory(store->disk, "");
    }
    if (result == 0) {
        result = store->disk->ops->list(store->disk, "chunks", found_folder, &scan);
    }
    return result;
}
