/* Fails or kills at the Nth system call that changes something below one folder.

Loaded by LD_PRELOAD into crash_server.py, armed through ctypes; outside the folder, and while it is
not armed, every call goes through unchanged. Kinds of calls, by letter: w write, s sync,
t truncate, r rename, u unlink, c create, m mkdir, x close of a file that was open for writing.

Syncs below the folder are counted but not done: a process that dies loses nothing that the kernel
holds, and a thousand runs need not wait for the disk.
*/

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { PASS, FAIL, SHORT, TORN, KILL_BEFORE, KILL_AFTER };
#define LOG_SIZE (1 << 20)

static char folder[PATH_MAX];
static size_t folder_length;
static int action, error_number, stays;
static long wanted;
static atomic_int armed;
static atomic_long calls;
static char kinds[LOG_SIZE];

/* Arm: from now on the call number `nth` (from 1; 0: none) meets `what`; with `sticky` all later
   calls of its kind too, as on a disk that is and stays full. */
void shim_arm(const char *path, long nth, int what, int number, int sticky) {
    strncpy(folder, path, sizeof folder - 1);
    folder_length = strlen(folder);
    wanted = nth, action = what, error_number = number, stays = sticky;
    atomic_store(&calls, 0);
    atomic_store(&armed, 1);
}

/* Disarm; gives the letters of all calls since it was armed, in order. */
const char *shim_disarm(void) {
    atomic_store(&armed, 0);
    long made = atomic_load(&calls);
    kinds[made < LOG_SIZE ? made : LOG_SIZE - 1] = 0;
    return kinds;
}

static int path_inside(const char *path) {
    return strncmp(path, folder, folder_length) == 0
        && (path[folder_length] == '/' || path[folder_length] == 0);
}

static int fd_inside(int fd) {
    char link[32], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    return path_inside(path);
}

/* What the call must do now. */
static int met(char kind) {
    long number = atomic_fetch_add(&calls, 1);
    if (number < LOG_SIZE - 1)
        kinds[number] = kind;
    int due = wanted && number + 1 == wanted;
    if (!due && stays && wanted && number + 1 > wanted)
        due = kinds[wanted - 1] == kind;
    if (!due)
        return PASS;
    if (action == KILL_BEFORE)
        kill(getpid(), SIGKILL);
    return action;
}

static void after(int what) {
    if (what == KILL_AFTER || what == TORN)
        kill(getpid(), SIGKILL);
}

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

#define ON_PATH(name, kind, path, ...) \
    do { \
        REAL(name); \
        if (!atomic_load(&armed) || !path_inside(path)) return real(__VA_ARGS__); \
        int what = met(kind); \
        if (what == FAIL) { errno = error_number; return -1; } \
        int result = real(__VA_ARGS__), saved = errno; \
        after(what); \
        errno = saved; \
        return result; \
    } while (0)

int rename(const char *from, const char *to) { ON_PATH(rename, 'r', from, from, to); }
int unlink(const char *path) { ON_PATH(unlink, 'u', path, path); }
int rmdir(const char *path) { ON_PATH(rmdir, 'u', path, path); }
int mkdir(const char *path, mode_t mode) { ON_PATH(mkdir, 'm', path, path, mode); }

/* A write gives back less than it was asked for when it is SHORT, and nothing follows when TORN. */
#define WRITING(name, fd, size, whole, half) \
    do { \
        REAL(name); \
        if (!atomic_load(&armed) || !fd_inside(fd)) return whole; \
        int what = met('w'); \
        if (what == FAIL) { errno = error_number; return -1; } \
        ssize_t result = (what == SHORT || what == TORN) && (size) > 1 ? half : whole; \
        int saved = errno; \
        after(what); \
        errno = saved; \
        return result; \
    } while (0)

ssize_t write(int fd, const void *data, size_t size) {
    WRITING(write, fd, size, real(fd, data, size), real(fd, data, size / 2));
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
    WRITING(pwrite, fd, size, real(fd, data, size, at), real(fd, data, size / 2, at));
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    WRITING(pwrite64, fd, size, real(fd, data, size, at), real(fd, data, size / 2, at));
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
    struct iovec first = {parts[0].iov_base, parts[0].iov_len / 2};
    WRITING(writev, fd, parts[0].iov_len, real(fd, parts, count), real(fd, &first, 1));
}

#define SYNCING(name) \
    int name(int fd) { \
        REAL(name); \
        if (!atomic_load(&armed) || !fd_inside(fd)) return real(fd); \
        int what = met('s'); \
        if (what == FAIL) { errno = error_number; return -1; } \
        after(what); \
        return 0; \
    }
SYNCING(fsync)
SYNCING(fdatasync)

#define TRUNCATING(name, type) \
    int name(int fd, type size) { \
        REAL(name); \
        if (!atomic_load(&armed) || !fd_inside(fd)) return real(fd, size); \
        int what = met('t'); \
        if (what == FAIL) { errno = error_number; return -1; } \
        int result = real(fd, size), saved = errno; \
        after(what); \
        errno = saved; \
        return result; \
    }
TRUNCATING(ftruncate, off_t)
TRUNCATING(ftruncate64, off64_t)

/* The descriptor is gone whatever close says. */
int close(int fd) {
    REAL(close);
    int flags = atomic_load(&armed) ? fcntl(fd, F_GETFL) : -1;
    if (flags < 0 || (flags & O_ACCMODE) == O_RDONLY || !fd_inside(fd)) return real(fd);
    int what = met('x');
    int result = real(fd), saved = errno;
    after(what);
    if (what == FAIL) { errno = error_number; return -1; }
    errno = saved;
    return result;
}

#define OPENING(name) \
    int name(const char *path, int flags, ...) { \
        REAL(name); \
        va_list list; \
        va_start(list, flags); \
        mode_t mode = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(list, mode_t) : 0; \
        va_end(list); \
        if (!atomic_load(&armed) || !(flags & O_CREAT) || !path_inside(path)) \
            return real(path, flags, mode); \
        int what = met('c'); \
        if (what == FAIL) { errno = error_number; return -1; } \
        int result = real(path, flags, mode), saved = errno; \
        after(what); \
        errno = saved; \
        return result; \
    }
OPENING(open)
OPENING(open64)
