// SPDX-License-Identifier: BSD-3-Clause
//
// simulate                      runs seeds from 1 on
//   --seed N                    the first seed (with --seeds 1: that one)
//   --seeds N  --seconds S      how many, at most how long
//   --log                       log mode: the chunkserver's own log on a simulated disk
//   --steps N                   of each, before the faults end
//   --trace                     prints what happens
//   --shrink                    makes a failing run small
//   --defects                   every defect of mutations.c has to be found
//   --around                    of those only the ones outside the core, or not for core mode
//   --defect NAME               puts one in
//   --wild-clocks               clocks run off beyond all bounds: reads may be stale, nothing else
//   --drop-faults LIST --drop-ops LIST --no-loss --no-copies --no-late --no-drift
//                               what --shrink prints
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "sim.h"

struct campaign {
    struct sim_options options;
    uint64_t seeds;
    double seconds;
    bool shrink, defects, around;
};

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static uint64_t number(const char *name, const char *text) {
    char *end;
    uint64_t value = strtoull(text, &end, 10);
    if (end == text || *end != '\0') {
        fprintf(stderr, "--%s: \"%s\" is not a number\n", name, text);
        exit(2);
    }
    return value;
}

// Ranges like 0-3,7 in faults, or client:op in operations.
static void parse_drops(struct sim_options *options, const char *text, bool ops) {
    char *copy = strdup(text);
    char *save = NULL;
    for (char *item = strtok_r(copy, ",", &save); item; item = strtok_r(NULL, ",", &save)) {
        unsigned client = 0, first, last;
        int got = ops ? sscanf(item, "%u:%u-%u", &client, &first, &last) - 1
                      : sscanf(item, "%u-%u", &first, &last);
        last = got < 2 ? first : last;
        if (got < 1 || client >= SIM_CLIENTS || last >= (ops ? SIM_OPS : SIM_FAULTS)) {
            fprintf(stderr, "\"%s\" cannot be dropped\n", item);
            exit(2);
        }
        for (unsigned i = first; i <= last; i++) {
            *(ops ? &options->drop_op[client][i] : &options->drop_fault[i]) = true;
        }
    }
    free(copy);
}

static void set_defect(struct sim_options *options, const char *name) {
    for (uint32_t i = 0; i < sim_defect_count; i++) {
        if (strcmp(sim_defects[i].name, name) == 0) {
            options->core_mutation = sim_defects[i].core;
            options->mutation = sim_defects[i].sim;
            return;
        }
    }
    fprintf(stderr, "--defect: none is called \"%s\"; known ones:\n", name);
    for (uint32_t i = 0; i < sim_defect_count; i++) {
        fprintf(stderr, "  %-32s %s\n", sim_defects[i].name, sim_defects[i].what);
    }
    exit(2);
}

static int run_seeds(struct sim *sim, struct campaign *campaign) {
    double begin = now();
    uint64_t steps = 0, runs = 0;
    uint64_t first = campaign->options.seed;
    for (; runs < campaign->seeds && now() - begin < campaign->seconds; runs++) {
        campaign->options.seed = first + runs;
        sim_run(sim, &campaign->options);
        steps += sim->step;
        if (sim->failure[0] != '\0') {
            printf("seed %lu, step %u: %s\n", campaign->options.seed, sim->step, sim->failure);
            if (campaign->shrink) {
                sim_shrink(sim, &campaign->options);
            }
            return 1;
        }
    }
    printf("%lu seeds, %lu steps, %.1f s: nothing found\n", runs, steps, now() - begin);
    if (campaign->options.log) {
        printf(
            "records %lu, starts %lu, batches read back %lu, segments recycled %lu, states copied "
            "%lu, deliveries put off %lu, logs damaged %lu, disks failed %lu\n",
            sim_counts.records, sim_counts.replays, sim_counts.fetches, sim_counts.recycled,
            sim_counts.installed, sim_counts.resumed, sim_counts.damaged, sim_counts.failed);
    }
    return 0;
}

// Every defect has to be found within the seeds given.
static int run_defects(struct sim *sim, struct campaign *campaign) {
    double begin = now();
    uint64_t first = campaign->options.seed;
    uint32_t missed = 0, tried = 0;
    for (uint32_t i = 0; i < sim_defect_count; i++) {
        const struct sim_defect *defect = &sim_defects[i];
        if (!(campaign->options.log ? defect->in_log : defect->in_core) ||
            (campaign->around && defect->core != CG_RAFT_MUTATION_NONE && defect->in_core)) {
            continue;
        }
        tried++;
        campaign->options.core_mutation = defect->core;
        campaign->options.mutation = defect->sim;
        uint64_t runs = 0;
        sim->failure[0] = '\0';
        while (runs < campaign->seeds && sim->failure[0] == '\0') {
            campaign->options.seed = first + runs++;
            sim_run(sim, &campaign->options);
        }
        bool found = sim->failure[0] != '\0';
        missed += !found;
        printf("%-32s %s, %lu seeds: %s\n", defect->name, found ? "found" : "MISSED", runs,
               sim->failure);
        fflush(stdout);
    }
    printf("%u defects, %u missed, %.1f s\n", tried, missed, now() - begin);
    return missed != 0;
}

int main(int argc, char **argv) {
    static const struct option names[] = {
        {"seed", required_argument, NULL, 's'},
        {"seeds", required_argument, NULL, 'n'},
        {"seconds", required_argument, NULL, 'S'},
        {"steps", required_argument, NULL, 'p'},
        {"log", no_argument, NULL, 'L'},
        {"trace", no_argument, NULL, 't'},
        {"shrink", no_argument, NULL, 'k'},
        {"defects", no_argument, NULL, 'D'},
        {"around", no_argument, NULL, 'A'},
        {"defect", required_argument, NULL, 'd'},
        {"drop-faults", required_argument, NULL, 'f'},
        {"drop-ops", required_argument, NULL, 'o'},
        {"no-loss", no_argument, NULL, 'l'},
        {"no-copies", no_argument, NULL, 'c'},
        {"no-late", no_argument, NULL, 'a'},
        {"no-drift", no_argument, NULL, 'r'},
        {"wild-clocks", no_argument, NULL, 'w'},
        {0},
    };
    static struct campaign campaign = {
        .options = {.seed = 1, .steps = 4000}, .seeds = 1000, .seconds = 1e9};
    struct sim_options *options = &campaign.options;
    int c, index;
    while ((c = getopt_long(argc, argv, "", names, &index)) != -1) {
        switch (c) {
        case 's':
            options->seed = number("seed", optarg);
            break;
        case 'n':
            campaign.seeds = number("seeds", optarg);
            break;
        case 'S':
            campaign.seconds = (double)number("seconds", optarg);
            break;
        case 'p':
            options->steps = (uint32_t)number("steps", optarg);
            break;
        case 'L':
            options->log = true;
            break;
        case 't':
            options->trace = true;
            break;
        case 'k':
            campaign.shrink = true;
            break;
        case 'D':
            campaign.defects = true;
            break;
        case 'A':
            campaign.around = true;
            break;
        case 'd':
            set_defect(options, optarg);
            break;
        case 'f':
            parse_drops(options, optarg, false);
            break;
        case 'o':
            parse_drops(options, optarg, true);
            break;
        case 'l':
            options->no_loss = true;
            break;
        case 'c':
            options->no_copies = true;
            break;
        case 'a':
            options->no_late = true;
            break;
        case 'w':
            options->wild_clocks = true;
            break;
        case 'r':
            options->no_drift = true;
            break;
        default:
            return 2;
        }
    }
    struct sim *sim = calloc(1, sizeof(*sim));
    if (sim == NULL) {
        return 1;
    }
    int result = campaign.defects ? run_defects(sim, &campaign) : run_seeds(sim, &campaign);
    free(sim);
    return result;
}
