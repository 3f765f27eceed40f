// res_query and its relatives: libc's own would ask over the kernel's network. Names are made and checked by libc, here is
// the sending (RFC 1035, 4.2: UDP, TCP for what is cut off) and the search list.
#include "ShimEntry.h"

#include "CLibc.h"
#include <arpa/nameser.h>
#include <poll.h>
#include <resolv.h>

enum { query_room = 1024, port_of_dns = 53 };

static res_state own_state(void) {
    return (_res.options & RES_INIT) || res_ninit(&_res) == 0 ? &_res : NULL;
}

static void set_result(res_state state, int error) {
    state->res_h_errno = error;
    h_errno = error;
}

/// Waits for the descriptor until the deadline (CLOCK_MONOTONIC, ms).
static int wait_for(int fd, short events, long deadline) {
    for (;;) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        long left = deadline - (now.tv_sec * 1000 + now.tv_nsec / 1000000);
        struct pollfd entry = {.fd = fd, .events = events};
        int ready = poll(&entry, 1, left > 0 ? (int)left : 0);
        if (ready > 0) return 1;
        if (ready == 0 && left <= 0) {
            errno = ETIMEDOUT;
            return 0;
        }
        if (ready < 0 && errno != EINTR) return 0;
    }
}

static long deadline_after(int milliseconds) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000 + now.tv_nsec / 1000000 + milliseconds;
}

/// The name, type and class asked for; 0 if the message has not one question.
static int question_length(const unsigned char *message, int length) {
    int at = NS_HFIXEDSZ;
    if (length < at || message[4] != 0 || message[5] != 1) return 0;
    while (at < length && message[at] != 0) {
        if (message[at] & 0xc0) return 0;
        at += message[at] + 1;
    }
    at += 1 + 4;
    return at <= length ? at - NS_HFIXEDSZ : 0;
}

/// RFC 5452, 9.1: an answer has the query's identifier and question.
static int answers(const unsigned char *reply, int length, const unsigned char *query, int query_length) {
    if (length < NS_HFIXEDSZ || reply[0] != query[0] || reply[1] != query[1] || !(reply[2] & 0x80)) return 0;
    int question = question_length(query, query_length);
    if (question == 0 || question_length(reply, length) != question) return reply[4] == 0 && reply[5] == 0;
    for (int at = NS_HFIXEDSZ; at < NS_HFIXEDSZ + question; at++) {
        unsigned char a = reply[at], b = query[at];
        if (a >= 'A' && a <= 'Z') a += 'a' - 'A';
        if (b >= 'A' && b <= 'Z') b += 'a' - 'A';
        if (a != b) return 0;
    }
    return 1;
}

static int transfer(int fd, int sends, unsigned char *bytes, int count, long deadline) {
    for (int done = 0; done < count;) {
        if (!wait_for(fd, sends ? POLLOUT : POLLIN, deadline)) return 0;
        ssize_t moved = sends ? send(fd, bytes + done, (size_t)(count - done), MSG_NOSIGNAL)
                              : recv(fd, bytes + done, (size_t)(count - done), 0);
        if (moved == 0) errno = ECONNRESET;
        if (moved == 0 || (moved < 0 && errno != EAGAIN && errno != EINTR)) return 0;
        if (moved > 0) done += (int)moved;
    }
    return 1;
}

static int ask_by_tcp(
    const struct sockaddr_in *server, const unsigned char *query, int length, unsigned char *reply, int room, int limit) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return -1;
    long deadline = deadline_after(limit);
    int result = -1, error = 0;
    socklen_t size = sizeof error;
    unsigned char prefix[2] = {(unsigned char)(length >> 8), (unsigned char)length};
    if (connect(fd, (const struct sockaddr *)server, sizeof *server) == 0
        || (errno == EINPROGRESS && wait_for(fd, POLLOUT, deadline)
            && getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) == 0 && (errno = error) == 0)) {
        if (transfer(fd, 1, prefix, 2, deadline) && transfer(fd, 1, (unsigned char *)query, length, deadline)
            && transfer(fd, 0, prefix, 2, deadline)) {
            int whole = prefix[0] << 8 | prefix[1], kept = whole < room ? whole : room;
            if (transfer(fd, 0, reply, kept, deadline) && answers(reply, kept, query, length)) result = whole;
            if (kept < whole && result >= 0) reply[2] |= 0x02;  // TC: there was more than room
        }
    }
    int saved = errno;
    close(fd);
    errno = saved;
    return result;
}

static int ask_by_udp(
    const struct sockaddr_in *server, const unsigned char *query, int length, unsigned char *reply, int room, int limit) {
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return -1;
    long deadline = deadline_after(limit);
    int result = -1;
    if (connect(fd, (const struct sockaddr *)server, sizeof *server) == 0 && send(fd, query, (size_t)length, 0) == length) {
        while (wait_for(fd, POLLIN, deadline)) {
            ssize_t got = recv(fd, reply, (size_t)room, MSG_TRUNC);
            if (got < 0 && errno != EAGAIN) break;
            int kept = got < room ? (int)got : room;
            if (got > 0 && answers(reply, kept, query, length)) {
                if (got > room) reply[2] |= 0x02;
                result = (int)got;
                break;
            }
        }
    }
    int saved = errno;
    close(fd);
    errno = saved;
    return result;
}

static int send_query(res_state state, const unsigned char *query, int length, unsigned char *reply, int room) {
    if (room < NS_HFIXEDSZ) {
        errno = EINVAL;
        return -1;
    }
    int by_tcp = (state->options & RES_USEVC) || length > NS_PACKETSZ, refused = 0;
    for (int attempt = 0; attempt < state->retry; attempt++) {
        for (int each = 0; each < state->nscount; each++) {
            struct sockaddr_in server = state->nsaddr_list[each];
            if (server.sin_family != AF_INET) continue;
            if (server.sin_port == 0) server.sin_port = htons(port_of_dns);
            int limit = (state->retrans > 0 ? state->retrans : RES_TIMEOUT) * 1000 << (attempt < 4 ? attempt : 4);
            if (attempt > 0 && state->nscount > 1) limit /= state->nscount;
            int got = by_tcp ? -1 : ask_by_udp(&server, query, length, reply, room, limit);
            int cut_off = got >= NS_HFIXEDSZ && (reply[2] & 0x02) && !(state->options & RES_IGNTC);
            if (by_tcp || cut_off) got = ask_by_tcp(&server, query, length, reply, room, limit);
            if (got < 0) {
                refused |= errno == ECONNREFUSED;
                continue;
            }
            // As libc's: another server may know.
            int code = reply[3] & 15;
            if (code == ns_r_servfail || code == ns_r_notimpl || code == ns_r_refused) continue;
            return got < room || !by_tcp ? got : room;
        }
    }
    errno = refused ? ECONNREFUSED : ETIMEDOUT;
    return -1;
}

int res_nsend(res_state state, const unsigned char *query, int length, unsigned char *reply, int room) {
    static int (*next)(res_state, const unsigned char *, int, unsigned char *, int);
    if (!next) next = (int (*)(res_state, const unsigned char *, int, unsigned char *, int))alps_shim_next("res_nsend");
    if (!alps_shim_is_active()) return next(state, query, length, reply, room);
    alps_shim_resolving_begin();
    int got = send_query(state, query, length, reply, room);
    alps_shim_resolving_end();
    return got;
}

int res_nquery(res_state state, const char *name, int class, int type, unsigned char *reply, int room) {
    unsigned char query[query_room];
    int length = res_nmkquery(state, QUERY, name, class, type, NULL, 0, NULL, query, sizeof query);
    if (length < 0) {
        set_result(state, NO_RECOVERY);
        return -1;
    }
    int got = res_nsend(state, query, length, reply, room);
    if (got < 0) {
        set_result(state, TRY_AGAIN);
        return -1;
    }
    int code = reply[3] & 15, count = reply[6] << 8 | reply[7];
    if (code == ns_r_noerror && count > 0) {
        set_result(state, NETDB_SUCCESS);
        return got;
    }
    set_result(state, code == ns_r_nxdomain                              ? HOST_NOT_FOUND
                      : code == ns_r_servfail                            ? TRY_AGAIN
                      : code == ns_r_noerror                             ? NO_DATA
                                                                         : NO_RECOVERY);
    return -1;
}

int res_nquerydomain(
    res_state state, const char *name, const char *domain, int class, int type, unsigned char *reply, int room) {
    char whole[NS_MAXDNAME];
    size_t length = strlen(name);
    if (!domain && length > 0 && name[length - 1] == '.') length--;
    if (length + (domain ? strlen(domain) : 0) + 2 > sizeof whole) {
        set_result(state, NO_RECOVERY);
        return -1;
    }
    memcpy(whole, name, length);
    whole[length] = 0;
    if (domain) {
        whole[length] = '.';
        strcpy(whole + length + 1, domain);
    }
    return res_nquery(state, whole, class, type, reply, room);
}

/// resolv.conf(5): as it is if it has dots enough, then with the domains of the search list, then as it is.
int res_nsearch(res_state state, const char *name, int class, int type, unsigned char *reply, int room) {
    unsigned dots = 0;
    for (const char *each = name; *each; each++) dots += *each == '.';
    int is_absolute = *name && name[strlen(name) - 1] == '.', saved = -1, tried_as_is = 0, had_no_data = 0, had_failure = 0;
    if (dots >= state->ndots || is_absolute) {
        int got = res_nquerydomain(state, name, NULL, class, type, reply, room);
        if (got > 0 || is_absolute) return got;
        saved = state->res_h_errno;
        tried_as_is = 1;
    }
    if ((dots == 0 && (state->options & RES_DEFNAMES)) || (dots > 0 && (state->options & RES_DNSRCH))) {
        for (int each = 0; each < MAXDNSRCH && state->dnsrch[each]; each++) {
            int got = res_nquerydomain(state, name, state->dnsrch[each], class, type, reply, room);
            if (got > 0) return got;
            if (errno == ECONNREFUSED && state->res_h_errno == TRY_AGAIN) return -1;
            had_no_data |= state->res_h_errno == NO_DATA;
            had_failure |= state->res_h_errno == TRY_AGAIN;
            if (state->res_h_errno == NO_RECOVERY || !(state->options & RES_DNSRCH)) break;
        }
    }
    if (!tried_as_is && (dots > 0 || !(state->options & RES_NOTLDQUERY))) {
        int got = res_nquerydomain(state, name, NULL, class, type, reply, room);
        if (got > 0) return got;
    }
    if (saved != -1) {
        set_result(state, saved);
    } else if (had_no_data) {
        set_result(state, NO_DATA);
    } else if (had_failure) {
        set_result(state, TRY_AGAIN);
    }
    return -1;
}

// The forms with this thread's own state.

#define WITH_OWN_STATE(call)                          \
    res_state state = own_state();                    \
    if (state) return call;                           \
    h_errno = NETDB_INTERNAL;                         \
    return -1

int res_send(const unsigned char *query, int length, unsigned char *reply, int room) {
    WITH_OWN_STATE(res_nsend(state, query, length, reply, room));
}
int res_query(const char *name, int class, int type, unsigned char *reply, int room) {
    WITH_OWN_STATE(res_nquery(state, name, class, type, reply, room));
}
int res_querydomain(const char *name, const char *domain, int class, int type, unsigned char *reply, int room) {
    WITH_OWN_STATE(res_nquerydomain(state, name, domain, class, type, reply, room));
}
int res_search(const char *name, int class, int type, unsigned char *reply, int room) {
    WITH_OWN_STATE(res_nsearch(state, name, class, type, reply, room));
}

// What programs linked with libresolv before glibc 2.34 call.
#define OLD_NAME(name) extern __typeof(name) __##name __attribute__((alias(#name)))
OLD_NAME(res_nsend);
OLD_NAME(res_nquery);
OLD_NAME(res_nquerydomain);
OLD_NAME(res_nsearch);
OLD_NAME(res_send);
OLD_NAME(res_query);
OLD_NAME(res_querydomain);
OLD_NAME(res_search);
