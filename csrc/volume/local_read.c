// SPDX-License-Identifier: BSD-3-Clause
#include "volume/local_read.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/crc32c.h"
#include "base/local_map.h"
#include "base/local_wire.h"
#include "base/log.h"

#define ASKS_MAX       32U // questions without an answer
#define KNOCK_EVERY_NS CG_NS_PER_S
#define CHUNKS_MAX     4096U

// One open chunk file. Lives in a table that is indexed by a hash of the chunk's id and replaced,
// never chained: a collision costs requests, not correctness.
struct local_chunk {
    uint64_t chunk_id;
    uint64_t group;
    const struct cg_local_slot *slot;
    int fd;
    atomic_bool stale; // a reader found that the slot has another chunk now
    struct local_chunk *next_retired;
    unsigned retired_phase;
};

struct local_map {
    const struct cg_local_header *header;
    const struct cg_local_slot *slots;
    size_t length;
    struct local_map *next_retired;
    unsigned retired_phase;
};

struct cg_local_reader {
    struct cg_reactor *reactor;
    struct sockaddr_un address;
    socklen_t address_length;
    uint32_t chunk_blocks;
    unsigned table_mask;
    struct local_chunk *_Atomic *table;
    struct local_map *_Atomic map; // NULL: refuse
    _Atomic uint64_t accepted;     // epoch generation
    // Readers announce themselves in the counter of the current phase; what was taken out of the
    // table is freed when both phases have been seen empty since.
    _Atomic uint32_t readers[2];
    _Atomic unsigned phase;
    struct local_chunk *retired_chunks;
    struct local_map *retired_maps;
    struct cg_watch watch;
    struct cg_timer timer; // knocks again; frees what was retired
    unsigned asks;
    struct cg_local_ask asked[ASKS_MAX];
};

static unsigned table_index(const struct cg_local_reader *reader, uint64_t chunk_id) {
    return (unsigned)((chunk_id * UINT64_C(0x9e3779b97f4a7c15)) >> 32) & reader->table_mask;
}

// ---- Reading, any thread

static int read_and_check(const struct cg_local_reader *reader, const struct local_map *map,
                          struct local_chunk *chunk, uint8_t *data, uint32_t offset,
                          uint32_t length) {
    const struct cg_local_slot *slot = chunk->slot;
    uint64_t version = atomic_load_explicit(&slot->version, memory_order_acquire);
    if ((version & 1) != 0) {
        return -EAGAIN;
    }
    if (atomic_load_explicit(&slot->chunk_id, memory_order_relaxed) != chunk->chunk_id ||
        atomic_load_explicit(&slot->group, memory_order_relaxed) != chunk->group) {
        atomic_store_explicit(&chunk->stale, true, memory_order_relaxed);
        return -EAGAIN;
    }
    struct iovec iov = {.iov_base = data, .iov_len = length};
    if (preadv2(chunk->fd, &iov, 1, (off_t)map->header->data_offset + offset, RWF_NOWAIT) !=
        (ssize_t)length) {
        return -EAGAIN;
    }
    uint32_t first = offset / CG_LOCAL_BLOCK;
    for (uint32_t i = 0; i < length / CG_LOCAL_BLOCK; i++) {
        uint32_t block = first + i;
        uint8_t *at = data + (size_t)i * CG_LOCAL_BLOCK;
        uint8_t bits = __atomic_load_n(&slot->allocated[block / 8], __ATOMIC_RELAXED);
        if ((bits >> (block % 8) & 1) == 0) {
            memset(at, 0, CG_LOCAL_BLOCK);
        } else if (cg_crc32c(0, at, CG_LOCAL_BLOCK) !=
                   __atomic_load_n(&slot->crc[block], __ATOMIC_RELAXED)) {
            return -EAGAIN;
        }
    }
    atomic_thread_fence(memory_order_acquire);
    const struct cg_local_header *header = map->header;
    bool same = atomic_load_explicit(&slot->version, memory_order_relaxed) == version &&
                atomic_load(&header->closed) == 0 &&
                atomic_load(&header->epoch_generation) == atomic_load(&reader->accepted);
    uint64_t lease = atomic_load(&header->lease_until_ns);
    if (same && lease != CG_LOCAL_NEVER_ENDS) {
        same = cg_boottime_ns() < lease;
    }
    return same ? 0 : -EAGAIN;
}

int cg_local_try(struct cg_local_reader *reader, uint32_t pool, uint32_t copyset, uint64_t chunk_id,
                 void *data, uint32_t offset, uint32_t length) {
    if (((offset | length) & (CG_LOCAL_BLOCK - 1)) != 0 ||
        (offset + length) / CG_LOCAL_BLOCK > reader->chunk_blocks) {
        return -EAGAIN;
    }
    unsigned phase = atomic_load(&reader->phase) & 1;
    atomic_fetch_add(&reader->readers[phase], 1);
    int result = -EAGAIN;
    const struct local_map *map = atomic_load(&reader->map);
    struct local_chunk *chunk = atomic_load(&reader->table[table_index(reader, chunk_id)]);
    if (map != NULL && chunk != NULL && chunk->chunk_id == chunk_id &&
        chunk->group == ((uint64_t)pool << 32 | copyset)) {
        result = read_and_check(reader, map, chunk, data, offset, length);
        if (result == 0 && atomic_load(&reader->map) != map) {
            result = -EAGAIN; // reset meanwhile: the chunkserver may be another
        }
    }
    atomic_fetch_sub(&reader->readers[phase], 1);
    return result;
}

// ---- Retiring

static void chunk_free(struct local_chunk *chunk) {
    close(chunk->fd);
    free(chunk);
}

static void map_free(struct local_map *map) {
    munmap((void *)(uintptr_t)map->header, map->length);
    free(map);
}

static void arm_timer(struct cg_local_reader *reader) {
    // Without memory for the timer nothing is freed and nobody knocks; reads go by request.
    if (!cg_timer_armed(&reader->timer) &&
        cg_timer_arm(reader->reactor, &reader->timer,
                     cg_reactor_now(reader->reactor) + KNOCK_EVERY_NS) != 0) {
        cg_log(CG_LOG_WARNING, "local reads: no memory for a timer");
    }
}

static void retire_chunk(struct cg_local_reader *reader, unsigned index) {
    struct local_chunk *chunk = atomic_exchange(&reader->table[index], NULL);
    if (chunk != NULL) {
        chunk->retired_phase = atomic_load(&reader->phase);
        chunk->next_retired = reader->retired_chunks;
        reader->retired_chunks = chunk;
        arm_timer(reader);
    }
}

// A reader that saw the object announced itself in phase `retired` or an earlier one. Advancing the
// phase needs the phase before to be empty, so two advances later nobody is left.
static bool unseen(const struct cg_local_reader *reader, unsigned retired) {
    return atomic_load(&reader->phase) - retired >= 2;
}

static void reap(struct cg_local_reader *reader) {
    unsigned phase = atomic_load(&reader->phase);
    if (atomic_load(&reader->readers[(phase + 1) & 1]) == 0) {
        atomic_store(&reader->phase, phase + 1);
    }
    for (struct local_chunk **link = &reader->retired_chunks; *link != NULL;) {
        struct local_chunk *chunk = *link;
        if (unseen(reader, chunk->retired_phase)) {
            *link = chunk->next_retired;
            chunk_free(chunk);
        } else {
            link = &chunk->next_retired;
        }
    }
    for (struct local_map **link = &reader->retired_maps; *link != NULL;) {
        struct local_map *map = *link;
        if (unseen(reader, map->retired_phase)) {
            *link = map->next_retired;
            map_free(map);
        } else {
            link = &map->next_retired;
        }
    }
}

// ---- The door, reactor's thread

static bool ask(struct cg_local_reader *reader, const struct cg_local_ask *question) {
    if (reader->watch.fd < 0 || reader->asks == ASKS_MAX) {
        return false;
    }
    if (send(reader->watch.fd, question, sizeof(*question), MSG_NOSIGNAL | MSG_DONTWAIT) !=
        (ssize_t)sizeof(*question)) {
        return false;
    }
    reader->asked[reader->asks++] = *question;
    return true;
}

static void install_map(struct cg_local_reader *reader, int fd) {
    struct stat info;
    struct local_map *map = calloc(1, sizeof(*map));
    if (map == NULL || fstat(fd, &info) != 0 ||
        info.st_size < (off_t)sizeof(struct cg_local_header)) {
        free(map);
        return;
    }
    map->length = (size_t)info.st_size;
    void *memory = mmap(NULL, map->length, PROT_READ, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED) {
        free(map);
        return;
    }
    map->header = memory;
    map->slots = (const struct cg_local_slot *)(map->header + 1);
    size_t needed = sizeof(struct cg_local_header) +
                    (size_t)map->header->slot_count * sizeof(struct cg_local_slot);
    if (map->header->magic != CG_LOCAL_MAGIC || map->header->version != CG_LOCAL_VERSION ||
        map->header->slot_size != sizeof(struct cg_local_slot) || needed > map->length) {
        cg_log(CG_LOG_WARNING, "local reads: the chunkserver's map has another format; not used");
        map_free(map);
        return;
    }
    atomic_store(&reader->accepted, UINT64_MAX);
    atomic_store(&reader->map, map);
}

static void install_chunk(struct cg_local_reader *reader, const struct cg_local_ask *question,
                          uint32_t slot, int fd) {
    const struct local_map *map = atomic_load(&reader->map);
    struct local_chunk *chunk = calloc(1, sizeof(*chunk));
    if (map == NULL || slot >= map->header->slot_count || chunk == NULL) {
        free(chunk);
        close(fd);
        return;
    }
    chunk->chunk_id = question->chunk_id;
    chunk->group = (uint64_t)question->pool << 32 | question->copyset;
    chunk->slot = &map->slots[slot];
    chunk->fd = fd;
    unsigned index = table_index(reader, chunk->chunk_id);
    retire_chunk(reader, index);
    atomic_store(&reader->table[index], chunk);
}

static void take_answer(struct cg_local_reader *reader, const struct cg_local_answer *answer,
                        int fd) {
    for (unsigned i = 0; i < reader->asks; i++) {
        struct cg_local_ask question = reader->asked[i];
        if (question.tag != answer->tag || question.chunk_id != answer->chunk_id) {
            continue;
        }
        reader->asked[i] = reader->asked[--reader->asks];
        if (fd >= 0 && answer->status == 0 && question.question == CG_LOCAL_ASK_CHUNK) {
            install_chunk(reader, &question, answer->slot, fd);
            return;
        }
        if (fd >= 0 && question.question == CG_LOCAL_ASK_MAP) {
            install_map(reader, fd);
        }
        break;
    }
    if (fd >= 0) {
        close(fd);
    }
}

static void door_ready(struct cg_watch *watch, uint32_t events) {
    struct cg_local_reader *reader = CG_CONTAINER_OF(watch, struct cg_local_reader, watch);
    (void)events;
    for (;;) {
        struct cg_local_answer answer;
        struct iovec iov = {.iov_base = &answer, .iov_len = sizeof(answer)};
        union {
            struct cmsghdr align;
            char space[CMSG_SPACE(sizeof(int))];
        } control;
        struct msghdr message = {.msg_iov = &iov,
                                 .msg_iovlen = 1,
                                 .msg_control = control.space,
                                 .msg_controllen = sizeof(control.space)};
        ssize_t length = recvmsg(watch->fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
        if (length < 0 && (errno == EAGAIN || errno == EINTR)) {
            return;
        }
        int fd = -1;
        struct cmsghdr *header = length > 0 ? CMSG_FIRSTHDR(&message) : NULL;
        if (header != NULL && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS &&
            header->cmsg_len == CMSG_LEN(sizeof(int))) {
            memcpy(&fd, CMSG_DATA(header), sizeof(fd));
        }
        if (length != (ssize_t)sizeof(answer)) {
            if (fd >= 0) {
                close(fd);
            }
            cg_local_reader_reset(reader);
            return;
        }
        take_answer(reader, &answer, fd);
    }
}

static bool trusted(int fd) {
    struct ucred peer;
    socklen_t length = sizeof(peer);
    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0 &&
           (peer.uid == 0 || peer.uid == geteuid());
}

static void knock(struct cg_local_reader *reader) {
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        return;
    }
    if (connect(fd, (struct sockaddr *)&reader->address, reader->address_length) != 0 ||
        !trusted(fd)) {
        close(fd);
        return;
    }
    reader->watch = (struct cg_watch){.fd = fd, .events = EPOLLIN, .ready = door_ready};
    reader->asks = 0;
    if (cg_reactor_watch(reader->reactor, &reader->watch) != 0) {
        close(fd);
        reader->watch.fd = -1;
        return;
    }
    struct cg_local_ask question = {.question = CG_LOCAL_ASK_MAP};
    if (!ask(reader, &question)) {
        cg_local_reader_reset(reader);
    }
}

static void timer_fired(struct cg_timer *timer) {
    struct cg_local_reader *reader = CG_CONTAINER_OF(timer, struct cg_local_reader, timer);
    reap(reader);
    if (reader->watch.fd < 0) {
        knock(reader);
    }
    if (reader->watch.fd < 0 || reader->retired_chunks != NULL || reader->retired_maps != NULL) {
        arm_timer(reader);
    }
}

// ---- The interface

int cg_local_reader_create(struct cg_reactor *reactor,
                           const struct cg_local_reader_options *options,
                           struct cg_local_reader **out) {
    if (options->chunk_blocks == 0 || options->chunk_blocks > CG_LOCAL_BLOCKS_MAX) {
        return -EINVAL;
    }
    unsigned chunks = options->chunks_max;
    struct rlimit limit;
    if (chunks == 0 && getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        chunks = limit.rlim_cur / 4 < CHUNKS_MAX ? (unsigned)(limit.rlim_cur / 4) : CHUNKS_MAX;
    }
    unsigned size = 16;
    while (size * 2 <= chunks) {
        size *= 2;
    }
    struct cg_local_reader *reader = calloc(1, sizeof(*reader));
    if (reader == NULL) {
        return -ENOMEM;
    }
    reader->table = calloc(size, sizeof(*reader->table));
    if (reader->table == NULL) {
        free(reader);
        return -ENOMEM;
    }
    reader->table_mask = size - 1;
    reader->reactor = reactor;
    reader->chunk_blocks = options->chunk_blocks;
    reader->address_length = cg_local_door_address(options->ip, options->port, &reader->address);
    reader->watch.fd = -1;
    reader->timer.fire = timer_fired;
    atomic_store(&reader->accepted, UINT64_MAX);
    knock(reader);
    *out = reader;
    return 0;
}

void cg_local_reader_reset(struct cg_local_reader *reader) {
    if (reader->watch.fd >= 0) {
        cg_reactor_unwatch(&reader->watch);
        close(reader->watch.fd);
        reader->watch.fd = -1;
    }
    reader->asks = 0;
    struct local_map *map = atomic_exchange(&reader->map, NULL);
    if (map != NULL) {
        map->retired_phase = atomic_load(&reader->phase);
        map->next_retired = reader->retired_maps;
        reader->retired_maps = map;
    }
    for (unsigned i = 0; i <= reader->table_mask; i++) {
        retire_chunk(reader, i);
    }
    arm_timer(reader);
}

void cg_local_reader_destroy(struct cg_local_reader *reader) {
    cg_local_reader_reset(reader);
    cg_timer_disarm(&reader->timer);
    while (reader->retired_chunks != NULL) {
        struct local_chunk *chunk = reader->retired_chunks;
        reader->retired_chunks = chunk->next_retired;
        chunk_free(chunk);
    }
    while (reader->retired_maps != NULL) {
        struct local_map *map = reader->retired_maps;
        reader->retired_maps = map->next_retired;
        map_free(map);
    }
    free((void *)(uintptr_t)reader->table);
    free(reader);
}

uint64_t cg_local_reader_generation(const struct cg_local_reader *reader) {
    const struct local_map *map = atomic_load(&reader->map);
    return map != NULL ? atomic_load(&map->header->epoch_generation) : UINT64_MAX;
}

void cg_local_reader_accepted(struct cg_local_reader *reader, uint64_t generation) {
    // A generation that was taken from a map before a reset says nothing about the next map.
    if (generation != UINT64_MAX && atomic_load(&reader->map) != NULL) {
        atomic_store(&reader->accepted, generation);
    }
}

void cg_local_reader_want(struct cg_local_reader *reader, uint32_t pool, uint32_t copyset,
                          uint64_t chunk_id) {
    if (atomic_load(&reader->map) == NULL) {
        return;
    }
    unsigned index = table_index(reader, chunk_id);
    const struct local_chunk *chunk = atomic_load(&reader->table[index]);
    if (chunk != NULL && chunk->chunk_id == chunk_id && !atomic_load(&chunk->stale)) {
        return;
    }
    for (unsigned i = 0; i < reader->asks; i++) {
        if (reader->asked[i].chunk_id == chunk_id) {
            return;
        }
    }
    struct cg_local_ask question = {.question = CG_LOCAL_ASK_CHUNK,
                                    .pool = pool,
                                    .copyset = copyset,
                                    .chunk_id = chunk_id,
                                    .tag = 1};
    (void)ask(reader, &question); // refused: the next request for the chunk asks again
}
