// SPDX-License-Identifier: BSD-3-Clause
#ifndef TESTS_VOLUME_FAKE_INTERNAL_H
#define TESTS_VOLUME_FAKE_INTERNAL_H

#include "fake.h"

struct fake_connection {
    int fd;
    struct fake_server *server;
};

struct fake_call {
    struct fake_connection *connection;
    const char *method;
    const uint8_t *meta; // RpcMeta as it came
    uint32_t meta_length;
    const uint8_t *message;
    uint32_t length;
    const uint8_t *attachment;
    uint32_t attachment_length;
};

struct fake_reply {
    int32_t error_code;
    uint8_t message[16384];
    uint32_t length;
    uint8_t *attachment; // freed by the caller
    uint32_t attachment_length;
};

// fake_handlers.c
enum fake_verdict fake_handle(struct fake_call *call, struct fake_reply *reply);

#endif
