// SPDX-License-Identifier: BSD-3-Clause
//
// The few functions of base/reactor.h that the log needs, with a clock that the test turns: linked
// in place of the real ones, so that a run depends on nothing but its seed. Files go through
// simdisk.
#ifndef CG_TESTS_SIMREACTOR_H
#define CG_TESTS_SIMREACTOR_H

#include "base/reactor.h"
#include "simdisk.h"

struct simreactor;

struct cg_reactor *simreactor_create(struct simdisk *sim);
void simreactor_destroy(struct cg_reactor *reactor);

// Ends an iteration: runs what was deferred.
void simreactor_iterate(struct cg_reactor *reactor);

// True if nothing was deferred.
bool simreactor_idle(const struct cg_reactor *reactor);

// When the next timer is due; UINT64_MAX: none.
uint64_t simreactor_deadline(const struct cg_reactor *reactor);

// Lets `ns` pass and runs the timers that are due.
void simreactor_advance(struct cg_reactor *reactor, uint64_t ns);

#endif
