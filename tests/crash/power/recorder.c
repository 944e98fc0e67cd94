/* Records what a process writes to one file, and when it syncs, for the power-loss test.
 *
 * LD_PRELOAD this library with
 *   POWER_FILE   the data file; every descriptor of it counts, found by device and inode
 *   POWER_MARKS  a second file: what is written to it enters the log as a mark
 *   POWER_LOG    where the log goes
 *
 * The log is a sequence of records: kind (u64), offset (u64), length (u64), data. Kinds: 1 write,
 * 2 sync, 3 truncate (offset is the new size), 4 mark. A write is logged before it is made, because
 * it may reach the disk from then on; a sync when it returns. Syncs of the data file are logged and
 * not made, they only take POWER_SYNC_US microseconds: the test reads the log, not the disk. Stores
 * through a memory map are not seen.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { WRITE = 1, SYNC = 2, TRUNCATE = 3, MARK = 4 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int log_fd = -1;
static useconds_t pause_us;
static struct stat data_file, mark_file;

__attribute__((constructor)) static void begin(void) {
    const char *data = getenv("POWER_FILE"), *marks = getenv("POWER_MARKS");
    const char *log = getenv("POWER_LOG"), *pause = getenv("POWER_SYNC_US");
    pause_us = pause ? (useconds_t) atoi(pause) : 0;
    if (!data || !marks || !log || stat(data, &data_file) || stat(marks, &mark_file))
        return;
    log_fd = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
}

static int is(int fd, const struct stat *wanted) {
    struct stat found;
    int saved = errno;
    int same = log_fd >= 0 && fd != log_fd && fstat(fd, &found) == 0 &&
               found.st_dev == wanted->st_dev && found.st_ino == wanted->st_ino;
    errno = saved;
    return same;
}

static void put(const void *data, size_t size) {
    const char *at = data;
    while (size) {
        long done = syscall(SYS_write, log_fd, at, size);
        if (done <= 0)
            abort(); /* a log with a hole would prove nothing */
        at += done;
        size -= (size_t) done;
    }
}

static void note(uint64_t kind, uint64_t offset, const struct iovec *parts, int count) {
    uint64_t head[3] = {kind, offset, 0};
    int saved = errno;
    for (int i = 0; i < count; i++)
        head[2] += parts[i].iov_len;
    pthread_mutex_lock(&lock);
    put(head, sizeof head);
    for (int i = 0; i < count; i++)
        put(parts[i].iov_base, parts[i].iov_len);
    pthread_mutex_unlock(&lock);
    errno = saved;
}

/* Log a write at an offset, or at the descriptor's position when it is -1. */
static void note_write(int fd, const struct iovec *parts, int count, off_t offset) {
    if (is(fd, &mark_file)) {
        note(MARK, 0, parts, count);
    } else if (is(fd, &data_file)) {
        if (offset < 0)
            offset = lseek(fd, 0, SEEK_CUR);
        note(WRITE, (uint64_t) offset, parts, count);
    }
}

/* A descriptor opened with O_DSYNC makes each write durable before it returns. */
static void note_written(int fd) {
    if (is(fd, &data_file) && (fcntl(fd, F_GETFL) & (O_DSYNC | O_SYNC)))
        note(SYNC, 0, NULL, 0);
}

#define REAL(name) __typeof__(name) *real = (__typeof__(name) *) dlsym(RTLD_NEXT, #name)

ssize_t write(int fd, const void *data, size_t size) {
    REAL(write);
    struct iovec part = {(void *) data, size};
    note_write(fd, &part, 1, -1);
    ssize_t done = real(fd, data, size);
    note_written(fd);
    return done;
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) {
    REAL(pwrite);
    struct iovec part = {(void *) data, size};
    note_write(fd, &part, 1, offset);
    ssize_t done = real(fd, data, size, offset);
    note_written(fd);
    return done;
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset) {
    return pwrite(fd, data, size, offset);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    REAL(writev);
    note_write(fd, parts, count, -1);
    ssize_t done = real(fd, parts, count);
    note_written(fd);
    return done;
}

ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset) {
    REAL(pwritev);
    note_write(fd, parts, count, offset);
    ssize_t done = real(fd, parts, count, offset);
    note_written(fd);
    return done;
}

ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t offset) {
    return pwritev(fd, parts, count, offset);
}

int fsync(int fd) {
    REAL(fsync);
    if (!is(fd, &data_file))
        return real(fd);
    usleep(pause_us);
    note(SYNC, 0, NULL, 0);
    return 0;
}

int fdatasync(int fd) {
    REAL(fdatasync);
    if (!is(fd, &data_file))
        return real(fd);
    usleep(pause_us);
    note(SYNC, 0, NULL, 0);
    return 0;
}

int ftruncate(int fd, off_t size) {
    REAL(ftruncate);
    if (is(fd, &data_file))
        note(TRUNCATE, (uint64_t) size, NULL, 0);
    return real(fd, size);
}

int ftruncate64(int fd, off64_t size) {
    return ftruncate(fd, size);
}
