// SPDX-License-Identifier: BSD-3-Clause
#include "chunkserver/dedup.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "chunkserver/bytes.h"

#define CAPACITY_MIN 64U // of a client's table; a power of two, as all its sizes

// Sequences are kept in an open-addressing table with linear probing. 0 marks a free place, so
// sequence 0 has a flag of its own.
struct client {
    struct cg_list lru;
    struct cg_list bucket;
    uint64_t id;
    uint64_t floor;
    uint64_t *table;
    uint32_t capacity;
    uint32_t used; // places taken, those of settled sequences included until the next sweep
    bool zero_done;
};

static uint64_t mix(uint64_t value) {
    value ^= value >> 33;
    value *= UINT64_C(0xff51afd7ed558ccd);
    value ^= value >> 29;
    return value;
}

static struct cg_list *bucket_of(const struct cg_dedup *dedup, uint64_t id) {
    // The list heads are changed only through a non-const dedup.
    return (struct cg_list *)(uintptr_t)&dedup->bucket[mix(id) % 64];
}

static struct client *find(const struct cg_dedup *dedup, uint64_t id) {
    const struct cg_list *bucket = bucket_of(dedup, id);
    CG_LIST_FOREACH (node, bucket) {
        struct client *client = CG_CONTAINER_OF(node, struct client, bucket);
        if (client->id == id) {
            return client;
        }
    }
    return NULL;
}

void cg_dedup_init(struct cg_dedup *dedup) {
    cg_list_init(&dedup->lru);
    for (unsigned i = 0; i < 64; i++) {
        cg_list_init(&dedup->bucket[i]);
    }
    dedup->clients = 0;
}

static void forget(struct cg_dedup *dedup, struct client *client) {
    cg_list_remove(&client->lru);
    cg_list_remove(&client->bucket);
    dedup->clients--;
    free(client->table);
    free(client);
}

void cg_dedup_clear(struct cg_dedup *dedup) {
    CG_LIST_FOREACH_SAFE (node, following, &dedup->lru) {
        forget(dedup, CG_CONTAINER_OF(node, struct client, lru));
    }
}

static struct client *add_client(struct cg_dedup *dedup, uint64_t id, uint32_t capacity) {
    struct client *client = calloc(1, sizeof(*client));
    uint64_t *table = calloc(capacity, sizeof(*table));
    if (client == NULL || table == NULL) {
        free(client);
        free(table);
        return NULL;
    }
    if (dedup->clients >= CG_DEDUP_CLIENTS_MAX) {
        forget(dedup, CG_CONTAINER_OF(dedup->lru.prev, struct client, lru));
    }
    client->id = id;
    client->table = table;
    client->capacity = capacity;
    cg_list_push_front(&dedup->lru, &client->lru);
    cg_list_push_front(bucket_of(dedup, id), &client->bucket);
    dedup->clients++;
    return client;
}

static bool contains(const struct client *client, uint64_t sequence) {
    if (sequence == 0) {
        return client->zero_done;
    }
    for (uint32_t at = (uint32_t)mix(sequence);; at++) {
        uint64_t value = client->table[at & (client->capacity - 1)];
        if (value == sequence) {
            return true;
        }
        if (value == 0) {
            return false;
        }
    }
}

static void put(uint64_t *table, uint32_t capacity, uint64_t sequence) {
    uint32_t at = (uint32_t)mix(sequence);
    while (table[at & (capacity - 1)] != 0) {
        at++;
    }
    table[at & (capacity - 1)] = sequence;
}

static uint32_t unsettled(const struct client *client) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < client->capacity; i++) {
        count += client->table[i] != 0 && client->table[i] >= client->floor;
    }
    return count;
}

// Makes room for one more: drops what is settled, and grows if the rest still fills half the table.
static int sweep(struct client *client) {
    uint32_t keep = unsettled(client);
    uint32_t capacity = CAPACITY_MIN;
    while (capacity < 4 * (keep + 1)) {
        capacity *= 2;
    }
    uint64_t *table = calloc(capacity, sizeof(*table));
    if (table == NULL) {
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < client->capacity; i++) {
        if (client->table[i] != 0 && client->table[i] >= client->floor) {
            put(table, capacity, client->table[i]);
        }
    }
    free(client->table);
    client->table = table;
    client->capacity = capacity;
    client->used = keep;
    return 0;
}

enum cg_dedup_answer cg_dedup_check(const struct cg_dedup *dedup, uint64_t client_id,
                                    uint64_t sequence) {
    const struct client *client = find(dedup, client_id);
    if (client == NULL) {
        return CG_DEDUP_NEW;
    }
    if (sequence < client->floor) {
        return CG_DEDUP_SETTLED;
    }
    if (contains(client, sequence)) {
        return CG_DEDUP_DONE;
    }
    if (client->used >= CG_DEDUP_SEQUENCES_MAX && unsettled(client) >= CG_DEDUP_SEQUENCES_MAX) {
        return CG_DEDUP_FULL;
    }
    return CG_DEDUP_NEW;
}

int cg_dedup_record(struct cg_dedup *dedup, uint64_t client_id, uint64_t sequence,
                    uint64_t settled_below) {
    struct client *client = find(dedup, client_id);
    if (client == NULL) {
        client = add_client(dedup, client_id, CAPACITY_MIN);
        if (client == NULL) {
            return -ENOMEM;
        }
    } else if (dedup->lru.next != &client->lru) {
        cg_list_remove(&client->lru);
        cg_list_push_front(&dedup->lru, &client->lru);
    }
    int answer = CG_DEDUP_NEW;
    if (sequence < client->floor) {
        answer = CG_DEDUP_SETTLED;
    } else if (contains(client, sequence)) {
        answer = CG_DEDUP_DONE;
    }
    if (settled_below > client->floor) {
        client->floor = settled_below;
    }
    if (answer != CG_DEDUP_NEW || sequence < client->floor) {
        return answer;
    }
    if (sequence == 0) {
        client->zero_done = true;
        return answer;
    }
    if (2 * (client->used + 1) > client->capacity) {
        int result = sweep(client);
        if (result != 0) {
            return result;
        }
    }
    put(client->table, client->capacity, sequence);
    client->used++;
    return answer;
}

// ---- Saving: u32 clients, then of each, the one idle longest first: u64 id, u64 floor, u32 flags,
// u32 count, count times u64 sequence.

#define CLIENT_HEAD 24U

size_t cg_dedup_size(const struct cg_dedup *dedup) {
    size_t size = 4;
    CG_LIST_FOREACH (node, &dedup->lru) {
        size += CLIENT_HEAD + 8 * (size_t)unsettled(CG_CONTAINER_OF(node, struct client, lru));
    }
    return size;
}

size_t cg_dedup_encode(const struct cg_dedup *dedup, uint8_t *out) {
    uint8_t *at = out;
    cg_put_u32(at, dedup->clients);
    at += 4;
    for (struct cg_list *node = dedup->lru.prev; node != &dedup->lru; node = node->prev) {
        const struct client *client = CG_CONTAINER_OF(node, struct client, lru);
        cg_put_u64(at, client->id);
        cg_put_u64(at + 8, client->floor);
        cg_put_u32(at + 16, client->zero_done);
        cg_put_u32(at + 20, unsettled(client));
        at += CLIENT_HEAD;
        for (uint32_t i = 0; i < client->capacity; i++) {
            if (client->table[i] != 0 && client->table[i] >= client->floor) {
                cg_put_u64(at, client->table[i]);
                at += 8;
            }
        }
    }
    return (size_t)(at - out);
}

static int64_t decode_client(struct cg_dedup *dedup, const uint8_t *in, size_t length) {
    if (length < CLIENT_HEAD) {
        return -EBADMSG;
    }
    uint32_t count = cg_get_u32(in + 20);
    // Some slack over the limit: what was in flight when it was reached came on top.
    if (count > 2 * CG_DEDUP_SEQUENCES_MAX || (length - CLIENT_HEAD) / 8 < count) {
        return -EBADMSG;
    }
    if (find(dedup, cg_get_u64(in)) != NULL) {
        return -EBADMSG;
    }
    uint32_t capacity = CAPACITY_MIN;
    while (capacity < 4 * (count + 1)) {
        capacity *= 2;
    }
    struct client *client = add_client(dedup, cg_get_u64(in), capacity);
    if (client == NULL) {
        return -ENOMEM;
    }
    client->floor = cg_get_u64(in + 8);
    client->zero_done = cg_get_u32(in + 16) != 0;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t sequence = cg_get_u64(in + CLIENT_HEAD + 8 * (size_t)i);
        if (sequence == 0 || contains(client, sequence)) {
            return -EBADMSG;
        }
        put(client->table, client->capacity, sequence);
        client->used++;
    }
    return (int64_t)(CLIENT_HEAD + 8 * (size_t)count);
}

int64_t cg_dedup_decode(struct cg_dedup *dedup, const uint8_t *in, size_t length) {
    if (length < 4) {
        return -EBADMSG;
    }
    uint32_t clients = cg_get_u32(in);
    if (clients > CG_DEDUP_CLIENTS_MAX) {
        return -EBADMSG;
    }
    size_t at = 4;
    for (uint32_t i = 0; i < clients; i++) {
        int64_t used = decode_client(dedup, in + at, length - at);
        if (used < 0) {
            return used;
        }
        at += (size_t)used;
    }
    return (int64_t)at;
}
