// SPDX-License-Identifier: BSD-3-Clause
//
// The store's pure parts against simple models, from fixed seeds.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <pb_decode.h>
#include <pb_encode.h>
#include <stdlib.h>
#include <string.h>

#include "chunkserver/blockmap.h"
#include "chunkserver/chunk_format.h"
#include "chunkserver/chunk_request.h"
#include "chunkserver/dedup.h"
#include "chunkserver/entry.h"
#include "chunkserver/epoch_table.h"
#include "gateway/proto/chunk.pb.h"

static uint64_t state_of_random = 1;

static uint64_t random64(void) {
    state_of_random ^= state_of_random << 13;
    state_of_random ^= state_of_random >> 7;
    state_of_random ^= state_of_random << 17;
    return state_of_random;
}

static uint32_t below(uint32_t limit) {
    return (uint32_t)(random64() >> 20) % limit;
}

// ---- Block maps

static void block_maps_behave_as_arrays_of_bools(void **state) {
    (void)state;
    static uint8_t map[CG_BLOCKMAP_BYTES];
    static bool model[CG_BLOCKMAP_BLOCKS];
    for (int i = 0; i < 20000; i++) {
        uint32_t first = below(CG_BLOCKMAP_BLOCKS);
        uint32_t count = below(i % 3 == 0 ? CG_BLOCKMAP_BLOCKS - first : 20);
        count = first + count > CG_BLOCKMAP_BLOCKS ? CG_BLOCKMAP_BLOCKS - first : count;
        bool set = below(2) == 0;
        cg_blockmap_fill(map, first, count, set);
        memset(model + first, set, count);
        first = below(CG_BLOCKMAP_BLOCKS);
        count = 1 + below(CG_BLOCKMAP_BLOCKS - first);
        uint32_t run = 0;
        uint32_t sum = 0;
        while (run < count && model[first + run] == model[first]) {
            run++;
        }
        for (uint32_t j = 0; j < count; j++) {
            sum += model[first + j];
        }
        assert_int_equal(model[first], cg_blockmap_test(map, first));
        assert_int_equal(run, cg_blockmap_run(map, first, count));
        assert_int_equal(sum, cg_blockmap_count(map, first, count));
        assert_int_equal(sum > 0, cg_blockmap_any(map, first, count));
    }
}

// ---- Chunk metadata

static void make_slots(uint8_t *file, uint64_t a, uint64_t b) {
    static uint8_t allocated[CG_BLOCKMAP_BYTES];
    static uint32_t crcs[CG_BLOCKMAP_BLOCKS];
    memset(file, 0, CG_CHUNK_SLOTS_SIZE);
    struct cg_chunk_header header = {.chunk_id = 9, .group = 5, .chunk_size = 1U << 20};
    cg_blockmap_set(allocated, 3, 70);
    for (uint32_t i = 0; i < CG_BLOCKMAP_BLOCKS; i++) {
        crcs[i] = i * 77;
    }
    if (a != 0) {
        header.sequence = a;
        cg_chunk_slot_encode(&header, allocated, crcs, file);
    }
    if (b != 0) {
        header.sequence = b;
        cg_chunk_slot_encode(&header, allocated, crcs, file + CG_CHUNK_SLOT_STRIDE);
    }
}

static void the_newer_metadata_slot_is_chosen(void **state) {
    (void)state;
    static uint8_t file[CG_CHUNK_SLOTS_SIZE];
    static uint8_t allocated[CG_BLOCKMAP_BYTES];
    static uint32_t crcs[CG_BLOCKMAP_BLOCKS];
    struct cg_chunk_header header;
    unsigned newest;
    make_slots(file, 4, 5);
    assert_int_equal(0, cg_chunk_slots_choose(file, false, &newest, &header));
    assert_int_equal(1, newest);
    assert_int_equal(5, header.sequence);
    assert_int_equal(9, header.chunk_id);
    cg_chunk_slot_blocks(file, allocated, crcs);
    assert_int_equal(70, cg_blockmap_count(allocated, 0, CG_BLOCKMAP_BLOCKS));
    assert_int_equal(72 * 77, crcs[72]);
    assert_int_equal(0, crcs[73]);
    make_slots(file, 6, 5);
    assert_int_equal(0, cg_chunk_slots_choose(file, false, &newest, &header));
    assert_int_equal(0, newest);
    make_slots(file, 1, 0);
    assert_int_equal(0, cg_chunk_slots_choose(file, false, &newest, &header));
    assert_int_equal(0, newest);
    make_slots(file, 0, 0);
    assert_int_equal(-ENODATA, cg_chunk_slots_choose(file, false, &newest, &header));
}

static void any_flipped_bit_of_a_slot_is_noticed(void **state) {
    (void)state;
    static uint8_t file[CG_CHUNK_SLOTS_SIZE];
    struct cg_chunk_header header;
    unsigned newest;
    for (uint32_t i = 0; i < 2000; i++) {
        make_slots(file, 4, 5);
        uint32_t bit = below(CG_CHUNK_SLOT_SIZE * 8);
        file[CG_CHUNK_SLOT_STRIDE + bit / 8] ^= (uint8_t)(1U << (bit % 8));
        assert_int_equal(-EBADMSG, cg_chunk_slots_choose(file, false, &newest, &header));
        assert_int_equal(0, cg_chunk_slots_choose(file, true, &newest, &header));
        assert_int_equal(0, newest);
        assert_int_equal(4, header.sequence);
    }
}

// ---- Entries

static void entries_survive_their_encoding_and_garbage_is_refused(void **state) {
    (void)state;
    struct cg_entry entry = {
        .type = CG_ENTRY_ZERO,
        .flags = CG_ENTRY_HEAD | CG_ENTRY_TAIL | CG_ENTRY_HAS_CLIENT,
        .chunk_id = 1,
        .file_id = 2,
        .epoch = 3,
        .sn = 4,
        .client_id = 5,
        .sequence = 6,
        .settled_below = 7,
        .offset = 8192,
        .length = 4096,
    };
    uint8_t meta[CG_ENTRY_META_SIZE];
    cg_entry_encode(&entry, meta);
    struct cg_entry copy;
    assert_int_equal(8192, cg_entry_payload_length(&entry));
    assert_int_equal(0, cg_entry_decode(2, meta, sizeof(meta), 8192, 1U << 20, &copy));
    assert_int_equal(entry.settled_below, copy.settled_below);
    assert_int_equal(entry.offset, copy.offset);
    assert_int_equal(entry.flags, copy.flags);
    assert_int_equal(-EBADMSG, cg_entry_decode(2, meta, sizeof(meta), 4096, 1U << 20, &copy));
    assert_int_equal(-EBADMSG, cg_entry_decode(2, meta, sizeof(meta), 8192, 12288, &copy));
    assert_int_equal(-EBADMSG, cg_entry_decode(2, meta, sizeof(meta) - 1, 8192, 1U << 20, &copy));
    assert_int_equal(-EBADMSG, cg_entry_decode(5, meta, sizeof(meta), 8192, 1U << 20, &copy));
    assert_int_equal(-EBADMSG, cg_entry_decode(0, meta, sizeof(meta), 8192, 1U << 20, &copy));
    entry.offset = 0; // no room for a block in front
    cg_entry_encode(&entry, meta);
    assert_int_equal(-EBADMSG, cg_entry_decode(2, meta, sizeof(meta), 8192, 1U << 20, &copy));
    for (int i = 0; i < 20000; i++) {
        for (size_t j = 0; j < sizeof(meta); j++) {
            meta[j] = (uint8_t)random64();
        }
        uint32_t payload = below(4) * 4096;
        if (cg_entry_decode(below(6), meta, sizeof(meta), payload, 1U << 20, &copy) == 0) {
            assert_true((uint64_t)copy.offset + copy.length <= 1U << 20);
        }
    }
}

// ---- Windows

#define MODEL_SEQUENCES 4000U

static void windows_answer_as_a_plain_table_does(void **state) {
    (void)state;
    static bool done[3][MODEL_SEQUENCES];
    uint64_t floor[3] = {0};
    struct cg_dedup dedup;
    cg_dedup_init(&dedup);
    for (uint32_t i = 0; i < 60000; i++) {
        uint32_t client = below(3);
        uint32_t top = i / 20 + 1;
        uint32_t sequence = below(2) == 0 ? below(top) : top - below(top < 50 ? top : 50);
        enum cg_dedup_answer expected = CG_DEDUP_NEW;
        if (sequence < floor[client]) {
            expected = CG_DEDUP_SETTLED;
        } else if (done[client][sequence]) {
            expected = CG_DEDUP_DONE;
        }
        assert_int_equal(expected, cg_dedup_check(&dedup, client + 1, sequence));
        if (below(3) == 0) {
            uint64_t settled = below(4) == 0 && top > 200 ? top - 200 + below(100) : 0;
            assert_int_equal(expected, cg_dedup_record(&dedup, client + 1, sequence, settled));
            floor[client] = settled > floor[client] ? settled : floor[client];
            done[client][sequence] = true;
        }
        if (i % 5000 == 4999) {
            size_t size = cg_dedup_size(&dedup);
            uint8_t *saved = malloc(size);
            assert_int_equal(size, cg_dedup_encode(&dedup, saved));
            cg_dedup_clear(&dedup);
            assert_int_equal(-EBADMSG, cg_dedup_decode(&dedup, saved, size - 1));
            cg_dedup_clear(&dedup);
            assert_int_equal(size, cg_dedup_decode(&dedup, saved, size));
            free(saved);
        }
    }
    cg_dedup_clear(&dedup);
}

static void windows_are_bounded(void **state) {
    (void)state;
    struct cg_dedup dedup;
    cg_dedup_init(&dedup);
    for (uint32_t i = 1; i <= CG_DEDUP_SEQUENCES_MAX; i++) {
        assert_int_equal(CG_DEDUP_NEW, cg_dedup_check(&dedup, 7, i));
        assert_int_equal(CG_DEDUP_NEW, cg_dedup_record(&dedup, 7, i, 0));
    }
    assert_int_equal(CG_DEDUP_FULL, cg_dedup_check(&dedup, 7, CG_DEDUP_SEQUENCES_MAX + 1));
    assert_int_equal(CG_DEDUP_DONE, cg_dedup_check(&dedup, 7, 5));
    // What is settled makes room.
    cg_dedup_record(&dedup, 7, 5, 1000);
    assert_int_equal(CG_DEDUP_NEW, cg_dedup_check(&dedup, 7, CG_DEDUP_SEQUENCES_MAX + 1));
    // The client that was idle longest goes first.
    for (uint64_t client = 100; client < 100 + CG_DEDUP_CLIENTS_MAX - 1; client++) {
        cg_dedup_record(&dedup, client, 1, 0);
    }
    cg_dedup_record(&dedup, 7, 20000, 1000);
    cg_dedup_record(&dedup, 5000, 1, 0);
    assert_int_equal(CG_DEDUP_NEW, cg_dedup_check(&dedup, 100, 1));
    assert_int_equal(CG_DEDUP_DONE, cg_dedup_check(&dedup, 7, 20000));
    cg_dedup_clear(&dedup);
}

static void epochs_only_rise(void **state) {
    (void)state;
    static uint64_t model[300];
    struct cg_epoch_table table;
    cg_epoch_table_init(&table);
    for (int i = 0; i < 5000; i++) {
        uint64_t file = below(300);
        uint64_t epoch = below(1000);
        assert_int_equal(0, cg_epoch_raise(&table, file, epoch));
        model[file] = epoch > model[file] ? epoch : model[file];
        assert_int_equal(model[file], cg_epoch_get(&table, file));
    }
    size_t size = cg_epoch_table_size(&table);
    uint8_t *saved = malloc(size);
    assert_int_equal(size, cg_epoch_table_encode(&table, saved));
    cg_epoch_table_clear(&table);
    assert_int_equal(-EBADMSG, cg_epoch_table_decode(&table, saved, size - 1));
    cg_epoch_table_clear(&table);
    assert_int_equal(size, cg_epoch_table_decode(&table, saved, size));
    for (uint64_t file = 0; file < 300; file++) {
        assert_int_equal(model[file], cg_epoch_get(&table, file));
    }
    cg_epoch_table_clear(&table);
    free(saved);
}

// ---- Requests

static uint64_t odd_number(void) {
    static const uint64_t numbers[] = {0, 1, 127, 128, 16383, UINT32_MAX, UINT64_MAX};
    return below(2) == 0 ? numbers[below(7)] : random64() >> below(64);
}

static bool encode_source(pb_ostream_t *stream, const pb_field_t *field, void *const *arg) {
    (void)arg;
    return pb_encode_tag_for_field(stream, field) &&
           pb_encode_string(stream, (const pb_byte_t *)"/origin", 7);
}

static void random_request(curve_chunkserver_ChunkRequest *request) {
    *request = (curve_chunkserver_ChunkRequest)curve_chunkserver_ChunkRequest_init_zero;
    request->opType = (curve_chunkserver_CHUNK_OP_TYPE)below(10);
    request->logicPoolId = (uint32_t)odd_number();
    request->copysetId = (uint32_t)odd_number();
    request->chunkId = odd_number();
    request->has_appliedIndex = below(2);
    request->has_offset = below(2);
    request->offset = (uint32_t)odd_number();
    request->has_size = below(2);
    request->size = (uint32_t)odd_number();
    request->has_sn = below(2);
    request->sn = odd_number();
    request->has_location = below(4) == 0;
    memcpy(request->location, "a@b", 4);
    request->has_fileId = below(2);
    request->fileId = odd_number();
    request->has_epoch = below(2);
    request->epoch = odd_number();
    request->has_clientId = below(2);
    request->clientId = odd_number();
    request->has_sequence = below(2);
    request->sequence = odd_number();
    request->has_settledBelow = below(2);
    request->settledBelow = odd_number();
    request->has_strictEpoch = below(2);
    request->strictEpoch = below(2);
    request->has_attachmentCrc = below(2);
    request->attachmentCrc = (uint32_t)odd_number();
    request->has_noHole = below(2);
    request->noHole = below(2);
    if (below(8) == 0) {
        request->cloneFileSource.funcs.encode = encode_source;
    }
}

static void assert_same(const curve_chunkserver_ChunkRequest *a, const struct cg_chunk_request *b) {
    assert_int_equal(a->opType, b->op_type);
    assert_int_equal(a->logicPoolId, b->pool);
    assert_int_equal(a->copysetId, b->copyset);
    assert_int_equal(a->chunkId, b->chunk_id);
    assert_int_equal(a->has_offset ? a->offset : 0, b->offset);
    assert_int_equal(a->has_size ? a->size : 0, b->size);
    assert_int_equal(a->has_sn ? a->sn : 0, b->sn);
    assert_int_equal(a->has_fileId ? a->fileId : 0, b->file_id);
    assert_int_equal(a->has_epoch, (b->has & CG_REQUEST_EPOCH) != 0);
    assert_int_equal(a->has_epoch ? a->epoch : 0, b->epoch);
    assert_int_equal(a->has_clientId, (b->has & CG_REQUEST_CLIENT_ID) != 0);
    assert_int_equal(a->has_clientId ? a->clientId : 0, b->client_id);
    assert_int_equal(a->has_sequence, (b->has & CG_REQUEST_SEQUENCE) != 0);
    assert_int_equal(a->has_sequence ? a->sequence : 0, b->sequence);
    assert_int_equal(a->has_settledBelow ? a->settledBelow : 0, b->settled_below);
    assert_int_equal(a->has_strictEpoch && a->strictEpoch, b->strict_epoch);
    assert_int_equal(a->has_attachmentCrc, (b->has & CG_REQUEST_CRC) != 0);
    assert_int_equal(a->has_attachmentCrc ? a->attachmentCrc : 0, b->attachment_crc);
    assert_int_equal(a->has_noHole && a->noHole, b->no_hole);
    assert_int_equal(a->has_location || a->cloneFileSource.funcs.encode != NULL,
                     (b->has & CG_REQUEST_CLONE) != 0);
}

static void requests_are_decoded_as_nanopb_decodes_them(void **state) {
    (void)state;
    for (int i = 0; i < 20000; i++) {
        curve_chunkserver_ChunkRequest request;
        random_request(&request);
        uint8_t bytes[512];
        pb_ostream_t stream = pb_ostream_from_buffer(bytes, sizeof(bytes));
        assert_true(pb_encode(&stream, curve_chunkserver_ChunkRequest_fields, &request));
        struct cg_chunk_request decoded;
        assert_int_equal(0, cg_chunk_request_decode(bytes, stream.bytes_written, &decoded));
        assert_same(&request, &decoded);
        // Broken ones: what we take, nanopb takes too.
        size_t length = stream.bytes_written;
        if (below(2) == 0) {
            length = below((uint32_t)length + 1);
        }
        for (uint32_t j = below(4); j > 0 && length > 0; j--) {
            bytes[below((uint32_t)length)] = (uint8_t)random64();
        }
        uint8_t *exact = malloc(length + 1); // so that a sanitizer sees a byte too many
        memcpy(exact, bytes, length);
        int result = cg_chunk_request_decode(exact, length, &decoded);
        pb_istream_t in = pb_istream_from_buffer(exact, length);
        memset(&request, 0, sizeof(request));
        bool taken = pb_decode(&in, curve_chunkserver_ChunkRequest_fields, &request);
        if (taken && result == 0 && !(decoded.has & CG_REQUEST_CLONE)) {
            assert_int_equal(request.chunkId, decoded.chunk_id);
            assert_int_equal(request.has_sequence ? request.sequence : 0, decoded.sequence);
        }
        free(exact);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(block_maps_behave_as_arrays_of_bools),
        cmocka_unit_test(the_newer_metadata_slot_is_chosen),
        cmocka_unit_test(any_flipped_bit_of_a_slot_is_noticed),
        cmocka_unit_test(entries_survive_their_encoding_and_garbage_is_refused),
        cmocka_unit_test(windows_answer_as_a_plain_table_does),
        cmocka_unit_test(windows_are_bounded),
        cmocka_unit_test(epochs_only_rise),
        cmocka_unit_test(requests_are_decoded_as_nanopb_decodes_them),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
