// SPDX-License-Identifier: BSD-3-Clause
#include "volume/bench_load.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

// One of `depth` requests; it is submitted again from its own completion.
struct slot {
    struct cg_io io;
    struct iovec iov;
    struct load *load;
    uint64_t began_ns;
};

// Completions run on the client's reactor thread alone, and so does everything in here after the
// first submission; `lock` guards only what the waiting thread reads: `running`.
struct load {
    struct cg_volume *volume;
    const struct cg_bench_options *options;
    struct cg_bench_result *result;
    struct slot *slots;
    uint8_t *memory;
    uint64_t blocks; // in the span
    uint64_t next;   // block of the next sequential request
    uint64_t random; // state of the generator
    atomic_bool ending;
    atomic_bool measuring;
    pthread_mutex_t lock;
    pthread_cond_t idle;
    uint32_t running;
};

static uint64_t clock_ns(clockid_t which) {
    struct timespec now;

    clock_gettime(which, &now);
    return (uint64_t)now.tv_sec * 1000000000U + (uint64_t)now.tv_nsec;
}

// splitmix64: no shared state, and one seed gives one sequence.
static uint64_t next_random(struct load *load) {
    uint64_t z = (load->random += 0x9e3779b97f4a7c15U);

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
    return z ^ (z >> 31);
}

static void choose(struct load *load, struct slot *slot) {
    const struct cg_bench_options *options = load->options;
    uint64_t block;

    switch (options->kind) {
    case CG_BENCH_READ:
    case CG_BENCH_WRITE:
        block = load->next;
        load->next = block + 1 == load->blocks ? 0 : block + 1;
        slot->io.op = options->kind == CG_BENCH_READ ? CG_OP_READ : CG_OP_WRITE;
        break;
    case CG_BENCH_RANDREAD:
    case CG_BENCH_RANDWRITE:
        block = next_random(load) % load->blocks;
        slot->io.op = options->kind == CG_BENCH_RANDREAD ? CG_OP_READ : CG_OP_WRITE;
        break;
    default:
        block = next_random(load) % load->blocks;
        slot->io.op = next_random(load) % 100 < options->read_percent ? CG_OP_READ : CG_OP_WRITE;
        break;
    }
    slot->io.offset = block * options->block_size;
    slot->io.length = options->block_size;
}

static void one_less(struct load *load) {
    pthread_mutex_lock(&load->lock);
    if (--load->running == 0)
        pthread_cond_signal(&load->idle);
    pthread_mutex_unlock(&load->lock);
}

static void account(struct load *load, const struct slot *slot, uint64_t now) {
    struct cg_bench_result *result = load->result;

    if (slot->io.op == CG_OP_READ) {
        result->reads++;
        result->read_bytes += slot->io.length;
        cg_histogram_add(&result->read_ns, now - slot->began_ns);
    } else {
        result->writes++;
        result->written_bytes += slot->io.length;
        cg_histogram_add(&result->write_ns, now - slot->began_ns);
    }
}

static void on_done(struct cg_io *io) {
    struct slot *slot = io->user;
    struct load *load = slot->load;
    uint64_t now = clock_ns(CLOCK_MONOTONIC);

    if (io->result != 0) {
        load->result->errors++;
        if (load->result->first_error == 0)
            load->result->first_error = io->result;
        atomic_store_explicit(&load->ending, true, memory_order_relaxed);
    } else if (atomic_load_explicit(&load->measuring, memory_order_acquire)) {
        account(load, slot, now);
    }
    if (atomic_load_explicit(&load->ending, memory_order_relaxed)) {
        one_less(load);
        return;
    }
    choose(load, slot);
    slot->began_ns = now;
    cg_submit(load->volume, io);
}

static bool valid(const struct cg_bench_options *options) {
    return options->kind >= CG_BENCH_READ && options->kind <= CG_BENCH_RANDRW &&
           options->block_size >= 1 && options->block_size <= CG_BENCH_BLOCK_MAX &&
           options->depth >= 1 && options->depth <= CG_BENCH_DEPTH_MAX &&
           options->read_percent <= 100 && options->runtime_ms >= 1;
}

static int prepare(struct load *load) {
    const struct cg_bench_options *options = load->options;
    size_t stride = ((size_t)options->block_size + 4095) & ~(size_t)4095;

    load->slots = calloc(options->depth, sizeof(*load->slots));
    load->memory = aligned_alloc(4096, stride * options->depth);
    if (load->slots == NULL || load->memory == NULL)
        return -ENOMEM;
    // Data that neither compresses nor is zero, so that no layer below takes a short cut.
    for (size_t i = 0; i + 8 <= stride * options->depth; i += 8) {
        uint64_t word = next_random(load);

        memcpy(load->memory + i, &word, 8);
    }
    for (uint32_t i = 0; i < options->depth; i++) {
        struct slot *slot = &load->slots[i];

        slot->load = load;
        slot->iov.iov_base = load->memory + stride * i;
        slot->iov.iov_len = options->block_size;
        slot->io.iov = &slot->iov;
        slot->io.iovcnt = 1;
        slot->io.done = on_done;
        slot->io.user = slot;
    }
    return 0;
}

static void sleep_ms(uint64_t duration_ms, const struct load *load) {
    const atomic_bool *stop = load->options->stop;
    uint64_t end = clock_ns(CLOCK_MONOTONIC) + duration_ms * 1000000U;

    for (;;) {
        uint64_t now = clock_ns(CLOCK_MONOTONIC);
        uint64_t rest = end > now ? end - now : 0;

        if (rest == 0 || atomic_load_explicit(&load->ending, memory_order_relaxed) ||
            (stop != NULL && atomic_load_explicit(stop, memory_order_relaxed)))
            return;
        if (rest > 50000000U)
            rest = 50000000U;
        nanosleep(&(struct timespec){.tv_nsec = (long)rest}, NULL);
    }
}

// Starts all slots, waits out ramp and runtime, then for the last completion.
static void drive(struct load *load) {
    const struct cg_bench_options *options = load->options;
    struct cg_bench_result *result = load->result;
    uint64_t began_ns, began_cpu_ns;

    load->running = options->depth;
    // All are chosen before the first is submitted: from then on the generator is the reactor's.
    for (uint32_t i = 0; i < options->depth; i++)
        choose(load, &load->slots[i]);
    for (uint32_t i = 0; i < options->depth; i++) {
        load->slots[i].began_ns = clock_ns(CLOCK_MONOTONIC);
        cg_submit(load->volume, &load->slots[i].io);
    }
    sleep_ms(options->ramp_ms, load);
    began_ns = clock_ns(CLOCK_MONOTONIC);
    began_cpu_ns = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
    atomic_store_explicit(&load->measuring, true, memory_order_release);
    sleep_ms(options->runtime_ms, load);
    atomic_store_explicit(&load->measuring, false, memory_order_release);
    result->elapsed_ns = clock_ns(CLOCK_MONOTONIC) - began_ns;
    result->cpu_ns = clock_ns(CLOCK_PROCESS_CPUTIME_ID) - began_cpu_ns;
    atomic_store_explicit(&load->ending, true, memory_order_relaxed);
    pthread_mutex_lock(&load->lock);
    while (load->running != 0)
        pthread_cond_wait(&load->idle, &load->lock);
    pthread_mutex_unlock(&load->lock);
}

int cg_bench_run(struct cg_volume *volume, const struct cg_bench_options *options,
                 struct cg_bench_result *result) {
    struct cg_volume_info info;
    struct load load = {.volume = volume, .options = options, .result = result};
    int error;

    memset(result, 0, sizeof(*result));
    if (!valid(options))
        return -EINVAL;
    cg_volume_info(volume, &info);
    if (options->span > info.size)
        return -EINVAL;
    load.blocks = (options->span != 0 ? options->span : info.size) / options->block_size;
    if (load.blocks == 0)
        return -EINVAL;
    load.random = options->seed;
    error = prepare(&load);
    if (error == 0) {
        pthread_mutex_init(&load.lock, NULL);
        pthread_cond_init(&load.idle, NULL);
        drive(&load);
        pthread_cond_destroy(&load.idle);
        pthread_mutex_destroy(&load.lock);
    }
    free(load.memory);
    free(load.slots);
    return error;
}
