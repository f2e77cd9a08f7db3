/* Counts the calls by which this process changes files below one folder, and breaks the run at one of them.

Preloaded before libc, it sees what Python, C++ (torch) and Rust (safetensors, tokenizers) do alike. Nothing happens
until `fault_arm` is called. Each counted call becomes a line of the log: number, name, path, bytes. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { DISK_FULL = -1 };

static char folder[PATH_MAX];
static size_t folder_length;
static long count, target;
static int action, is_torn, log_fd = -1;

/* From now on count what changes `below`, and at call `at` do `what`: a signal, sent before the call (with `torn`,
after the first half of it where it writes), or DISK_FULL, for this call and all later ones that need space. */
void fault_arm(const char *below, long at, int what, int torn, int log) {
    strncpy(folder, below, sizeof folder - 1);
    folder_length = strlen(folder);
    target = at, action = what, is_torn = torn, log_fd = log, count = 0;
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static const char *of_fd(int fd, char *found) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, found, PATH_MAX - 1);
    found[length < 0 ? 0 : length] = 0;
    return found;
}

static const char *of_path(int at, const char *path, char *found) {
    if (path[0] == '/') return path;
    char base[PATH_MAX];
    if (at == AT_FDCWD) {
        if (!getcwd(base, sizeof base)) base[0] = 0;
    } else {
        of_fd(at, base);
    }
    snprintf(found, PATH_MAX, "%.2000s/%.2000s", base, path);
    return found;
}

/* 0: carry on; 1: write half of it and die; -1: the disk is full. */
static int before(const char *name, const char *path, size_t bytes, int needs_space) {
    if (log_fd < 0 || strncmp(path, folder, folder_length)) return 0;
    int saved = errno;
    char line[PATH_MAX + 64];
    long number = __atomic_add_fetch(&count, 1, __ATOMIC_SEQ_CST);
    int length = snprintf(line, sizeof line, "%ld\t%s\t%s\t%zu\n", number, name, path, bytes);
    syscall(SYS_write, log_fd, line, length);
    int verdict = 0;
    if (action == DISK_FULL) {
        if (number >= target && needs_space) return errno = ENOSPC, -1;
    } else if (number == target) {
        if (is_torn && bytes > 1) verdict = 1;
        else kill(getpid(), action);
    }
    errno = saved;
    return verdict;
}

#define CHANGES (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC)

static int opening(const char *name, int at, const char *path, int flags) {
    char found[PATH_MAX];
    if (!(flags & CHANGES)) return 0;
    return before(name, of_path(at, path, found), 0, flags & O_CREAT);
}

#define MODE(flags) mode_t mode = 0; if (flags & (O_CREAT | __O_TMPFILE)) { \
    va_list rest; va_start(rest, flags); mode = va_arg(rest, mode_t); va_end(rest); }
#define OPEN(name) int name(const char *path, int flags, ...) { MODE(flags) \
    return opening("open", AT_FDCWD, path, flags) ? -1 : NEXT(name)(path, flags, mode); }
#define OPENAT(name) int name(int at, const char *path, int flags, ...) { MODE(flags) \
    return opening("open", at, path, flags) ? -1 : NEXT(name)(at, path, flags, mode); }
OPEN(open) OPEN(open64) OPENAT(openat) OPENAT(openat64)

#define FOPEN(name) FILE *name(const char *path, const char *how) { \
    int flags = how[0] == 'r' && !strchr(how, '+') ? O_RDONLY : O_CREAT | O_WRONLY; \
    return opening("open", AT_FDCWD, path, flags) ? NULL : NEXT(name)(path, how); }
FOPEN(fopen) FOPEN(fopen64)

#define ON_FD(type, name, fd, bytes, needs_space, declared, given, half) type name declared { \
    char path[PATH_MAX]; \
    int verdict = log_fd < 0 ? 0 : before(#name, of_fd(fd, path), bytes, needs_space); \
    if (verdict > 0) { half; kill(getpid(), action); } \
    return verdict < 0 ? (type)-1 : NEXT(name) given; }
ON_FD(ssize_t, write, fd, n, 1, (int fd, const void *data, size_t n), (fd, data, n), NEXT(write)(fd, data, n / 2))
ON_FD(ssize_t, pwrite64, fd, n, 1, (int fd, const void *data, size_t n, off64_t at), (fd, data, n, at),
      NEXT(pwrite64)(fd, data, n / 2, at))
ON_FD(int, fsync, fd, 0, 0, (int fd), (fd), )
ON_FD(int, fdatasync, fd, 0, 0, (int fd), (fd), )
ON_FD(int, ftruncate, fd, 0, 0, (int fd, off_t size), (fd, size), )
ON_FD(int, ftruncate64, fd, 0, 0, (int fd, off64_t size), (fd, size), )
ON_FD(int, fchmod, fd, 0, 0, (int fd, mode_t mode), (fd, mode), )

ssize_t writev(int fd, const struct iovec *parts, int num_parts) {
    char path[PATH_MAX];
    size_t bytes = 0;
    for (int i = 0; i < num_parts; i++) bytes += parts[i].iov_len;
    int verdict = log_fd < 0 ? 0 : before("writev", of_fd(fd, path), bytes, 1);
    if (verdict > 0) { NEXT(write)(fd, parts[0].iov_base, parts[0].iov_len / 2); kill(getpid(), action); }
    return verdict < 0 ? -1 : NEXT(writev)(fd, parts, num_parts);
}

size_t fwrite(const void *data, size_t size, size_t n, FILE *file) {
    char path[PATH_MAX];
    int verdict = log_fd < 0 ? 0 : before("fwrite", of_fd(fileno(file), path), size * n, 1);
    if (verdict > 0) { NEXT(fwrite)(data, size, n / 2, file); fflush(file); kill(getpid(), action); }
    return verdict < 0 ? 0 : NEXT(fwrite)(data, size, n, file);
}

#define ON_PATH(type, name, at, path, needs_space, declared, given) type name declared { char found[PATH_MAX]; \
    return log_fd >= 0 && before(#name, of_path(at, path, found), 0, needs_space) < 0 ? (type)-1 : NEXT(name) given; }
ON_PATH(int, rename, AT_FDCWD, from, 0, (const char *from, const char *to), (from, to))
ON_PATH(int, renameat, a, from, 0, (int a, const char *from, int b, const char *to), (a, from, b, to))
ON_PATH(int, link, AT_FDCWD, to, 1, (const char *from, const char *to), (from, to))
ON_PATH(int, symlink, AT_FDCWD, to, 1, (const char *from, const char *to), (from, to))
ON_PATH(int, unlink, AT_FDCWD, path, 0, (const char *path), (path))
ON_PATH(int, unlinkat, at, path, 0, (int at, const char *path, int flags), (at, path, flags))
ON_PATH(int, mkdir, AT_FDCWD, path, 1, (const char *path, mode_t mode), (path, mode))
ON_PATH(int, mkdirat, at, path, 1, (int at, const char *path, mode_t mode), (at, path, mode))
ON_PATH(int, rmdir, AT_FDCWD, path, 0, (const char *path), (path))
ON_PATH(int, truncate, AT_FDCWD, path, 0, (const char *path, off_t size), (path, size))
ON_PATH(int, truncate64, AT_FDCWD, path, 0, (const char *path, off64_t size), (path, size))
ON_PATH(int, chmod, AT_FDCWD, path, 0, (const char *path, mode_t mode), (path, mode))
ON_PATH(int, utimensat, at, path, 0, (int at, const char *path, const struct timespec t[2], int f), (at, path, t, f))
