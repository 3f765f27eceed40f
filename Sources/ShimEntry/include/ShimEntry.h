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
void alps_shim_at_fork(void (*child)(void));

/// Brackets of a name look-up of this thread: in between, a name server on the loopback is the kernel's.
void alps_shim_resolving_begin(void);
void alps_shim_resolving_end(void);
int alps_shim_resolving(void);

// What the variadic entry points call; Swift.
int alps_shim_ioctl(int fd, unsigned long request, void *argument);
int alps_shim_fcntl(int fd, int command, long argument);
int alps_shim_open(int directory, const char *path, int flags, unsigned mode);
void alps_shim_confined(void);
int alps_shim_execve(const char *path, char *const *arguments, char *const *environment);
int alps_shim_execvpe(const char *file, char *const *arguments, char *const *environment);

#endif
