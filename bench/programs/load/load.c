#define _GNU_SOURCE
#include "load.h"

#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char usage[] =
    "usage: load COMMAND [OPTIONS]\n"
    "  serve                 accept: 5001 takes all, 5002 sends for ever, 6000 to 6015 send back\n"
    "  send | receive        bulk over --count connections to a server\n"
    "  round-trips           one byte forth and back, one at a time\n"
    "  connections           connect, one byte forth and back, close; --at-once of them at a time\n"
    "  hold                  open --count connections, print how many, keep them until end of input\n"
    "  spread                64-byte requests over --count connections in turn, --at-once at a time\n"
    "  send-datagrams        datagrams of --size bytes to --port as fast as they go\n"
    "  receive-datagrams     count what comes to --port\n"
    "options: --host A --warm-up S --seconds S --size BYTES --count N --at-once N --port N\n"
    "         --interface NAME (count its packets) --watch PID (count its CPU time; may be repeated)\n"
    "Results are one line of JSON.\n";

int main(int argc, char **argv) {
    struct options options = {
        .host = "127.0.0.1", .warm_up = 0.2, .seconds = 1, .size = 65536, .count = 1, .at_once = 1, .port = 5005,
    };
    static const struct option names[] = {
        {"host", 1, 0, 'h'}, {"warm-up", 1, 0, 'w'}, {"seconds", 1, 0, 's'}, {"size", 1, 0, 'b'}, {"count", 1, 0, 'n'},
        {"at-once", 1, 0, 'c'}, {"port", 1, 0, 'p'}, {"interface", 1, 0, 'i'}, {"watch", 1, 0, 'W'}, {0, 0, 0, 0},
    };
    signal(SIGPIPE, SIG_IGN);
    for (int option; (option = getopt_long(argc, argv, "", names, 0)) != -1;) {
        switch (option) {
        case 'h': options.host = optarg; break;
        case 'w': options.warm_up = atof(optarg); break;
        case 's': options.seconds = atof(optarg); break;
        case 'b': options.size = strtoul(optarg, 0, 0); break;
        case 'n': options.count = atoi(optarg); break;
        case 'c': options.at_once = atoi(optarg); break;
        case 'p': options.port = atoi(optarg); break;
        case 'i': options.interface = optarg; break;
        case 'W':
            if (options.watched_count < 16) options.watched[options.watched_count++] = atoi(optarg);
            break;
        default: fputs(usage, stderr); return 2;
        }
    }
    if (optind != argc - 1 || options.size == 0 || options.size > 1 << 20 || options.count < 1 || options.at_once < 1) {
        fputs(usage, stderr);
        return 2;
    }
    const char *command = argv[optind];
    raise_descriptor_limit();
    if (!strcmp(command, "serve")) return serve(&options);
    if (!strcmp(command, "send")) return bulk(&options, 1);
    if (!strcmp(command, "receive")) return bulk(&options, 0);
    if (!strcmp(command, "round-trips")) return round_trips(&options);
    if (!strcmp(command, "connections")) return connections(&options);
    if (!strcmp(command, "hold")) return hold(&options);
    if (!strcmp(command, "spread")) return spread(&options);
    if (!strcmp(command, "send-datagrams")) return send_datagrams(&options);
    if (!strcmp(command, "receive-datagrams")) return receive_datagrams(&options);
    fputs(usage, stderr);
    return 2;
}
