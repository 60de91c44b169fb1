// SPDX-License-Identifier: BSD-3-Clause
//
// The replicas are compared with each other and with the model, byte for byte.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "chunkserver/store_internal.h"
#include "triomodel.h"

struct local {
    bool done;
    cg_status status;
    uint64_t sn;
    uint8_t data[TRIO_CHUNK_SIZE];
    uint8_t allocated[CG_BLOCKMAP_BYTES];
};

static void local_done(void *user, const struct cg_read_result *result) {
    struct local *local = user;
    local->done = true;
    local->status = result->status;
    local->sn = result->sn;
    if (result->data != NULL) {
        memcpy(local->data, result->data, sizeof(local->data));
    }
    if (result->allocated != NULL) {
        memcpy(local->allocated, result->allocated, sizeof(local->allocated));
    }
}

static void look(struct trio *trio, unsigned at, uint32_t copyset, uint32_t chunk,
                 struct local *out) {
    memset(out, 0, sizeof(*out));
    for (int kind = 0; kind < 2; kind++) {
        struct cg_query query = {
            .kind = kind == 0 ? CG_READ_DATA : CG_READ_STATUS,
            .copyset = trio_copyset(&trio->node[at], copyset),
            .chunk_id = chunk + 1,
            .size = TRIO_CHUNK_SIZE,
            .local = true,
            .done = local_done,
            .user = out,
        };
        do {
            out->done = false;
            cg_store_read(trio->node[at].store, &query);
            while (!out->done) {
                trio_step(trio);
            }
            trio_step(trio);
        } while (out->status == STATUS(OVERLOAD));
    }
}

static void compare_state(struct trio *trio, uint32_t at, uint32_t copyset) {
    struct cg_copyset *a = trio_copyset(&trio->node[0], copyset);
    struct cg_copyset *b = trio_copyset(&trio->node[at], copyset);
    size_t size = cg_dedup_size(&a->dedup);
    uint8_t *first = malloc(size);
    uint8_t *second = malloc(size);
    if (cg_dedup_size(&b->dedup) != size) {
        trio_fail(trio, "windows of different sizes");
    }
    cg_dedup_encode(&a->dedup, first);
    cg_dedup_encode(&b->dedup, second);
    // Clients, the one client's number, floor and how many it has; the rest has no order.
    if (memcmp(first, second, 4 + 24) != 0) {
        trio_fail(trio, "windows that differ");
    }
    if (cg_copyset_epoch(a, TRIO_VOLUME) != cg_copyset_epoch(b, TRIO_VOLUME) ||
        cg_copyset_epoch(a, TRIO_VOLUME) < trio->epoch[copyset]) {
        trio_fail(trio, "epochs that differ, or one that was acknowledged is lost");
    }
    free(first);
    free(second);
}

void trio_compare(struct trio *trio) {
    static struct local first;
    static struct local other;
    static const uint8_t zeros[TRIO_CHUNK_SIZE];
    for (uint32_t copyset = 0; copyset < TRIO_COPYSETS; copyset++) {
        for (uint32_t chunk = 0; chunk < TRIO_CHUNKS; chunk++) {
            look(trio, 0, copyset, chunk, &first);
            bool exists = first.status == STATUS(SUCCESS);
            if (memcmp(exists ? first.data : zeros, trio->chunk[copyset][chunk].data,
                       TRIO_CHUNK_SIZE) != 0) {
                trio_fail(trio, "an acknowledged mutation is lost, or one came twice");
            }
            for (unsigned at = 1; at < TRIO_NODES; at++) {
                look(trio, at, copyset, chunk, &other);
                if (other.status != first.status || other.sn != first.sn ||
                    memcmp(other.data, first.data, sizeof(other.data)) != 0 ||
                    memcmp(other.allocated, first.allocated, sizeof(other.allocated)) != 0) {
                    fprintf(stderr,
                            "copyset %u, chunk %u, node %u: status %d %d, sn %" PRIu64 " %" PRIu64
                            "\n",
                            copyset + 1, chunk + 1, at + 1, (int)first.status, (int)other.status,
                            first.sn, other.sn);
                    trio_fail(trio, "replicas differ");
                }
            }
        }
        for (unsigned at = 1; at < TRIO_NODES; at++) {
            compare_state(trio, at, copyset);
        }
    }
}
