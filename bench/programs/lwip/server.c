// A server over lwIP's sockets on a tap, with the options of Debian's package: for the client of the load program. Port 5001
// takes all, 5002 sends for ever, 6000 to 6015 send back. A thread for each connection.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <lwip/ip4_addr.h>
#include <lwip/netif.h>
#include <lwip/sockets.h>
#include <lwip/tcpip.h>
#include <netif/tapif.h>

enum { SINK = 5001, SOURCE = 5002, ECHO = 6000, ECHO_PORTS = 16 };

struct connection { int socket, port; };

static void *run(void *argument) {
    struct connection connection = *(struct connection *)argument;
    free(argument);
    size_t size = connection.port >= ECHO ? 2048 : 65536;
    char *buffer = calloc(1, size);
    for (;;) {
        ssize_t length = connection.port == SOURCE ? lwip_send(connection.socket, buffer, size, 0)
                                                   : lwip_recv(connection.socket, buffer, size, 0);
        if (length <= 0) break;
        if (connection.port >= ECHO && lwip_send(connection.socket, buffer, (size_t)length, 0) <= 0) break;
    }
    free(buffer);
    lwip_close(connection.socket);
    return 0;
}

static void *accept_all(void *argument) {
    struct connection listener = *(struct connection *)argument;
    int on = 1;
    pthread_attr_t attributes;
    free(argument);
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, 65536);
    for (;;) {
        int socket = lwip_accept(listener.socket, 0, 0);
        if (socket < 0) continue;
        lwip_setsockopt(socket, IPPROTO_TCP, 1 /* TCP_NODELAY */, &on, sizeof on);
        struct connection *connection = malloc(sizeof *connection);
        pthread_t thread;
        *connection = (struct connection){socket, listener.port};
        if (pthread_create(&thread, &attributes, run, connection) != 0) {
            lwip_close(socket);
            free(connection);
        }
    }
}

static void begin(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = lwip_htons((uint16_t)port)};
    struct connection *listener = malloc(sizeof *listener);
    pthread_t thread;
    *listener = (struct connection){lwip_socket(AF_INET, SOCK_STREAM, 0), port};
    if (lwip_bind(listener->socket, (struct sockaddr *)&address, sizeof address) || lwip_listen(listener->socket, 255)) {
        fprintf(stderr, "lwip: port %d cannot be listened on\n", port);
        exit(1);
    }
    pthread_create(&thread, 0, accept_all, listener);
}

static ip4_addr_t own, mask;
static struct netif interface;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t begun = PTHREAD_COND_INITIALIZER;
static int is_up;

static void bring_up(void *unused) {
    ip4_addr_t none = {0};
    (void)unused;
    if (!netif_add(&interface, &own, &mask, &none, 0, tapif_init, tcpip_input)) {
        fputs("lwip: no interface\n", stderr);
        exit(1);
    }
    netif_set_default(&interface);
    netif_set_up(&interface);
    pthread_mutex_lock(&lock);
    is_up = 1;
    pthread_cond_signal(&begun);
    pthread_mutex_unlock(&lock);
}

int main(int argc, char **argv) {
    if (argc != 3 || !ip4addr_aton(argv[2], &own)) {
        fputs("usage: server TAP ADDRESS\n", stderr);
        return 2;
    }
    setenv("PRECONFIGURED_TAPIF", argv[1], 1);
    ip4addr_aton("255.255.255.0", &mask);
    tcpip_init(bring_up, 0);
    pthread_mutex_lock(&lock);
    while (!is_up) pthread_cond_wait(&begun, &lock);
    pthread_mutex_unlock(&lock);
    begin(SINK);
    begin(SOURCE);
    for (int i = 0; i < ECHO_PORTS; i++) begin(ECHO + i);
    puts("ready");
    fflush(stdout);
    for (;;) pause();
}
