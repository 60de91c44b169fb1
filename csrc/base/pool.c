// SPDX-License-Identifier: BSD-3-Clause
#include "base/pool.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"

struct cg_pool {
    struct cg_reactor *reactor;
    pthread_mutex_t lock;
    pthread_cond_t work;
    struct cg_list queue;
    unsigned queued;
    unsigned idle;
    bool stopping;
    unsigned thread_count;
    unsigned thread_limit;
    pthread_t threads[];
};

// A finished operation travels home as a task in the memory that it reserves for the reactor.
static_assert(sizeof(struct cg_task) <= sizeof(((struct cg_file_op *)0)->internal),
              "cg_file_op.internal holds a task");

static int64_t errno_of(int64_t result) {
    return result < 0 ? -errno : result;
}

// The page cache takes what one call writes in as large a piece as it can. Pieces of a MiB make the
// call itself twice as slow and every later 4 KiB write into them as well (measured on ext4,
// Linux 6.18).
#define BUFFERED_SLICE (128U << 10)

// Several pieces of memory stay one call: the log's batches, each call of which would be synced.
static int64_t write_buffered(const struct cg_file_op *op) {
    if (op->iovcnt != 1) {
        return errno_of(pwritev2(op->fd, op->iov, op->iovcnt, (off_t)op->offset, op->rw_flags));
    }
    struct iovec rest = op->iov[0];
    int64_t total = 0;
    while (rest.iov_len > 0) {
        struct iovec slice = rest;
        slice.iov_len = rest.iov_len < BUFFERED_SLICE ? rest.iov_len : BUFFERED_SLICE;
        ssize_t n = pwritev2(op->fd, &slice, 1, (off_t)op->offset + total, op->rw_flags);
        if (n <= 0) {
            return total > 0 ? total : errno_of(n);
        }
        total += n;
        rest.iov_base = (uint8_t *)rest.iov_base + n;
        rest.iov_len -= (size_t)n;
    }
    return total;
}

static int64_t perform(struct cg_file_op *op) {
    switch (op->opcode) {
    case CG_FILE_READ:
        return errno_of(preadv2(op->fd, op->iov, op->iovcnt, (off_t)op->offset, op->rw_flags));
    case CG_FILE_WRITE_BUFFERED:
        return write_buffered(op);
    case CG_FILE_WRITE:
        return errno_of(pwritev2(op->fd, op->iov, op->iovcnt, (off_t)op->offset, op->rw_flags));
    case CG_FILE_FDATASYNC:
        return errno_of(fdatasync(op->fd));
    case CG_FILE_FSYNC:
        return errno_of(fsync(op->fd));
    case CG_FILE_FALLOCATE:
        return errno_of(fallocate(op->fd, op->mode, (off_t)op->offset, (off_t)op->length));
    case CG_FILE_SYNC_RANGE:
        return errno_of(
            sync_file_range(op->fd, (off_t)op->offset, (off_t)op->length, SYNC_FILE_RANGE_WRITE));
    case CG_FILE_CALL:
        op->call(op);
        return op->result;
    }
    return -EINVAL;
}

static void deliver(struct cg_task *task) {
    struct cg_file_op *op = CG_CONTAINER_OF(task, struct cg_file_op, internal);
    op->done(op);
}

static void perform_and_post(struct cg_pool *pool, struct cg_file_op *op) {
    int64_t result;
    do {
        result = perform(op);
    } while (result == -EINTR && op->opcode != CG_FILE_CALL);
    op->result = result;
    struct cg_task *task = (struct cg_task *)(void *)op->internal;
    task->run = deliver;
    cg_reactor_post(pool->reactor, task);
}

static void *worker(void *argument) {
    struct cg_pool *pool = argument;
    pthread_setname_np(pthread_self(), "cg-file");
    pthread_mutex_lock(&pool->lock);
    for (;;) {
        struct cg_list *node = cg_list_pop_front(&pool->queue);
        if (node != NULL) {
            pool->queued--;
            pthread_mutex_unlock(&pool->lock);
            perform_and_post(pool, CG_CONTAINER_OF(node, struct cg_file_op, node));
            pthread_mutex_lock(&pool->lock);
            continue;
        }
        if (pool->stopping) {
            break;
        }
        pool->idle++;
        pthread_cond_wait(&pool->work, &pool->lock);
        pool->idle--;
    }
    pthread_mutex_unlock(&pool->lock);
    return NULL;
}

int cg_pool_create(struct cg_reactor *reactor, unsigned threads, struct cg_pool **out) {
    struct cg_pool *pool = calloc(1, sizeof(*pool) + threads * sizeof(pool->threads[0]));
    if (pool == NULL) {
        return -ENOMEM;
    }
    pool->reactor = reactor;
    pool->thread_limit = threads;
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->work, NULL);
    cg_list_init(&pool->queue);
    *out = pool;
    return 0;
}

void cg_pool_destroy(struct cg_pool *pool) {
    if (pool == NULL) {
        return;
    }
    pthread_mutex_lock(&pool->lock);
    assert(cg_list_empty(&pool->queue));
    pool->stopping = true;
    pthread_cond_broadcast(&pool->work);
    pthread_mutex_unlock(&pool->lock);
    for (unsigned i = 0; i < pool->thread_count; i++) {
        pthread_join(pool->threads[i], NULL);
    }
    pthread_cond_destroy(&pool->work);
    pthread_mutex_destroy(&pool->lock);
    free(pool);
}

// The host's signals are its main thread's business: ours take none.
static int start_thread(struct cg_pool *pool) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int rc = pthread_create(&pool->threads[pool->thread_count], NULL, worker, pool);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (rc == 0) {
        pool->thread_count++;
    }
    return -rc;
}

void cg_pool_submit(struct cg_pool *pool, struct cg_file_op *op) {
    pthread_mutex_lock(&pool->lock);
    bool all_busy = pool->queued >= pool->idle;
    pthread_mutex_unlock(&pool->lock);
    if (all_busy && pool->thread_count < pool->thread_limit) {
        int rc = start_thread(pool);
        if (rc < 0 && pool->thread_count == 0) {
            cg_log(CG_LOG_WARNING,
                   "no thread for file operations (%s): the event loop waits for each",
                   strerrorname_np(-rc));
            perform_and_post(pool, op);
            return;
        }
    }
    pthread_mutex_lock(&pool->lock);
    cg_list_push_back(&pool->queue, &op->node);
    pool->queued++;
    pthread_cond_signal(&pool->work);
    pthread_mutex_unlock(&pool->lock);
}
