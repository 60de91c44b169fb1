// SPDX-License-Identifier: BSD-3-Clause
//
// The options of the nbdkit plugin: one function a key, errors that name the option, the value and
// the mend. docs/nbd.md describes them; gateway/nbd/plugin.py takes the same ones.
#ifndef CG_FRONTENDS_NBDKIT_OPTIONS_H
#define CG_FRONTENDS_NBDKIT_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

#define NBD_DEFAULT_MDS "127.0.0.1:6700"
#define NBD_NAME_MAX    4096
#define NBD_TIMEOUT_MAX 3600 // seconds

struct nbd_options {
    char *volume;   // NULL: the client's export name chooses
    char *mds;      // never NULL after nbd_options_complete
    char *owner;    // NULL: the core's default
    char *password; // of owner root
    bool shared;
    bool shared_given;
    uint64_t timeout_ms; // 0: the core's default
};

// Takes one key=value of nbdkit's command line. Returns 0, or -1 after nbdkit_error.
int nbd_options_set(struct nbd_options *options, const char *key, const char *value);

// Fills in defaults and checks what depends on two options. Returns 0, or -1 after nbdkit_error.
int nbd_options_complete(struct nbd_options *options);

void nbd_options_free(struct nbd_options *options);

// What `nbdkit copygate --help` prints.
extern const char nbd_options_help[];

#endif
