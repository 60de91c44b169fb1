// SPDX-License-Identifier: BSD-3-Clause
//
// Fuzzing of the frames of raft messages. The input's first byte says whether the header is made
// good (magic, version, lengths, checksum), so that what is behind it is reached, and how long the
// attachment is; the rest is the frame. What is accepted is read to its end, and must be the same
// bytes when it is written again. Built for libFuzzer with -Dfuzz=true (clang), and always as a
// plain program that runs the corpus files named on its command line.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/crc32c.h"
#include "chunkserver/bytes.h"
#include "chunkserver/raft_wire.h"

// Writes what `frame` says into `out`, as large as the frame.
static uint32_t write_again(struct cg_raft_frame frame, const uint8_t *payload, uint8_t *out) {
    static uint32_t crcs[CG_WAL_PAYLOAD_BLOCKS_MAX];
    uint32_t length = CG_RAFT_FRAME_HEADER;
    uint64_t group;
    struct cg_raft_message message;
    while (cg_raft_frame_message(&frame, &group, &message)) {
        cg_raft_message_encode(group, &message, out + length);
        length += cg_raft_message_size(&message);
        struct cg_raft_wire_entry entry;
        while (cg_raft_frame_entry(&frame, &entry)) {
            (void)cg_raft_entry_intact(&entry, payload + entry.payload_offset);
            cg_raft_entry_crcs(&entry, crcs);
            entry.block_crcs = crcs;
            cg_raft_entry_encode(&entry, out + length);
            length += cg_raft_entry_size(&entry);
        }
    }
    cg_raft_frame_seal(out, length, frame.payload_length, frame.message_count);
    return length;
}

static void run(const uint8_t *bytes, uint32_t length, uint32_t payload_length) {
    struct cg_raft_frame frame;
    const char *why = NULL;
    if (cg_raft_frame_open(bytes, length, payload_length, &frame, &why) < 0) {
        if (why == NULL) {
            abort();
        }
        return;
    }
    uint8_t *payload = calloc(1, payload_length + 1);
    uint8_t *again = malloc(length);
    if (payload == NULL || again == NULL || write_again(frame, payload, again) != length ||
        memcmp(again, bytes, length) != 0) {
        fprintf(stderr, "a frame of %u bytes is another one when it is written again\n", length);
        abort();
    }
    free(payload);
    free(again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 1 || size - 1 > CG_RAFT_FRAME_LENGTH_MAX) {
        return 0;
    }
    uint32_t length = (uint32_t)size - 1;
    uint32_t payload_length = (data[0] & 0x7fU) * CG_WAL_BLOCK;
    uint8_t *frame = malloc(length + 1); // of its own size: what reads beyond it is seen
    if (frame == NULL) {
        return 0;
    }
    memcpy(frame, data + 1, length);
    if ((data[0] & 0x80) != 0 && length >= CG_RAFT_FRAME_HEADER) {
        uint32_t messages = 1 + cg_get_u32(frame + 20) % CG_RAFT_FRAME_MESSAGES_MAX;
        cg_raft_frame_seal(frame, length, payload_length, messages);
    }
    run(frame, length, payload_length);
    free(frame);
    return 0;
}

#ifdef CORPUS_RUNNER

static size_t read_file(const char *path, uint8_t *data, size_t size) {
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        perror(path);
        exit(1);
    }
    size_t n = fread(data, 1, size, file);
    fclose(file);
    return n;
}

// Every file as it is, and then with each of its bytes damaged in turn.
int main(int argc, char **argv) {
    static uint8_t data[1 << 16];
    static const uint8_t damage[] = {0x01, 0x80, 0xff};
    if (argc < 2) {
        fprintf(stderr, "usage: %s FILE...\n", argv[0]);
        return 2;
    }
    for (int file = 1; file < argc; file++) {
        size_t n = read_file(argv[file], data, sizeof(data));
        LLVMFuzzerTestOneInput(data, n);
        for (size_t i = 0; i < n; i++) {
            for (size_t j = 0; j < sizeof(damage); j++) {
                data[i] ^= damage[j];
                LLVMFuzzerTestOneInput(data, n);
                data[i] ^= damage[j];
            }
        }
    }
    return 0;
}

#endif
