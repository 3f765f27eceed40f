/* SO_LINGER: which close waits for the peer, and for how long. The peer is a process that begins to read some time after
 * the close has begun. Times are told as what they must lie between. */
#include "report.h"

enum { late = 1500, very_late = 4000 };

struct peer {
    int fd;       /* our end, full of data that the peer has no room for */
    int go, told; /* pipes: begin; how much came */
    pid_t process;
    long sent;
};

static void linger_for(int fd, int seconds) {
    struct linger on = {1, seconds};
    MUST(setsockopt(fd, SOL_SOCKET, SO_LINGER, &on, sizeof on));
}

static void peer_of(struct peer *peer, int pair[2], int delay, int fill) {
    int go[2], told[2];
    MUST(pipe(go));
    MUST(pipe(told));
    peer->process = (pid_t)MUST(fork());
    if (peer->process == 0) {
        static char data[65536];
        long total = 0, got;
        close(pair[0]);
        close(go[1]);
        read(go[0], data, 1);
        sleep_ms(delay);
        while ((got = recv(pair[1], data, sizeof data, 0)) > 0) total += got;
        if (got < 0) total = -errno;
        write(told[1], &total, sizeof total);
        _exit(0);
    }
    close(pair[1]);
    close(go[0]);
    close(told[1]);
    *peer = (struct peer){pair[0], go[1], told[0], peer->process, 0};
    if (!fill) return;
    static char data[65536];
    struct pollfd room = {pair[0], POLLOUT, 0};
    while (poll(&room, 1, 300) > 0) {
        ssize_t sent = send(pair[0], data, sizeof data, MSG_DONTWAIT);
        if (sent > 0) peer->sent += sent;
    }
}

static void full(struct peer *peer, int delay) {
    int pair[2];
    connected(pair);
    peer_of(peer, pair, delay, 1);
}

static void between(const char *label, long begin, long low, long high) {
    long time = now() - begin;
    if (time >= low && time < high) say("%s: %s", label, low == 0 ? "at once" : low >= late - 100 ? "waited" : "cut short");
    else say("%s: %ld ms", label, time);
}

static long begin(struct peer *peer) {
    MUST(write(peer->go, "", 1));
    return now();
}

static void finish(struct peer *peer) {
    long total = 0;
    MUST(read(peer->told, &total, sizeof total));
    say("    %s", total == peer->sent ? "all arrived" : total < 0 ? strerrorname_np((int)-total) : "some is missing");
    close(peer->go), close(peer->told);
    child_status(peer->process);
}

#define AT_ONCE 0, 1000
#define WAITED late - 100, 20000

static void caught(int signal) { (void)signal; }

enum { scenarios = 18 };

static void scenario(int which) {
    struct peer peer;
    long start;
    int copy, child, other, pair[2], listener, fresh;
    FILE *stream;
    switch (which) {
    case 0:
        full(&peer, late);
        start = begin(&peer);
        REPORT(close(peer.fd));
        between("without", start, AT_ONCE);
        finish(&peer);
        break;
    case 1:
        full(&peer, late);
        linger_for(peer.fd, 30);
        start = begin(&peer);
        REPORT(close(peer.fd));
        between("with a time", start, WAITED);
        finish(&peer);
        break;
    case 2:
        full(&peer, very_late);
        linger_for(peer.fd, 1);
        start = begin(&peer);
        REPORT(close(peer.fd));
        between("with a short time", start, 900, 3500);
        finish(&peer);
        break;
    case 3:
        full(&peer, late);
        linger_for(peer.fd, 30);
        fcntl(peer.fd, F_SETFL, O_NONBLOCK);
        start = begin(&peer);
        REPORT(close(peer.fd));
        between("without waiting for data", start, WAITED);
        finish(&peer);
        break;
    case 4:
        full(&peer, late);
        linger_for(peer.fd, 30);
        copy = dup(peer.fd);
        start = begin(&peer);
        close(copy);
        between("a copy", start, AT_ONCE);
        close(peer.fd);
        between("the last copy", start, WAITED);
        finish(&peer);
        break;
    case 5:
        full(&peer, late);
        linger_for(peer.fd, 30);
        child = fork();
        if (child == 0) {
            sleep_ms(300);
            start = now();
            close(peer.fd);
            between("in a child", start, late - 600, 20000);
            _exit(0);
        }
        start = begin(&peer);
        close(peer.fd);
        between("with a child", start, AT_ONCE);
        child_status(child);
        finish(&peer);
        break;
    case 6:
        // The option belongs to the socket, not to who set it.
        full(&peer, late);
        if ((child = fork()) == 0) {
            linger_for(peer.fd, 30);
            _exit(0);
        }
        child_status(child);
        start = begin(&peer);
        close(peer.fd);
        between("set by a child", start, WAITED);
        finish(&peer);
        break;
    case 7:
        full(&peer, late);
        linger_for(peer.fd, 30);
        if ((child = fork()) == 0) {
            sleep_ms(300);
            exit(0);
        }
        close(peer.fd);
        start = begin(&peer);
        child_status(child);
        between("at the end of the last process", start, AT_ONCE);
        finish(&peer);
        break;
    case 8:
        full(&peer, late);
        linger_for(peer.fd, 30);
        start = begin(&peer);
        other = open("/dev/null", O_RDONLY);
        dup2(other, peer.fd);
        between("dup2", start, WAITED);
        close(other);
        finish(&peer);
        break;
    case 9:
        full(&peer, late);
        linger_for(peer.fd, 30);
        stream = fdopen(peer.fd, "w");
        fputs("more", stream);
        peer.sent += 4;
        fcntl(peer.fd, F_SETFL, 0);
        start = begin(&peer);
        REPORT(fclose(stream));
        between("fclose", start, WAITED);
        finish(&peer);
        break;
    case 10:
        full(&peer, late);
        linger_for(peer.fd, 30);
        start = begin(&peer);
        REPORT(close_range((unsigned)peer.fd, (unsigned)peer.fd, 0));
        between("close_range", start, WAITED);
        finish(&peer);
        break;
    case 11:
        full(&peer, late);
        linger_for(peer.fd, 30);
        shutdown(peer.fd, SHUT_WR);
        start = begin(&peer);
        REPORT(close(peer.fd));
        between("after shutdown", start, WAITED);
        finish(&peer);
        break;
    case 12:
        // A handler ends the wait, SA_RESTART or not, and close does not tell.
        for (int flags = 0; flags < 2; flags++) {
            struct sigaction action = {.sa_handler = caught, .sa_flags = flags ? SA_RESTART : 0};
            sigaction(SIGALRM, &action, NULL);
            full(&peer, very_late);
            linger_for(peer.fd, 30);
            setitimer(ITIMER_REAL, &(struct itimerval){{0, 0}, {0, 800000}}, NULL);
            start = begin(&peer);
            REPORT(close(peer.fd));
            between(flags ? "a signal with SA_RESTART" : "a signal", start, 700, 3500);
            finish(&peer);
        }
        break;
    case 13:
        // Nothing on its way.
        connected(pair);
        peer_of(&peer, pair, late, 0);
        linger_for(peer.fd, 30);
        peer.sent = write(peer.fd, "x", 1);
        start = begin(&peer);
        REPORT(close(peer.fd));
        between("the peer has room", start, AT_ONCE);
        finish(&peer);
        break;
    case 14:
        // What was not read resets.
        connected(pair);
        MUST(write(pair[1], "unread", 6));
        MUST(wait_for(pair[0], POLLIN));
        linger_for(pair[0], 30);
        start = now();
        REPORT(close(pair[0]));
        between("data that were not read", start, AT_ONCE);
        close(pair[1]);
        break;
    case 15:
        // A listener's connections have its time.
        listener = listening();
        linger_for(listener, 30);
        pair[1] = (int)MUST(socket(AF_INET, SOCK_STREAM, 0));
        connect_to(pair[1], port_of(listener));
        pair[0] = (int)MUST(accept(listener, NULL, NULL));
        close(listener);
        peer_of(&peer, pair, late, 1);
        start = begin(&peer);
        REPORT(close(peer.fd));
        between("accepted", start, WAITED);
        finish(&peer);
        break;
    case 16:
        // Never connected.
        fresh = (int)MUST(socket(AF_INET, SOCK_STREAM, 0));
        linger_for(fresh, 30);
        start = now();
        REPORT(close(fresh));
        between("never connected", start, AT_ONCE);
        break;
    case 17:
    {
        // Times that are none.
        struct linger value = {1, -1};
        socklen_t length = sizeof value;
        fresh = (int)MUST(socket(AF_INET, SOCK_STREAM, 0));
        REPORT(setsockopt(fresh, SOL_SOCKET, SO_LINGER, &value, sizeof value));
        REPORT(getsockopt(fresh, SOL_SOCKET, SO_LINGER, &value, &length));
        say("on %d, of length %d", value.l_onoff, (int)length);
        REPORT(setsockopt(fresh, SOL_SOCKET, SO_LINGER, &value, 4));
        close(fresh);
        break;
    }
    }
}

/* All at once, since they mostly wait; told in order. */
int main(void) {
    int told[scenarios][2];
    for (int which = 0; which < scenarios; which++) {
        MUST(pipe(told[which]));
        if (fork() == 0) {
            for (int each = 0; each <= which; each++) close(told[each][0]);
            dup2(told[which][1], 1);
            close(told[which][1]);
            scenario(which);
            _exit(0);
        }
        close(told[which][1]);
    }
    for (int which = 0; which < scenarios; which++) {
        char text[4096];
        ssize_t got;
        while ((got = read(told[which][0], text, sizeof text)) > 0) write(1, text, (size_t)got);
    }
}
