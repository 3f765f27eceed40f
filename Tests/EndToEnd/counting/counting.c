// Preloaded into the host by test_allocation.py: counts allocations and reference counting, by the thread that runs the
// loop, into the file that ALPS_COUNT_FILE names. The Swift runtime's entry points have C's calling convention on x86-64.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

// In the file: malloc and its family, free, allocObject, retain, release, beginAccess.
static uint64_t nowhere[8];
static uint64_t *counts = nowhere;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("ALPS_COUNT_FILE");
    int fd = path ? open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600) : -1;
    if (fd < 0) return;
    if (ftruncate(fd, 4096) == 0) {
        void *page = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (page != MAP_FAILED) counts = page;
    }
    close(fd);
}

// glibc's own names: dlsym allocates, and so must not be needed here.
extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);

void *malloc(size_t size) { counts[0]++; return __libc_malloc(size); }
void *calloc(size_t count, size_t size) { counts[0]++; return __libc_calloc(count, size); }
void *realloc(void *old, size_t size) { counts[0]++; return __libc_realloc(old, size); }
void free(void *memory) { counts[1]++; __libc_free(memory); }
int posix_memalign(void **memory, size_t alignment, size_t size) {
    counts[0]++;
    *memory = __libc_memalign(alignment, size);
    return *memory ? 0 : 12;
}
void *aligned_alloc(size_t alignment, size_t size) { counts[0]++; return __libc_memalign(alignment, size); }

#define NEXT(name) \
    static __typeof__(&name) next; \
    if (!next) next = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

void *swift_allocObject(void *metadata, size_t size, size_t mask) {
    NEXT(swift_allocObject);
    counts[2]++;
    return next(metadata, size, mask);
}
void *swift_retain(void *object) {
    NEXT(swift_retain);
    counts[3]++;
    return next(object);
}
void swift_release(void *object) {
    NEXT(swift_release);
    counts[4]++;
    next(object);
}
void swift_beginAccess(void *pointer, void *buffer, uintptr_t flags, void *pc) {
    NEXT(swift_beginAccess);
    counts[5]++;
    next(pointer, buffer, flags, pc);
}
void *swift_retain_n(void *object, uint32_t count) {
    NEXT(swift_retain_n);
    counts[3]++;
    return next(object, count);
}
void swift_release_n(void *object, uint32_t count) {
    NEXT(swift_release_n);
    counts[4]++;
    next(object, count);
}
void *swift_unownedRetainStrong(void *object) {
    NEXT(swift_unownedRetainStrong);
    counts[3]++;
    return next(object);
}
void *swift_weakLoadStrong(void *reference) {
    NEXT(swift_weakLoadStrong);
    counts[3]++;
    return next(reference);
}
