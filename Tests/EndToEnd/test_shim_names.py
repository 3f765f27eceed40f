"""Which functions of libc the shim replaces: all that are ways to a socket, apart from those whose own work is right."""

import re

import pytest

from test_artifacts import exports, library, output

# Whatever interceptors of sockets have been found to need, by subject.
WANTED = {
    "making": "socket __socket socketpair pipe __pipe pipe2",
    "naming": "bind listen connect __connect getsockname getpeername accept accept4",
    "ending": "shutdown close __close close_range closefrom fclose",
    "options": "getsockopt setsockopt getsourcefilter setsourcefilter getipv4sourcefilter setipv4sourcefilter "
               "bindresvport rresvport rresvport_af",
    "reading": "read __read readv recv __recv recvfrom recvmsg recvmmsg pread pread64 __pread64 preadv preadv64 preadv2 "
               "preadv64v2",
    "writing": "write __write writev send __send sendto sendmsg sendmmsg __sendmmsg pwrite pwrite64 __pwrite64 pwritev "
               "pwritev64 pwritev2 pwritev64v2",
    "fortified": "__read_chk __recv_chk __recvfrom_chk __pread_chk __pread64_chk __poll_chk __ppoll_chk __fdelt_chk "
                 "__dprintf_chk __vdprintf_chk __open_2 __open64_2 __openat_2 __openat64_2",
    "transfer": "sendfile sendfile64 splice tee vmsplice copy_file_range",
    "waiting": "select __select pselect poll __poll ppoll epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait "
               "epoll_pwait2",
    "mapping": "mmap mmap64 munmap",
    "descriptors": "dup dup2 __dup2 dup3 fcntl fcntl64 __fcntl ioctl sockatmark isfdtype",
    "files": "open __open open64 __open64 openat openat64 creat creat64 fopen fopen64 fstat fstat64 __fxstat __fxstat64",
    "stdio": "fdopen dprintf vdprintf",
    "processes": "fork __fork _Fork vfork __vfork clone __clone posix_spawn posix_spawnp posix_spawn_file_actions_adddup2 "
                 "system popen execve execv execl execlp execle "
                 "execvp execvpe fexecve execveat syscall prctl",
    "signals": "sigaction __sigaction signal sysv_signal __sysv_signal siginterrupt",
    "identity": "setuid seteuid setreuid setresuid chroot setrlimit setrlimit64 prlimit prlimit64 _exit",
    "lookups": "getaddrinfo getnameinfo gethostbyname gethostbyname_r gethostbyname2 gethostbyname2_r gethostbyaddr "
               "gethostbyaddr_r gethostent sethostent endhostent getaddrinfo_a gai_suspend gai_error gai_cancel "
               "res_query res_search res_querydomain res_send res_nquery res_nsearch res_nquerydomain res_nsend "
               "__res_query __res_search __res_querydomain __res_send __res_nquery __res_nsearch __res_nquerydomain "
               "__res_nsend",
    "interfaces": "getifaddrs freeifaddrs if_nametoindex if_indextoname if_nameindex if_freenameindex",
    "asynchronous": "aio_read aio_read64 aio_write aio_write64 lio_listio lio_listio64",
}

# Those that do the right thing on a socket of the stack, which is a UNIX socket to the kernel.
LEFT_ALONE = {
    "an epoll instance is the kernel's": "epoll_create epoll_create1",
    "checks a number, whatever the descriptor is": "__fdelt_chk",
    "the kernel gives ESPIPE for any socket":
        "pread pread64 __pread64 __pread_chk __pread64_chk preadv preadv64 pwrite pwrite64 __pwrite64 pwritev pwritev64",
    "the kernel refuses any socket": "tee vmsplice copy_file_range",
    "a UNIX socket is a socket": "fstat fstat64 __fxstat __fxstat64 isfdtype",
    "makes or truncates files, nothing of /proc": "creat creat64",
    "the child is recognised by memory that a fork empties, and a handler runs before": "fork __fork",
    "signals are not deferred: the kernel's calls do the waiting": "sigaction __sigaction signal sysv_signal "
                                                                   "__sysv_signal siginterrupt",
    "sockets are used by whoever holds them, and the doorway needs no path": "chroot _exit",
    "reads a file": "gethostent sethostent endhostent",
    "frees what if_nameindex made, which has libc's form": "if_freenameindex",
    "right for streams, since libc reads and writes the pair; not for datagrams":
        "aio_read aio_read64 aio_write aio_write64 lio_listio lio_listio64",
}


def names(groups):
    return {name: reason for reason, listed in groups.items() for name in listed.split()}


def versions():
    """The names of this libc that programs may use, with their versions."""
    libc = re.search(r"libc\.so\.6 => (\S+)", output("ldd", library("shim"))).group(1)
    return {tuple(line.split()[-1].replace("@@", "@").split("@"))[:2]
            for line in output("nm", "-D", "--defined-only", libc).splitlines() if "@" in line}


def test_every_way_to_a_socket_is_replaced_or_known_to_be_right():
    exist = {name for name, _ in versions()}
    wanted = {name for name in names(WANTED) if name in exist}
    assert wanted - exports("shim") == set(names(LEFT_ALONE))


def test_no_other_name_is_replaced():
    assert exports("shim") - set(names(WANTED)) == set()


@pytest.mark.parametrize("suffix", ["64", "_chk", "__"])
def test_aliases_of_what_is_replaced_are_replaced(suffix):
    """A variant of a replaced function that somebody could call past the shim."""
    public = {name for name, version in versions() if version != "GLIBC_PRIVATE"}
    replaced = exports("shim")
    form = {"64": "{}64", "_chk": "__{}_chk", "__": "__{}"}[suffix]
    variants = {form.format(name) for name in replaced} & public
    assert variants - replaced - set(names(LEFT_ALONE)) == set()
