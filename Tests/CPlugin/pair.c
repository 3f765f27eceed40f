/* Two plugins for the tests of loader, registry and router, told apart by macros:
 * GIVER provides "test.number/1:0", which tells NUMBER; else the plugin asks whoever provides it.
 * FAILS_IN_CREATE, FAILS_IN_START, FAILS_IN_ENTRY, WRONG_NAME, WRONG_MAGIC, WRONG_SIGNATURE make one that must be refused. */
#include <alps/alps.h>
#include <stdio.h>
#include <string.h>

#ifndef VERSION
#define VERSION "1.0.0"
#endif
#ifndef NUMBER
#define NUMBER 1
#endif
#ifdef GIVER
#define NAME "giver"
#define PROVIDES "test.number/1:0"
#define REQUIRES ""
#else
#define NAME "taker"
#define PROVIDES ""
#define REQUIRES "test.number/1:0"
#endif
ALPS_PLUGIN_NOTE(NAME, VERSION, PROVIDES, REQUIRES);

struct number_ops {
    uint32_t size, reserved;
    int32_t (*number)(void *self);
};

struct instance {
    const alps_cell *memory, *socket, *protosw, *number;
    alps_user_request requests[5];
    alps_protosw entry;
};

static int32_t attach(void *self, alps_socket *so) {
    so->pcb = self;
    return 0;
}

static int32_t close_socket(void *instance, alps_socket *so) {
    struct instance *self = instance;
    so->pcb = NULL;
    ((const alps_socket_ops *)self->socket->ops)->detached(self->socket->self, so);
    return 0;
}

static int32_t number(void *instance) {
    (void)instance;
    return NUMBER;
}
static const struct number_ops number_ops = {sizeof number_ops, 0, number};

/* Asks through the cell each time, as a plugin must. */
static int32_t ask(void *instance) {
    struct instance *self = instance;
    const struct number_ops *ops = self->number->ops;
    return ops ? ops->number(self->number->self) : -1;
}

static int32_t mix(void *instance, int32_t i, uint32_t u, int64_t l, uint64_t L, const alps_sockaddr *a, const void *b,
                   uint32_t b_length, void *B, uint32_t *B_length, alps_sockaddr *A) {
    (void)instance;
    int length = snprintf(B, *B_length, "%d %u %lld %llu %u %.*s", i, u, (long long)l, (unsigned long long)L, a->port,
                          (int)b_length, (const char *)b);
    if (length < 0 || (uint32_t)length >= *B_length) return ALPS_ENOBUFS;
    *B_length = (uint32_t)length;
    *A = *a;
    A->port++;
    return 0;
}

static int32_t create(const alps_host *host, const char *variant, void **instance) {
    (void)variant;
#ifdef FAILS_IN_CREATE
    return ALPS_ENOMEM;
#endif
    const alps_cell *memory = host->query(host->self, "alps.memory/1");
    struct instance *self = ((const alps_memory_ops *)memory->ops)->alloc(memory->self, sizeof *self);
    if (!self) return ALPS_ENOMEM;
    self->memory = memory;
    self->socket = host->query(host->self, "alps.socket/1");
    self->protosw = host->query(host->self, "alps.protosw/1");
    self->number = host->query(host->self, "test.number/1:0");
    *instance = self;
    return 0;
}

static void destroy(void *instance) {
    struct instance *self = instance;
    ((const alps_memory_ops *)self->memory->ops)->free(self->memory->self, self, sizeof *self);
}

static int32_t start(void *instance) {
    struct instance *self = instance;
    const uint32_t size = sizeof(alps_user_request);
#ifdef FAILS_IN_START
    return ALPS_EINVAL;
#endif
#ifdef WRONG_SIGNATURE
    const char *signature = "ixb";
#else
    const char *signature = "iulLabBA";
#endif
    self->requests[0] = (alps_user_request){size, ALPS_PRU_ATTACH, "attach", "S", NULL, (alps_function)attach};
    self->requests[1] = (alps_user_request){size, ALPS_PRU_CLOSE, "close", "S", NULL, (alps_function)close_socket};
    self->requests[2] = (alps_user_request){size, ALPS_PRU_ABORT, "abort", "S", NULL, (alps_function)close_socket};
    self->requests[3] = (alps_user_request){size, ALPS_PRU_FIRST_PRIVATE, "ask", "", NULL, (alps_function)ask};
    self->requests[4] = (alps_user_request){size, ALPS_PRU_FIRST_PRIVATE + 1, "mix", signature, NULL, (alps_function)mix};
    self->entry = (alps_protosw){.size = sizeof self->entry, .domain = ALPS_AF_INET, .type = ALPS_SOCK_DGRAM,
                                 .protocol = sizeof NAME + 240, .demux = ALPS_DEMUX_NONE, .flags = ALPS_PR_ATOMIC,
                                 .name = NAME, .network = "alps.network/1:2", .requests = self->requests,
                                 .requests_count = 5};
    return ((const alps_protosw_ops *)self->protosw->ops)->add(self->protosw->self, &self->entry);
}

int32_t alps_plugin_entry(alps_descriptor *out) {
#ifdef GIVER
    static const alps_provide provides[] = {{sizeof(alps_provide), 0, "test.number/1:0", &number_ops}};
#endif
    if (out->size < sizeof *out) return ALPS_EINVAL;
#ifdef FAILS_IN_ENTRY
    return ALPS_EPERM;
#endif
    (void)&number_ops;
    *out = (alps_descriptor){.size = sizeof *out, .magic = ALPS_MAGIC, .abi_major = ALPS_ABI_MAJOR,
                             .flags = ALPS_PLUGIN_UNLOADABLE, .name = NAME, .version = VERSION, .summary = "for tests",
                             .create = create, .destroy = destroy, .start = start};
#ifdef WRONG_NAME
    out->name = "somebody else";
#endif
#ifdef WRONG_MAGIC
    out->magic = 7;
#endif
#ifdef GIVER
    out->provides = provides;
    out->provides_count = 1;
#endif
    return 0;
}
