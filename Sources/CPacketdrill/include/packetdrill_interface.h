/// What packetdrill's --so_filename mode asks of a shared library: a table of the calls that a script makes, and a network
/// device. The order of the members is the contract: packetdrill hands over such a table for
/// `void packetdrill_interface_init(const char *flags, struct packetdrill_interface *)` to fill in, `flags` being its
/// --so_flags, or null. Calls return what the system call would, with errno set.
#ifndef ALPS_PACKETDRILL_INTERFACE_H
#define ALPS_PACKETDRILL_INTERFACE_H

#include <poll.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/uio.h>

struct packetdrill_interface {
    void *userdata;
    void (*free)(void *userdata);
    int (*socket)(void *, int domain, int type, int protocol);
    int (*bind)(void *, int fd, const struct sockaddr *, socklen_t);
    int (*listen)(void *, int fd, int backlog);
    int (*accept)(void *, int fd, struct sockaddr *, socklen_t *);
    int (*connect)(void *, int fd, const struct sockaddr *, socklen_t);
    ssize_t (*read)(void *, int fd, void *, size_t);
    ssize_t (*readv)(void *, int fd, const struct iovec *, int);
    ssize_t (*recv)(void *, int fd, void *, size_t, int flags);
    ssize_t (*recvfrom)(void *, int fd, void *, size_t, int flags, struct sockaddr *, socklen_t *);
    ssize_t (*recvmsg)(void *, int fd, struct msghdr *, int flags);
    ssize_t (*write)(void *, int fd, const void *, size_t);
    ssize_t (*writev)(void *, int fd, const struct iovec *, int);
    ssize_t (*send)(void *, int fd, const void *, size_t, int flags);
    ssize_t (*sendto)(void *, int fd, const void *, size_t, int flags, const struct sockaddr *, socklen_t);
    ssize_t (*sendmsg)(void *, int fd, const struct msghdr *, int flags);
    /// Variadic for the caller; on the machines at hand a fourth argument arrives in the same register either way.
    int (*fcntl)(void *, int fd, int command, long argument);
    /// The same.
    int (*ioctl)(void *, int fd, unsigned long request, void *argument);
    int (*close)(void *, int fd);
    int (*shutdown)(void *, int fd, int how);
    int (*getsockopt)(void *, int fd, int level, int name, void *, socklen_t *);
    int (*setsockopt)(void *, int fd, int level, int name, const void *, socklen_t);
    int (*poll)(void *, struct pollfd *, nfds_t, int milliseconds);
    /// An IPv4 packet for the stack.
    int (*netdev_send)(void *, const void *, size_t);
    /// The next packet of the stack, and when it left. `count` is the buffer's size, then the packet's; 0: nothing came.
    /// packetdrill asks again, for ever, if this is not 0; an empty packet ends the script with an error.
    int (*netdev_receive)(void *, void *, size_t *count, long long *microseconds);
    /// useconds_t
    int (*usleep)(void *, unsigned int);
    int (*gettimeofday)(void *, struct timeval *, struct timezone *);
    int (*epoll_create)(void *, int size);
    int (*epoll_ctl)(void *, int epoll, int operation, int fd, struct epoll_event *);
    int (*epoll_wait)(void *, int epoll, struct epoll_event *, int count, int milliseconds);
    int (*pipe)(void *, int ends[2]);
    /// The offsets are loff_t.
    int (*splice)(void *, int from, int64_t *, int to, int64_t *, size_t, unsigned flags);
};

/// dladdr(3), which <dlfcn.h> shows with _GNU_SOURCE only.
struct alps_symbol_place {
    const char *file;
    void *base;
    const char *name;
    void *address;
};
int alps_dladdr(const void *address, struct alps_symbol_place *) __asm__("dladdr");

#endif
