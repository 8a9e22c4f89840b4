/* Stand between a Python process and the file system: count what it changes below one folder, write that down, and at the
   n-th change kill the process, write half of it, fail, or do it and say that it failed.

   One lock is held from counting an operation to its entry in the trace, so the trace has the order in which things were
   done, however many threads do them. Only Linux with glibc, 64 bits. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { COUNT, KILL_BEFORE, KILL_AFTER, TORN, FAIL, FAIL_ON, LOST_REPLY, SIGNAL, SHORT, FULL };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char root[PATH_MAX];
static size_t root_length;
static int mode, code, full, trace = -1;
static long target, count;
static long offset_s;

void shim_arm(const char *folder, int how, long n, int number, int trace_file) {
    snprintf(root, sizeof root, "%s", folder);
    root_length = strlen(root);
    mode = how, target = n, code = number, trace = trace_file, count = full = 0;
}
void shim_disarm(void) { root_length = 0; }
long shim_count(void) { return count; }
void shim_clock(long seconds) { offset_s = seconds; }

#define REAL(name) ((__typeof__(&name))real(#name))
static void *real(const char *name) { return dlsym(RTLD_NEXT, name); }

/* An entry: kind, inode, offset, lengths of two paths and of the data, then those. */
struct entry { char kind[8]; uint64_t inode; int64_t offset; uint32_t first, second, data, done; } __attribute__((packed));

static void note(const char *kind, uint64_t inode, int64_t offset, const char *one, const char *two, const void *data,
                 size_t length, int done) {
    if (trace < 0) return;
    struct entry entry = {.inode = inode, .offset = offset, .done = done};
    strncpy(entry.kind, kind, sizeof entry.kind);
    entry.first = one ? strlen(one) : 0, entry.second = two ? strlen(two) : 0, entry.data = length;
    REAL(write)(trace, &entry, sizeof entry);
    if (one) REAL(write)(trace, one, entry.first);
    if (two) REAL(write)(trace, two, entry.second);
    if (length) REAL(write)(trace, data, length);
}
void shim_mark(const char *text) {
    pthread_mutex_lock(&lock);
    note("mark", 0, 0, text, NULL, NULL, 0, 1);
    pthread_mutex_unlock(&lock);
}

/* Write the absolute path of `path` below `at` into `out`; return whether it counts. */
static int absolute(int at, const char *path, char *out) {
    if (!root_length || !path) return 0;
    if (path[0] == '/') {
        snprintf(out, PATH_MAX, "%s", path);
    } else {
        char base[PATH_MAX], link[64];
        if (at == AT_FDCWD) {
            if (!getcwd(base, sizeof base)) return 0;
        } else {
            snprintf(link, sizeof link, "/proc/self/fd/%d", at);
            ssize_t n = readlink(link, base, sizeof base - 1);
            if (n < 0) return 0;
            base[n] = 0;
        }
        if (snprintf(out, PATH_MAX, "%s/%s", base, path) >= PATH_MAX) return 0;
    }
    return !strncmp(out, root, root_length) && (out[root_length] == '/' || !out[root_length]);
}
static int path_of(int fd, char *out) {
    char link[64];
    if (!root_length || fd == trace) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, out, PATH_MAX - 1);
    if (n < 0) return 0;
    out[n] = 0;
    return !strncmp(out, root, root_length) && (out[root_length] == '/' || !out[root_length]);
}

/* Count one operation. Return 0: do it; 1: fail with errno set; 2: do it, then say that it failed; 3: half of it, then die;
   4: half of it. */
static int step(const char *kind, const char *path) {
    long n = ++count;
    int hit = mode == FAIL_ON || mode == FULL ? n >= target : n == target;
    if (!hit || mode == COUNT || mode == KILL_AFTER) return 0;
    if (mode == SHORT && strcmp(kind, "write")) return 0;
    /* A full disk still removes, renames and makes durable; and a part of the write that fills it is written. */
    if (mode == FULL && strcmp(kind, "write") && strcmp(kind, "create") && strcmp(kind, "mkdir")) return 0;
    note("hit", 0, n, kind, path, NULL, 0, 0);
    if (mode == FULL && !full && !strcmp(kind, "write")) {
        full = 1;
        return 4;
    }
    if (mode == SIGNAL) {
        kill(getpid(), code);
        return 0;
    }
    if (mode == KILL_BEFORE || (mode == TORN && strcmp(kind, "write"))) {
        kill(getpid(), SIGKILL);
        pause();
    }
    if (mode == TORN) return 3;
    if (mode == SHORT) return 4;
    if (mode == LOST_REPLY) return 2;
    errno = code;
    return 1;
}
static void after(const char *kind, const char *path) {
    if (mode == KILL_AFTER && count == target) {
        note("hit", 0, count, kind, path, NULL, 0, 0);
        kill(getpid(), SIGKILL);
        pause();
    }
}
static int lost(const char *kind) {
    /* What a server says to the second sending of a request that it has served already. */
    errno = code ? code : !strcmp(kind, "mkdir") ? EEXIST : !strcmp(kind, "rename") || !strcmp(kind, "unlink") ||
            !strcmp(kind, "rmdir") ? ENOENT : EIO;
    return -1;
}

/* Do `call` under the lock, as the n-th operation of its kind; `noted` writes the entry of its success. */
#define COUNTED(kind, path, call, noted)                                                                                \
    ({                                                                                                                  \
        pthread_mutex_lock(&lock);                                                                                      \
        int how = step(kind, path), result = -1, error;                                                                 \
        if (how != 1) {                                                                                                 \
            result = call;                                                                                              \
            if (result >= 0) { noted; after(kind, path); }                                                              \
            if (result >= 0 && how == 2) result = lost(kind);                                                           \
        }                                                                                                               \
        error = errno;                                                                                                  \
        pthread_mutex_unlock(&lock);                                                                                    \
        errno = error;                                                                                                  \
        result;                                                                                                         \
    })

static uint64_t inode_of(int fd) {
    struct stat facts;
    return fstat(fd, &facts) ? 0 : facts.st_ino;
}

static int open_at(int at, const char *path, int flags, mode_t permissions) {
    char whole[PATH_MAX];
    struct stat facts;
    int (*call)(int, const char *, int, ...) = (int (*)(int, const char *, int, ...))real("openat64");
    if (!(flags & (O_CREAT | O_TRUNC)) || !absolute(at, path, whole)) return call(at, path, flags, permissions);
    int missing = fstatat(at, path, &facts, 0) != 0;
    if (missing ? !(flags & O_CREAT) : !(flags & O_TRUNC) || !facts.st_size) return call(at, path, flags, permissions);
    const char *kind = missing ? "create" : "cut";
    int fd = COUNTED(kind, whole, call(at, path, flags, permissions),
                     note(kind, inode_of(result), 0, whole, NULL, NULL, 0, 1));
    return fd;
}
#define OPEN(name, at_parameter, at)                                                                                    \
    int name(at_parameter const char *path, int flags, ...) {                                                           \
        mode_t permissions = 0;                                                                                         \
        if (flags & (O_CREAT | O_TMPFILE)) {                                                                            \
            va_list list;                                                                                               \
            va_start(list, flags);                                                                                      \
            permissions = va_arg(list, mode_t);                                                                         \
            va_end(list);                                                                                               \
        }                                                                                                               \
        return open_at(at, path, flags, permissions);                                                                   \
    }
#define NOTHING
#define COMMA ,
OPEN(open, NOTHING, AT_FDCWD)
OPEN(open64, NOTHING, AT_FDCWD)
OPEN(openat, int at COMMA, at)
OPEN(openat64, int at COMMA, at)

ssize_t write(int fd, const void *data, size_t length) {
    char path[PATH_MAX];
    if (!path_of(fd, path)) return REAL(write)(fd, data, length);
    pthread_mutex_lock(&lock);
    int how = step("write", path), error;
    ssize_t done = -1;
    if (how != 1) {
        int append = fcntl(fd, F_GETFL) & O_APPEND;
        struct stat facts;
        int64_t offset = append && !fstat(fd, &facts) ? facts.st_size : lseek(fd, 0, SEEK_CUR);
        done = REAL(write)(fd, data, how >= 3 && length > 1 ? length / 2 : length);
        if (done >= 0) {
            note("write", inode_of(fd), offset, path, NULL, data, done, 1);
            if (how == 3) {
                kill(getpid(), SIGKILL);
                pause();
            }
            after("write", path);
            /* Half of what it was given is on the disk, and then there is no more room. */
            if (how == 2) done = lost("write");
        }
    } else if (mode == FAIL_ON && count == target && length > 1) {
        /* The disk fills up amid a write: a part is written, and the next write fails. */
        done = REAL(write)(fd, data, length / 2);
        if (done >= 0) note("write", inode_of(fd), lseek(fd, 0, SEEK_CUR) - done, path, NULL, data, done, 1);
        errno = code;
    }
    error = errno;
    pthread_mutex_unlock(&lock);
    errno = error;
    return done;
}

static int sync_of(int fd, const char *name) {
    char path[PATH_MAX];
    int (*call)(int) = (int (*)(int))real(name);
    if (!path_of(fd, path)) return call(fd);
    return COUNTED("fsync", path, call(fd), note("fsync", inode_of(fd), 0, path, NULL, NULL, 0, 1));
}
int fsync(int fd) { return sync_of(fd, "fsync"); }
int fdatasync(int fd) { return sync_of(fd, "fdatasync"); }

int ftruncate64(int fd, off64_t length) {
    char path[PATH_MAX];
    if (!path_of(fd, path)) return REAL(ftruncate64)(fd, length);
    return COUNTED("trunc", path, REAL(ftruncate64)(fd, length), note("trunc", inode_of(fd), length, path, NULL, NULL, 0, 1));
}
int ftruncate(int fd, off_t length) { return ftruncate64(fd, length); }

int renameat(int at, const char *path, int to_at, const char *to) {
    char one[PATH_MAX], two[PATH_MAX];
    int counts = absolute(at, path, one) | absolute(to_at, to, two);
    if (!counts) return REAL(renameat)(at, path, to_at, to);
    return COUNTED("rename", two, REAL(renameat)(at, path, to_at, to), note("rename", 0, 0, one, two, NULL, 0, 1));
}
int rename(const char *path, const char *to) { return renameat(AT_FDCWD, path, AT_FDCWD, to); }

int unlinkat(int at, const char *path, int flags) {
    char whole[PATH_MAX];
    if (!absolute(at, path, whole)) return REAL(unlinkat)(at, path, flags);
    const char *kind = flags & AT_REMOVEDIR ? "rmdir" : "unlink";
    return COUNTED(kind, whole, REAL(unlinkat)(at, path, flags), note(kind, 0, 0, whole, NULL, NULL, 0, 1));
}
int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }

int mkdirat(int at, const char *path, mode_t permissions) {
    char whole[PATH_MAX];
    if (!absolute(at, path, whole)) return REAL(mkdirat)(at, path, permissions);
    return COUNTED("mkdir", whole, REAL(mkdirat)(at, path, permissions), note("mkdir", 0, 0, whole, NULL, NULL, 0, 1));
}
int mkdir(const char *path, mode_t permissions) { return mkdirat(AT_FDCWD, path, permissions); }

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = REAL(clock_gettime)(clock, now);
    if (!result && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += offset_s;
    return result;
}
int gettimeofday(struct timeval *now, void *zone) {
    int result = REAL(gettimeofday)(now, zone);
    if (!result) now->tv_sec += offset_s;
    return result;
}
time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
