// stdio on sockets. libc's own reads and writes never pass through the shim: fine on the pair of a stream, but a datagram
// in a pair has a header in front. In-band for good (client.h, 5): the descriptor under a stdio stream.
#include "ShimEntry.h"

#include "CLibc.h"
#include <stdarg.h>

static ssize_t read_cookie(void *cookie, char *buffer, size_t count) { return read((int)(long)cookie, buffer, count); }
static ssize_t write_cookie(void *cookie, const char *buffer, size_t count) {
    ssize_t sent = write((int)(long)cookie, buffer, count);
    // fopencookie(3): a write function tells of a failure by 0.
    return sent < 0 ? 0 : sent;
}
static int close_cookie(void *cookie) { return close((int)(long)cookie); }

FILE *fdopen(int fd, const char *mode) {
    static FILE *(*next)(int, const char *);
    if (!next) next = (FILE * (*)(int, const char *)) alps_shim_next("fdopen");
    if (!alps_shim_has_headers(fd)) {
        alps_shim_in_band(fd);
        return next(fd, mode);
    }
    cookie_io_functions_t functions = {.read = read_cookie, .write = write_cookie, .close = close_cookie};
    FILE *stream = fopencookie((void *)(long)fd, mode, functions);
    // For fileno().
    if (stream) stream->_fileno = fd;
    return stream;
}

/// libc closes the descriptor itself: what was known of the number is void.
int fclose(FILE *stream) {
    static int (*next)(FILE *);
    if (!next) next = (int (*)(FILE *))alps_shim_next("fclose");
    int error = errno;
    int fd = stream ? fileno_unlocked(stream) : -1;
    errno = error;
    // A stream made above is flushed through write() and closed through close().
    if (fd < 0 || alps_shim_has_headers(fd)) return next(stream);
    unsigned long handle = alps_shim_lingering(fd);
    alps_shim_forget(fd);
    int result = next(stream);
    alps_shim_linger(handle);
    return result;
}

/// Formats into memory and writes that, as dprintf does.
static int print(int fd, const char *format, va_list list) {
    char *text;
    int length = vasprintf(&text, format, list);
    if (length < 0) return -1;
    ssize_t sent = 0;
    // A datagram goes at once.
    for (int done = 0; done < length || length == 0; done += (int)sent) {
        sent = write(fd, text + done, (size_t)(length - done));
        if (sent <= 0) break;
    }
    int error = errno;
    free(text);
    errno = error;
    return sent < 0 ? -1 : length;
}

static int needs_write(int fd) { return alps_shim_has_headers(fd) || alps_shim_has_ring(fd); }

int vdprintf(int fd, const char *format, va_list list) {
    static int (*next)(int, const char *, va_list);
    if (!next) next = (int (*)(int, const char *, va_list))alps_shim_next("vdprintf");
    return needs_write(fd) ? print(fd, format, list) : next(fd, format, list);
}

int dprintf(int fd, const char *format, ...) {
    va_list list;
    va_start(list, format);
    int length = vdprintf(fd, format, list);
    va_end(list);
    return length;
}

int __vdprintf_chk(int fd, int flag, const char *format, va_list list) {
    static int (*next)(int, int, const char *, va_list);
    if (!next) next = (int (*)(int, int, const char *, va_list))alps_shim_next("__vdprintf_chk");
    return needs_write(fd) ? print(fd, format, list) : next(fd, flag, format, list);
}

int __dprintf_chk(int fd, int flag, const char *format, ...) {
    va_list list;
    va_start(list, format);
    int length = __vdprintf_chk(fd, flag, format, list);
    va_end(list);
    return length;
}
