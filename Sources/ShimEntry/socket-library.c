// Functions of libc that are made of other calls on sockets, which libc makes without passing through the shim.
#include "ShimEntry.h"

#include "CLibc.h"

enum { lowest_reserved = 512, end_of_reserved = 1024 };

int bindresvport(int fd, struct sockaddr_in *name) {
    struct sockaddr_in any = {.sin_family = AF_INET};
    if (!name) {
        name = &any;
    } else if (name->sin_family != AF_INET) {
        errno = EAFNOSUPPORT;
        return -1;
    }
    enum { first = 600, ports = end_of_reserved - first };
    static int start = -1;
    if (start < 0) start = getpid() % ports;
    for (int tried = 0; tried < ports; tried++) {
        name->sin_port = htons((uint16_t)(first + start));
        start = (start + 1) % ports;
        if (bind(fd, (struct sockaddr *)name, sizeof *name) == 0) return 0;
        if (errno != EADDRINUSE) return -1;
    }
    return -1;
}

int rresvport_af(int *port, sa_family_t family) {
    if (family != AF_INET) {
        errno = EAFNOSUPPORT;
        return -1;
    }
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0) return -1;
    if (*port < lowest_reserved || *port >= end_of_reserved) *port = end_of_reserved - 1;
    struct sockaddr_in name = {.sin_family = AF_INET};
    int error = EAGAIN;
    for (int tried = 0; tried < end_of_reserved - lowest_reserved; tried++) {
        name.sin_port = htons((uint16_t)*port);
        if (bind(fd, (struct sockaddr *)&name, sizeof name) == 0) return fd;
        if (errno != EADDRINUSE) {
            error = errno;
            break;
        }
        if (--*port < lowest_reserved) *port = end_of_reserved - 1;
    }
    close(fd);
    errno = error;
    return -1;
}

int rresvport(int *port) { return rresvport_af(port, AF_INET); }

// Source filters of multicast groups (RFC 3678).

int setipv4sourcefilter(
    int fd, struct in_addr interface, struct in_addr group, uint32_t mode, uint32_t count, const struct in_addr *sources) {
    size_t size = IP_MSFILTER_SIZE((size_t)count);
    struct ip_msfilter *filter = malloc(size);
    if (!filter) return -1;
    filter->imsf_multiaddr = group;
    filter->imsf_interface = interface;
    filter->imsf_fmode = mode;
    filter->imsf_numsrc = count;
    memcpy(filter->imsf_slist, sources, count * sizeof *sources);
    int result = setsockopt(fd, IPPROTO_IP, IP_MSFILTER, filter, (socklen_t)size);
    int error = errno;
    free(filter);
    errno = error;
    return result;
}

int getipv4sourcefilter(
    int fd, struct in_addr interface, struct in_addr group, uint32_t *mode, uint32_t *count, struct in_addr *sources) {
    socklen_t size = (socklen_t)IP_MSFILTER_SIZE((size_t)*count);
    struct ip_msfilter *filter = malloc(size);
    if (!filter) return -1;
    filter->imsf_multiaddr = group;
    filter->imsf_interface = interface;
    filter->imsf_numsrc = *count;
    int result = getsockopt(fd, IPPROTO_IP, IP_MSFILTER, filter, &size);
    int error = errno;
    if (result == 0) {
        *mode = filter->imsf_fmode;
        memcpy(sources, filter->imsf_slist, (*count < filter->imsf_numsrc ? *count : filter->imsf_numsrc) * sizeof *sources);
        *count = filter->imsf_numsrc;
    }
    free(filter);
    errno = error;
    return result;
}

static int option_level(const struct sockaddr *group) {
    if (group->sa_family == AF_INET) return IPPROTO_IP;
    if (group->sa_family == AF_INET6) return IPPROTO_IPV6;
    return -1;
}

int setsourcefilter(
    int fd, uint32_t interface, const struct sockaddr *group, socklen_t length, uint32_t mode, uint32_t count,
    const struct sockaddr_storage *sources) {
    int level = option_level(group);
    size_t size = GROUP_FILTER_SIZE((size_t)count);
    if (level < 0 || length > sizeof(struct sockaddr_storage)) {
        errno = EINVAL;
        return -1;
    }
    struct group_filter *filter = calloc(1, size);
    if (!filter) return -1;
    filter->gf_interface = interface;
    memcpy(&filter->gf_group, group, length);
    filter->gf_fmode = mode;
    filter->gf_numsrc = count;
    memcpy(filter->gf_slist, sources, count * sizeof *sources);
    int result = setsockopt(fd, level, MCAST_MSFILTER, filter, (socklen_t)size);
    int error = errno;
    free(filter);
    errno = error;
    return result;
}

int getsourcefilter(
    int fd, uint32_t interface, const struct sockaddr *group, socklen_t length, uint32_t *mode, uint32_t *count,
    struct sockaddr_storage *sources) {
    int level = option_level(group);
    socklen_t size = (socklen_t)GROUP_FILTER_SIZE((size_t)*count);
    if (level < 0 || length > sizeof(struct sockaddr_storage)) {
        errno = EINVAL;
        return -1;
    }
    struct group_filter *filter = calloc(1, size);
    if (!filter) return -1;
    filter->gf_interface = interface;
    memcpy(&filter->gf_group, group, length);
    filter->gf_numsrc = *count;
    int result = getsockopt(fd, level, MCAST_MSFILTER, filter, &size);
    int error = errno;
    if (result == 0) {
        *mode = filter->gf_fmode;
        memcpy(sources, filter->gf_slist, (*count < filter->gf_numsrc ? *count : filter->gf_numsrc) * sizeof *sources);
        *count = filter->gf_numsrc;
    }
    free(filter);
    errno = error;
    return result;
}
