// SPDX-License-Identifier: BSD-3-Clause
//
// Lists, CRC-32C, buffers, histogram, log.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/buffer.h"
#include "base/crc32c.h"
#include "base/histogram.h"
#include "base/list.h"
#include "base/log.h"

// ---- Lists

struct element {
    struct cg_list node;
    int value;
};

static void assert_values(const struct cg_list *head, const int *values, int count) {
    int i = 0;
    CG_LIST_FOREACH (node, head) {
        assert_true(i < count);
        assert_int_equal(CG_CONTAINER_OF(node, struct element, node)->value, values[i]);
        assert_ptr_equal(node->next->prev, node);
        i++;
    }
    assert_int_equal(i, count);
}

static void lists_keep_their_order(void **state) {
    (void)state;
    struct cg_list a, b;
    struct element e[6];
    cg_list_init(&a);
    cg_list_init(&b);
    for (int i = 0; i < 6; i++) {
        e[i].value = i;
        cg_list_init(&e[i].node);
        assert_false(cg_list_linked(&e[i].node));
    }
    cg_list_push_back(&a, &e[1].node);
    cg_list_push_back(&a, &e[2].node);
    cg_list_push_front(&a, &e[0].node);
    assert_values(&a, (int[]){0, 1, 2}, 3);
    cg_list_push_back(&b, &e[3].node);
    cg_list_push_back(&b, &e[4].node);
    cg_list_splice_back(&a, &b);
    assert_true(cg_list_empty(&b));
    cg_list_splice_back(&a, &b);
    cg_list_insert_before(&e[5].node, &e[1].node);
    assert_values(&a, (int[]){0, 5, 1, 2, 3, 4}, 6);
    cg_list_remove(&e[5].node);
    cg_list_remove(&e[5].node);
    assert_false(cg_list_linked(&e[5].node));
    CG_LIST_FOREACH_SAFE (node, following, &a) {
        if (CG_CONTAINER_OF(node, struct element, node)->value % 2 == 0) {
            cg_list_remove(node);
        }
    }
    assert_values(&a, (int[]){1, 3}, 2);
    assert_ptr_equal(cg_list_pop_front(&a), &e[1].node);
    assert_ptr_equal(cg_list_pop_front(&a), &e[3].node);
    assert_null(cg_list_pop_front(&a));
}

// ---- CRC-32C

static void crc32c_gives_the_vectors_of_rfc_3720(void **state) {
    (void)state;
    uint8_t data[48];
    memset(data, 0, 32);
    assert_int_equal(cg_crc32c(0, data, 32), 0x8a9136aa);
    memset(data, 0xff, 32);
    assert_int_equal(cg_crc32c(0, data, 32), 0x62a8ab43);
    for (int i = 0; i < 32; i++) {
        data[i] = (uint8_t)i;
    }
    assert_int_equal(cg_crc32c(0, data, 32), 0x46dd794e);
    for (int i = 0; i < 32; i++) {
        data[i] = (uint8_t)(31 - i);
    }
    assert_int_equal(cg_crc32c(0, data, 32), 0x113fdb5c);
    static const uint8_t read_pdu[48] = {0x01, 0xc0, 0, 0,    0,    0, 0, 0,    0,    0, 0,    0,
                                         0,    0,    0, 0,    0x14, 0, 0, 0,    0,    0, 0x04, 0,
                                         0,    0,    0, 0x14, 0,    0, 0, 0x18, 0x28, 0, 0,    0,
                                         0,    0,    0, 0,    0x02, 0, 0, 0,    0,    0, 0,    0};
    assert_int_equal(cg_crc32c(0, read_pdu, 48), 0xd9963a56);
    assert_int_equal(cg_crc32c(0, "123456789", 9), 0xe3069283);
}

static uint32_t bitwise_crc(const uint8_t *data, size_t length) {
    uint32_t crc = ~0U;
    for (size_t i = 0; i < length; i++) {
        crc ^= data[i];
        for (int bit = 0; bit < 8; bit++) {
            crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78U : 0);
        }
    }
    return ~crc;
}

static void crc32c_goes_on_where_it_stopped(void **state) {
    (void)state;
    uint8_t data[1000];
    srand(1);
    for (size_t i = 0; i < sizeof(data); i++) {
        data[i] = (uint8_t)rand();
    }
    for (size_t length = 0; length <= sizeof(data); length += 7) {
        uint32_t whole = cg_crc32c(0, data, length);
        assert_int_equal(whole, bitwise_crc(data, length));
        for (size_t cut = 0; cut <= length; cut += 13) {
            uint32_t first = cg_crc32c(0, data, cut);
            assert_int_equal(cg_crc32c(first, data + cut, length - cut), whole);
        }
    }
    assert_int_equal(cg_crc32c(0, NULL, 0), 0);
}

// ---- Buffers

static void buffers_are_aligned_and_counted(void **state) {
    (void)state;
    struct cg_buffer_pool *pool;
    assert_int_equal(cg_buffer_pool_create(1 << 20, &pool), 0);
    static const size_t lengths[] = {0, 1, 4095, 4096, 4097, 65536, 70000};
    for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
        struct cg_buffer *b = cg_buffer_alloc(pool, lengths[i]);
        assert_non_null(b);
        assert_true(b->capacity >= lengths[i]);
        assert_int_equal(b->capacity % CG_BUFFER_ALIGNMENT, 0);
        assert_int_equal((uintptr_t)b->data % CG_BUFFER_ALIGNMENT, 0);
        memset(b->data, 0xaa, b->capacity);
        assert_int_equal(cg_buffer_pool_in_use(pool), b->capacity);
        assert_ptr_equal(cg_buffer_ref(b), b);
        cg_buffer_unref(b);
        assert_int_equal(cg_buffer_pool_in_use(pool), b->capacity);
        cg_buffer_unref(b);
        assert_int_equal(cg_buffer_pool_in_use(pool), 0);
    }
    cg_buffer_unref(NULL);
    cg_buffer_pool_destroy(pool);
}

static void a_pool_keeps_its_limit_whatever_was_cached(void **state) {
    (void)state;
    struct cg_buffer_pool *pool;
    assert_int_equal(cg_buffer_pool_create(64 * 4096, &pool), 0);
    struct cg_buffer *b[64];
    for (int i = 0; i < 64; i++) {
        b[i] = cg_buffer_alloc(pool, 4096);
        assert_non_null(b[i]);
    }
    assert_null(cg_buffer_alloc(pool, 1));
    cg_buffer_unref(b[63]);
    assert_null(cg_buffer_alloc(pool, 4097));
    b[63] = cg_buffer_alloc(pool, 1);
    assert_non_null(b[63]);
    for (int i = 0; i < 64; i++) {
        cg_buffer_unref(b[i]);
    }
    // All of the limit is cached in the smallest class; the largest must get it all the same.
    struct cg_buffer *large = cg_buffer_alloc(pool, 64 * 4096);
    assert_non_null(large);
    assert_null(cg_buffer_alloc(pool, 1));
    cg_buffer_unref(large);
    assert_null(cg_buffer_alloc(pool, 64 * 4096 + 1));
    assert_null(cg_buffer_alloc(pool, SIZE_MAX));
    assert_null(cg_buffer_alloc(pool, (size_t)1 << 40));
    cg_buffer_pool_destroy(pool);
    assert_int_equal(cg_buffer_pool_create(4095, &pool), -EINVAL);
}

static void a_freed_buffer_is_used_again(void **state) {
    (void)state;
    struct cg_buffer_pool *pool;
    assert_int_equal(cg_buffer_pool_create(1 << 20, &pool), 0);
    struct cg_buffer *first = cg_buffer_alloc(pool, 4096);
    cg_buffer_unref(first);
    assert_ptr_equal(cg_buffer_alloc(pool, 100), first);
    cg_buffer_unref(first);
    cg_buffer_pool_destroy(pool);
}

// ---- Histogram

static void percentiles_are_within_the_stated_error(void **state) {
    (void)state;
    static struct cg_histogram h, half, other;
    cg_histogram_reset(&h);
    assert_int_equal(cg_histogram_percentile(&h, 99), 0);
    cg_histogram_reset(&half);
    cg_histogram_reset(&other);
    for (uint64_t i = 1; i <= 100000; i++) {
        cg_histogram_add(&h, i);
        cg_histogram_add(i % 2 ? &half : &other, i);
    }
    cg_histogram_merge(&half, &other);
    assert_memory_equal(&h, &half, sizeof(h));
    static const double percents[] = {0.1, 1, 10, 50, 90, 99, 99.9};
    for (size_t i = 0; i < sizeof(percents) / sizeof(percents[0]); i++) {
        double exact = percents[i] * 1000;
        double found = (double)cg_histogram_percentile(&h, percents[i]);
        assert_true(found >= exact && found <= exact * 1.016 + 1);
    }
    assert_int_equal(cg_histogram_percentile(&h, 100), 100000);
    assert_int_equal(cg_histogram_percentile(&h, 0), 1);
    assert_int_equal(h.count, 100000);
    assert_true(h.sum == UINT64_C(5000050000));
}

static void extreme_values_have_a_place(void **state) {
    (void)state;
    static struct cg_histogram h;
    for (int shift = 0; shift < 64; shift++) {
        for (int64_t d = -1; d <= 1; d++) {
            uint64_t value = (UINT64_C(1) << shift) + (uint64_t)d;
            cg_histogram_reset(&h);
            cg_histogram_add(&h, value);
            assert_true(cg_histogram_percentile(&h, 50) == value); // cut at the maximum
        }
    }
    cg_histogram_reset(&h);
    cg_histogram_add(&h, UINT64_MAX);
    assert_true(cg_histogram_percentile(&h, 50) == UINT64_MAX);
    assert_int_equal(h.bucket[CG_HISTOGRAM_BUCKETS - 1], 1);
}

// ---- Log

struct seen_line {
    int lines;
    enum cg_log_level level;
    char text[CG_LOG_LINE_MAX + 1];
};

static void note_line(void *context, enum cg_log_level level, const char *line) {
    struct seen_line *seen = context;
    seen->lines++;
    seen->level = level;
    strcpy(seen->text, line);
}

static void a_line_is_one_line_of_bounded_length(void **state) {
    (void)state;
    struct seen_line seen = {0};
    cg_log(CG_LOG_ERROR, "without a sink it is dropped");
    cg_log_set_sink(note_line, &seen, CG_LOG_WARNING);
    cg_log(CG_LOG_INFO, "too low");
    assert_int_equal(seen.lines, 0);
    cg_log(CG_LOG_WARNING, "from the peer: %s", "a\nforged\rline\x1b[0m");
    assert_int_equal(seen.lines, 1);
    assert_int_equal(seen.level, CG_LOG_WARNING);
    assert_string_equal(seen.text, "from the peer: a forged line [0m");
    cg_log(CG_LOG_ERROR, "%5000d", 1);
    assert_true(strlen(seen.text) < CG_LOG_LINE_MAX);
    cg_log_set_sink(NULL, NULL, CG_LOG_DEBUG);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lists_keep_their_order),
        cmocka_unit_test(crc32c_gives_the_vectors_of_rfc_3720),
        cmocka_unit_test(crc32c_goes_on_where_it_stopped),
        cmocka_unit_test(buffers_are_aligned_and_counted),
        cmocka_unit_test(a_pool_keeps_its_limit_whatever_was_cached),
        cmocka_unit_test(a_freed_buffer_is_used_again),
        cmocka_unit_test(percentiles_are_within_the_stated_error),
        cmocka_unit_test(extreme_values_have_a_place),
        cmocka_unit_test(a_line_is_one_line_of_bounded_length),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
