// SPDX-License-Identifier: BSD-3-Clause
#include "volume/local_read.h"

#include <errno.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
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
#include "base/peer.h"

#define ASKS_MAX       32U // questions without an answer, per door
#define KNOCK_EVERY_NS CG_NS_PER_S
#define CHUNKS_MAX     4096U
#define WAYS           4U // chunks of a set of the table

struct local_map {
    const struct cg_local_header *header;
    const struct cg_local_slot *slots;
    const struct cg_local_lease *leases; // behind the slots
    size_t length;                       // of both
    struct local_map *next_retired;
    unsigned retired_phase;
};

// One open chunk file. Lives in a set-associative table: its key says in which WAYS places it may
// be. Where they are all taken it replaces another one, which costs requests, not correctness.
struct local_chunk {
    uint64_t key;
    uint64_t chunk_id;
    uint64_t group;
    struct cg_local_door *door;
    const struct local_map *map;
    const struct cg_local_slot *slot;
    const struct cg_local_lease *lease;
    int fd;
    atomic_bool stale; // a reader found that the slot has another chunk now
    struct local_chunk *next_retired;
    unsigned retired_phase;
};

struct question {
    struct cg_local_ask ask;
    uint64_t key;
    bool voided; // forgotten meanwhile: the answer is thrown away
};

struct cg_local_door {
    struct cg_list node;
    struct cg_local_reader *reader;
    char name[64];
    struct sockaddr_un address;
    socklen_t address_length;
    struct local_map *_Atomic map; // NULL: refuse
    _Atomic uint64_t accepted;     // epoch generation
    struct cg_watch watch;
    uint64_t next_tag;
    unsigned asks;
    struct question asked[ASKS_MAX];
};

struct cg_local_reader {
    struct cg_reactor *reactor;
    uint32_t chunk_blocks;
    unsigned set_bits;
    unsigned victim;                    // counts replacements
    struct local_chunk *_Atomic *table; // (1 << set_bits) sets of WAYS
    struct cg_list doors;
    // Readers announce themselves in the counter of the current phase; what was taken out of the
    // table is freed when both counters have been seen empty since.
    _Atomic uint32_t readers[2];
    _Atomic unsigned phase;
    struct local_chunk *retired_chunks;
    struct local_map *retired_maps;
    atomic_bool closing;
    struct cg_timer timer; // knocks again; frees what was retired
};

static unsigned table_size(const struct cg_local_reader *reader) {
    return WAYS << reader->set_bits;
}

// The first place of the key's set. The product's highest bits spread neighbours evenly (Knuth, The
// Art of Computer Programming, volume 3, section 6.4).
static unsigned set_of(const struct cg_local_reader *reader, uint64_t key) {
    return WAYS * (unsigned)((key * UINT64_C(0x9e3779b97f4a7c15)) >> (64 - reader->set_bits));
}

// The chunk with `key`, and where it is; NULL if it is not there.
static struct local_chunk *find(const struct cg_local_reader *reader, uint64_t key,
                                unsigned *place) {
    unsigned first = set_of(reader, key);
    for (unsigned i = first; i < first + WAYS; i++) {
        struct local_chunk *chunk = atomic_load(&reader->table[i]);
        if (chunk != NULL && chunk->key == key) {
            *place = i;
            return chunk;
        }
    }
    return NULL;
}

// ---- Reading, any thread

static int check_blocks(const struct cg_local_slot *slot, uint8_t *data, uint32_t first,
                        uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
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
    return 0;
}

// Whether the replica still leads, as far as it has told.
static bool lease_holds(const struct local_chunk *chunk) {
    uint64_t until = atomic_load(&chunk->lease->until_ns);
    return until == CG_LOCAL_NEVER_ENDS || cg_boottime_ns() + CG_LOCAL_LEASE_MARGIN_NS < until;
}

// Whether the chunkserver that made the map still stands for what it says.
static bool map_stands(const struct local_chunk *chunk) {
    const struct cg_local_door *door = chunk->door;
    const struct cg_local_header *header = chunk->map->header;
    if (atomic_load(&door->map) != chunk->map || atomic_load(&header->closed) != 0 ||
        atomic_load(&header->epoch_generation) != atomic_load(&door->accepted)) {
        return false;
    }
    return lease_holds(chunk);
}

static int read_and_check(struct local_chunk *chunk, uint8_t *data, uint32_t offset,
                          uint32_t length) {
    const struct cg_local_slot *slot = chunk->slot;
    uint64_t version = atomic_load_explicit(&slot->version, memory_order_acquire);
    if ((version & 1) != 0 || !lease_holds(chunk)) {
        return -EAGAIN;
    }
    if (atomic_load_explicit(&slot->chunk_id, memory_order_relaxed) != chunk->chunk_id ||
        atomic_load_explicit(&slot->group, memory_order_relaxed) != chunk->group) {
        atomic_store_explicit(&chunk->stale, true, memory_order_relaxed);
        return -EAGAIN;
    }
    struct iovec iov = {.iov_base = data, .iov_len = length};
    off_t position = (off_t)chunk->map->header->data_offset + offset;
    if (preadv2(chunk->fd, &iov, 1, position, RWF_NOWAIT) != (ssize_t)length) {
        return -EAGAIN;
    }
    if (check_blocks(slot, data, offset / CG_LOCAL_BLOCK, length / CG_LOCAL_BLOCK) != 0) {
        return -EAGAIN;
    }
    atomic_thread_fence(memory_order_acquire);
    bool same = atomic_load_explicit(&slot->version, memory_order_relaxed) == version;
    return same && map_stands(chunk) ? 0 : -EAGAIN;
}

int cg_local_try(struct cg_local_reader *reader, uint64_t key, void *data, uint32_t offset,
                 uint32_t length) {
    if (((offset | length) & (CG_LOCAL_BLOCK - 1)) != 0 ||
        ((uint64_t)offset + length) / CG_LOCAL_BLOCK > reader->chunk_blocks) {
        return -EAGAIN;
    }
    unsigned phase = atomic_load(&reader->phase) & 1;
    atomic_fetch_add(&reader->readers[phase], 1);
    unsigned place;
    struct local_chunk *chunk = find(reader, key, &place);
    int result = -EAGAIN;
    if (!atomic_load(&reader->closing) && chunk != NULL) {
        result = read_and_check(chunk, data, offset, length);
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
    if (map->header != NULL) {
        munmap((void *)(uintptr_t)map->header, sizeof(struct cg_local_header));
    }
    if (map->slots != NULL) {
        munmap((void *)(uintptr_t)map->slots, map->length);
    }
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

static void retire_chunk(struct cg_local_reader *reader, unsigned place) {
    struct local_chunk *chunk = atomic_exchange(&reader->table[place], NULL);
    if (chunk != NULL) {
        chunk->retired_phase = atomic_load(&reader->phase);
        chunk->next_retired = reader->retired_chunks;
        reader->retired_chunks = chunk;
        arm_timer(reader);
    }
}

// A reader that saw the object announced itself in phase `retired` or an earlier one. Advancing the
// phase needs the other counter to be empty, so two advances later nobody is left.
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

static bool ask(struct cg_local_door *door, struct cg_local_ask what, uint64_t key) {
    if (door->watch.fd < 0 || door->asks == ASKS_MAX) {
        return false;
    }
    what.tag = door->next_tag++;
    if (send(door->watch.fd, &what, sizeof(what), MSG_NOSIGNAL | MSG_DONTWAIT) !=
        (ssize_t)sizeof(what)) {
        return false;
    }
    door->asked[door->asks++] = (struct question){.ask = what, .key = key};
    return true;
}

// NULL when the file is shorter than `length` or cannot be mapped: a store past its end would be a
// SIGBUS.
static const void *map_file(int fd, size_t length) {
    struct stat info;
    if (fstat(fd, &info) != 0 || info.st_size < (off_t)length) {
        return NULL;
    }
    void *memory = mmap(NULL, length, PROT_READ, MAP_SHARED, fd, 0);
    return memory == MAP_FAILED ? NULL : memory;
}

static bool map_parts(struct local_map *map, int header_fd, int slots_fd) {
    map->header = map_file(header_fd, sizeof(struct cg_local_header));
    const struct cg_local_header *header = map->header;
    if (header == NULL || header->magic != CG_LOCAL_MAGIC || header->version != CG_LOCAL_VERSION ||
        header->slot_size != sizeof(struct cg_local_slot) ||
        header->slot_count > CG_LOCAL_SLOTS_MAX || header->lease_count != CG_LOCAL_LEASES) {
        return false;
    }
    map->length = (size_t)header->slot_count * sizeof(struct cg_local_slot) +
                  CG_LOCAL_LEASES * sizeof(struct cg_local_lease);
    map->slots = map_file(slots_fd, map->length);
    if (map->slots == NULL) {
        return false;
    }
    map->leases = (const struct cg_local_lease *)(map->slots + header->slot_count);
    return true;
}

// NULL: the chunkserver has none for this copyset.
static const struct cg_local_lease *find_lease(const struct local_map *map, uint64_t group) {
    uint32_t place = cg_local_lease_place(group);
    for (uint32_t i = 0; i < CG_LOCAL_LEASES; i++) {
        const struct cg_local_lease *lease = &map->leases[(place + i) & (CG_LOCAL_LEASES - 1)];
        uint64_t key = atomic_load(&lease->key);
        if (key == group + 1 || key == 0) {
            return key == 0 ? NULL : lease;
        }
    }
    return NULL;
}

static void install_map(struct cg_local_door *door, int header_fd, int slots_fd) {
    struct local_map *map = calloc(1, sizeof(*map));
    if (map == NULL) {
        return;
    }
    if (!map_parts(map, header_fd, slots_fd) || atomic_load(&door->map) != NULL) {
        cg_log(CG_LOG_WARNING, "local reads: %s: a map that does not fit; not used", door->name);
        map_free(map);
        return;
    }
    atomic_store(&door->accepted, CG_LOCAL_NO_GENERATION);
    atomic_store(&door->map, map);
}

// Where a chunk with `key` is to go: a key is in the table once at most.
static unsigned place_for(struct cg_local_reader *reader, uint64_t key) {
    unsigned place;
    if (find(reader, key, &place) != NULL) {
        return place;
    }
    unsigned first = set_of(reader, key);
    for (unsigned i = first; i < first + WAYS; i++) {
        const struct local_chunk *chunk = atomic_load(&reader->table[i]);
        if (chunk == NULL || atomic_load(&chunk->stale)) {
            return i;
        }
    }
    return first + reader->victim++ % WAYS;
}

static void install_chunk(struct cg_local_door *door, const struct question *question,
                          uint32_t slot, int fd) {
    struct cg_local_reader *reader = door->reader;
    const struct local_map *map = atomic_load(&door->map);
    uint64_t group = (uint64_t)question->ask.pool << 32 | question->ask.copyset;
    const struct cg_local_lease *lease = map != NULL ? find_lease(map, group) : NULL;
    struct local_chunk *chunk = calloc(1, sizeof(*chunk));
    if (lease == NULL || slot >= map->header->slot_count || chunk == NULL) {
        free(chunk);
        close(fd);
        return;
    }
    chunk->key = question->key;
    chunk->chunk_id = question->ask.chunk_id;
    chunk->group = group;
    chunk->lease = lease;
    chunk->door = door;
    chunk->map = map;
    chunk->slot = &map->slots[slot];
    chunk->fd = fd;
    unsigned place = place_for(reader, chunk->key);
    retire_chunk(reader, place);
    atomic_store(&reader->table[place], chunk);
}

// Uses the descriptors that came along; those left in `fds` (not -1) are closed by the caller.
static void take_answer(struct cg_local_door *door, const struct cg_local_answer *answer,
                        int fds[CG_LOCAL_FDS_MAX]) {
    for (unsigned i = 0; i < door->asks; i++) {
        if (door->asked[i].ask.tag != answer->tag) {
            continue;
        }
        struct question question = door->asked[i];
        door->asked[i] = door->asked[--door->asks];
        if (fds[0] < 0 || answer->status != 0 || question.voided) {
            return;
        }
        if (question.ask.question == CG_LOCAL_ASK_CHUNK) {
            install_chunk(door, &question, answer->slot, fds[0]);
            fds[0] = -1;
        } else if (fds[1] >= 0) {
            install_map(door, fds[0], fds[1]);
        }
        return;
    }
}

// Receives one answer. False: none now, or the door is shut (and was reset).
static bool receive_answer(struct cg_local_door *door) {
    struct cg_local_answer answer;
    struct iovec iov = {.iov_base = &answer, .iov_len = sizeof(answer)};
    union {
        struct cmsghdr align;
        char space[CMSG_SPACE(CG_LOCAL_FDS_MAX * sizeof(int))];
    } control;
    struct msghdr message = {.msg_iov = &iov,
                             .msg_iovlen = 1,
                             .msg_control = control.space,
                             .msg_controllen = sizeof(control.space)};
    ssize_t length = recvmsg(door->watch.fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (length < 0 && (errno == EAGAIN || errno == EINTR)) {
        return false;
    }
    int fds[CG_LOCAL_FDS_MAX] = {-1, -1};
    struct cmsghdr *header = length > 0 ? CMSG_FIRSTHDR(&message) : NULL;
    if (header != NULL && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS &&
        header->cmsg_len <= CMSG_LEN(sizeof(fds))) {
        memcpy(fds, CMSG_DATA(header), header->cmsg_len - CMSG_LEN(0));
    }
    bool whole = length == (ssize_t)sizeof(answer);
    if (whole) {
        take_answer(door, &answer, fds);
    }
    for (unsigned i = 0; i < CG_LOCAL_FDS_MAX; i++) {
        if (fds[i] >= 0) {
            close(fds[i]);
        }
    }
    if (!whole) {
        cg_local_door_reset(door);
    }
    return whole;
}

static void door_ready(struct cg_watch *watch, uint32_t events) {
    (void)events;
    while (receive_answer(CG_CONTAINER_OF(watch, struct cg_local_door, watch))) {
    }
}

static void knock(struct cg_local_door *door) {
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        return;
    }
    if (connect(fd, (struct sockaddr *)&door->address, door->address_length) != 0 ||
        !cg_peer_trusted(fd)) {
        close(fd);
        return;
    }
    door->watch = (struct cg_watch){.fd = fd, .events = EPOLLIN, .ready = door_ready};
    door->asks = 0;
    if (cg_reactor_watch(door->reader->reactor, &door->watch) != 0) {
        close(fd);
        door->watch.fd = -1;
        return;
    }
    if (!ask(door, (struct cg_local_ask){.question = CG_LOCAL_ASK_MAP}, 0)) {
        cg_local_door_reset(door);
    }
}

static void timer_fired(struct cg_timer *timer) {
    struct cg_local_reader *reader = CG_CONTAINER_OF(timer, struct cg_local_reader, timer);
    reap(reader);
    bool again = reader->retired_chunks != NULL || reader->retired_maps != NULL;
    CG_LIST_FOREACH (node, &reader->doors) {
        struct cg_local_door *door = CG_CONTAINER_OF(node, struct cg_local_door, node);
        if (door->watch.fd < 0) {
            knock(door);
        }
        again = again || door->watch.fd < 0;
    }
    if (again) {
        arm_timer(reader);
    }
}

// ---- The interface

int cg_local_reader_create(struct cg_reactor *reactor, uint32_t chunk_blocks, unsigned chunks_max,
                           struct cg_local_reader **out) {
    if (chunk_blocks == 0 || chunk_blocks > CG_LOCAL_BLOCKS_MAX) {
        return -EINVAL;
    }
    struct rlimit limit;
    if (chunks_max == 0 && getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        chunks_max = limit.rlim_cur / 4 < CHUNKS_MAX ? (unsigned)(limit.rlim_cur / 4) : CHUNKS_MAX;
    }
    unsigned set_bits = 2;
    while (WAYS << (set_bits + 1) <= chunks_max) {
        set_bits++;
    }
    struct cg_local_reader *reader = calloc(1, sizeof(*reader));
    if (reader == NULL) {
        return -ENOMEM;
    }
    reader->set_bits = set_bits;
    reader->table = calloc(table_size(reader), sizeof(*reader->table));
    if (reader->table == NULL) {
        free(reader);
        return -ENOMEM;
    }
    reader->reactor = reactor;
    reader->chunk_blocks = chunk_blocks;
    reader->timer.fire = timer_fired;
    cg_list_init(&reader->doors);
    *out = reader;
    return 0;
}

struct cg_local_door *cg_local_door_get(struct cg_local_reader *reader, const char *address) {
    CG_LIST_FOREACH (node, &reader->doors) {
        struct cg_local_door *door = CG_CONTAINER_OF(node, struct cg_local_door, node);
        if (strcmp(door->name, address) == 0) {
            return door;
        }
    }
    struct cg_local_door *door = calloc(1, sizeof(*door));
    if (door == NULL) {
        return NULL;
    }
    snprintf(door->name, sizeof(door->name), "%s", address);
    door->reader = reader;
    door->address_length = cg_local_door_address(address, &door->address);
    door->watch.fd = -1;
    atomic_store(&door->accepted, CG_LOCAL_NO_GENERATION);
    cg_list_push_back(&reader->doors, &door->node);
    knock(door);
    if (door->watch.fd < 0) {
        arm_timer(reader);
    }
    return door;
}

void cg_local_door_reset(struct cg_local_door *door) {
    struct cg_local_reader *reader = door->reader;
    if (door->watch.fd >= 0) {
        cg_reactor_unwatch(&door->watch);
        close(door->watch.fd);
        door->watch.fd = -1;
    }
    door->asks = 0;
    struct local_map *map = atomic_exchange(&door->map, NULL);
    if (map != NULL) {
        map->retired_phase = atomic_load(&reader->phase);
        map->next_retired = reader->retired_maps;
        reader->retired_maps = map;
    }
    for (unsigned i = 0; i < table_size(reader); i++) {
        const struct local_chunk *chunk = atomic_load(&reader->table[i]);
        if (chunk != NULL && chunk->door == door) {
            retire_chunk(reader, i);
        }
    }
    arm_timer(reader);
}

void cg_local_reader_destroy(struct cg_local_reader *reader) {
    struct cg_list *node;
    atomic_store(&reader->closing, true);
    while (atomic_load(&reader->readers[0]) != 0 || atomic_load(&reader->readers[1]) != 0) {
        sched_yield(); // readers do not block
    }
    CG_LIST_FOREACH (position, &reader->doors) {
        cg_local_door_reset(CG_CONTAINER_OF(position, struct cg_local_door, node));
    }
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
    while ((node = cg_list_pop_front(&reader->doors)) != NULL) {
        free(CG_CONTAINER_OF(node, struct cg_local_door, node));
    }
    free((void *)(uintptr_t)reader->table);
    free(reader);
}

uint64_t cg_local_door_generation(const struct cg_local_door *door) {
    const struct local_map *map = atomic_load(&door->map);
    uint64_t generation =
        map != NULL ? atomic_load(&map->header->epoch_generation) : CG_LOCAL_NO_GENERATION;
    // Odd: an epoch is being raised, and what is accepted now may not be in a moment.
    return (generation & 1) == 0 ? generation : CG_LOCAL_NO_GENERATION;
}

void cg_local_door_accepted(struct cg_local_door *door, uint64_t generation) {
    // Generations of different maps differ: one taken before a reset fits no later map.
    if (generation != CG_LOCAL_NO_GENERATION) {
        atomic_store(&door->accepted, generation);
    }
}

void cg_local_want(struct cg_local_door *door, uint64_t key, uint32_t pool, uint32_t copyset,
                   uint64_t chunk_id) {
    if (atomic_load(&door->map) == NULL) {
        return;
    }
    unsigned place;
    const struct local_chunk *chunk = find(door->reader, key, &place);
    if (chunk != NULL && chunk->chunk_id == chunk_id && chunk->door == door &&
        !atomic_load(&chunk->stale)) {
        return;
    }
    for (unsigned i = 0; i < door->asks; i++) {
        if (door->asked[i].ask.chunk_id == chunk_id && !door->asked[i].voided) {
            return;
        }
    }
    struct cg_local_ask what = {
        .question = CG_LOCAL_ASK_CHUNK, .pool = pool, .copyset = copyset, .chunk_id = chunk_id};
    (void)ask(door, what, key); // refused: the next request for the chunk asks again
}

void cg_local_forget(struct cg_local_reader *reader, uint64_t key) {
    unsigned place;
    if (find(reader, key, &place) != NULL) {
        retire_chunk(reader, place);
    }
    CG_LIST_FOREACH (node, &reader->doors) {
        struct cg_local_door *door = CG_CONTAINER_OF(node, struct cg_local_door, node);
        for (unsigned i = 0; i < door->asks; i++) {
            if (door->asked[i].ask.question == CG_LOCAL_ASK_CHUNK && door->asked[i].key == key) {
                door->asked[i].voided = true;
            }
        }
    }
}
