/// seccomp(2) filters with user notification, and what a supervisor needs to see and change of the process it looks after.
/// Swift has neither the ioctl macros nor syscall(2).
#ifndef ALPS_SECCOMP_CALLS_H
#define ALPS_SECCOMP_CALLS_H

#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

// glibc declares it with _GNU_SOURCE only, and Swift's Glibc module has the other one.
long syscall(long number, ...);
int accept4(int fd, struct sockaddr *address, socklen_t *length, int flags);

#if defined(__x86_64__)
static const uint32_t alps_audit_arch = AUDIT_ARCH_X86_64;
#elif defined(__aarch64__)
static const uint32_t alps_audit_arch = AUDIT_ARCH_AARCH64;
#endif
static const uint32_t alps_audit_arch_i386 = AUDIT_ARCH_I386;

static const uint32_t alps_SECCOMP_RET_ALLOW = SECCOMP_RET_ALLOW;
static const uint32_t alps_SECCOMP_RET_ERRNO = SECCOMP_RET_ERRNO;
static const uint32_t alps_SECCOMP_RET_USER_NOTIF = SECCOMP_RET_USER_NOTIF;
static const uint32_t alps_SECCOMP_NOTIF_CONTINUE = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
static const uint32_t alps_SECCOMP_ADDFD_SETFD = SECCOMP_ADDFD_FLAG_SETFD;
static const uint32_t alps_SECCOMP_ADDFD_SEND = SECCOMP_ADDFD_FLAG_SEND;

/// The numbers of the calls that a filter names; -1: this architecture does not have it.
enum {
    alps_SYS_socket = SYS_socket, alps_SYS_connect = SYS_connect, alps_SYS_bind = SYS_bind, alps_SYS_listen = SYS_listen,
    alps_SYS_accept = SYS_accept, alps_SYS_accept4 = SYS_accept4, alps_SYS_getsockname = SYS_getsockname,
    alps_SYS_getpeername = SYS_getpeername, alps_SYS_setsockopt = SYS_setsockopt, alps_SYS_getsockopt = SYS_getsockopt,
    alps_SYS_shutdown = SYS_shutdown, alps_SYS_ioctl = SYS_ioctl, alps_SYS_read = SYS_read, alps_SYS_write = SYS_write,
    alps_SYS_readv = SYS_readv, alps_SYS_writev = SYS_writev, alps_SYS_recvfrom = SYS_recvfrom,
    alps_SYS_sendto = SYS_sendto, alps_SYS_recvmsg = SYS_recvmsg, alps_SYS_sendmsg = SYS_sendmsg,
    alps_SYS_recvmmsg = SYS_recvmmsg, alps_SYS_sendmmsg = SYS_sendmmsg, alps_SYS_io_uring_setup = SYS_io_uring_setup,
};

/// Installs a filter for this process and all it starts. Returns the descriptor that notifications come on, or -1.
static inline int alps_seccomp_install(const struct sock_filter *code, unsigned short count) {
    struct sock_fprog program = {count, (struct sock_filter *)code};
    // Without CAP_SYS_ADMIN a filter may be installed only by who can gain no privileges.
    int fd = (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &program);
    if (fd >= 0 || errno != EACCES) return fd;
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return -1;
    return (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &program);
}

/// Lets any process of this user look into this one, where Yama would forbid it.
static inline void alps_allow_tracer(void) { prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0); }

static inline int alps_seccomp_receive(int listener, struct seccomp_notif *request) {
    memset(request, 0, sizeof *request);
    return ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, request);
}

static inline int alps_seccomp_answer(int listener, struct seccomp_notif_resp *response) {
    return ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, response);
}

/// Whether the call still waits for its answer.
static inline int alps_seccomp_is_valid(int listener, uint64_t id) {
    return ioctl(listener, SECCOMP_IOCTL_NOTIF_ID_VALID, &id) == 0;
}

/// Puts a copy of a descriptor into the process that made a call. Returns its number there, or -1.
static inline int alps_seccomp_add_fd(int listener, uint64_t id, uint32_t flags, int fd, int number, uint32_t fd_flags) {
    struct seccomp_notif_addfd request = {0};
    request.id = id;
    request.flags = flags;
    request.srcfd = (uint32_t)fd;
    request.newfd = flags & SECCOMP_ADDFD_FLAG_SETFD ? (uint32_t)number : 0;
    request.newfd_flags = fd_flags;
    return ioctl(listener, SECCOMP_IOCTL_NOTIF_ADDFD, &request);
}

static inline int alps_pidfd_open(int pid) { return (int)syscall(SYS_pidfd_open, pid, 0); }

static inline int alps_pidfd_getfd(int pidfd, int fd) { return (int)syscall(SYS_pidfd_getfd, pidfd, fd, 0); }

/// Copies from another process's memory; bytes copied, or -1.
static inline long alps_process_read(int pid, void *to, uint64_t from, size_t count) {
    struct iovec local = {to, count}, remote = {(void *)(uintptr_t)from, count};
    return syscall(SYS_process_vm_readv, pid, &local, 1, &remote, 1UL, 0UL);
}

static inline long alps_process_write(int pid, uint64_t to, const void *from, size_t count) {
    struct iovec local = {(void *)from, count}, remote = {(void *)(uintptr_t)to, count};
    return syscall(SYS_process_vm_writev, pid, &local, 1, &remote, 1UL, 0UL);
}

/// RLIMIT_NOFILE of another process, soft; 0 if it cannot be told.
static inline uint64_t alps_descriptor_limit(int pid) {
    struct { uint64_t soft, hard; } limit = {0, 0};
    return syscall(SYS_prlimit64, pid, RLIMIT_NOFILE, NULL, &limit) == 0 ? limit.soft : 0;
}

/// The inode of a descriptor, 0 if there is none. Of a socket it is its own, whoever holds the descriptor.
static inline uint64_t alps_inode(int fd) {
    struct stat status;
    return fstat(fd, &status) == 0 ? status.st_ino : 0;
}

#endif
