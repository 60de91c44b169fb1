// SPDX-License-Identifier: BSD-3-Clause
//
// The chunks of a copyset in the order of their numbers, so many at a time: from its folder, on a
// pool thread.
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "chunkserver/scrub_internal.h"

static int compare_ids(const void *a, const void *b) {
    const uint64_t *left = a;
    const uint64_t *right = b;
    return *left < *right ? -1 : *left > *right;
}

static void sort_ids(struct cg_scrub *scrub) {
    qsort(scrub->ids, scrub->id_count, sizeof(scrub->ids[0]), compare_ids);
    if (scrub->id_count > CG_SCRUB_LIST) {
        scrub->id_count = CG_SCRUB_LIST;
        scrub->list_cut = true;
    }
}

static int note_chunk(void *context, const char *name) {
    struct cg_scrub *scrub = context;
    uint64_t id;
    int used = 0;
    if (sscanf(name, "chunk_%" SCNu64 "%n", &id, &used) != 1 || name[used] != '\0' ||
        id < scrub->record.position.chunk_id) {
        return 0;
    }
    if (scrub->id_count == 2 * CG_SCRUB_LIST) {
        sort_ids(scrub); // keeps the lower half
    }
    scrub->ids[scrub->id_count++] = id;
    return 0;
}

static void list_call(struct cg_file_op *op) {
    struct cg_scrub *scrub = CG_CONTAINER_OF(op, struct cg_scrub, op);
    scrub->id_count = 0;
    scrub->id_at = 0;
    scrub->list_cut = false;
    op->result = scrub->read.disk->ops->list(scrub->read.disk, scrub->read.path, note_chunk, scrub);
    sort_ids(scrub);
}

static void list_done(struct cg_file_op *op) {
    struct cg_scrub *scrub = CG_CONTAINER_OF(op, struct cg_scrub, op);
    struct cg_store *store = CG_CONTAINER_OF(scrub, struct cg_store, scrub);
    scrub->active = false;
    scrub->listed = true;
    if (cg_scrub_is_short(op->result)) {
        scrub->listed = false;
        cg_scrub_look_in(store, SHORT_POLL_NS);
        return;
    }
    if (op->result != 0) {
        cg_log(CG_LOG_WARNING, "the scrub passes over %s: cannot list it: %s", scrub->read.path,
               strerror((int)-op->result));
    }
    cg_scrub_look_in(store, 0);
}

void cg_scrub_list(struct cg_store *store, const struct cg_copyset *copyset) {
    struct cg_scrub *scrub = &store->scrub;
    cg_copyset_folder(copyset, scrub->read.path);
    scrub->active = true;
    scrub->op = (struct cg_file_op){.opcode = CG_FILE_CALL, .call = list_call, .done = list_done};
    store->disk->ops->submit(store->disk, &scrub->op);
}
