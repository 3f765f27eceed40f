/* Pointers to memory that is not there: the calls fail, and the program goes on. */
#include "report.h"
#include <net/if.h>
#include <net/route.h>

int main(void) {
    int kinds[] = {SOCK_STREAM, SOCK_DGRAM};
    /* Readable up to its end only; and not there at all. */
    char *page = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(page + 4096, 4096);
    void *nowhere[] = {page + 4096, (void *)16, (void *)-32L, (void *)0x1761d24ae7e6ab01, page + 4094};
    for (unsigned kind = 0; kind < 2; kind++) {
        int fd = bound(kinds[kind]);
        for (unsigned which = 0; which < 5; which++) {
            void *bad = nowhere[which];
            socklen_t length = 16;
            int value = 1;
            say("-- type %d, pointer %u", kinds[kind], which);
            REPORT(setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, bad, 4));
            REPORT(getsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, bad, &length));
            REPORT(getsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &value, bad));
            REPORT(setsockopt(fd, IPPROTO_IP, IP_TTL, bad, 4));
            REPORT(getsockname(fd, bad, &length));
            REPORT(getsockname(fd, (struct sockaddr *)page, bad));
            REPORT(bind(fd, bad, 16));
            REPORT(connect(fd, bad, 16));
            REPORT(ioctl(fd, SIOCGIFCONF, bad));
            REPORT(ioctl(fd, SIOCGIFFLAGS, bad));
            REPORT(ioctl(fd, FIONREAD, bad));
            REPORT(ioctl(fd, SIOCADDRT, bad));
            struct ifconf list = {.ifc_len = 400, .ifc_buf = bad};
            REPORT(ioctl(fd, SIOCGIFCONF, &list));
            struct rtentry route = {.rt_dev = bad};
            route.rt_dst.sa_family = route.rt_gateway.sa_family = route.rt_genmask.sa_family = AF_INET;
            say("route refused: %d", ioctl(fd, SIOCDELRT, &route) < 0);
        }
        say("still bound: %d", port_of(fd) > 0);
        close(fd);
    }
    /* At the very end of what is there. */
    int fd = bound(SOCK_DGRAM), value = 1;
    socklen_t length = 4;
    memcpy(page + 4092, &value, 4);
    REPORT(setsockopt(fd, SOL_SOCKET, SO_BROADCAST, page + 4092, 4));
    REPORT(getsockopt(fd, SOL_SOCKET, SO_BROADCAST, page + 4092, &length));
    length = 16;
    REPORT(getsockname(fd, (struct sockaddr *)(page + 4080), &length));
    say("named: %d", ((struct sockaddr_in *)(page + 4080))->sin_family == AF_INET);
}
