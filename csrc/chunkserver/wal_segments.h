// SPDX-License-Identifier: BSD-3-Clause
//
// The log's segment files: opening them, making new ones ahead of need, handing them back for
// reuse. A file keeps its name and its place on the disk for life; what is in it is told by its
// header.
#ifndef CG_CHUNKSERVER_WAL_SEGMENTS_H
#define CG_CHUNKSERVER_WAL_SEGMENTS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/disk.h"
#include "base/list.h"
#include "chunkserver/wal_format.h"

#define WAL_FOLDER      "wal"
#define WAL_NAME_FORMAT WAL_FOLDER "/segment-%06u"
#define WAL_NAME_SIZE   32U
#define WAL_FREE_TARGET 2U          // prepared segments kept ahead of the log
#define WAL_SEGMENT_MIN (32U << 10) // of cg_wal_options.segment_bytes

struct wal_segment {
    struct cg_list node;
    uint32_t slot; // the number in its name
    int handle;    // O_DIRECT | O_DSYNC
    uint64_t size; // bytes of the file
    struct wal_segment_header header;
    bool unprepared;  // its making was cut short
    uint64_t end_lsn; // sealed segments: where the log went on in the next one
    unsigned readers; // fetches under way: not to be released meanwhile
};

struct wal_segments;

// The making of one file, step by step on the reactor's thread pool.
struct wal_preparation {
    struct cg_file_op op;
    struct wal_segments *segments;
    struct wal_segment *segment;
    int raw;         // handle without O_DSYNC, for the zeros
    uint64_t zeroed; // bytes
    bool hurry;      // the log waits for it: leave the rest unwritten
    bool running;
};

struct wal_segments {
    struct cg_disk *disk;
    uint8_t uuid[WAL_UUID_SIZE];
    uint64_t segment_bytes;           // of a full-grown file
    uint64_t keep_free_bytes;         // on the disk, for others
    bool give_back;                   // free segments, while less than that is free
    bool (*make_room)(void *context); // see cg_wal_options
    void *room_context;
    uint64_t smallest_bytes; // of any file in use: takes at least one largest batch
    uint64_t capacity_bytes;
    int open_flags; // O_DIRECT, where the file system takes it

    struct cg_list live; // in order of sequence; the last is the one being written
    struct cg_list free; // ready for use
    uint32_t free_count;
    uint64_t held_bytes;   // of all files
    uint64_t sealed_bytes; // of the live ones but the last
    uint64_t needed_lsn;   // what lies below is not needed any more
    uint32_t next_slot;

    struct wal_preparation preparation;
    bool growth_failed; // the disk is full: no other attempt until something is recycled
    bool limited;       // nor was there a success since: the log has to do with what is held
    void (*prepared)(void *context); // a preparation has ended, for better or worse
    void *context;
    uint8_t *zeros;
    uint64_t zero_step; // bytes there
};

// Makes the folder. Returns 0 or -errno.
int wal_segments_init(struct wal_segments *set, struct cg_disk *disk, uint64_t segment_bytes,
                      uint64_t smallest_bytes, uint64_t capacity_bytes);

// Finds out whether the disk takes O_DIRECT: needed before any segment is opened. Returns 0 or
// -errno.
int wal_segments_probe(struct wal_segments *set);

// Closes and frees everything. No preparation may run.
void wal_segments_destroy(struct wal_segments *set);

static inline bool wal_segments_direct(const struct wal_segments *set) {
    return set->open_flags != 0;
}

// The segment being written; NULL before the first.
static inline struct wal_segment *wal_segments_current(struct wal_segments *set) {
    return cg_list_empty(&set->live) ? NULL
                                     : CG_CONTAINER_OF(set->live.prev, struct wal_segment, node);
}

// Makes a segment object for the file of `slot`, opened, on no list. Returns 0 or -errno.
int wal_segment_open(struct wal_segments *set, uint32_t slot, struct wal_segment **out);

// Makes a new file of `size` bytes, durable in the folder, and puts it on the free list. Blocking.
// Returns 0 or -errno; a failure leaves no file behind.
int wal_segment_create(struct wal_segments *set, uint64_t size);

// Removes the file of a segment that is on no list and frees it.
void wal_segment_remove(struct wal_segments *set, struct wal_segment *segment);

// Puts a segment that holds nothing needed on the free list, or removes it where it is too small
// for today's options or more is held than allowed.
void wal_segment_release(struct wal_segments *set, struct wal_segment *segment);

// Takes the next free segment off the list; NULL if there is none.
struct wal_segment *wal_segment_take(struct wal_segments *set);

// Makes `segment` the one being written; the one before it is sealed at
// `segment->header.start_lsn`.
void wal_segments_push_live(struct wal_segments *set, struct wal_segment *segment);

// Starts the preparation of another file if fewer than WAL_FREE_TARGET are free and the capacity
// allows it. `hurry`: the log waits, so that the zeros are cut short. A log of one segment, which
// could neither be gone on with nor recycled, grows in any case.
void wal_segments_grow(struct wal_segments *set, bool hurry);

// Removes free segments but one where the set is to give back.
void wal_segments_give_back(struct wal_segments *set);

// Forgets that growing failed if there is space by now, and grows.
void wal_segments_try_again(struct wal_segments *set);

// The live segment that holds the log position `lsn`, or NULL: recycled, or not there yet.
struct wal_segment *wal_segments_find(struct wal_segments *set, uint64_t lsn);

// Releases the sealed segments that end at or below `lsn`, up to the first that has readers: to be
// called again when those are done.
void wal_segments_recycle(struct wal_segments *set, uint64_t lsn);

#endif
