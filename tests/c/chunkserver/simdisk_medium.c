// SPDX-License-Identifier: BSD-3-Clause
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "simdisk_internal.h"

void *simdisk_must(void *memory) {
    if (memory == NULL) {
        abort();
    }
    return memory;
}

// splitmix64
uint64_t simdisk_random(struct simdisk *sim) {
    uint64_t z = (sim->random += UINT64_C(0x9e3779b97f4a7c15));
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

bool simdisk_coin(struct simdisk *sim) {
    return (simdisk_random(sim) >> 40 & 1) != 0;
}

// ---- Inodes

void simdisk_inode_unref(struct inode *inode) {
    if (inode == NULL || --inode->links != 0) {
        return;
    }
    struct cg_list *node;
    while ((node = cg_list_pop_front(&inode->unsynced)) != NULL) {
        free(CG_CONTAINER_OF(node, struct unsynced, node));
    }
    cg_list_remove(&inode->node);
    free(inode->seen);
    free(inode->durable);
    free(inode->sector_order);
    free(inode);
}

struct inode *simdisk_inode_create(struct simdisk *sim) {
    struct inode *inode = simdisk_must(calloc(1, sizeof(*inode)));
    cg_list_init(&inode->unsynced);
    cg_list_push_back(&sim->inodes, &inode->node);
    return inode;
}

static void inode_reserve(const struct simdisk *sim, struct inode *inode, uint64_t size) {
    if (size <= inode->capacity) {
        return;
    }
    uint64_t capacity = inode->capacity * 2 > size ? inode->capacity * 2 : size;
    capacity = (capacity + 4095U) & ~UINT64_C(4095);
    uint64_t sectors = capacity / sim->options.sector;
    uint64_t before = inode->capacity / sim->options.sector;
    inode->seen = simdisk_must(realloc(inode->seen, capacity));
    inode->durable = simdisk_must(realloc(inode->durable, capacity));
    inode->sector_order = simdisk_must(realloc(inode->sector_order, sectors * sizeof(uint64_t)));
    memset(inode->seen + inode->capacity, 0, capacity - inode->capacity);
    memset(inode->durable + inode->capacity, 0, capacity - inode->capacity);
    memset(inode->sector_order + before, 0, (sectors - before) * sizeof(uint64_t));
    inode->capacity = capacity;
}

uint64_t simdisk_used(const struct simdisk *sim) {
    uint64_t used = 0;
    CG_LIST_FOREACH (node, &sim->seen) {
        const struct name *name = CG_CONTAINER_OF(node, struct name, node);
        used += name->inode != NULL ? name->inode->size : 0;
    }
    return used;
}

int simdisk_inode_extend(struct simdisk *sim, struct inode *inode, uint64_t size) {
    if (size <= inode->size) {
        return 0;
    }
    uint64_t limit = sim->options.capacity_bytes;
    if (limit != 0 && simdisk_used(sim) + (size - inode->size) > limit) {
        return -ENOSPC;
    }
    inode_reserve(sim, inode, size);
    inode->size = size;
    return 0;
}

// Puts one sector of a write on the medium, unless what is there is newer.
static void settle_sector(const struct simdisk *sim, struct inode *inode,
                          const struct unsynced *write, uint64_t sector) {
    uint64_t start = sector * sim->options.sector;
    uint64_t end = start + sim->options.sector;
    uint64_t from = start > write->offset ? start : write->offset;
    uint64_t to = end < write->offset + write->length ? end : write->offset + write->length;
    if (inode->sector_order[sector] > write->order) {
        return;
    }
    memcpy(inode->durable + from, write->data + (from - write->offset), to - from);
    inode->sector_order[sector] = write->order;
}

void simdisk_settle(struct simdisk *sim, struct inode *inode, const struct unsynced *write,
                    enum settle how) {
    uint64_t first = write->offset / sim->options.sector;
    uint64_t last = (write->offset + write->length - 1) / sim->options.sector;
    // Half of the torn writes are a prefix, as most are; the others have any sectors missing.
    bool prefix = how == SETTLE_TORN && simdisk_coin(sim);
    uint64_t kept = prefix ? first + simdisk_random(sim) % (last - first + 2) : last + 1;
    for (uint64_t s = first; s <= last && s < kept; s++) {
        if (how == SETTLE_WHOLE || prefix || simdisk_coin(sim)) {
            settle_sector(sim, inode, write, s);
        }
    }
    if (inode->durable_size < write->offset + write->length) {
        inode->durable_size = write->offset + write->length;
    }
}

void simdisk_inode_sync(struct simdisk *sim, struct inode *inode) {
    struct cg_list *node;
    while ((node = cg_list_pop_front(&inode->unsynced)) != NULL) {
        struct unsynced *write = CG_CONTAINER_OF(node, struct unsynced, node);
        simdisk_settle(sim, inode, write, SETTLE_WHOLE);
        free(write);
    }
    inode->durable_size = inode->size;
}

struct unsynced *simdisk_unsynced_create(struct simdisk *sim, uint64_t offset, uint64_t length) {
    struct unsynced *write = simdisk_must(malloc(sizeof(*write) + length));
    write->offset = offset;
    write->length = length;
    write->order = ++sim->order;
    cg_list_init(&write->node);
    return write;
}

// ---- Names

struct name *simdisk_find(const struct cg_list *names, const char *path) {
    CG_LIST_FOREACH (node, names) {
        struct name *name = CG_CONTAINER_OF(node, struct name, node);
        if (strcmp(name->path, path) == 0) {
            return name;
        }
    }
    return NULL;
}

void simdisk_name_add(struct cg_list *names, const char *path, struct inode *inode, bool folder) {
    struct name *name = simdisk_must(calloc(1, sizeof(*name)));
    snprintf(name->path, sizeof(name->path), "%s", path);
    name->folder = folder;
    name->inode = inode;
    if (inode != NULL) {
        inode->links++;
    }
    cg_list_push_back(names, &name->node);
}

void simdisk_name_remove(struct name *name) {
    cg_list_remove(&name->node);
    simdisk_inode_unref(name->inode);
    free(name);
}

void simdisk_names_clear(struct cg_list *names) {
    while (!cg_list_empty(names)) {
        simdisk_name_remove(CG_CONTAINER_OF(names->next, struct name, node));
    }
}

void simdisk_names_copy(struct cg_list *to, const struct cg_list *from) {
    CG_LIST_FOREACH (node, from) {
        const struct name *name = CG_CONTAINER_OF(node, struct name, node);
        simdisk_name_add(to, name->path, name->inode, name->folder);
    }
}

void simdisk_names_rename(struct cg_list *names, const char *from, const char *to) {
    struct name *name = simdisk_find(names, from);
    if (name == NULL) {
        return;
    }
    struct name *target = simdisk_find(names, to);
    if (target != NULL && target != name) {
        simdisk_name_remove(target);
    }
    snprintf(name->path, sizeof(name->path), "%s", to);
}

void simdisk_change_note(struct simdisk *sim, enum change_kind kind, const char *path,
                         const char *to, struct inode *inode, bool folder) {
    struct change *change = simdisk_must(calloc(1, sizeof(*change)));
    change->kind = kind;
    snprintf(change->path, sizeof(change->path), "%s", path);
    snprintf(change->to, sizeof(change->to), "%s", to != NULL ? to : "");
    change->inode = inode;
    change->folder = folder;
    if (inode != NULL) {
        inode->links++;
    }
    cg_list_push_back(&sim->changes, &change->node);
}

void simdisk_change_settle(struct simdisk *sim, const struct change *change) {
    struct name *name = simdisk_find(&sim->durable, change->path);
    switch (change->kind) {
    case CHANGE_ADD:
        if (name != NULL) {
            simdisk_name_remove(name);
        }
        simdisk_name_add(&sim->durable, change->path, change->inode, change->folder);
        break;
    case CHANGE_REMOVE:
        if (name != NULL) {
            simdisk_name_remove(name);
        }
        break;
    case CHANGE_RENAME:
        simdisk_names_rename(&sim->durable, change->path, change->to);
        break;
    }
}

void simdisk_change_free(struct change *change) {
    cg_list_remove(&change->node);
    simdisk_inode_unref(change->inode);
    free(change);
}

// The folder of a path: its length up to the last slash.
bool simdisk_in_folder(const char *path, const char *folder) {
    const char *slash = strrchr(path, '/');
    size_t length = slash != NULL ? (size_t)(slash - path) : 0;
    return strlen(folder) == length && strncmp(path, folder, length) == 0;
}
