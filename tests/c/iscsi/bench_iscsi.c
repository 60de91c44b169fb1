// SPDX-License-Identifier: BSD-3-Clause
//
// Load on iSCSI LUNs: fio in Debian is built without its iscsi engine, and iscsi-perf only reads.
// One session per URL, all driven by one thread; prints one JSON object.
//
// Usage: bench_iscsi read|write random|sequential BLOCK DEPTH SPAN SECONDS URL...
//   BLOCK, SPAN: bytes; DEPTH: commands in flight per session
//   SECONDS: or "once": each block of SPAN once, in order
//   URL: iscsi://HOST:PORT/IQN/LUN
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <iscsi/iscsi.h>
#include <iscsi/scsi-lowlevel.h>

#include "base/clock.h"
#include "base/histogram.h"

#define SESSIONS_MAX 16
#define DEPTH_MAX    512U
// A command that takes longer than this is a failure of the target.
#define COMMAND_TIMEOUT_S 60
// Not counted: connections and caches settle.
#define WARM_UP_NS (500 * CG_NS_PER_MS)

struct session;

struct command {
    struct session *session;
    struct scsi_iovec iov;
    uint64_t began_ns;
};

struct session {
    struct iscsi_context *iscsi;
    int lun;
    uint32_t sector; // bytes of a logical block
    uint64_t next;   // sequential: index of the next block
    uint64_t random;
    unsigned inflight;
    struct command commands[DEPTH_MAX];
};

static bool writes;
static bool random_order;
static bool once;
static uint32_t block;
static uint64_t blocks;
static uint64_t counted_from_ns;
static uint64_t ends_ns;
static struct cg_histogram latency;

static _Noreturn void fail(const char *what, const char *why) {
    fprintf(stderr, "bench_iscsi: %s: %s\n", what, why);
    exit(1);
}

static uint64_t next_block(struct session *session) {
    if (!random_order) {
        return session->next++ % blocks;
    }
    session->random ^= session->random << 13;
    session->random ^= session->random >> 7;
    session->random ^= session->random << 17;
    return session->random % blocks;
}

static void submit(struct command *command);

static void on_done(struct iscsi_context *iscsi, int status, void *data, void *user) {
    struct scsi_task *task = data;
    struct command *command = user;
    if (status != SCSI_STATUS_GOOD) {
        fail(writes ? "write" : "read", iscsi_get_error(iscsi));
    }
    if (!writes && task->residual_status != SCSI_RESIDUAL_NO_RESIDUAL) {
        fail("read", "fewer bytes than asked for");
    }
    scsi_free_scsi_task(task);
    uint64_t now = cg_now_ns();
    if (command->began_ns >= counted_from_ns && now <= ends_ns) {
        cg_histogram_add(&latency, now - command->began_ns);
    }
    if (once ? command->session->next < blocks : now < ends_ns) {
        submit(command);
    } else {
        command->session->inflight--;
    }
}

static void submit(struct command *command) {
    struct session *session = command->session;
    uint64_t lba = next_block(session) * (block / session->sector);
    struct scsi_task *task;
    command->began_ns = cg_now_ns();
    if (writes) {
        task = iscsi_write16_task(session->iscsi, session->lun, lba, command->iov.iov_base, block,
                                  (int)session->sector, 0, 0, 0, 0, 0, on_done, command);
    } else {
        task = iscsi_read16_task(session->iscsi, session->lun, lba, block, (int)session->sector, 0,
                                 0, 0, 0, 0, on_done, command);
        if (task != NULL) {
            scsi_task_set_iov_in(task, &command->iov, 1);
        }
    }
    if (task == NULL) {
        fail("submit", iscsi_get_error(session->iscsi));
    }
}

static void log_in(struct session *session, const char *text) {
    session->iscsi = iscsi_create_context("iqn.2026-11.io.copygate:bench");
    if (session->iscsi == NULL) {
        fail(text, "no memory");
    }
    struct iscsi_url *url = iscsi_parse_full_url(session->iscsi, text);
    if (url == NULL) {
        fail(text, iscsi_get_error(session->iscsi));
    }
    iscsi_set_targetname(session->iscsi, url->target);
    iscsi_set_session_type(session->iscsi, ISCSI_SESSION_NORMAL);
    iscsi_set_header_digest(session->iscsi, ISCSI_HEADER_DIGEST_NONE);
    iscsi_set_noautoreconnect(session->iscsi, 1);
    iscsi_set_timeout(session->iscsi, COMMAND_TIMEOUT_S);
    session->lun = url->lun;
    if (iscsi_full_connect_sync(session->iscsi, url->portal, url->lun) != 0) {
        fail(text, iscsi_get_error(session->iscsi));
    }
    iscsi_destroy_url(url);
    struct scsi_task *task = iscsi_readcapacity16_sync(session->iscsi, session->lun);
    struct scsi_readcapacity16 *capacity =
        task != NULL && task->status == SCSI_STATUS_GOOD ? scsi_datain_unmarshall(task) : NULL;
    if (capacity == NULL) {
        fail(text, "no answer to READ CAPACITY 16");
    }
    session->sector = capacity->block_length;
    if (session->sector == 0 || block % session->sector != 0 ||
        (capacity->returned_lba + 1) * session->sector < blocks * block) {
        fail(text, "the LUN is smaller than SPAN, or BLOCK is no multiple of its blocks");
    }
    scsi_free_scsi_task(task);
}

static void begin(struct session *session, unsigned index, unsigned depth) {
    session->random = 0x9E3779B97F4A7C15U + index;
    session->inflight = once && depth > blocks ? (unsigned)blocks : depth;
    for (unsigned i = 0; i < session->inflight; i++) {
        struct command *command = &session->commands[i];
        command->session = session;
        command->iov.iov_len = block;
        command->iov.iov_base = aligned_alloc(4096, ((size_t)block + 4095) / 4096 * 4096);
        if (command->iov.iov_base == NULL) {
            fail("buffers", "no memory");
        }
        // No pattern that a store could treat as zeros.
        memset(command->iov.iov_base, (int)(1 + (i + index) % 255), block);
        submit(command);
    }
}

static void drive(struct session *const *sessions, unsigned count) {
    struct pollfd polled[SESSIONS_MAX];
    for (;;) {
        unsigned busy = 0;
        for (unsigned i = 0; i < count; i++) {
            polled[i].fd = iscsi_get_fd(sessions[i]->iscsi);
            polled[i].events = (short)iscsi_which_events(sessions[i]->iscsi);
            polled[i].revents = 0;
            busy += sessions[i]->inflight;
        }
        if (busy == 0) {
            return;
        }
        if (poll(polled, count, 1000) < 0 && errno != EINTR) {
            fail("poll", strerror(errno));
        }
        for (unsigned i = 0; i < count; i++) {
            if (iscsi_service(sessions[i]->iscsi, polled[i].revents) != 0) {
                fail("connection", iscsi_get_error(sessions[i]->iscsi));
            }
        }
    }
}

static uint64_t number(const char *text, const char *name, uint64_t most) {
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || value == 0 || value > most) {
        fail(name, text);
    }
    return value;
}

static bool choice(const char *text, const char *yes, const char *no) {
    if (strcmp(text, yes) != 0 && strcmp(text, no) != 0) {
        fail("neither of the two words that it can be", text);
    }
    return strcmp(text, yes) == 0;
}

int main(int argc, char **argv) {
    if (argc < 8 || argc - 7 > SESSIONS_MAX) {
        fprintf(
            stderr,
            "usage: bench_iscsi read|write random|sequential BLOCK DEPTH SPAN SECONDS URL...\n");
        return 2;
    }
    writes = choice(argv[1], "write", "read");
    random_order = choice(argv[2], "random", "sequential");
    block = (uint32_t)number(argv[3], "BLOCK", 16U << 20);
    unsigned depth = (unsigned)number(argv[4], "DEPTH", DEPTH_MAX);
    blocks = number(argv[5], "SPAN", UINT64_MAX) / block;
    once = strcmp(argv[6], "once") == 0;
    uint64_t seconds = once ? 1 : number(argv[6], "SECONDS", 3600);
    unsigned count = (unsigned)argc - 7;
    if (blocks == 0) {
        fail("SPAN", "smaller than a block");
    }
    if (once && random_order) {
        fail("once", "only in order");
    }
    struct session *sessions[SESSIONS_MAX];
    for (unsigned i = 0; i < count; i++) {
        sessions[i] = calloc(1, sizeof(*sessions[i]));
        if (sessions[i] == NULL) {
            fail("session", "no memory");
        }
        log_in(sessions[i], argv[7 + i]);
    }
    counted_from_ns = cg_now_ns() + (once ? 0 : WARM_UP_NS);
    ends_ns = once ? UINT64_MAX : counted_from_ns + seconds * CG_NS_PER_S;
    for (unsigned i = 0; i < count; i++) {
        begin(sessions[i], i, depth);
    }
    drive(sessions, count);
    double counted_s =
        once ? (double)(cg_now_ns() - counted_from_ns) / CG_NS_PER_S : (double)seconds;
    for (unsigned i = 0; i < count; i++) {
        iscsi_logout_sync(sessions[i]->iscsi);
        iscsi_destroy_context(sessions[i]->iscsi);
    }
    printf("{\"ios\": %" PRIu64 ", \"iops\": %.1f, \"bytes_per_second\": %.0f, \"mean_ns\": %.0f",
           latency.count, (double)latency.count / counted_s,
           (double)latency.count * block / counted_s,
           latency.count != 0 ? (double)latency.sum / (double)latency.count : 0.0);
    printf(", \"p50_ns\": %" PRIu64 ", \"p99_ns\": %" PRIu64 ", \"p99_9_ns\": %" PRIu64 "}\n",
           cg_histogram_percentile(&latency, 50), cg_histogram_percentile(&latency, 99),
           cg_histogram_percentile(&latency, 99.9));
    return 0;
}
