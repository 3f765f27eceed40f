/* sendfile, splice, tee, vmsplice, copy_file_range and vectors with positions, on streams and on datagram sockets. */
#include "report.h"

static char memory[1 << 20], other[1 << 20];

static void streams(void) {
    int pair[2];
    connected(pair);
    int file = file_of(300000);
    off_t offset = 1000;
    signal(SIGPIPE, SIG_IGN);

    say("-- sendfile to a stream");
    fcntl(pair[0], F_SETFL, O_NONBLOCK);
    size_t sent = 0;
    ssize_t got;
    while ((got = sendfile(pair[0], file, &offset, 300000)) > 0) {
        sent += (size_t)got;
        read_all(pair[1], memory + sent - (size_t)got, (size_t)got);
    }
    report("end of the file", got);
    say("%zu bytes, sum %u, offset %ld, position %ld", sent, sum_of(memory, sent), (long)offset, (long)lseek(file, 0, 1));
    REPORT(sendfile(pair[0], file, NULL, 777));
    say("position %ld", (long)lseek(file, 0, 1));
    REPORT(sendfile(pair[0], file, NULL, 0));
    REPORT(sendfile(pair[0], pair[1], NULL, 10));
    REPORT(sendfile(file, pair[1], NULL, 10));
    REPORT(sendfile(pair[0], 777, NULL, 10));
    REPORT(sendfile64(pair[0], file, NULL, 23));
    say("arrived %zu", read_all(pair[1], memory, 800));
    fcntl(pair[0], F_SETFL, 0);

    say("-- splice");
    int tube[2];
    MUST(pipe(tube));
    MUST(write(tube[1], "through a pipe", 14));
    REPORT(splice(tube[0], NULL, pair[0], NULL, 100, SPLICE_F_MOVE));
    say("arrived %zu", read_all(pair[1], memory, 14));
    MUST(send(pair[0], "and back", 8, 0));
    REPORT(splice(pair[1], NULL, tube[1], NULL, 100, 0));
    say("arrived %zd %.8s", read(tube[0], memory, 100), memory);
    fcntl(pair[1], F_SETFL, O_NONBLOCK);
    REPORT(splice(pair[1], NULL, tube[1], NULL, 100, 0));
    REPORT(splice(tube[0], NULL, pair[0], NULL, 100, SPLICE_F_NONBLOCK));
    offset = 0;
    REPORT(splice(pair[1], &offset, tube[1], NULL, 100, 0));
    REPORT(splice(pair[0], NULL, pair[1], NULL, 100, 0));
    REPORT(splice(pair[0], NULL, file, NULL, 100, 0));
    REPORT(tee(tube[0], pair[0], 10, 0));
    struct iovec part = {memory, 10};
    REPORT(vmsplice(pair[0], &part, 1, 0));
    REPORT(copy_file_range(file, NULL, pair[0], NULL, 10, 0));

    say("-- positions");
    REPORT(pread(pair[1], memory, 10, 0));
    REPORT(pwrite(pair[1], memory, 10, 0));
    REPORT(preadv(pair[1], &part, 1, 0));
    REPORT(pwritev(pair[1], &part, 1, 0));
    REPORT(preadv2(pair[1], &part, 1, 0, 0));
    REPORT(pwritev2(pair[0], &part, 1, -1, 0));
    wait_for(pair[1], POLLIN);
    REPORT(preadv2(pair[1], &part, 1, -1, 0));
    REPORT(preadv2(pair[1], &part, 1, -1, RWF_NOWAIT));
    REPORT(lseek(pair[1], 0, SEEK_CUR));

    say("-- after the end");
    MUST(shutdown(pair[0], SHUT_WR));
    wait_for(pair[1], POLLIN);
    REPORT(splice(pair[1], NULL, tube[1], NULL, 100, 0));
    REPORT(sendfile(pair[0], file, NULL, 10));
    MUST(write(tube[1], "x", 1));
    REPORT(splice(tube[0], NULL, pair[0], NULL, 10, 0));

    say("-- not connected");
    int fresh = (int)MUST(socket(AF_INET, SOCK_STREAM, 0));
    REPORT(sendfile(fresh, file, NULL, 10));
    MUST(write(tube[1], "x", 1));
    REPORT(splice(tube[0], NULL, fresh, NULL, 10, 0));
    REPORT(splice(fresh, NULL, tube[1], NULL, 10, 0));
    int listener = listening();
    REPORT(sendfile(listener, file, NULL, 10));
    REPORT(splice(listener, NULL, tube[1], NULL, 10, 0));
}

static void datagram_sockets(void) {
    int pair[2];
    datagrams(pair);
    int file = file_of(200000), tube[2];
    MUST(pipe(tube));
    set_timeout(pair[1], SO_RCVTIMEO, 300);

    say("-- sendfile to a datagram socket");
    REPORT(sendfile(pair[0], file, NULL, 1000));
    say("position %ld", (long)lseek(file, 0, 1));
    REPORT(recv(pair[1], memory, sizeof memory, 0));
    off_t offset = 5;
    REPORT(sendfile(pair[0], file, &offset, 2000));
    say("offset %ld, sum %u", (long)offset, (int)recv(pair[1], memory, sizeof memory, 0) == 2000 ? sum_of(memory, 2000) : 0);
    REPORT(sendfile(pair[0], file, &offset, 60000));
    REPORT(recv(pair[1], memory, sizeof memory, 0));
    REPORT(sendfile(pair[1], file, NULL, 10));

    say("-- splice");
    MUST(write(tube[1], "one datagram", 12));
    REPORT(splice(tube[0], NULL, pair[0], NULL, 100, 0));
    REPORT(recv(pair[1], memory, sizeof memory, 0));
    MUST(write(tube[1], "nowhere to go", 13));
    REPORT(splice(tube[0], NULL, pair[1], NULL, 100, 0));
    while (wait_for(tube[0], 0), poll(&(struct pollfd){tube[0], POLLIN, 0}, 1, 0) > 0) MUST(read(tube[0], memory, 100));
    struct sockaddr_in name = loopback(port_of(pair[0]));
    MUST(sendto(pair[1], "from the other end", 18, 0, (struct sockaddr *)&name, sizeof name));
    wait_for(pair[0], POLLIN);
    REPORT(splice(pair[0], NULL, tube[1], NULL, 100, 0));
    say("%zd %.18s", read(tube[0], memory, 100), memory);
    REPORT(send(pair[0], "for the one that is not connected", 33, 0));
    wait_for(pair[1], POLLIN);
    REPORT(splice(pair[1], NULL, tube[1], NULL, 100, 0));
    say("%zd %.33s", read(tube[0], memory, 100), memory);
    REPORT(splice(pair[1], NULL, file, NULL, 100, 0));

    say("-- vectors");
    struct iovec parts[2] = {{memory, 3}, {other, 100}};
    memcpy(memory, "abc", 3);
    memcpy(other, "defg", 4);
    parts[1].iov_len = 4;
    REPORT(pwritev2(pair[0], parts, 2, -1, 0));
    parts[1].iov_len = 100;
    REPORT(preadv2(pair[1], parts, 2, -1, 0));
    say("%.3s %.4s", memory, other);
    REPORT(preadv2(pair[1], parts, 2, -1, RWF_NOWAIT));
    REPORT(preadv(pair[1], parts, 2, 0));
    REPORT(pwritev(pair[0], parts, 2, 0));
    REPORT(pread(pair[1], memory, 10, 0));
}

int main(void) {
    streams();
    datagram_sockets();
    return 0;
}
