// syscall(2) of what has a replacement here: libuv closes descriptors this way, and some programs make all their calls so.
// The system call instruction itself cannot be replaced.
#include "ShimEntry.h"

#include "CLibc.h"
#include <linux/sched.h>
#include <poll.h>
#include <stdarg.h>
#include <sys/sendfile.h>
#undef syscall

long syscall(long number, ...) {
    va_list list;
    va_start(list, number);
    long a = va_arg(list, long), b = va_arg(list, long), c = va_arg(list, long);
    long d = va_arg(list, long), e = va_arg(list, long), f = va_arg(list, long);
    va_end(list);
    if (!alps_shim_is_active()) return alps_system_call(number, a, b, c, d, e, f);
    int fd = (int)a;
    void *second = (void *)b;
    switch (number) {
    case SYS_read: return read(fd, second, (size_t)c);
    case SYS_write: return write(fd, second, (size_t)c);
    case SYS_readv: return readv(fd, second, (int)c);
    case SYS_writev: return writev(fd, second, (int)c);
    case SYS_recvfrom: return recvfrom(fd, second, (size_t)c, (int)d, (void *)e, (void *)f);
    case SYS_sendto: return sendto(fd, second, (size_t)c, (int)d, (void *)e, (socklen_t)f);
    case SYS_recvmsg: return recvmsg(fd, second, (int)c);
    case SYS_sendmsg: return sendmsg(fd, second, (int)c);
    case SYS_recvmmsg: return recvmmsg(fd, second, (unsigned)c, (int)d, (void *)e);
    case SYS_sendmmsg: return sendmmsg(fd, second, (unsigned)c, (int)d);
    case SYS_sendfile: return sendfile(fd, (int)b, (void *)c, (size_t)d);
    case SYS_splice: return splice(fd, second, (int)c, (void *)d, (size_t)e, (unsigned)f);
    case SYS_socket: return socket((int)a, (int)b, (int)c);
    case SYS_socketpair: return socketpair((int)a, (int)b, (int)c, (int *)d);
    case SYS_bind: return bind(fd, second, (socklen_t)c);
    case SYS_listen: return listen(fd, (int)b);
    case SYS_accept: return accept(fd, second, (void *)c);
    case SYS_accept4: return accept4(fd, second, (void *)c, (int)d);
    case SYS_connect: return connect(fd, second, (socklen_t)c);
    case SYS_shutdown: return shutdown(fd, (int)b);
    case SYS_getsockname: return getsockname(fd, second, (void *)c);
    case SYS_getpeername: return getpeername(fd, second, (void *)c);
    case SYS_getsockopt: return getsockopt(fd, (int)b, (int)c, (void *)d, (void *)e);
    case SYS_setsockopt: return setsockopt(fd, (int)b, (int)c, (void *)d, (socklen_t)e);
    case SYS_ioctl: return ioctl(fd, (unsigned long)b, c);
    case SYS_fcntl: return fcntl(fd, (int)b, c);
    case SYS_close: return close(fd);
    case SYS_close_range: return close_range((unsigned)a, (unsigned)b, (int)c);
    case SYS_dup: return dup(fd);
    case SYS_dup3: return dup3(fd, (int)b, (int)c);
#ifdef SYS_dup2
    case SYS_dup2: return dup2(fd, (int)b);
#endif
    case SYS_execve: return execve((const char *)a, second, (char *const *)c);
    case SYS_execveat: return execveat(fd, second, (char *const *)c, (char *const *)d, (int)e);
    case SYS_clone:
        if (!(a & CLONE_VM)) alps_shim_before_fork();
        return alps_system_call(number, a, b, c, d, e, f);
#ifdef SYS_fork
    case SYS_fork: alps_shim_before_fork(); return alps_system_call(number, a, b, c, d, e, f);
#endif
    // Rings would read and write what is in the pairs, and connect the pairs themselves.
    case SYS_io_uring_setup: errno = ENOSYS; return -1;
    default: return alps_system_call(number, a, b, c, d, e, f);
    }
}
