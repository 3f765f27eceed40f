/* Streams of stdio on sockets, and dprintf. */
#include "report.h"

static int print(int fd, const char *format, ...) {
    va_list list;
    va_start(list, format);
    int length = vdprintf(fd, format, list);
    va_end(list);
    return length;
}

int main(void) {
    int stream[2], pair[2];
    char text[100] = "";
    signal(SIGPIPE, SIG_IGN);
    connected(stream);

    say("-- on a connection");
    FILE *in = fdopen(stream[0], "r"), *out = fdopen(dup(stream[0]), "w");
    FILE *other = fdopen(stream[1], "r+");
    setvbuf(other, NULL, _IONBF, 0);
    say("fileno: %d", fileno(in) == stream[0]);
    REPORT(fprintf(out, "line %d\nline two\n", 1));
    REPORT(fflush(out));
    say("%s", fgets(text, sizeof text, other));
    say("%s", fgets(text, sizeof text, other));
    REPORT(fputs("answer\n", other) >= 0);
    say("%s", fgets(text, sizeof text, in));
    REPORT(dprintf(stream[0], "%s %d\n", "printed", 42));
    say("%s", fgets(text, sizeof text, other));
    REPORT(print(stream[0], "%0100d\n", 7));
    say("%s", fgets(text, sizeof text, other));
    say("%s", fgets(text, sizeof text, other));
    REPORT(fclose(out));
    REPORT(shutdown(stream[0], SHUT_WR));
    REPORT(fgetc(other) == EOF);
    say("eof %d error %d", feof(other) != 0, ferror(other) != 0);
    REPORT(dprintf(stream[0], "x"));
    REPORT(fclose(in));
    REPORT(fclose(other));
    REPORT(dprintf(stream[0], "x"));

    say("-- before it is connected");
    int listener = listening();
    int fd = (int)MUST(socket(AF_INET, SOCK_STREAM, 0));
    FILE *early = fdopen(fd, "r+");
    connect_to(fd, port_of(listener));
    int accepted = (int)MUST(accept(listener, NULL, NULL));
    REPORT(fputs("early\n", early) >= 0);
    REPORT(fflush(early));
    say("%zd %.5s", read(accepted, text, 100), text);
    REPORT(fclose(early));
    REPORT(read(accepted, text, 100));

    say("-- on datagram sockets");
    datagrams(pair);
    FILE *sender = fdopen(pair[0], "w"), *receiver = fdopen(pair[1], "r");
    say("fileno: %d", fileno(receiver) == pair[1]);
    REPORT(fprintf(sender, "one datagram\n"));
    REPORT(fflush(sender));
    wait_for(pair[1], POLLIN);
    say("%s", fgets(text, sizeof text, receiver));
    REPORT(dprintf(pair[0], "printed %d", 5));
    wait_for(pair[1], POLLIN);
    memset(text, 0, sizeof text);
    REPORT(read(pair[1], text, sizeof text));
    say("%s", text);
    REPORT(print(pair[0], "%s", "again"));
    wait_for(pair[1], POLLIN);
    REPORT(read(pair[1], text, sizeof text));
    REPORT(dprintf(pair[1], "nowhere"));
    REPORT(fclose(receiver));
    REPORT(read(pair[1], text, 1));
    REPORT(fclose(sender));

    say("-- mode");
    fd = bound(SOCK_DGRAM);
    REPORT(fdopen(fd, "x") != NULL);
    REPORT(fdopen(999, "r") != NULL);
    REPORT(close(fd));
    return 0;
}
