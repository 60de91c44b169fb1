// SPDX-License-Identifier: BSD-3-Clause
//
// A blocking baidu_std client for tests: one request, one reply, on a socket of its own.
#ifndef CG_TESTS_WIRECLIENT_H
#define CG_TESTS_WIRECLIENT_H

#include <pb.h>
#include <stddef.h>
#include <stdint.h>

#include "gateway/proto/chunk.pb.h"

struct wire_reply {
    int32_t error_code;
    curve_chunkserver_ChunkResponse chunk; // if the method answers with one
    uint8_t message[4096];
    uint32_t message_length;
    uint8_t *data; // the attachment; valid until the next call
    uint32_t data_length;
    uint32_t runs[4096]; // blockRuns
    uint32_t run_count;
};

// Connects to "ip:port" or "unix:/path".
int wire_connect(const char *address);

// Sends a request and waits for its reply; any failure ends the test.
void wire_call(int fd, const char *service, const char *method, const pb_msgdesc_t *fields,
               const void *message, const void *data, uint32_t length, struct wire_reply *reply);

// A ChunkService method with a ChunkRequest and a ChunkResponse.
curve_chunkserver_CHUNK_OP_STATUS wire_chunk(int fd, const char *method,
                                             const curve_chunkserver_ChunkRequest *request,
                                             const void *data, uint32_t length,
                                             struct wire_reply *reply);

// Sends a request of encoded bytes and waits for nothing; returns its correlation id.
int64_t wire_send_request(int fd, const char *service, const char *method, const void *message,
                          uint32_t message_length, const void *data, uint32_t length);

// Exact bytes, for captured and broken frames. wire_receive returns what came until `length` bytes,
// the end of the connection, or 300 ms of silence.
void wire_send(int fd, const void *data, size_t length);
size_t wire_receive(int fd, void *data, size_t length);

#endif
