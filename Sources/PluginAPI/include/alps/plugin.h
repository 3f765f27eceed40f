/// Identification, negotiation and life of a plugin.
///
/// A plugin is a shared library with two things the host looks at: an ELF note in section `.note.alps`, read without
/// running any code of the plugin, and one exported function, `alps_plugin_entry`. Both say the same.
#ifndef ALPS_PLUGIN_H
#define ALPS_PLUGIN_H

#include "base.h"

ALPS_BEGIN

#define ALPS_ABI_MAJOR 1  ///< a plugin loads only if its major is equal
#define ALPS_ABI_MINOR 0  ///< and the minor it needs is not above the host's
#define ALPS_MAGIC 0x53504c41u  ///< "ALPS" in memory order

/// Plugin flag: the library may be unmapped after its last instance is gone (C and Embedded Swift).
#define ALPS_PLUGIN_UNLOADABLE 1u

/// ELF note type of the description below; the note's name is "ALPS".
#define ALPS_NOTE_TYPE 1u

/// What the ELF note carries after its header. Frozen layout. Strings are NUL-padded UTF-8; lists are separated by
/// commas.
typedef struct alps_note {
    uint32_t magic;             ///< ALPS_MAGIC
    uint16_t abi_major;         ///< ALPS_ABI_MAJOR the plugin was built with
    uint16_t abi_minor_needed;  ///< lowest host minor it runs on
    uint32_t flags;             ///< ALPS_PLUGIN_*
    uint32_t reserved;          ///< 0
    uint8_t name[32];           ///< e.g. "tcp"
    uint8_t version[32];        ///< e.g. "1.0.0"
    uint8_t provides[160];      ///< interface ids, e.g. "alps.network/1"
    uint8_t requires_[160];     ///< interface ids that must exist before `create`
} alps_note;
ALPS_LAYOUT_SIZE(alps_note, 400);

/// For C plugins: places the note. Strings must fit the fields of alps_note.
#define ALPS_PLUGIN_NOTE(plugin_name, plugin_version, plugin_provides, plugin_requires)                          \
    __attribute__((used, aligned(4), section(".note.alps"))) static const struct {                               \
        uint32_t namesz, descsz, type;                                                                           \
        char vendor[8];                                                                                          \
        alps_note note;                                                                                          \
    } alps_note_record = {5, sizeof(alps_note), ALPS_NOTE_TYPE, "ALPS",                                           \
                          {ALPS_MAGIC, ALPS_ABI_MAJOR, 0, ALPS_PLUGIN_UNLOADABLE, 0, plugin_name, plugin_version, \
                           plugin_provides, plugin_requires}}

/// The host as one plugin instance sees it. Valid until `destroy` returns.
typedef struct alps_host {
    uint32_t size;
    uint16_t abi_major;
    uint16_t abi_minor;
    void *self;
    /// [control] The cell of interface `id` (NUL-terminated, e.g. "alps.mbuf/1"), or NULL if the id is unknown to
    /// this host and to all loaded plugins. The cell lives as long as the host; cells of host interfaces always have
    /// `ops`. Interfaces that plugins provide (e.g. "alps.network/1:2", family after the colon) may come and go.
    const alps_cell *_Nullable (*_Nonnull query)(void *self, const char *id);
} alps_host;

/// One interface that the plugin provides.
typedef struct alps_provide {
    uint32_t size;
    uint32_t flags;   ///< 0
    const char *id;   ///< with revision, e.g. "alps.neighbor/1:2"
    const void *ops;  ///< its table; `self` of the cell will be the instance
} alps_provide;

/// State bytes on their way between two instances. The host owns the memory.
typedef struct alps_blob {
    uint32_t size;
    uint32_t length;    ///< bytes in use
    uint32_t capacity;  ///< bytes at `bytes`
    uint32_t reserved;
    uint8_t *bytes;
} alps_blob;

/// What `alps_plugin_entry` fills. All pointers must stay valid while the library is mapped.
typedef struct alps_descriptor {
    uint32_t size;  ///< in: bytes the host offers; out: bytes the plugin filled
    uint32_t magic;
    uint16_t abi_major;
    uint16_t abi_minor_needed;
    uint32_t flags;  ///< ALPS_PLUGIN_*
    const char *name;
    const char *version;
    const char *summary;  ///< one line for people
    const alps_provide *_Nullable provides;
    uint32_t provides_count;
    uint32_t requires_count;
    const char *_Nonnull const *_Nullable requires_;

    /// [control] Makes an instance. `variant` is the name it runs under ("tcp" or "tcp/other"). Must not call
    /// other plugins. On failure everything taken is given back and an errno is returned.
    int32_t (*create)(const alps_host *host, const char *variant, void *_Nullable *_Nonnull instance);
    /// [control] The last call. Timers are stopped and memory returned by the plugin; the host counts what is left.
    void (*destroy)(void *instance);
    /// [control] Registers with the host: protocol switch entries, ethertypes, tunables, counters.
    int32_t (*start)(void *instance);
    /// [control] No new work comes any more; finish what is open. The host calls `destroy` when nothing is left.
    void (*_Nullable quiesce)(void *instance);
    /// [net] A callout of this instance is due. `function` and `argument` are what alps_callout carried.
    void (*_Nullable callout)(void *instance, uint32_t function, void *_Nullable argument);
    /// [net] The batch of packets that the preceding `input` calls belonged to has ended; send one ACK now.
    void (*_Nullable batch_end)(void *instance);
    /// [net] Something happened to an interface (alps/ifnet.h). `event` is an alps_ifnet_event.
    void (*_Nullable ifnet_event)(void *instance, const void *event);
    /// [control] Connection state for a live swap, one TLV blob a connection. May be NULL: the plugin swaps by
    /// draining (old connections stay with the old instance).
    int32_t (*_Nullable export_state)(void *instance, void *pcb, alps_blob *blob);
    int32_t (*_Nullable import_state)(void *instance, const alps_blob *blob, void *_Nullable *_Nonnull pcb);
} alps_descriptor;

/// The one exported function. Pure: fills `*out` and returns 0, or an errno if `out->size` is too small.
int32_t alps_plugin_entry(alps_descriptor *out);

ALPS_END
#endif
