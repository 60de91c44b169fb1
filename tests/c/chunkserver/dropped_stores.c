// SPDX-License-Identifier: BSD-3-Clause
//
// For tests in which stores die: those are dropped as they are, memory and all.

__attribute__((visibility("default"))) const char *__asan_default_options(void);

const char *__asan_default_options(void) {
    return "detect_leaks=0";
}
