// SPDX-License-Identifier: BSD-3-Clause
//
// The memory of a simulated process.
#ifndef CG_TESTS_SIM_PROCESS_H
#define CG_TESTS_SIM_PROCESS_H

#include <stddef.h>

struct sim_block;

struct sim_process {
    struct sim_block *first; // everything that it has allocated
};

// Whose code runs from now on; NULL: nobody's, memory is as usual.
void sim_process_enter(struct sim_process *process);

// It is dead: all of its memory is gone.
void sim_process_end(struct sim_process *process);

#endif
