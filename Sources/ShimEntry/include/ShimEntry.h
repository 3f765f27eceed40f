/// The part of the shim that Swift cannot express: variadic entry points, vfork, the session's lock and the
/// search for the functions behind ours.
#ifndef ALPS_SHIM_ENTRY_H
#define ALPS_SHIM_ENTRY_H

#include <stddef.h>

/// The next definition of a function after the shim's own, NULL if there is none.
void *alps_shim_next(const char *name);
/// The path the dynamic loader found this library under.
const char *alps_shim_path(void);

/// The session's lock: a spin lock, since it must be resettable in the child of a fork. Signals are blocked by the caller.
void alps_shim_lock(void);
void alps_shim_unlock(void);
void alps_shim_lock_reset(void);

/// Registers what the child of a fork has to do.
void alps_shim_at_fork(void (*before)(void), void (*child)(void));

/// Brackets of a name look-up of this thread: in between, a name server on the loopback is the kernel's.
void alps_shim_resolving_begin(void);
void alps_shim_resolving_end(void);
int alps_shim_resolving(void);

/// Says that this process is the one whose state the shim holds.
void alps_shim_process_begin(void);
/// True once in the child of a fork, however that was made.
int alps_shim_is_new_process(void);
/// True in a child that runs in its parent's memory with descriptors of its own (vfork): it must not touch the tables.
int alps_shim_borrows_memory(void);
/// The calling thread's number, as gettid says, mostly without a system call. Also in a child that something else than libc
/// has made: it has the parent's memory, and must not take a lock in the parent's name.
unsigned alps_shim_thread(void);
/// Leaves memory to the parent, in which it is mapped; at least 24 bytes at its start are overwritten.
void alps_shim_keep_mapping(void *memory, size_t bytes);

/// Receives on `fd` until its end; interruptible and a cancellation point, at which `pending` is abandoned.
long alps_shim_wait_for_end(int fd, void *pending);

// What the entry points call; Swift.
void alps_shim_abandon(void *pending);
void alps_shim_ready(void);
int alps_shim_is_active(void);
/// True if datagrams in this descriptor's pair have a header in front.
int alps_shim_has_headers(int fd);
/// Code that knows nothing of rings is going to use this descriptor.
void alps_shim_in_band(int fd);
/// Before a child is made that has copies of the memory and of the descriptors. fork(2) does it by itself.
void alps_shim_before_fork(void);
/// True if there is a ring beside this descriptor's pair.
int alps_shim_has_ring(int fd);
/// libc is going to start another program by itself.
void alps_shim_starts_program(void);
void alps_shim_forget(int fd);
/// Around a close: what to wait for afterwards (SO_LINGER).
unsigned long alps_shim_lingering(int fd);
void alps_shim_linger(unsigned long handle);
int alps_shim_ioctl(int fd, unsigned long request, void *argument);
int alps_shim_fcntl(int fd, int command, long argument);
int alps_shim_open(int directory, const char *path, int flags, unsigned mode);
void alps_shim_confined(void);
int alps_shim_execve(const char *path, char *const *arguments, char *const *environment);
int alps_shim_execvpe(const char *file, char *const *arguments, char *const *environment);

#endif
