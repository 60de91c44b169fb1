// SPDX-License-Identifier: GPL-2.0-only
//
// The bsopts of a LUN: `key=value` pairs separated by `;` (tgtd cuts its parameters at commas, so
// there is none in here). Pure.
//
//   mds=HOST:PORT[|HOST:PORT...]  metadata servers (default 127.0.0.1:6700)
//   owner=NAME                    the volume's owner (default copygate)
//   password-file=PATH            the password, for owner=root
//   timeout=SECONDS               every command ends within this time (1 to 3600, default 25)
//   block=512|4096                logical block size (default 512, physical 4096)
//   read-only=yes|no              write-protected
//   thin=yes|no                   thin provisioned: UNMAP and WRITE SAME with UNMAP (default yes)
//   gateway=NAME                  this gateway, equal for all its targets (default: the host name)
//   group=N                       target port group, 1 to 65535 (default 1)
//   port=N                        relative target port, 1 to 65535 (default: the group)
//   standby=yes|no                open without taking the volume over
#ifndef CG_FRONTENDS_TGT_OPTIONS_H
#define CG_FRONTENDS_TGT_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BS_DEFAULT_MDS     "127.0.0.1:6700"
#define BS_TIMEOUT_DEFAULT 25U
#define BS_TIMEOUT_MAX     3600U
#define BS_TEXT_MAX        255U

struct bs_options {
    char *mds; // comma-separated, as cg_client_options has it
    char *owner;
    char *password_file; // NULL: none
    char *gateway;
    uint32_t timeout_s;
    uint32_t block_size;
    uint16_t group;
    uint16_t port;
    bool read_only;
    bool thin;
    bool standby;
};

// Parses `text` (NULL: nothing was given). Returns 0, or -EINVAL or -ENOMEM with a sentence in
// `error` that names the option, the value and what is possible; `out` needs no bs_options_free
// then.
int bs_options_parse(const char *text, struct bs_options *out, char *error, size_t error_size);

void bs_options_free(struct bs_options *options);

#endif
