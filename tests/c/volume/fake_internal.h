// SPDX-License-Identifier: BSD-3-Clause
#ifndef TESTS_VOLUME_FAKE_INTERNAL_H
#define TESTS_VOLUME_FAKE_INTERNAL_H

#include "fake.h"

#include <pb_decode.h>
#include <pb_encode.h>

struct fake_connection {
    int fd;
    struct fake_server *server;
    atomic_int users;      // the thread that serves it, and answers that come later
    pthread_mutex_t write; // one answer at a time
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
    // Not yet: to be asked again and again, until it says false or the time is over.
    bool (*later)(struct fake *fake, const struct fake_log *entry, struct fake_reply *reply);
    struct fake_log entry; // for that
};

// fake_state.c: the volume's shared state. False: no such method.
bool fake_state(struct fake *fake, const struct fake_call *call, struct fake_reply *reply,
                struct fake_log *entry);

// fake_handlers.c
void fake_reply_with(struct fake_reply *reply, const pb_msgdesc_t *fields, const void *message);
void fake_decode(const struct fake_call *call, const pb_msgdesc_t *fields, void *message);
// The id of the session that the latest OpenFile began, under the lock.
void fake_session(const struct fake *fake, char id[32]);

// fake_source.c: a clone's source
struct fake_source_name {
    char text[32]; // cloneFileSource of a request
};
void fake_source_decode(curve_chunkserver_ChunkRequest *request, struct fake_source_name *name);
bool fake_source_tell(pb_ostream_t *stream, const pb_field_t *field, void *const *arg);

// Whether a request names the source as it should.
bool fake_source_named(const struct fake *fake, const curve_chunkserver_ChunkRequest *request,
                       const char *name, bool read_or_write);

// Fetches the chunk's data from the source if it has none and the request names one.
void fake_source_fetch(struct fake *fake, const curve_chunkserver_ChunkRequest *request);

// fake_handlers.c
enum fake_verdict fake_handle(struct fake_call *call, struct fake_reply *reply);

#endif
