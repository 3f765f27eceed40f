/// The contract between the host and a protocol plugin: everything, in reading order.
///
/// Conventions that hold in every header of this folder:
///  - Ownership tags: [consumes] the callee owns the argument afterwards, on success and on failure; [borrows] only
///    for the call; [returns-owned] the caller must release the result.
///  - Thread tags: [net] on the kernel's loop thread, never concurrently for one instance; [control] the same thread,
///    outside packet processing; [blocking] on a fiber of that thread, may sleep; [any] no restriction.
///  - Results are 0 or a positive Linux errno (alps/errno.h). Nothing throws, nothing longjmps.
///  - Every table and descriptor starts with `uint32_t size`, written by its producer, and grows only at the end. Use
///    ALPS_HAS before you touch a member that was not in minor version 0. Frozen by name: mbuf, iovec, callout, cell.
///  - Addresses and ports: addresses are bytes in network order; ports in alps_* structures are in host byte order.
///  - Times are nanoseconds, sizes are bytes, unless the name says otherwise.
#ifndef ALPS_ALPS_H
#define ALPS_ALPS_H

#include "base.h"
#include "errno.h"
#include "plugin.h"
#include "memory.h"
#include "mbuf.h"
#include "time.h"
#include "sleep.h"
#include "random.h"
#include "log.h"
#include "tunable.h"
#include "counter.h"
#include "trace.h"
#include "address.h"
#include "ifnet.h"
#include "route.h"
#include "network.h"
#include "socket.h"
#include "pcb.h"
#include "protosw.h"

#endif
