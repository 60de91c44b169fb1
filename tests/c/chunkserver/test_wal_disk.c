// SPDX-License-Identifier: BSD-3-Clause
//
// The log on the real disk and the real reactor: `test_wal_disk uring|epoll FOLDER`. A process is
// killed in the middle of appends again and again, in a folder made under FOLDER; everything that
// it reported as acknowledged must be there. Exits with 77 (skipped) if FOLDER or the backend
// cannot be had.
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/crc32c.h"
#include "base/disk.h"
#include "chunkserver/wal.h"

#define ROUNDS 30
#define DEPTH  16
#define BLOCKS 3U

// Shared with the parent, who looks at it when the child is dead.
struct progress {
    uint64_t acked;      // index of the last acknowledged record
    uint64_t appended;   // of the last one made
    uint64_t checkpoint; // lsn
    uint64_t first;      // index of the first record at or above the checkpoint
    uint64_t fetched;    // batches read back
};

struct slot {
    struct cg_wal_append append;
    struct iovec iov;
    uint32_t crcs[BLOCKS];
};

static struct progress *progress;
static struct cg_reactor *reactor;
static struct cg_disk *disk;
static struct cg_wal *wal;
static struct slot slots[DEPTH];
static uint64_t replayed;
static struct cg_buffer_pool *pool;
static struct cg_wal_fetch fetch;
static bool fetching;
static uint64_t fetched_index; // of the record that the fetch has to give
static const struct cg_wal_options options = {.segment_bytes = 1 << 20, .capacity_bytes = 8 << 20};

static void require(int condition, const char *what) {
    if (!condition) {
        fprintf(stderr, "test_wal_disk: %s: %s\n", what, strerror(errno));
        _exit(1);
    }
}

static int check_record(void *context, uint64_t lsn, const struct cg_wal_record *record,
                        const void *payload) {
    (void)context;
    (void)lsn;
    uint64_t expected = replayed == 0 ? record->index : replayed + 1;
    uint64_t inside;
    memcpy(&inside, payload, sizeof(inside));
    require(record->index == expected && inside == record->index, "a record is out of place");
    if (replayed == 0) {
        require(record->index <= progress->first, "records after the checkpoint are missing");
    }
    replayed = record->index;
    return 0;
}

static void start(struct slot *slot);

static void fetched_record(struct cg_wal_fetch *got, const struct cg_wal_record *record,
                           struct cg_buffer *buffer, const uint8_t *payload) {
    require(got == &fetch && payload == buffer->data, "a fetched payload lies elsewhere");
    uint64_t inside;
    memcpy(&inside, payload, sizeof(inside));
    require(inside == record->index, "a fetched payload is another record's");
    fetched_index = record->index == fetched_index ? 0 : fetched_index;
}

static void fetch_done(struct cg_wal_fetch *got, int status) {
    errno = -status;
    require(status == 0 || (status == -ENOENT && got->lsn < progress->checkpoint), "a fetch");
    require(status != 0 || fetched_index == 0, "a fetch left its record out");
    progress->fetched += status == 0;
    fetching = false;
}

// Reads back what was just written, again and again, next to the appends.
static void fetch_back(const struct cg_wal_append *append) {
    fetching = true;
    fetched_index = append->record.index;
    fetch.lsn = append->lsn;
    fetch.record = fetched_record;
    fetch.done = fetch_done;
    cg_wal_fetch(wal, pool, &fetch);
}

static void done(struct cg_wal_append *append) {
    struct slot *slot = CG_CONTAINER_OF(append, struct slot, append);
    errno = -append->status;
    require(append->status == 0, "append");
    require(append->record.index == progress->acked + 1, "acknowledged out of order");
    progress->acked = append->record.index;
    if (cg_wal_used(wal) > cg_wal_capacity(wal) / 2) {
        progress->first = append->record.index;
        progress->checkpoint = append->lsn;
        cg_wal_recycle(wal, append->lsn);
    }
    if (!fetching) {
        fetch_back(append);
    }
    start(slot);
}

static void start(struct slot *slot) {
    struct cg_wal_append *append = &slot->append;
    append->record.index = ++progress->appended;
    memcpy(slot->iov.iov_base, &append->record.index, sizeof(uint64_t));
    slot->crcs[0] = cg_crc32c(0, slot->iov.iov_base, CG_WAL_BLOCK);
    cg_wal_append(wal, append);
}

static void open_all(const char *folder, enum cg_reactor_backend backend) {
    const struct cg_reactor_options reactor_options = {.backend = backend};
    errno = -cg_reactor_create(&reactor_options, &reactor);
    require(errno == 0, "reactor");
    errno = -cg_disk_open(folder, reactor, &disk);
    require(errno == 0, folder);
    const struct cg_wal_replay replay = {.record = check_record, .from_lsn = progress->checkpoint};
    char error[256];
    replayed = 0;
    int status = cg_wal_open(disk, reactor, &options, &replay, &wal, error, sizeof(error));
    errno = -status;
    require(status == 0, error);
    require(replayed >= progress->acked, "an acknowledged record is lost");
    require(replayed <= progress->appended, "a record was replayed that was never appended");
    progress->acked = replayed;
    progress->appended = replayed;
}

static void child(const char *folder, enum cg_reactor_backend backend) {
    open_all(folder, backend);
    require(cg_buffer_pool_create(1 << 20, &pool) == 0, "pool");
    for (int i = 0; i < DEPTH; i++) {
        struct slot *slot = &slots[i];
        slot->iov.iov_len = BLOCKS * CG_WAL_BLOCK;
        slot->iov.iov_base = aligned_alloc(CG_WAL_BLOCK, slot->iov.iov_len);
        require(slot->iov.iov_base != NULL, "memory");
        memset(slot->iov.iov_base, i, slot->iov.iov_len);
        for (unsigned b = 0; b < BLOCKS; b++) {
            slot->crcs[b] =
                cg_crc32c(0, (char *)slot->iov.iov_base + (size_t)b * CG_WAL_BLOCK, CG_WAL_BLOCK);
        }
        slot->append.record.payload_length = BLOCKS * CG_WAL_BLOCK;
        slot->append.record.block_crcs = slot->crcs;
        slot->append.payload = &slot->iov;
        slot->append.payload_count = 1;
        slot->append.done = done;
        start(slot);
    }
    for (;;) {
        require(cg_reactor_wait(reactor, UINT64_MAX) >= 0, "reactor wait");
    }
}

static void one_round(const char *folder, enum cg_reactor_backend backend, int round) {
    pid_t pid = fork();
    require(pid >= 0, "fork");
    if (pid == 0) {
        child(folder, backend);
    }
    usleep((useconds_t)(5000 + round * 7919 % 60000));
    kill(pid, SIGKILL);
    int status;
    require(waitpid(pid, &status, 0) == pid, "waitpid");
    require(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "the child failed");
}

int main(int argc, char **argv) {
    if (argc != 3 || access(argv[2], W_OK) != 0) {
        return 77;
    }
    enum cg_reactor_backend backend =
        strcmp(argv[1], "uring") == 0 ? CG_REACTOR_URING : CG_REACTOR_EPOLL;
    const struct cg_reactor_options probe = {.backend = backend};
    if (cg_reactor_create(&probe, &reactor) != 0) {
        return 77;
    }
    cg_reactor_destroy(reactor);
    char folder[256];
    snprintf(folder, sizeof(folder), "%s/test-wal-XXXXXX", argv[2]);
    require(mkdtemp(folder) != NULL, "mkdtemp");
    progress =
        mmap(NULL, sizeof(*progress), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    require(progress != MAP_FAILED, "mmap");
    progress->first = 1;
    for (int round = 0; round < ROUNDS; round++) {
        one_round(folder, backend, round);
    }
    open_all(folder, backend);
    cg_wal_close(wal);
    cg_disk_close(disk);
    cg_reactor_destroy(reactor);
    printf("%d kills, %llu records, %llu batches read back\n", ROUNDS,
           (unsigned long long)progress->acked, (unsigned long long)progress->fetched);
    int ok = progress->acked > 0 && progress->fetched > 0;
    char command[300];
    snprintf(command, sizeof(command), "rm -rf '%s'", folder);
    return system(command) == 0 && ok ? 0 : 1;
}
