// A load program for both sides of a path: the same binary runs on the kernel's stack and, preloaded, on Alps.
#ifndef LOAD_H
#define LOAD_H
#include <netinet/in.h>
#include <stddef.h>
#include <stdint.h>

// Ports of `load serve`. Requests are spread over many echo ports, so that a short-lived connection finds a free pair.
enum { SINK_PORT = 5001, SOURCE_PORT = 5002, ECHO_PORT = 6000, ECHO_PORTS = 16 };

// Times are in seconds, sizes in bytes.
struct options {
    const char *host;
    double warm_up, seconds;
    size_t size;             // of one socket call
    int count;               // flows, connections
    int at_once;             // requests or connections at a time
    int port;
    const char *interface;   // whose packets are counted
    int watched[16], watched_count;   // processes whose CPU time is counted
};

// What the machine has spent up to now. Differences of two are printed with a result.
struct account {
    double time;
    double busy, softirq, stolen;   // CPU seconds of the whole machine, in units of 10 ms
    double own, watched;            // CPU seconds of this process and of those that are watched
    uint64_t packets;               // in and out of the interface
};

double now(void);
_Noreturn void fail(const char *what);
struct sockaddr_in address_of(const char *host, int port);
int open_connection(const char *host, int port);
int open_listener(int port);
void set_no_delay(int socket);
void raise_descriptor_limit(void);
void pause_for(double seconds);

struct account take_account(const struct options *options);
// The members of a JSON object that tell what was spent between the two.
void print_account(const struct account *begin, const struct account *end);

// Distribution of times in seconds; keeps up to a few million.
struct samples { double *values; size_t count; };
void add_sample(struct samples *samples, double value);
void print_samples(struct samples *samples);   // sorts, prints p50, p99, max in microseconds as JSON members

int serve(const struct options *options);
int bulk(const struct options *options, int sends);
int round_trips(const struct options *options);
int connections(const struct options *options);
int hold(const struct options *options);
int spread(const struct options *options);
int send_datagrams(const struct options *options);
int receive_datagrams(const struct options *options);

#endif
