/* A protocol in C: it swallows datagrams and tells how many bytes there were (after RFC 863, discard).
 * Build: cc -shared -fPIC -ISources/PluginAPI/include -o libdiscard.so Tests/CPlugin/discard.c */
#include <alps/alps.h>

ALPS_PLUGIN_NOTE("discard", "1.0.0", "", "");

struct discard {
    const alps_cell *memory, *mbuf, *socket, *protosw;
    uint64_t bytes;
    alps_user_request requests[4];
    alps_protosw entry;
};

static int32_t attach(void *instance, alps_socket *so) {
    so->pcb = instance;
    return 0;
}

static int32_t close_socket(void *instance, alps_socket *so) {
    struct discard *self = instance;
    so->pcb = NULL;
    ((const alps_socket_ops *)self->socket->ops)->detached(self->socket->self, so);
    return 0;
}

static int32_t send_datagram(void *instance, alps_socket *so, alps_mbuf *packet, const alps_sockaddr *to) {
    struct discard *self = instance;
    (void)so, (void)to;
    self->bytes += packet->pkt.length;
    ((const alps_mbuf_ops *)self->mbuf->ops)->free_packet(self->mbuf->self, packet);
    return 0;
}

/* A request of our own, "B": the bytes swallowed so far, as a number. */
static int32_t total(void *instance, void *value, uint32_t *length) {
    struct discard *self = instance;
    if (*length < sizeof self->bytes) return ALPS_EINVAL;
    *(uint64_t *)value = self->bytes;
    *length = sizeof self->bytes;
    return 0;
}

static int32_t create(const alps_host *host, const char *variant, void **instance) {
    const alps_cell *memory = host->query(host->self, "alps.memory/1");
    struct discard *self = ((const alps_memory_ops *)memory->ops)->alloc(memory->self, sizeof *self);
    (void)variant;
    if (!self) return ALPS_ENOMEM;
    self->memory = memory;
    self->mbuf = host->query(host->self, "alps.mbuf/1");
    self->socket = host->query(host->self, "alps.socket/1");
    self->protosw = host->query(host->self, "alps.protosw/1");
    *instance = self;
    return 0;
}

static void destroy(void *instance) {
    struct discard *self = instance;
    ((const alps_memory_ops *)self->memory->ops)->free(self->memory->self, self, sizeof *self);
}

static int32_t start(void *instance) {
    struct discard *self = instance;
    const uint32_t size = sizeof(alps_user_request);
    self->requests[0] = (alps_user_request){size, ALPS_PRU_ATTACH, "attach", "S", NULL, (alps_function)attach};
    self->requests[1] = (alps_user_request){size, ALPS_PRU_CLOSE, "close", "S", NULL, (alps_function)close_socket};
    self->requests[2] = (alps_user_request){size, ALPS_PRU_ABORT, "abort", "S", NULL, (alps_function)close_socket};
    self->requests[3] = (alps_user_request){size, ALPS_PRU_FIRST_PRIVATE, "total", "B", "bytes swallowed", (alps_function)total};
    self->entry = (alps_protosw){.size = sizeof self->entry, .domain = ALPS_AF_INET, .type = ALPS_SOCK_DGRAM,
                                 .protocol = 253, .demux = ALPS_DEMUX_NONE, .flags = ALPS_PR_ATOMIC, .name = "discard",
                                 .network = "alps.network/1:2", .requests = self->requests, .requests_count = 4,
                                 .send_datagram = send_datagram};
    return ((const alps_protosw_ops *)self->protosw->ops)->add(self->protosw->self, &self->entry);
}

int32_t alps_plugin_entry(alps_descriptor *out) {
    if (out->size < sizeof *out) return ALPS_EINVAL;
    *out = (alps_descriptor){.size = sizeof *out, .magic = ALPS_MAGIC, .abi_major = ALPS_ABI_MAJOR,
                             .flags = ALPS_PLUGIN_UNLOADABLE, .name = "discard", .version = "1.0.0",
                             .summary = "Discard (after RFC 863)", .create = create, .destroy = destroy, .start = start};
    return 0;
}
