// SPDX-License-Identifier: BSD-3-Clause
#include "chunkserver/local_share.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/local_wire.h"
#include "base/log.h"
#include "base/peer.h"

#define MAP_NAME        "local.map"
#define CONNECTIONS_MAX 64U

struct door_connection {
    struct cg_watch watch;
    struct cg_list node;
    struct cg_local_share *share;
};

struct cg_local_share {
    struct cg_local_header *header;
    struct cg_local_slot *slots;
    struct cg_local_lease *leases;
    size_t length;           // of both
    uint32_t lease_count;    // places taken
    uint32_t epochs_pending; // being raised
    int header_fd;           // these two are read-only: what clients get
    int slots_fd;
    struct cg_reactor *reactor;
    struct cg_watch listener;
    struct cg_list connections;
    unsigned connection_count;
    cg_local_find find;
    void *context;
};

// A predecessor that was killed could not close its map, and clients may still have it.
static int close_predecessor(int folder) {
    int fd = openat(folder, MAP_NAME, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0) {
        return errno == ENOENT ? 0 : -errno;
    }
    int result = 0;
    struct stat info;
    if (fstat(fd, &info) != 0) {
        result = -errno;
    } else if (info.st_size >= (off_t)sizeof(struct cg_local_header)) {
        struct cg_local_header *header =
            mmap(NULL, sizeof(struct cg_local_header), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (header == MAP_FAILED) {
            result = -errno;
        } else {
            atomic_store(&header->closed, 1);
            munmap(header, sizeof(struct cg_local_header));
        }
    }
    close(fd);
    if (result == 0 && unlinkat(folder, MAP_NAME, 0) != 0) {
        result = -errno;
    }
    return result;
}

// Maps `length` bytes of `fd` for writing and reopens it for clients, read-only.
static int map_and_reopen(int fd, size_t length, void **map, int *read_only) {
    *map = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (*map == MAP_FAILED) {
        *map = NULL;
        return -errno;
    }
    char path[32];
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    *read_only = open(path, O_RDONLY | O_CLOEXEC);
    return *read_only < 0 ? -errno : 0;
}

static int make_header(struct cg_local_share *share, int folder) {
    int fd = openat(folder, MAP_NAME, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0) {
        return -errno;
    }
    // Allocated, not sparse: a full disk must not become a SIGBUS at a store into the map.
    int result = -posix_fallocate(fd, 0, sizeof(struct cg_local_header));
    void *map = NULL;
    if (result == 0) {
        result = map_and_reopen(fd, sizeof(struct cg_local_header), &map, &share->header_fd);
    }
    share->header = map;
    close(fd);
    return result;
}

static int make_slots(struct cg_local_share *share, uint32_t slots) {
    int fd = memfd_create("copygate-local-slots", MFD_CLOEXEC);
    if (fd < 0) {
        return -errno;
    }
    void *map = NULL;
    int result = ftruncate(fd, (off_t)share->length) == 0 ? 0 : -errno;
    if (result == 0) {
        result = map_and_reopen(fd, share->length, &map, &share->slots_fd);
    }
    share->slots = map;
    close(fd);
    if (result == 0) {
        share->leases = (struct cg_local_lease *)(share->slots + slots);
    }
    return result;
}

int cg_local_share_create(const char *folder, uint32_t slots, uint32_t data_offset,
                          struct cg_local_share **out) {
    if (slots == 0 || slots > CG_LOCAL_SLOTS_MAX) {
        return -EINVAL;
    }
    struct cg_local_share *share = calloc(1, sizeof(*share));
    if (share == NULL) {
        return -ENOMEM;
    }
    share->header_fd = -1;
    share->slots_fd = -1;
    share->length = (size_t)slots * sizeof(struct cg_local_slot) +
                    CG_LOCAL_LEASES * sizeof(struct cg_local_lease);
    share->listener.fd = -1;
    cg_list_init(&share->connections);
    int folder_fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int result = folder_fd < 0 ? -errno : close_predecessor(folder_fd);
    if (result == 0) {
        result = make_header(share, folder_fd);
    }
    if (result == 0) {
        result = make_slots(share, slots);
    }
    if (folder_fd >= 0) {
        close(folder_fd);
    }
    if (result != 0) {
        cg_local_share_destroy(share);
        return result;
    }
    share->header->slot_count = slots;
    share->header->slot_size = sizeof(struct cg_local_slot);
    share->header->data_offset = data_offset;
    share->header->version = CG_LOCAL_VERSION;
    share->header->lease_count = CG_LOCAL_LEASES;
    // Unlike any of a predecessor's: what a client learned from that one must not fit here.
    atomic_store(&share->header->epoch_generation, cg_boottime_ns() & ~UINT64_C(1));
    atomic_thread_fence(memory_order_release);
    share->header->magic = CG_LOCAL_MAGIC;
    *out = share;
    return 0;
}

struct cg_local_slot *cg_local_share_slot(struct cg_local_share *share, uint32_t index) {
    return &share->slots[index];
}

void cg_local_share_epoch_begin(struct cg_local_share *share) {
    if (share->epochs_pending++ == 0) {
        atomic_fetch_add(&share->header->epoch_generation, 1);
    }
}

void cg_local_share_epoch_end(struct cg_local_share *share) {
    assert(share->epochs_pending > 0);
    if (--share->epochs_pending == 0) {
        atomic_fetch_add(&share->header->epoch_generation, 1);
    }
}

void cg_local_share_lease(struct cg_local_share *share, uint64_t group, uint64_t until_ns) {
    uint32_t place = cg_local_lease_place(group);
    uint64_t key;
    while ((key = atomic_load(&share->leases[place].key)) != group + 1) {
        if (key == 0) {
            if (until_ns == 0 || share->lease_count == CG_LOCAL_LEASES / 2) {
                return; // it has none; or its chunks are read by request
            }
            share->lease_count++;
            atomic_store(&share->leases[place].key, group + 1);
            break;
        }
        place = (place + 1) & (CG_LOCAL_LEASES - 1);
    }
    atomic_store(&share->leases[place].until_ns, until_ns);
}

// ---- The door

static void drop(struct door_connection *connection) {
    cg_reactor_unwatch(&connection->watch);
    close(connection->watch.fd);
    cg_list_remove(&connection->node);
    connection->share->connection_count--;
    free(connection);
}

// Sends the answer with `count` descriptors. A client that does not read its answers is dropped.
static bool answer(struct door_connection *connection, const struct cg_local_answer *reply,
                   const int *fds, size_t count) {
    struct cg_local_answer copy = *reply;
    struct iovec iov = {.iov_base = &copy, .iov_len = sizeof(copy)};
    union {
        struct cmsghdr align;
        char space[CMSG_SPACE(CG_LOCAL_FDS_MAX * sizeof(int))];
    } control = {0};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
    if (count > 0) {
        message.msg_control = control.space;
        message.msg_controllen = CMSG_SPACE(count * sizeof(int));
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(count * sizeof(int));
        memcpy(CMSG_DATA(header), fds, count * sizeof(int));
    }
    return sendmsg(connection->watch.fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT) ==
           (ssize_t)sizeof(copy);
}

static bool handle(struct door_connection *connection, const struct cg_local_ask *ask) {
    struct cg_local_share *share = connection->share;
    struct cg_local_answer reply = {.tag = ask->tag, .chunk_id = ask->chunk_id};
    if (ask->question == CG_LOCAL_ASK_MAP) {
        int fds[] = {share->header_fd, share->slots_fd};
        return answer(connection, &reply, fds, 2);
    }
    if (ask->question != CG_LOCAL_ASK_CHUNK) {
        return false;
    }
    int fd = share->find(share->context, ask->pool, ask->copyset, ask->chunk_id, &reply.slot);
    reply.status = fd < 0 ? fd : 0;
    bool sent = answer(connection, &reply, &fd, fd < 0 ? 0 : 1);
    if (fd >= 0) {
        close(fd);
    }
    return sent;
}

static void connection_ready(struct cg_watch *watch, uint32_t events) {
    struct door_connection *connection = CG_CONTAINER_OF(watch, struct door_connection, watch);
    (void)events;
    for (;;) {
        struct cg_local_ask ask;
        ssize_t length = recv(watch->fd, &ask, sizeof(ask), MSG_DONTWAIT | MSG_TRUNC);
        if (length < 0 && (errno == EAGAIN || errno == EINTR)) {
            return;
        }
        if (length != (ssize_t)sizeof(ask) || !handle(connection, &ask)) {
            drop(connection);
            return;
        }
    }
}

static void listener_ready(struct cg_watch *watch, uint32_t events) {
    struct cg_local_share *share = CG_CONTAINER_OF(watch, struct cg_local_share, listener);
    (void)events;
    for (;;) {
        int fd = accept4(watch->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd < 0) {
            return;
        }
        struct door_connection *connection = NULL;
        if (cg_peer_trusted(fd) && share->connection_count < CONNECTIONS_MAX) {
            connection = calloc(1, sizeof(*connection));
        }
        if (connection == NULL) {
            close(fd);
            continue;
        }
        connection->share = share;
        connection->watch =
            (struct cg_watch){.fd = fd, .events = EPOLLIN, .ready = connection_ready};
        cg_list_push_back(&share->connections, &connection->node);
        share->connection_count++;
        if (cg_reactor_watch(share->reactor, &connection->watch) != 0) {
            drop(connection);
        }
    }
}

int cg_local_share_listen(struct cg_local_share *share, struct cg_reactor *reactor,
                          const char *address, cg_local_find find, void *context) {
    share->reactor = reactor;
    share->find = find;
    share->context = context;
    struct sockaddr_un door;
    socklen_t length = cg_local_door_address(address, &door);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        return -errno;
    }
    if (bind(fd, (struct sockaddr *)&door, length) != 0 || listen(fd, 16) != 0) {
        int saved = errno;
        close(fd);
        return -saved;
    }
    share->listener = (struct cg_watch){.fd = fd, .events = EPOLLIN, .ready = listener_ready};
    int result = cg_reactor_watch(reactor, &share->listener);
    if (result != 0) {
        close(fd);
        share->listener.fd = -1;
    }
    return result;
}

void cg_local_share_destroy(struct cg_local_share *share) {
    if (share->listener.fd >= 0) {
        cg_reactor_unwatch(&share->listener);
        close(share->listener.fd);
    }
    CG_LIST_FOREACH_SAFE (node, following, &share->connections) {
        drop(CG_CONTAINER_OF(node, struct door_connection, node));
    }
    if (share->header != NULL) {
        atomic_store(&share->header->closed, 1);
        munmap(share->header, sizeof(struct cg_local_header));
    }
    if (share->slots != NULL) {
        munmap(share->slots, share->length);
    }
    if (share->header_fd >= 0) {
        close(share->header_fd);
    }
    if (share->slots_fd >= 0) {
        close(share->slots_fd);
    }
    free(share);
}
