/// The libc headers of the shim, and inline accessors for what Swift cannot express: errno, macros, atomics and system
/// calls that must not pass through the very functions the shim replaces. Header only.
#ifndef ALPS_CLIBC_H
#define ALPS_CLIBC_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <limits.h>
#include <linux/futex.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <net/route.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <netinet/tcp.h>
#include <netpacket/packet.h>
#include <poll.h>
#include <pthread.h>
#include <resolv.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

// errno, h_errno and the environment are macros or thread-local.
static inline int alps_errno(void) { return errno; }
static inline void alps_set_errno(int value) { errno = value; }
static inline void alps_set_h_errno(int value) { h_errno = value; }
static inline char **alps_environment(void) { return environ; }
static inline const char *alps_program_name(void) { return program_invocation_short_name; }
static inline unsigned long alps_thread(void) { return (unsigned long)pthread_self(); }
/// True on a signal handler's own stack.
static inline int alps_on_signal_stack(void) {
    stack_t stack;
    return sigaltstack(NULL, &stack) == 0 && (stack.ss_flags & SS_ONSTACK) != 0;
}
extern void __chk_fail(void) __attribute__((noreturn));

// System calls that bypass every wrapper: no interposition, no cancellation point. They set errno. The instruction itself,
// since the shim replaces syscall(2) too.
static inline long alps_system_call(long number, long a, long b, long c, long d, long e, long f) {
#if defined(__x86_64__)
    register long fourth __asm__("r10") = d, fifth __asm__("r8") = e, sixth __asm__("r9") = f;
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(fourth), "r"(fifth), "r"(sixth)
                     : "rcx", "r11", "memory");
#elif defined(__aarch64__)
    register long which __asm__("x8") = number, result __asm__("x0") = a, second __asm__("x1") = b, third __asm__("x2") = c;
    register long fourth __asm__("x3") = d, fifth __asm__("x4") = e, sixth __asm__("x5") = f;
    __asm__ volatile("svc 0"
                     : "+r"(result)
                     : "r"(which), "r"(second), "r"(third), "r"(fourth), "r"(fifth), "r"(sixth)
                     : "memory");
#endif
    if ((unsigned long)result < -4095UL) return result;
    errno = (int)-result;
    return -1;
}
#define ALPS_SYSTEM_CALL(number, a, b, c, d, e, f, ...) \
    alps_system_call(number, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))
#define syscall(...) ALPS_SYSTEM_CALL(__VA_ARGS__, 0, 0, 0, 0, 0, 0, 0)
static inline int alps_sys_close(int fd) { return (int)syscall(SYS_close, fd); }
static inline int alps_sys_getpid(void) { return (int)syscall(SYS_getpid); }
static inline int alps_sys_socket(int domain, int type, int protocol) {
    return (int)syscall(SYS_socket, domain, type, protocol);
}
/// One of the kernel's in spite of the filter of `alps run --strict`, which knows the token.
static inline int alps_sys_socket_of_kernel(int domain, int type, int protocol, unsigned long token) {
    return (int)syscall(SYS_socket, domain, type, protocol, 0, 0, token);
}
static inline int alps_sys_socketpair(int domain, int type, int protocol, int *pair) {
    return (int)syscall(SYS_socketpair, domain, type, protocol, pair);
}
static inline int alps_sys_connect(int fd, const void *address, unsigned length) {
    return (int)syscall(SYS_connect, fd, address, length);
}
static inline int alps_sys_getsockopt(int fd, int level, int name, void *value, unsigned *length) {
    return (int)syscall(SYS_getsockopt, fd, level, name, value, length);
}
static inline int alps_sys_setsockopt(int fd, int level, int name, const void *value, unsigned length) {
    return (int)syscall(SYS_setsockopt, fd, level, name, value, length);
}
/// Copies from or to memory that a program has named, which may not be there: the number of bytes, or -1 if not even
/// the first is there. Where the system call is not allowed it is an ordinary copy.
static inline long alps_copy_from_program(void *to, const void *from, size_t count) {
    struct iovec here = {to, count}, there = {(void *)from, count};
    long done = syscall(SYS_process_vm_readv, alps_sys_getpid(), &here, 1ul, &there, 1ul, 0ul);
    if (done < 0 && errno != EFAULT) return memcpy(to, from, count), (long)count;
    return done;
}
static inline long alps_copy_to_program(void *to, const void *from, size_t count) {
    struct iovec here = {(void *)from, count}, there = {to, count};
    long done = syscall(SYS_process_vm_writev, alps_sys_getpid(), &here, 1ul, &there, 1ul, 0ul);
    if (done < 0 && errno != EFAULT) return memcpy(to, from, count), (long)count;
    return done;
}
static inline int alps_sys_shutdown(int fd, int how) { return (int)syscall(SYS_shutdown, fd, how); }
static inline int alps_sys_fcntl(int fd, int command, long argument) {
    return (int)syscall(SYS_fcntl, fd, command, argument);
}
static inline int alps_sys_dup3(int from, int to, int flags) { return (int)syscall(SYS_dup3, from, to, flags); }
static inline long alps_sys_sendmsg(int fd, const struct msghdr *message, int flags) {
    return syscall(SYS_sendmsg, fd, message, flags);
}
static inline long alps_sys_recvmsg(int fd, struct msghdr *message, int flags) {
    return syscall(SYS_recvmsg, fd, message, flags);
}
static inline long alps_sys_send(int fd, const void *bytes, size_t count, int flags) {
    return syscall(SYS_sendto, fd, bytes, count, flags, NULL, 0);
}
static inline int alps_sys_sendmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags) {
    return (int)syscall(SYS_sendmmsg, fd, messages, count, flags);
}
static inline long alps_sys_recv(int fd, void *bytes, size_t count, int flags) {
    return syscall(SYS_recvfrom, fd, bytes, count, flags, NULL, NULL);
}
static inline int alps_sys_epoll_ctl(int epoll, int operation, int fd, void *event) {
    return (int)syscall(SYS_epoll_ctl, epoll, operation, fd, event);
}
/// poll(2) of one descriptor; the events that are there, 0 at the time-out, -1.
static inline int alps_sys_poll(int fd, int events, int milliseconds) {
    struct pollfd entry = {.fd = fd, .events = (short)events};
    struct timespec limit = {milliseconds / 1000, (long)(milliseconds % 1000) * 1000000};
    long ready = syscall(SYS_ppoll, &entry, 1, milliseconds < 0 ? NULL : &limit, NULL, 0);
    return ready > 0 ? entry.revents : (int)ready;
}
static inline long alps_sys_poll_many(struct pollfd *entries, unsigned count, const struct timespec *limit) {
    return syscall(SYS_ppoll, entries, count, limit, NULL, 0);
}
static inline void *alps_sys_mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset) {
    return (void *)syscall(SYS_mmap, address, length, protection, flags, fd, offset);
}
static inline int alps_sys_madvise(void *address, size_t length, int advice) {
    return (int)syscall(SYS_madvise, address, length, advice);
}
static inline int alps_sys_ioctl(int fd, unsigned long request, void *argument) {
    return (int)syscall(SYS_ioctl, fd, request, argument);
}
static inline int alps_sys_munmap(void *address, size_t length) { return (int)syscall(SYS_munmap, address, length); }
/// A word that the host writes.
static inline uint32_t alps_load_word(const volatile void *word) {
    return __atomic_load_n((const volatile uint32_t *)word, __ATOMIC_ACQUIRE);
}
// Words of memory that other processes write, too.
static inline uint64_t alps_load_position(const volatile void *word) {
    return __atomic_load_n((const volatile uint64_t *)word, __ATOMIC_ACQUIRE);
}
static inline void alps_store_position(volatile void *word, uint64_t value) {
    __atomic_store_n((volatile uint64_t *)word, value, __ATOMIC_RELEASE);
}
static inline uint32_t alps_exchange_word(volatile void *word, uint32_t value) {
    return __atomic_exchange_n((volatile uint32_t *)word, value, __ATOMIC_SEQ_CST);
}
static inline int alps_swap_word(volatile void *word, uint32_t expected, uint32_t value) {
    return __atomic_compare_exchange_n((volatile uint32_t *)word, &expected, value, 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
}
static inline int alps_swap_handle(volatile void *word, uint64_t expected, uint64_t value) {
    return __atomic_compare_exchange_n((volatile uint64_t *)word, &expected, value, 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
}
static inline uint32_t alps_set_bits(volatile void *word, uint32_t bits) {
    return __atomic_fetch_or((volatile uint32_t *)word, bits, __ATOMIC_SEQ_CST);
}
static inline uint32_t alps_clear_bits(volatile void *word, uint32_t bits) {
    return __atomic_fetch_and((volatile uint32_t *)word, ~bits, __ATOMIC_SEQ_CST);
}
static inline uint32_t alps_add_word(volatile void *word, uint32_t value) {
    return __atomic_fetch_add((volatile uint32_t *)word, value, __ATOMIC_SEQ_CST);
}
static inline void alps_count_word(volatile void *word) { __atomic_fetch_add((volatile uint32_t *)word, 1, __ATOMIC_SEQ_CST); }
static inline void alps_full_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
static inline void alps_pause(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#else
    __asm__ volatile("yield");
#endif
}
static inline void alps_sys_yield(void) { syscall(SYS_sched_yield); }
static inline uint32_t alps_sys_thread(void) { return (uint32_t)syscall(SYS_gettid); }
/// False if there is no such thread (any more),
/// nor a process of that number that has ended and is not waited for yet.
static inline int alps_sys_thread_exists(uint32_t thread) {
    if (syscall(SYS_tkill, thread, 0) != 0) return errno != ESRCH;
    int process = (int)syscall(SYS_pidfd_open, thread, 0);
    if (process < 0) return 1;
    struct pollfd entry = {process, POLLIN, 0};
    struct timespec none = {0, 0};
    int has_ended = syscall(SYS_ppoll, &entry, 1, &none, NULL, 0) == 1;
    syscall(SYS_close, process);
    return !has_ended;
}
/// Waits, at most so long, until a word that other processes see is no longer `expected`; -1 with ETIMEDOUT.
static inline long alps_sys_futex_wait_shared(volatile void *word, uint32_t expected, int milliseconds) {
    struct timespec limit = {milliseconds / 1000, (long)(milliseconds % 1000) * 1000000};
    return syscall(SYS_futex, word, FUTEX_WAIT, expected, &limit, NULL, 0);
}
static inline void alps_sys_futex_wake_shared(volatile void *word) {
    syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}
static inline long alps_sys_read(int fd, void *bytes, size_t count) { return syscall(SYS_read, fd, bytes, count); }
static inline int alps_sys_memfd(const char *name, int flags) { return (int)syscall(SYS_memfd_create, name, flags); }
static inline long alps_sys_write(int fd, const void *bytes, size_t count) {
    return syscall(SYS_write, fd, bytes, count);
}
static inline long alps_sys_pread(int fd, void *bytes, size_t count, long position) {
    return syscall(SYS_pread64, fd, bytes, count, position);
}
static inline void alps_sys_seek_back(int fd, long count) {
    int error = errno;
    syscall(SYS_lseek, fd, -count, 1);
    errno = error;
}
static inline long alps_sys_rewind(int fd) { return syscall(SYS_lseek, fd, 0L, 0); }
static inline void *alps_stream_of(int fd, const char *mode) { return fdopen(fd, mode); }
/// Waits until *word is no longer `expected`. A wait without time-out keeps the meaning of SA_RESTART.
static inline long alps_sys_futex_wait(int *word, int expected) {
    return syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, expected, NULL, NULL, 0);
}
static inline void alps_sys_futex_wake(int *word) { syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0); }

#define ALPS_SIGNAL_BIT(signal) (1ul << ((signal) - 1))
/// Blocks every signal that is not the fault of the running instruction.
static inline void alps_block_signals(sigset_t *old) {
    // The kernel's 64; 32 and 33 are the C library's own.
    static const uint64_t all =
        ~(ALPS_SIGNAL_BIT(SIGSEGV) | ALPS_SIGNAL_BIT(SIGBUS) | ALPS_SIGNAL_BIT(SIGFPE) | ALPS_SIGNAL_BIT(SIGILL)
          | ALPS_SIGNAL_BIT(SIGTRAP) | ALPS_SIGNAL_BIT(32) | ALPS_SIGNAL_BIT(33));
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, old, sizeof all);
}
static inline void alps_restore_signals(const sigset_t *old) {
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, old, NULL, sizeof(uint64_t));
}
/// While signals are blocked: one waits that `old` lets through.
static inline int alps_has_signal(const sigset_t *old) {
    uint64_t pending = 0, blocked;
    memcpy(&blocked, old, sizeof blocked);
    syscall(SYS_rt_sigpending, &pending, sizeof pending);
    return (pending & ~blocked) != 0;
}
/// While signals are blocked: one waits that `old` lets through, and that ends a call with EINTR.
static inline int alps_is_interrupted(const sigset_t *old) {
    uint64_t pending = 0;
    syscall(SYS_rt_sigpending, &pending, sizeof pending);
    for (int signal = 1; pending >> (signal - 1) != 0; signal++) {
        struct sigaction action;
        if (!(pending & ALPS_SIGNAL_BIT(signal)) || sigismember(old, signal) || sigaction(signal, NULL, &action) != 0) continue;
        if (action.sa_handler != SIG_DFL && action.sa_handler != SIG_IGN && !(action.sa_flags & SA_RESTART)) return 1;
        if (signal == 64) break;
    }
    return 0;
}

// Macros that Swift does not import.
/// Memory that the child of a fork finds empty, but not the child of a vfork. NULL if the kernel does not know such.
static inline void *alps_map_wiped_by_fork(size_t length) {
    void *area = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (area == MAP_FAILED) return NULL;
    if (madvise(area, length, MADV_WIPEONFORK) == 0) return area;
    munmap(area, length);
    return NULL;
}
static inline void *alps_map_anonymous(size_t length) {
    void *area = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return area == MAP_FAILED ? NULL : area;
}
static const int alps_O_NONBLOCK = O_NONBLOCK;
static const unsigned long alps_FIONREAD = FIONREAD;
static const unsigned long alps_SIOCOUTQ = SIOCOUTQ;
static const unsigned long alps_SIOCATMARK = SIOCATMARK;

// The part of c-ares' binary interface that the resolver uses; the library is loaded at run time, if it is there.
struct alps_ares_node {
    int ttl, flags, family, socktype, protocol;
    unsigned address_length;
    struct sockaddr *address;
    struct alps_ares_node *next;
};
struct alps_ares_cname {
    int ttl;
    char *alias, *name;
    struct alps_ares_cname *next;
};
struct alps_ares_result {
    struct alps_ares_cname *cnames;
    struct alps_ares_node *nodes;
};
struct alps_ares_hints {
    int flags, family, socktype, protocol;
};
/// Only what the mask given with it names is read.
struct alps_ares_options {
    int flags, timeout, tries;  ///< timeout in milliseconds
    uint64_t rest[64];
};

/// Seconds to wait for a name server and how often to ask, as resolv.conf and RES_OPTIONS have it. Both stay as they are if
/// libc cannot tell.
static inline void alps_resolver_patience(int *seconds, int *tries) {
    struct __res_state state;
    memset(&state, 0, sizeof state);
    if (res_ninit(&state) != 0) return;
    if (state.retrans > 0) *seconds = state.retrans;
    if (state.retry > 0) *tries = state.retry;
    res_nclose(&state);
}

#endif
