// SPDX-License-Identifier: BSD-3-Clause
//
// Intrusive doubly linked list. A node is a member of the object that it links, so that membership
// costs no allocation. All calls are O(1) and belong to the thread that owns the list.
#ifndef CG_BASE_LIST_H
#define CG_BASE_LIST_H

#include <stdbool.h>
#include <stddef.h>

struct cg_list {
    struct cg_list *next;
    struct cg_list *prev;
};

#define CG_CONTAINER_OF(pointer, type, member) ((type *)((char *)(pointer)-offsetof(type, member)))

#define CG_LIST_FOREACH(position, head)                                                            \
    for (struct cg_list *position = (head)->next; position != (head); position = position->next)

// As CG_LIST_FOREACH; `position` may be removed inside the loop (other nodes may not).
#define CG_LIST_FOREACH_SAFE(position, following, head)                                            \
    for (struct cg_list *position = (head)->next, *following = position->next; position != (head); \
         position = following, following = position->next)

static inline void cg_list_init(struct cg_list *head) {
    head->next = head;
    head->prev = head;
}

static inline bool cg_list_empty(const struct cg_list *head) {
    return head->next == head;
}

// True while `node` is on a list. Holds for nodes that were initialised with cg_list_init.
static inline bool cg_list_linked(const struct cg_list *node) {
    return node->next != node;
}

static inline void cg_list_insert_before(struct cg_list *node, struct cg_list *position) {
    node->prev = position->prev;
    node->next = position;
    position->prev->next = node;
    position->prev = node;
}

static inline void cg_list_push_back(struct cg_list *head, struct cg_list *node) {
    cg_list_insert_before(node, head);
}

static inline void cg_list_push_front(struct cg_list *head, struct cg_list *node) {
    cg_list_insert_before(node, head->next);
}

// Removes `node` and leaves it initialised, so that removing twice is harmless.
static inline void cg_list_remove(struct cg_list *node) {
    node->prev->next = node->next;
    node->next->prev = node->prev;
    cg_list_init(node);
}

static inline struct cg_list *cg_list_pop_front(struct cg_list *head) {
    struct cg_list *node = head->next;
    if (node == head) {
        return NULL;
    }
    cg_list_remove(node);
    return node;
}

// Moves all nodes of `from` to the end of `to`; `from` is empty afterwards.
static inline void cg_list_splice_back(struct cg_list *to, struct cg_list *from) {
    if (cg_list_empty(from)) {
        return;
    }
    from->next->prev = to->prev;
    to->prev->next = from->next;
    from->prev->next = to;
    to->prev = from->prev;
    cg_list_init(from);
}

#endif
