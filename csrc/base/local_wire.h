// SPDX-License-Identifier: BSD-3-Clause
//
// What a client and the chunkserver say to each other over the local door: a SOCK_SEQPACKET socket
// in the abstract namespace, named after the address at which the chunkserver serves requests, so
// that whoever can reach one can find the other, and network namespaces keep apart what they
// should. One packet each way per question; descriptors travel as SCM_RIGHTS.
#ifndef CG_BASE_LOCAL_WIRE_H
#define CG_BASE_LOCAL_WIRE_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>

enum cg_local_question {
    CG_LOCAL_ASK_MAP = 1,   // answered with the descriptors of the map's header and of its slots
    CG_LOCAL_ASK_CHUNK = 2, // answered with a chunk file's descriptor and its slot
};

#define CG_LOCAL_FDS_MAX 2U // descriptors with one answer

struct cg_local_ask {
    uint32_t question;
    uint32_t pool;
    uint32_t copyset;
    uint32_t reserved;
    uint64_t chunk_id;
    uint64_t tag; // echoed
};

struct cg_local_answer {
    int32_t status; // 0, or -ENOENT: not open at present, ask by request first
    uint32_t slot;
    uint64_t tag;
    uint64_t chunk_id;
};

_Static_assert(sizeof(struct cg_local_ask) == 32, "the local door's question has a fixed size");
_Static_assert(sizeof(struct cg_local_answer) == 24, "the local door's answer has a fixed size");

// The door's address for a chunkserver that serves requests at `address` ("ip:port"). Returns its
// length.
static inline socklen_t cg_local_door_address(const char *address, struct sockaddr_un *out) {
    *out = (struct sockaddr_un){.sun_family = AF_UNIX};
    int length = snprintf(out->sun_path + 1, sizeof(out->sun_path) - 1, "copygate/%s", address);
    size_t room = sizeof(out->sun_path) - 2;
    size_t used = (size_t)length < room ? (size_t)length : room;
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + used);
}

#endif
