/// Linux headers and ioctl numbers that Swift's Glibc module leaves out, and macros it cannot import. Header only.
#ifndef ALPS_CLINUX_H
#define ALPS_CLINUX_H

// Without _GNU_SOURCE: Swift's Glibc module is built without it, and a file that imports both modules must see the same
// types in both. What only _GNU_SOURCE shows is declared at the end.
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <net/route.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

// Ioctl numbers are function-like macros, which Swift does not import.
static const unsigned long alps_TUNSETIFF = TUNSETIFF;
static const unsigned long alps_TUNSETOFFLOAD = TUNSETOFFLOAD;
static const unsigned long alps_TUNSETVNETHDRSZ = TUNSETVNETHDRSZ;
static const unsigned long alps_TUNGETFEATURES = TUNGETFEATURES;

// What <fcntl.h>, <sys/mman.h>, <sys/socket.h> and <unistd.h> show with _GNU_SOURCE only.
#include <linux/memfd.h>

static const int alps_F_ADD_SEALS = 1033;
static const int alps_F_GET_SEALS = 1034;
static const int alps_F_SEAL_SEAL = 1;
static const int alps_F_SEAL_SHRINK = 2;
static const int alps_F_SEAL_GROW = 4;
static const int alps_SCM_CREDENTIALS = 2;
static const int alps_SO_COOKIE = 57;
static const int alps_SO_MAX_PACING_RATE = 47;
static const short alps_POSIX_SPAWN_SETSID = 0x80;
static const int alps_EPOLLRDHUP = 0x2000;
static const int alps_POLLRDHUP = 0x2000;

/// struct ucred, as SO_PEERCRED and SCM_CREDENTIALS carry it.
typedef struct alps_ucred {
    pid_t pid;
    uid_t uid;
    gid_t gid;
} alps_ucred;

int memfd_create(const char *name, unsigned int flags);
int accept4(int fd, struct sockaddr *address, socklen_t *length, int flags);
int pipe2(int fds[2], int flags);
int setns(int fd, int type);
pid_t gettid(void);

// Swift does not import variadic functions.
static inline int alps_ioctl(int fd, unsigned long request, void *argument) { return ioctl(fd, request, argument); }
static inline int alps_ioctl_value(int fd, unsigned long request, unsigned long argument) {
    return ioctl(fd, request, argument);
}

// Control messages are made of macros that Swift cannot import.

/// Sends bytes with one descriptor beside them (fd < 0: none). Never blocks. Returns bytes sent, or -1 with errno.
static inline ssize_t alps_send_with_fd(int socket, const void *bytes, size_t length, int fd) {
    union { struct cmsghdr header; char space[CMSG_SPACE(sizeof(int))]; } control;
    struct iovec part = {(void *)bytes, length};
    struct msghdr message = {0};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    if (fd >= 0) {
        memset(&control, 0, sizeof control);
        message.msg_control = control.space;
        message.msg_controllen = sizeof control.space;
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(header), &fd, sizeof fd);
    }
    return sendmsg(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
}

/// Receives bytes and at most one descriptor (-1 if none came; surplus ones are closed). Never blocks.
static inline ssize_t alps_receive_with_fd(int socket, void *bytes, size_t length, int *fd) {
    union { struct cmsghdr header; char space[CMSG_SPACE(8 * sizeof(int))]; } control;
    struct iovec part = {bytes, length};
    struct msghdr message = {0};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control.space;
    message.msg_controllen = sizeof control.space;
    *fd = -1;
    ssize_t got = recvmsg(socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (got < 0) return got;
    for (struct cmsghdr *header = CMSG_FIRSTHDR(&message); header; header = CMSG_NXTHDR(&message, header)) {
        if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
        int count = (int)((header->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        for (int index = 0; index < count; index++) {
            int passed;
            memcpy(&passed, CMSG_DATA(header) + (size_t)index * sizeof(int), sizeof passed);
            if (*fd < 0) *fd = passed; else close(passed);
        }
    }
    return got;
}

/// Memory of what has been written to a UNIX socket and not been read at its other end, bytes.
static inline int alps_bytes_not_taken(int socket) {
    int count = 0;
    return ioctl(socket, TIOCOUTQ, &count) == 0 ? count : 0;
}

/// Bytes waiting to be read.
static inline int alps_bytes_waiting(int socket) {
    int count = 0;
    return ioctl(socket, FIONREAD, &count) == 0 ? count : 0;
}

/// The CPUs that a thread may run on, one bit each; `thread` 0 is the caller.
int alps_sched_getaffinity(int thread, size_t bytes, unsigned long *set) __asm__("sched_getaffinity");
int alps_sched_setaffinity(int thread, size_t bytes, const unsigned long *set) __asm__("sched_setaffinity");

/// `struct sched_attr` as its first version, which the C library has only from 2.41 on; and the calls that take it, of the
/// calling thread.
typedef struct alps_sched_attr {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
} alps_sched_attr;

static inline int alps_sched_getattr(alps_sched_attr *attributes) {
    return (int)syscall(SYS_sched_getattr, 0, attributes, sizeof *attributes, 0);
}
static inline int alps_sched_setattr(const alps_sched_attr *attributes) {
    return (int)syscall(SYS_sched_setattr, 0, attributes, 0);
}

/// `struct mmsghdr`, which only _GNU_SOURCE shows, and the calls that take it.
typedef struct alps_many_message {
    struct msghdr header;
    unsigned length;
} alps_many_message;

int alps_recvmmsg(int socket, alps_many_message *messages, unsigned count, int flags, struct timespec *timeout)
    __asm__("recvmmsg");
int alps_sendmmsg(int socket, alps_many_message *messages, unsigned count, int flags) __asm__("sendmmsg");

/// Looks at the first `length` bytes of a UNIX stream without taking them, or at fewer if descriptors come along with
/// one: `*passes` tells whether. The descriptors stay where they are.
static inline ssize_t alps_peek(int socket, void *bytes, size_t length, int *passes) {
    struct iovec part = {bytes, length};
    struct msghdr message = {0};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    ssize_t got = recvmsg(socket, &message, MSG_PEEK | MSG_DONTWAIT);
    *passes = got > 0 && (message.msg_flags & MSG_CTRUNC) != 0;
    return got;
}

/// What has been sent and not read yet, in the kernel's unit: memory taken, for a UNIX socket.
static inline int alps_bytes_unread_by_peer(int socket) {
    int count = 0;
    return ioctl(socket, TIOCOUTQ, &count) == 0 ? count : 0;
}

/// Whether a descriptor is a UNIX socket of this type. Clients may pass whatever they like.
static inline int alps_is_unix_socket(int fd, int type) {
    int value = 0;
    socklen_t length = sizeof value;
    if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &value, &length) != 0 || value != AF_UNIX) return 0;
    length = sizeof value;
    return getsockopt(fd, SOL_SOCKET, SO_TYPE, &value, &length) == 0 && value == type;
}

/// Sets O_NONBLOCK.
static inline int alps_ioctl_nonblocking(int fd) {
    int on = 1;
    return ioctl(fd, FIONBIO, &on);
}

// Words of memory that a program sees and writes too: what is written before a store is there for whoever has loaded the word.
static inline uint32_t alps_load_acquire(const volatile void *word) {
    return __atomic_load_n((const volatile uint32_t *)word, __ATOMIC_ACQUIRE);
}
static inline void alps_store_release(volatile void *word, uint32_t value) {
    __atomic_store_n((volatile uint32_t *)word, value, __ATOMIC_RELEASE);
}
static inline uint64_t alps_load_position(const volatile void *word) {
    return __atomic_load_n((const volatile uint64_t *)word, __ATOMIC_ACQUIRE);
}
static inline void alps_store_position(volatile void *word, uint64_t value) {
    __atomic_store_n((volatile uint64_t *)word, value, __ATOMIC_RELEASE);
}
static inline uint64_t alps_exchange_handle(volatile void *word, uint64_t value) {
    return __atomic_exchange_n((volatile uint64_t *)word, value, __ATOMIC_SEQ_CST);
}
/// What is written before is seen before anything that is read behind it.
static inline void alps_full_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
/// Takes a lock word that is free.
static inline int alps_try_lock_word(volatile void *word, uint32_t owner) {
    uint32_t none = 0;
    return __atomic_compare_exchange_n((volatile uint32_t *)word, &none, owner, 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
}
static inline int alps_swap_lock_word(volatile void *word, uint32_t expected, uint32_t value) {
    return __atomic_compare_exchange_n((volatile uint32_t *)word, &expected, value, 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
}
/// False if there is no such thread (any more), nor a process of that number that has ended and is not waited for yet.
static inline int alps_thread_exists(uint32_t thread) {
    if (syscall(SYS_tkill, thread, 0) != 0) return errno != ESRCH;
    int process = (int)syscall(SYS_pidfd_open, thread, 0);
    if (process < 0) return 1;
    struct pollfd entry = {process, POLLIN, 0};
    int has_ended = poll(&entry, 1, 0) == 1;
    syscall(SYS_close, process);
    return !has_ended;
}
/// Frees a lock word, and wakes whoever waits for it.
static inline void alps_unlock_word(volatile void *word, uint32_t waited) {
    if (__atomic_exchange_n((volatile uint32_t *)word, 0, __ATOMIC_SEQ_CST) & waited)
        syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}
/// Wakes whoever waits for a word to change.
static inline void alps_wake_word(volatile void *word) { syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0); }
/// Allocates the pages of a file, so that a later write cannot fail for want of them; 0 or errno.
static inline int alps_allocate_pages(int fd, size_t bytes) { return posix_fallocate(fd, 0, (off_t)bytes); }

/// stdout is a global that Swift 6 does not let anybody touch.
static inline void alps_line_buffered_output(void) { setvbuf(stdout, NULL, _IOLBF, 0); }

#endif
