// SPDX-License-Identifier: BSD-3-Clause
//
// What the scrub keeps over a restart: the file "scrub". Never synced: a power loss costs some of a
// pass, and what was found is found again.
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "chunkserver/scrub_internal.h"

#define FILE_NAME      "scrub"
#define FILE_TEMPORARY "scrub.tmp"
#define SAVE_EVERY_NS  (5 * CG_NS_PER_S)

static void save_call(struct cg_file_op *op) {
    struct cg_scrub *scrub = CG_CONTAINER_OF(op, struct cg_scrub, op);
    struct cg_disk *disk = scrub->read.disk;
    int handle = disk->ops->open(disk, FILE_TEMPORARY, O_RDWR | O_CREAT);
    if (handle < 0) {
        op->result = handle;
        return;
    }
    op->result = disk->ops->truncate(disk, handle, 0);
    if (op->result == 0) {
        int64_t written = disk->ops->write(disk, handle, scrub->file, scrub->file_length, 0);
        if (written != (int64_t)scrub->file_length) {
            op->result = written < 0 ? written : -EIO;
        }
    }
    disk->ops->close(disk, handle);
    if (op->result == 0) {
        op->result = disk->ops->rename(disk, FILE_TEMPORARY, FILE_NAME);
    }
}

static void save_done(struct cg_file_op *op) {
    struct cg_scrub *scrub = CG_CONTAINER_OF(op, struct cg_scrub, op);
    struct cg_store *store = CG_CONTAINER_OF(scrub, struct cg_store, scrub);
    scrub->active = false;
    if (op->result < 0 && op->result != -ENOSPC) {
        cg_log(CG_LOG_WARNING, "cannot save how far the scrub is: %s", strerror((int)-op->result));
    }
    cg_scrub_look_in(store, 0);
}

void cg_scrub_save(struct cg_store *store) {
    struct cg_scrub *scrub = &store->scrub;
    scrub->moved = false;
    scrub->saved_change = store->bad.change;
    scrub->saved_ns = cg_reactor_now(store->reactor);
    scrub->file_length = cg_scrub_encode(&scrub->record, &store->bad, scrub->file);
    scrub->active = true;
    scrub->op = (struct cg_file_op){.opcode = CG_FILE_CALL, .call = save_call, .done = save_done};
    store->disk->ops->submit(store->disk, &scrub->op);
}

bool cg_scrub_unsaved(const struct cg_store *store) {
    return store->scrub.moved || store->bad.change != store->scrub.saved_change;
}

bool cg_scrub_save_due(const struct cg_store *store) {
    const struct cg_scrub *scrub = &store->scrub;
    return store->bad.change != scrub->saved_change ||
           (scrub->moved && cg_reactor_now(store->reactor) - scrub->saved_ns >= SAVE_EVERY_NS);
}

void cg_scrub_load_saved(struct cg_store *store) {
    int handle = store->disk->ops->open(store->disk, FILE_NAME, O_RDWR);
    if (handle == -ENOENT) {
        return;
    }
    int64_t got = handle;
    if (handle >= 0) {
        got = store->disk->ops->read(store->disk, handle, store->scrub.file, CG_SCRUB_FILE_MAX, 0);
        store->disk->ops->close(store->disk, handle);
    }
    if (got < 0) {
        cg_log(CG_LOG_WARNING, "the scrub begins anew: cannot read how far it was: %s",
               strerror((int)-got));
    } else if (cg_scrub_decode(store->scrub.file, (size_t)got, &store->scrub.record, &store->bad) !=
               0) {
        // It is not synced: after a power loss anything may be there.
        cg_log(CG_LOG_INFO, "the scrub begins anew: how far it was did not survive");
    }
}
