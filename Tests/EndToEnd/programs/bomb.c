// A bounded fork bomb: bomb DEPTH. Every process makes two, 2^DEPTH in all, and all use the same listener, connection and
// datagram socket at once, with some of their own; some end in order, some do not.
#include "report.h"

int main(int count, char **arguments) {
    int depth = atoi(arguments[1]);
    signal(SIGPIPE, SIG_IGN);
    int listener = listening(), port = port_of(listener), pair[2], done[2];
    fcntl(listener, F_SETFL, O_NONBLOCK);
    connected(pair);
    int datagram = bound(SOCK_DGRAM);
    struct sockaddr_in stream_name = loopback(port), name = loopback(port_of(datagram));
    // Its end tells that no process is left.
    MUST(pipe(done));
    pid_t first = fork();
    if (first == 0) {
        unsigned state = 1;
        close(done[0]);
        for (int level = 0; level < depth; level++) state = state * 2 + (fork() == 0);
        char data[200] = {0};
        for (int round = 0; round < 5; round++) {
            send(pair[0], data, sizeof data, MSG_DONTWAIT | MSG_NOSIGNAL);
            recv(pair[1], data, sizeof data, MSG_DONTWAIT);
            sendto(datagram, data, 100, MSG_DONTWAIT, (struct sockaddr *)&name, sizeof name);
            recv(datagram, data, sizeof data, MSG_DONTWAIT);
            int mine = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
            connect(mine, (struct sockaddr *)&stream_name, sizeof stream_name);
            int accepted = accept(listener, NULL, NULL);
            if (accepted >= 0) send(accepted, "x", 1, MSG_NOSIGNAL);
            struct sockaddr_in own;
            socklen_t length = sizeof own;
            if (getsockname(listener, (struct sockaddr *)&own, &length) != 0 || ntohs(own.sin_port) != port) say("another name");
            if ((state + round) % 3) close(mine);
            if (accepted >= 0) close(accepted);
        }
        if (state % 4 == 0) raise(SIGKILL);
        if (state % 4 == 1) execl("/bin/true", "true", NULL);
        _exit(0);
    }
    close(done[1]);
    char byte;
    say("all have ended: %d", read(done[0], &byte, 1) == 0);
    child_status(first);
    // The sockets still work.
    fcntl(datagram, F_SETFL, O_NONBLOCK);
    char data[200];
    while (recv(datagram, data, sizeof data, 0) >= 0) {
    }
    MUST(sendto(datagram, "last", 4, 0, (struct sockaddr *)&name, sizeof name));
    // Behind what the others have sent.
    ssize_t size = 0;
    while (size != 4 && wait_for(datagram, POLLIN) == POLLIN) size = recv(datagram, data, sizeof data, 0);
    say("datagram: %d", size == 4);
    while (recv(pair[1], data, sizeof data, MSG_DONTWAIT) > 0) {
    }
    MUST(send(pair[0], "last", 4, 0));
    int got = 0;
    while (got < 4 && wait_for(pair[1], POLLIN)) {
        ssize_t step = recv(pair[1], data, sizeof data, 0);
        if (step <= 0) break;
        got = memcmp(data + step - 4, "last", 4) == 0 ? 4 : 0;
    }
    say("stream: %d", got == 4);
}
