/* The resolver's own calls, look-ups in the background, and library functions made of calls on sockets. */
#include "report.h"
#include <arpa/nameser.h>
#include <resolv.h>

static void show(const char *label, const unsigned char *answer, int length) {
    if (length < 0) return say("%s: -1 %s", label, hstrerror(h_errno));
    ns_msg message;
    if (ns_initparse(answer, length, &message) != 0) return say("%s: not an answer", label);
    say("%s: code %d, %d answers", label, ns_msg_getflag(message, ns_f_rcode), ns_msg_count(message, ns_s_an));
    for (int each = 0; each < ns_msg_count(message, ns_s_an) && each < 3; each++) {
        ns_rr record;
        char text[INET_ADDRSTRLEN] = "";
        ns_parserr(&message, ns_s_an, each, &record);
        if (ns_rr_type(record) == ns_t_a) inet_ntop(AF_INET, ns_rr_rdata(record), text, sizeof text);
        say("    %s type %d length %d %s", ns_rr_name(record), ns_rr_type(record), ns_rr_rdlen(record), text);
    }
}

static unsigned char answer[65536];

static void queries(void) {
    say("-- res_*");
    show("query", answer, res_query("host.example.test", C_IN, T_A, answer, sizeof answer));
    show("query of what is not there", answer, res_query("nobody.example.test", C_IN, T_A, answer, sizeof answer));
    show("query of another type", answer, res_query("host.example.test", C_IN, T_MX, answer, sizeof answer));
    show("long answer", answer, res_query("long.example.test", C_IN, T_TXT, answer, sizeof answer));
    show("search", answer, res_search("host", C_IN, T_A, answer, sizeof answer));
    show("search in the second domain", answer, res_search("other", C_IN, T_A, answer, sizeof answer));
    show("search with a dot", answer, res_search("host.example", C_IN, T_A, answer, sizeof answer));
    show("search of what is nowhere", answer, res_search("nowhere", C_IN, T_A, answer, sizeof answer));
    show("absolute", answer, res_search("host.", C_IN, T_A, answer, sizeof answer));
    show("querydomain", answer, res_querydomain("host", "example.test", C_IN, T_A, answer, sizeof answer));
    struct __res_state state;
    memset(&state, 0, sizeof state);
    REPORT(res_ninit(&state));
    show("nquery", answer, res_nquery(&state, "host.example.test", C_IN, T_A, answer, sizeof answer));
    show("nsearch", answer, res_nsearch(&state, "host", C_IN, T_A, answer, sizeof answer));
    unsigned char query[512];
    int length = res_nmkquery(&state, QUERY, "host.example.test", C_IN, T_A, NULL, 0, NULL, query, sizeof query);
    show("nsend", answer, res_nsend(&state, query, length, answer, sizeof answer));
    state.options |= RES_USEVC;
    show("over TCP", answer, res_nquery(&state, "host.example.test", C_IN, T_A, answer, sizeof answer));
    state.options &= ~RES_USEVC;
    state.options |= RES_IGNTC;
    int got = res_nquery(&state, "long.example.test", C_IN, T_TXT, answer, sizeof answer);
    say("cut off: %d", got > 0 && got <= 512 ? (answer[2] & 2) != 0 : -1);
    state.nscount = 1;
    state.nsaddr_list[0] = loopback(1);
    state.retrans = 1, state.retry = 2;
    REPORT(res_nsend(&state, query, length, answer, sizeof answer));
    res_nclose(&state);
}

static volatile sig_atomic_t signalled;
static void on_signal(int number, siginfo_t *info, void *context) {
    signalled = info->si_value.sival_int + (info->si_code == SI_ASYNCNL ? 1000 : 0);
}
static volatile int notified;
static void on_thread(union sigval value) { __atomic_store_n(&notified, value.sival_int, __ATOMIC_RELEASE); }

static void background(void) {
    say("-- getaddrinfo_a");
    struct addrinfo hints = {.ai_family = AF_INET, .ai_socktype = SOCK_STREAM};
    struct gaicb requests[3] = {{.ar_name = "host.example.test", .ar_service = "80", .ar_request = &hints},
                                {.ar_name = "nobody.example.test", .ar_request = &hints},
                                {.ar_name = "192.0.2.7", .ar_request = &hints}};
    struct gaicb *list[4] = {&requests[0], NULL, &requests[1], &requests[2]};
    REPORT(getaddrinfo_a(GAI_WAIT, list, 4, NULL));
    for (int each = 0; each < 3; each++) {
        int error = gai_error(&requests[each]);
        char text[20] = "";
        if (error == 0) {
            struct sockaddr_in *name = (void *)requests[each].ar_result->ai_addr;
            inet_ntop(AF_INET, &name->sin_addr, text, sizeof text);
            snprintf(text + strlen(text), 10, " %d", ntohs(name->sin_port));
            freeaddrinfo(requests[each].ar_result);
        }
        say("%s: %s %s", requests[each].ar_name, error ? gai_strerror(error) : "found", text);
    }
    REPORT(gai_cancel(&requests[0]) == EAI_ALLDONE);
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO};
    sigaction(SIGUSR1, &action, NULL);
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1, .sigev_value.sival_int = 5};
    REPORT(getaddrinfo_a(GAI_NOWAIT, list, 4, &event));
    for (int turn = 0; turn < 500 && !signalled; turn++) usleep(10000);
    say("signal: %d", (int)signalled);
    say("%d %s %d", gai_error(&requests[0]), gai_strerror(gai_error(&requests[1])), gai_error(&requests[2]));
    event = (struct sigevent){.sigev_notify = SIGEV_THREAD, .sigev_notify_function = on_thread, .sigev_value.sival_int = 6};
    REPORT(getaddrinfo_a(GAI_NOWAIT, list, 1, &event));
    const struct gaicb *first[1] = {&requests[0]};
    int waited = 0;
    while ((waited = gai_suspend(first, 1, &(struct timespec){5, 0})) == 0 && gai_error(&requests[0]) == EAI_INPROGRESS) {
    }
    say("suspended: %d, %d", waited == 0 || waited == EAI_ALLDONE, gai_error(&requests[0]));
    for (int turn = 0; turn < 500 && !__atomic_load_n(&notified, __ATOMIC_ACQUIRE); turn++) usleep(10000);
    say("thread: %d", notified);
    REPORT(gai_suspend(first, 1, NULL) == EAI_ALLDONE);
    REPORT(getaddrinfo_a(7, list, 4, NULL) == EAI_SYSTEM);
}

static void library(void) {
    say("-- ports and filters");
    int fd = (int)MUST(socket(AF_INET, SOCK_DGRAM, 0));
    REPORT(bindresvport(fd, NULL));
    say("reserved: %d", port_of(fd) >= 512 && port_of(fd) < 1024);
    struct sockaddr_in name = {.sin_family = AF_INET6};
    REPORT(bindresvport(fd, &name));
    int port = 700;
    int first = rresvport(&port), second = rresvport(&port);
    say("port %d: %d, then another: %d", port_of(first), port_of(first) == 700, port_of(second) < 700);
    port = 700;
    REPORT(rresvport_af(&port, AF_UNIX));
    say("-- kinds");
    REPORT(isfdtype(fd, S_IFSOCK));
    REPORT(isfdtype(first, S_IFSOCK));
    REPORT(isfdtype(1, S_IFSOCK));
    REPORT(isfdtype(999, S_IFSOCK));
    REPORT(sockatmark(fd));
    REPORT(sockatmark(first));
    REPORT(sockatmark(999));
}

int main(void) {
    queries();
    background();
    library();
    return 0;
}
