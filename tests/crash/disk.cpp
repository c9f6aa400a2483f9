// Stands between a process and the disk (LD_PRELOAD): counts what changes files below one folder, writes it to a log,
// and kills the process, sends it a signal, or fails the call, at the n-th such operation.
//
// A write of two bytes or more is two operations, one for each half, so that a kill falls between them and a full disk
// gives a short write. Calls go to the kernel directly; what a library does inside (fopen, mmap) is not seen, and
// tests/crash/test_harness.py holds the log against the folder to know that nothing of a run does so.
#include <cerrno>
#include <climits>
#include <csignal>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <fcntl.h>
#include <map>
#include <pthread.h>
#include <string>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

namespace {

enum Operation : int32_t { REFUSED, OPEN, WRITE, SYNC, RENAME, UNLINK, RMDIR, MKDIR, TRUNCATE, LINK, MOVED };
enum Mode : int { WATCH, KILL, FAIL_ONCE, FAIL_ON, SIGNAL };

struct Shared {  // read by the parent, also after a kill
    long count;
};

Shared *shared = nullptr;
std::string *root = nullptr;
long at = 0;
int mode = WATCH, fault = 0, log_to = -1;
std::map<int, std::string> *written = nullptr;  // handle -> name under which it was last seen
pthread_mutex_t lock = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;

struct Locked {
    Locked() { pthread_mutex_lock(&lock); }
    ~Locked() { pthread_mutex_unlock(&lock); }
};

bool inside(const std::string &path) {
    return root && (path == *root || path.compare(0, root->size() + 1, *root + "/") == 0);
}

std::string of_handle(int handle) {
    char link[32], target[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", handle);
    ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, target, sizeof target);
    return length > 0 ? std::string(target, length) : std::string();
}

std::string absolute(int folder, const char *path) {
    std::string full = path ? path : "";
    if (full.empty() || full[0] != '/') {
        char here[PATH_MAX];
        std::string base = folder == AT_FDCWD ? (syscall(SYS_getcwd, here, sizeof here) > 0 ? here : "") : of_handle(folder);
        full = base + "/" + full;
    }
    while (full.size() > 1 && full.back() == '/') full.pop_back();
    return full;
}

// Counts one operation; 0 or the error that it shall end with.
int next() {
    long n = __atomic_add_fetch(&shared->count, 1, __ATOMIC_SEQ_CST);
    if (mode == WATCH || n < at || (mode == FAIL_ONCE && n > at)) return 0;
    if (mode == KILL) {
        syscall(SYS_kill, getpid(), SIGKILL);
        for (;;) pause();
    }
    if (mode == SIGNAL) {
        if (n == at) syscall(SYS_kill, getpid(), fault);
        return 0;
    }
    return fault;
}

void note(int32_t what, const std::string &path, const std::string &other, int64_t offset, const void *data, size_t size) {
    if (log_to < 0) return;
    int64_t head[5] = {what, (int64_t)path.size(), (int64_t)other.size(), offset, (int64_t)size};
    std::string record((const char *)head, sizeof head);
    record += path + other;
    record.append((const char *)data, data ? size : 0);
    for (size_t done = 0; done < record.size();) {
        long wrote = syscall(SYS_write, log_to, record.data() + done, record.size() - done);
        if (wrote <= 0) break;
        done += wrote;
    }
}

template <typename Call>
long one(int32_t what, const std::string &path, const std::string &other, int64_t number, Call call) {
    if (!inside(path) && !inside(other)) return call();
    Locked held;
    if (int error = next()) {
        errno = error;
        return -1;
    }
    long result = call();
    int error = errno;
    if (result < 0) {
        note(REFUSED, path, other, number, nullptr, 0);
        errno = error;
        return result;
    }
    note(what, path, other, number, nullptr, 0);
    if (what == RENAME)
        for (auto &[handle, name] : *written)
            if (name == path) name = other;
    return result;
}

int open_at(int folder, const char *name, int flags, mode_t permissions) {
    auto call = [&] { return syscall(SYS_openat, folder, name, flags, permissions); };
    bool changes = (flags & (O_CREAT | O_TRUNC)) || (flags & O_ACCMODE) != O_RDONLY;
    if (!root || !changes) return call();
    return one(OPEN, absolute(folder, name), "", flags & (O_CREAT | O_TRUNC), call);
}

// One write in two halves. ``place`` is where it goes, -1 for where the handle stands.
ssize_t put(int handle, const void *data, size_t size, off_t place) {
    auto raw = [&](const char *from, size_t length, off_t to) {
        return to < 0 ? syscall(SYS_write, handle, from, length) : syscall(SYS_pwrite64, handle, from, length, to);
    };
    std::string path = root ? of_handle(handle) : std::string();
    if (!inside(path)) return raw((const char *)data, size, place);
    Locked held;
    size_t done = 0;
    for (size_t length : {size / 2, size - size / 2}) {
        if (!length) continue;
        if (int error = next()) {
            errno = error;
            return done ? (ssize_t)done : -1;
        }
        const char *from = (const char *)data + done;
        long wrote = raw(from, length, place < 0 ? place : place + (off_t)done);
        if (wrote < 0) {
            int error = errno;
            note(REFUSED, path, "", 0, nullptr, 0);
            errno = error;
            return done ? (ssize_t)done : -1;
        }
        int64_t begin = place < 0 ? syscall(SYS_lseek, handle, 0, SEEK_CUR) - wrote : place + (int64_t)done;
        note(WRITE, path, "", begin, from, wrote);
        (*written)[handle] = path;
        done += wrote;
        if ((size_t)wrote < length) break;
    }
    return done;
}

ssize_t put_all(int handle, const struct iovec *parts, int count, off_t place) {
    ssize_t total = 0;
    for (int i = 0; i < count; i++) {
        if (!parts[i].iov_len) continue;
        ssize_t wrote = put(handle, parts[i].iov_base, parts[i].iov_len, place < 0 ? place : place + total);
        if (wrote < 0) return total ? total : -1;
        total += wrote;
        if ((size_t)wrote < parts[i].iov_len) break;
    }
    return total;
}

// Copies between handles become reads and writes, so that they are seen.
ssize_t copy(int to, int from, off_t *place, size_t size) {
    static char block[1 << 16];
    size_t wanted = size < sizeof block ? size : sizeof block;
    long got = place ? syscall(SYS_pread64, from, block, wanted, *place) : syscall(SYS_read, from, block, wanted);
    if (got <= 0) return got;
    ssize_t wrote = put(to, block, got, -1);
    if (wrote > 0 && place) *place += wrote;
    if (wrote < got && !place) syscall(SYS_lseek, from, (wrote > 0 ? wrote : 0) - got, SEEK_CUR);
    return wrote;
}

}  // namespace

extern "C" {

// Controls, called through ctypes --------------------------------------------------------------------------------------

void disk_prepare() {
    void *page = mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    shared = (Shared *)page;
}
long disk_count() { return shared->count; }
void disk_reset() { shared->count = 0; }
void disk_arm(const char *folder, int mode_, long at_, int fault_, int log_) {
    mode = mode_, at = at_, fault = fault_, log_to = log_;
    written = new std::map<int, std::string>();
    root = new std::string(folder);
}
// SIGKILL after so many seconds of this process's own computing, which hardly depends on what else the machine does.
int disk_kill_after(double seconds) {
    struct sigevent event = {};
    event.sigev_notify = SIGEV_SIGNAL, event.sigev_signo = SIGKILL;
    timer_t timer;
    if (timer_create(CLOCK_PROCESS_CPUTIME_ID, &event, &timer)) return -1;
    struct itimerspec spec = {};
    spec.it_value.tv_sec = (time_t)seconds, spec.it_value.tv_nsec = (long)((seconds - (time_t)seconds) * 1e9);
    return timer_settime(timer, 0, &spec, nullptr);
}

// What the process calls -----------------------------------------------------------------------------------------------

#define PERMISSIONS(flags)                               \
    mode_t permissions = 0;                              \
    if ((flags) & (O_CREAT | O_TMPFILE)) {               \
        va_list more;                                    \
        va_start(more, flags);                           \
        permissions = va_arg(more, int);                 \
        va_end(more);                                    \
    }
int open(const char *name, int flags, ...) { PERMISSIONS(flags) return open_at(AT_FDCWD, name, flags, permissions); }
int open64(const char *name, int flags, ...) { PERMISSIONS(flags) return open_at(AT_FDCWD, name, flags, permissions); }
int openat(int at, const char *name, int flags, ...) { PERMISSIONS(flags) return open_at(at, name, flags, permissions); }
int openat64(int at, const char *name, int flags, ...) { PERMISSIONS(flags) return open_at(at, name, flags, permissions); }
int creat(const char *name, mode_t mode) { return open_at(AT_FDCWD, name, O_WRONLY | O_CREAT | O_TRUNC, mode); }
int creat64(const char *name, mode_t mode) { return creat(name, mode); }

ssize_t write(int handle, const void *data, size_t size) { return put(handle, data, size, -1); }
ssize_t pwrite(int handle, const void *data, size_t size, off_t place) { return put(handle, data, size, place); }
ssize_t pwrite64(int handle, const void *data, size_t size, off64_t place) { return put(handle, data, size, place); }
ssize_t writev(int handle, const struct iovec *parts, int count) { return put_all(handle, parts, count, -1); }
ssize_t pwritev(int handle, const struct iovec *parts, int count, off_t place) { return put_all(handle, parts, count, place); }
ssize_t pwritev64(int handle, const struct iovec *parts, int count, off64_t place) { return put_all(handle, parts, count, place); }
ssize_t sendfile(int to, int from, off_t *place, size_t size) {
    if (inside(root ? of_handle(to) : "")) return copy(to, from, place, size);
    return syscall(SYS_sendfile, to, from, place, size);
}
ssize_t sendfile64(int to, int from, off64_t *place, size_t size) { return sendfile(to, from, place, size); }
ssize_t copy_file_range(int from, off64_t *read, int to, off64_t *place, size_t size, unsigned flags) {
    if (inside(root ? of_handle(to) : "") && !place) return copy(to, from, read, size);
    return syscall(SYS_copy_file_range, from, read, to, place, size, flags);
}

// Rust's tempfile renames without libc, while the file is open: seen when it is closed, and not counted.
int close(int handle) {
    if (root) {
        Locked held;
        auto found = written->find(handle);
        if (found != written->end()) {
            std::string now = of_handle(handle);
            if (now != found->second && now.find(" (deleted)") == std::string::npos && inside(now))
                note(MOVED, found->second, now, 0, nullptr, 0);
            written->erase(found);
        }
    }
    return syscall(SYS_close, handle);
}

int fsync(int handle) {
    return one(SYNC, root ? of_handle(handle) : "", "", 0, [&] { return syscall(SYS_fsync, handle); });
}
int fdatasync(int handle) {
    return one(SYNC, root ? of_handle(handle) : "", "", 0, [&] { return syscall(SYS_fdatasync, handle); });
}
int renameat2(int a, const char *from, int b, const char *to, unsigned flags) {
    auto call = [&] { return syscall(SYS_renameat2, a, from, b, to, flags); };
    return root ? one(RENAME, absolute(a, from), absolute(b, to), 0, call) : call();
}
int renameat(int a, const char *from, int b, const char *to) noexcept { return renameat2(a, from, b, to, 0); }
int rename(const char *from, const char *to) noexcept { return renameat2(AT_FDCWD, from, AT_FDCWD, to, 0); }
int unlinkat(int at, const char *name, int flags) noexcept {
    auto call = [&] { return syscall(SYS_unlinkat, at, name, flags); };
    return root ? one(flags & AT_REMOVEDIR ? RMDIR : UNLINK, absolute(at, name), "", 0, call) : call();
}
int unlink(const char *name) noexcept { return unlinkat(AT_FDCWD, name, 0); }
int rmdir(const char *name) noexcept { return unlinkat(AT_FDCWD, name, AT_REMOVEDIR); }
int remove(const char *name) noexcept { return unlink(name) == 0 ? 0 : errno == EISDIR ? rmdir(name) : -1; }
int mkdirat(int at, const char *name, mode_t mode) noexcept {
    auto call = [&] { return syscall(SYS_mkdirat, at, name, mode); };
    return root ? one(MKDIR, absolute(at, name), "", 0, call) : call();
}
int mkdir(const char *name, mode_t mode) noexcept { return mkdirat(AT_FDCWD, name, mode); }
int ftruncate(int handle, off_t size) noexcept {
    return one(TRUNCATE, root ? of_handle(handle) : "", "", size, [&] { return syscall(SYS_ftruncate, handle, size); });
}
int ftruncate64(int handle, off64_t size) noexcept { return ftruncate(handle, size); }
int truncate(const char *name, off_t size) noexcept {
    auto call = [&] { return syscall(SYS_truncate, name, size); };
    return root ? one(TRUNCATE, absolute(AT_FDCWD, name), "", size, call) : call();
}
int truncate64(const char *name, off64_t size) noexcept { return truncate(name, size); }
int linkat(int a, const char *from, int b, const char *to, int flags) noexcept {
    auto call = [&] { return syscall(SYS_linkat, a, from, b, to, flags); };
    return root ? one(LINK, absolute(a, from), absolute(b, to), 0, call) : call();
}
int link(const char *from, const char *to) noexcept { return linkat(AT_FDCWD, from, AT_FDCWD, to, 0); }
}
