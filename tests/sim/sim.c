// SPDX-License-Identifier: BSD-3-Clause
#include "sim.h"
#include "base/log.h"

#include <assert.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

struct sim_counts sim_counts;
static struct sim *running; // whose assertions fail

// An assertion in the core ends the run as a broken invariant, not the process: glibc's name.
void __assert_fail(const char *expression, const char *file, unsigned line, const char *function) {
    if (running != NULL) {
        sim_fail(running, "%s:%u: %s: %s", file, line, function, expression);
    }
    fprintf(stderr, "%s:%u: %s: assertion failed: %s\n", file, line, function, expression);
    __builtin_trap();
}

void sim_fail(struct sim *sim, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(sim->failure, sizeof(sim->failure), format, arguments);
    va_end(arguments);
    sim->failure_kind = format;
    sim_trace(sim, "FAILED: %s", sim->failure);
    longjmp(sim->escape, 1);
}

// What the chunkserver's code says.
static void log_line(void *context, enum cg_log_level level, const char *line) {
    (void)level;
    sim_trace(context, "%s", line);
}

void sim_trace(struct sim *sim, const char *format, ...) {
    if (!sim->options.trace) {
        return;
    }
    printf("%6u %10.3f ms  ", sim->step, (double)sim->now / (double)SIM_MS);
    va_list arguments;
    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    printf("\n");
}

// ---- Random numbers

uint64_t sim_mix(uint64_t a, uint64_t b) {
    uint64_t z = a + UINT64_C(0x9e3779b97f4a7c15) * (b + 1);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

uint64_t sim_random(struct sim *sim) {
    sim->random += UINT64_C(0x9e3779b97f4a7c15);
    return sim_mix(sim->random, 0);
}

uint64_t sim_below(struct sim *sim, uint64_t bound) {
    return sim_random(sim) % bound;
}

uint64_t sim_spread(struct sim *sim, uint64_t mean) {
    uint64_t value = 1 + sim_below(sim, mean + mean / 2 + 1);
    return sim_below(sim, 16) == 0 ? 4 * value : value;
}

// ---- The queue: a heap by time, then by order of pushing

static bool before(const struct sim_event *a, const struct sim_event *b) {
    return a->at != b->at ? a->at < b->at : a->order < b->order;
}

void sim_push(struct sim *sim, uint64_t at, enum sim_event_kind kind, uint64_t node,
              uint32_t number) {
    if (sim->event_count == SIM_EVENTS) {
        sim_fail(sim, "the simulator's queue is full");
    }
    struct sim_event event = {.at = at,
                              .order = sim->order++,
                              .kind = kind,
                              .node = node,
                              .incarnation = sim->node[node].incarnation,
                              .number = number};
    uint32_t i = sim->event_count++;
    while (i > 0 && before(&event, &sim->event[(i - 1) / 2])) {
        sim->event[i] = sim->event[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    sim->event[i] = event;
}

static struct sim_event pop(struct sim *sim) {
    struct sim_event first = sim->event[0];
    struct sim_event last = sim->event[--sim->event_count];
    uint32_t i = 0;
    for (;;) {
        uint32_t child = 2 * i + 1;
        if (child >= sim->event_count) {
            break;
        }
        if (child + 1 < sim->event_count && before(&sim->event[child + 1], &sim->event[child])) {
            child++;
        }
        if (!before(&sim->event[child], &last)) {
            break;
        }
        sim->event[i] = sim->event[child];
        i = child;
    }
    sim->event[i] = last;
    return first;
}

// ---- Steps

static void dispatch_node(struct sim *sim, struct sim_node *node, const struct sim_event *event) {
    switch (event->kind) {
    case SIM_TIMER:
        sim_node_timer(sim, node);
        break;
    case SIM_DISK_DONE:
        if (node->server != NULL) {
            server_disk_step(node);
        } else {
            sim_storage_done(sim, node);
        }
        break;
    case SIM_RESUME:
        server_resume(node);
        break;
    case SIM_CHECKPOINT_DUE:
        sim_checkpoint_start(sim, node);
        break;
    case SIM_CHECKPOINT_DONE:
        sim_checkpoint_done(sim, node);
        break;
    case SIM_INSTALL_READY:
        sim_install_ready(sim, node);
        break;
    case SIM_SNAPSHOT_TIMEOUT:
        sim_snapshot_timeout(sim, node, event->number);
        break;
    case SIM_FETCHED:
        sim_fetched(sim, node);
        break;
    case SIM_RESTART:
        sim_node_start(sim, node);
        break;
    default:
        break;
    }
}

static void dispatch(struct sim *sim, const struct sim_event *event) {
    switch (event->kind) {
    case SIM_DELIVER:
        sim_deliver(sim, event->number);
        return;
    case SIM_CLIENT_START:
        sim_client_start(sim, event->number);
        return;
    case SIM_CLIENT_RETRY:
        sim_client_retry(sim, event->number % SIM_CLIENTS, event->number / SIM_CLIENTS);
        return;
    case SIM_FAULT:
        sim_fault(sim, event->number);
        return;
    default:
        break;
    }
    struct sim_node *node = &sim->node[event->node];
    if (event->incarnation != node->incarnation || node->dead ||
        node->up == (event->kind == SIM_RESTART)) {
        return; // of a process that is gone
    }
    if (node->paused_until > sim->now) {
        sim_push(sim, node->paused_until, event->kind, event->node, event->number);
        return;
    }
    dispatch_node(sim, node, event);
}

static void steps(struct sim *sim, uint32_t count) {
    for (uint32_t i = 0; i < count && sim->event_count > 0; i++) {
        struct sim_event event = pop(sim);
        sim->now = event.at;
        sim->step++;
        dispatch(sim, &event);
    }
}

static void steps_until(struct sim *sim, uint64_t end) {
    while (sim->now < end && sim->event_count > 0) {
        steps(sim, 1);
    }
}

static void forget(struct sim *sim) {
    for (uint64_t id = 1; id <= SIM_NODES; id++) {
        struct sim_node *node = &sim->node[id];
        if (node->server != NULL) {
            server_free(node->server);
            node->server = NULL;
            cg_dedup_clear(&node->window);
        } else if (node->exists) {
            cg_raft_destroy(node->raft);
            node->raft = NULL;
            cg_dedup_clear(&node->window);
        }
    }
}

void sim_run(struct sim *sim, const struct sim_options *options) {
    memset(sim, 0, offsetof(struct sim, mail));
    sim->options = *options;
    sim->random = sim_mix(options->seed, 17);
    running = sim;
    cg_log_set_sink(log_line, sim, options->trace ? CG_LOG_INFO : CG_LOG_ERROR + 1);
    cg_raft_mutation = options->core_mutation;
    if (setjmp(sim->escape) == 0) {
        sim_plan(sim);
        steps(sim, options->steps);
        sim_heal(sim);
        // Long enough for elections, catching up and what clients still wait for.
        uint64_t healed = sim->now;
        steps_until(sim, healed + 40 * sim->profile.election_ns);
        sim_check_settling(sim);
        steps_until(sim, healed + 60 * sim->profile.election_ns);
        sim_check_histories(sim, sim_check_settled(sim));
    }
    forget(sim);
    running = NULL;
    cg_raft_mutation = CG_RAFT_MUTATION_NONE;
}
