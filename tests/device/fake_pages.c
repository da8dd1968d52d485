// A machine with pages of 16 KiB, for a process that this library is loaded into before all others.
//
// Calls that map memory follow the rules of such a machine: addresses and offsets are whole pages,
// lengths are rounded up, and the rest of a file's last page reads as zero. What only Linux has
// (/proc/self, leases, names of processes) is not there, as on macOS. A table of all mappings tells
// whether bytes lie in one mapping, and whoever watches is told before a mapping changes.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { PAGE = 16384, KERNEL_PAGE = 4096, MOST = 1 << 16 };
typedef struct { uintptr_t begin, end, origin; int protection; } Mapping;
typedef void (*Watch)(uintptr_t begin, uintptr_t end, const char *what);

static Mapping mappings[MOST];  // by address; none overlap
static size_t n_mappings;
static uintptr_t n_origins;
static Watch watch;
static pthread_mutex_t lock = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;

// Whether a call comes from wasmtime, whose code is compiled for the kernel's own pages.
static int is_foreign(void *caller) {
  Dl_info found;
  return dladdr(caller, &found) && found.dli_fname && strstr(found.dli_fname, "libwasmtime");
}
#define FOREIGN is_foreign(__builtin_return_address(0))

static uintptr_t up(uintptr_t value, uintptr_t page) { return (value + page - 1) / page * page; }
static int is_page(uintptr_t value) { return value % PAGE == 0; }

static size_t first_after(uintptr_t address) {  // the first mapping that ends behind it
  size_t low = 0, high = n_mappings;
  while (low < high) {
    size_t middle = (low + high) / 2;
    if (mappings[middle].end > address) high = middle; else low = middle + 1;
  }
  return low;
}

static void insert(size_t at, Mapping mapping) {
  if (n_mappings == MOST) { fputs("pages: too many mappings\n", stderr); abort(); }
  memmove(mappings + at + 1, mappings + at, (n_mappings++ - at) * sizeof(Mapping));
  mappings[at] = mapping;
}

static void split(uintptr_t address) {
  size_t at = first_after(address);
  if (at == n_mappings || mappings[at].begin >= address) return;
  Mapping rest = mappings[at];
  mappings[at].end = rest.begin = address;
  insert(at + 1, rest);
}

static void forget(uintptr_t begin, uintptr_t end) {
  split(begin), split(end);
  size_t first = first_after(begin), last = first;
  while (last < n_mappings && mappings[last].begin < end) last++;
  memmove(mappings + first, mappings + last, (n_mappings - last) * sizeof(Mapping));
  n_mappings -= last - first;
}

static void join(void) {  // neighbours of one call with the same protection are one again
  size_t kept = 0;
  for (size_t at = 1; at < n_mappings; at++) {
    Mapping *a = &mappings[kept], *b = &mappings[at];
    if (a->end == b->begin && a->origin == b->origin && a->protection == b->protection) a->end = b->end;
    else mappings[++kept] = *b;
  }
  if (n_mappings) n_mappings = kept + 1;
}

static void tell(uintptr_t begin, uintptr_t end, const char *what) { if (watch) watch(begin, end, what); }
static long raw(void *at, size_t nbytes, int protection, int flags, int fd, off_t offset) {
  return syscall(SYS_mmap, at, nbytes, protection, flags, fd, offset);
}

void pages_watch(Watch callback) { watch = callback; }
const char *pages_why_not_one(uintptr_t begin, uintptr_t end) {  // NULL: one mapping, readable
  pthread_mutex_lock(&lock);
  size_t at = first_after(begin);
  const char *why = NULL;
  if (at == n_mappings || mappings[at].begin > begin) why = "are not mapped";
  else if (mappings[at].end < end) why = "are not of one mapping";
  else if (!(mappings[at].protection & PROT_READ)) why = "cannot be read";
  pthread_mutex_unlock(&lock);
  return why;
}

static long map_whole(void *at, size_t nbytes, int protection, int flags, int fd, off_t offset) {
  size_t whole = up(nbytes, PAGE);
  if (!(flags & MAP_FIXED)) {  // anywhere: as many addresses as have whole pages among them
    long found = raw(NULL, whole + PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (found == -1) return -1;
    uintptr_t begin = up(found, PAGE), before = begin - found;
    if (before) syscall(SYS_munmap, found, before);
    syscall(SYS_munmap, begin + whole, PAGE - before);
    at = (void *)begin;
  }
  long done = raw(at, whole, protection, flags | MAP_FIXED, fd, offset);
  if (done == -1) {
    int code = errno;
    if (!(flags & MAP_FIXED)) syscall(SYS_munmap, at, whole);
    errno = code;
    return -1;
  }
  struct stat found;
  if (!(flags & MAP_ANONYMOUS) && fstat(fd, &found) == 0 && S_ISREG(found.st_mode)) {
    uintptr_t there = up(found.st_size > offset ? found.st_size - offset : 0, KERNEL_PAGE);
    uintptr_t end = up(there, PAGE) < whole ? up(there, PAGE) : whole;
    if (there < end)
      raw((char *)at + there, end - there, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  }
  return done;
}

void *mmap(void *at, size_t nbytes, int protection, int flags, int fd, off_t offset) {
  if (FOREIGN) return (void *)raw(at, nbytes, protection, flags, fd, offset);
  if (!nbytes || !is_page(offset) || ((flags & MAP_FIXED) && !is_page((uintptr_t)at))) {
    errno = EINVAL;
    return MAP_FAILED;
  }
  uintptr_t end = (uintptr_t)at + up(nbytes, PAGE);
  pthread_mutex_lock(&lock);
  if (flags & MAP_FIXED) tell((uintptr_t)at, end, "replaced");
  long done = map_whole(at, nbytes, protection, flags, fd, offset);
  if (done != -1) {
    Mapping new = {done, done + up(nbytes, PAGE), ++n_origins, protection};
    forget(new.begin, new.end);
    insert(first_after(new.begin), new);
  }
  pthread_mutex_unlock(&lock);
  return done == -1 ? MAP_FAILED : (void *)done;
}
void *mmap64(void *at, size_t nbytes, int protection, int flags, int fd, off_t offset) {
  if (FOREIGN) return (void *)raw(at, nbytes, protection, flags, fd, offset);
  return mmap(at, nbytes, protection, flags, fd, offset);
}

int munmap(void *at, size_t nbytes) {
  if (FOREIGN) return syscall(SYS_munmap, at, nbytes);
  uintptr_t begin = (uintptr_t)at, end = begin + up(nbytes, PAGE);
  if (!is_page(begin) || !nbytes) { errno = EINVAL; return -1; }
  pthread_mutex_lock(&lock);
  tell(begin, end, "unmapped");
  forget(begin, end);
  int done = syscall(SYS_munmap, begin, end - begin);
  pthread_mutex_unlock(&lock);
  return done;
}

int mprotect(void *at, size_t nbytes, int protection) {
  if (FOREIGN) return syscall(SYS_mprotect, at, nbytes, protection);
  uintptr_t begin = (uintptr_t)at, end = begin + up(nbytes, PAGE);
  pthread_mutex_lock(&lock);
  size_t first = first_after(begin);
  int ours = first < n_mappings && mappings[first].begin < end;  // else another library's own
  if (ours && !is_page(begin)) {
    pthread_mutex_unlock(&lock);
    errno = EINVAL;
    return -1;
  }
  if (ours) tell(begin, end, protection & PROT_READ ? "protected" : "made inaccessible");
  int done = syscall(SYS_mprotect, begin, ours ? end - begin : nbytes, protection);
  if (done == 0 && ours) {
    split(begin), split(end);
    for (size_t i = first_after(begin); i < n_mappings && mappings[i].begin < end; i++)
      mappings[i].protection = protection;
    join();
  }
  pthread_mutex_unlock(&lock);
  return done;
}

int madvise(void *at, size_t nbytes, int advice) {
  if (FOREIGN) return syscall(SYS_madvise, at, nbytes, advice);
  uintptr_t begin = (uintptr_t)at, end = begin + up(nbytes, PAGE);
  if (!is_page(begin)) { errno = EINVAL; return -1; }
  if (advice == MADV_DONTNEED || advice == MADV_FREE) tell(begin, end, "emptied");
  return syscall(SYS_madvise, begin, nbytes, advice);
}

// What macOS has not.

static int is_linux_only(const char *path) {  // to Python: what it starts, such as ps, is the system's
  return path && strncmp(path, "/proc/", 6) == 0 && strncmp(program_invocation_short_name, "py", 2) == 0;
}
static int open_it(int folder, const char *path, int flags, int mode) {
  if (is_linux_only(path)) { errno = ENOENT; return -1; }
  return syscall(SYS_openat, folder, path, flags, mode);
}
#define MODE(flags) int mode = 0; if ((flags) & (O_CREAT | __O_TMPFILE)) { va_list rest; va_start(rest, flags); mode = va_arg(rest, int); va_end(rest); }
int open(const char *path, int flags, ...) { MODE(flags) return open_it(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags) return open_it(AT_FDCWD, path, flags, mode); }
int openat(int folder, const char *path, int flags, ...) { MODE(flags) return open_it(folder, path, flags, mode); }
int openat64(int folder, const char *path, int flags, ...) { MODE(flags) return open_it(folder, path, flags, mode); }

static int status(int folder, const char *path, struct stat *found, int flags) {
  if (is_linux_only(path)) { errno = ENOENT; return -1; }
  return syscall(SYS_newfstatat, folder, path, found, flags);
}
int stat(const char *path, struct stat *found) { return status(AT_FDCWD, path, found, 0); }
int stat64(const char *path, struct stat64 *found) { return status(AT_FDCWD, path, (struct stat *)found, 0); }
int fstatat(int folder, const char *path, struct stat *found, int flags) { return status(folder, path, found, flags); }
int fstatat64(int folder, const char *path, struct stat64 *found, int flags) {
  return status(folder, path, (struct stat *)found, flags);
}

static int control(int fd, int command, long argument) {
  if (command == F_SETLEASE || command == F_GETLEASE) { errno = EINVAL; return -1; }
  return syscall(SYS_fcntl, fd, command, argument);
}
#define ARGUMENT(command) va_list rest; va_start(rest, command); long argument = va_arg(rest, long); va_end(rest);
int fcntl(int fd, int command, ...) { ARGUMENT(command) return control(fd, command, argument); }
int fcntl64(int fd, int command, ...) { ARGUMENT(command) return control(fd, command, argument); }

// What macOS has instead: numbers of a process and of the machine's memory, by calls.

static unsigned long number_in(const char *path, const char *after) {
  static char text[65536];
  int fd = syscall(SYS_openat, AT_FDCWD, path, O_RDONLY, 0);
  long nbytes = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
  if (fd >= 0) close(fd);
  text[nbytes < 0 ? 0 : nbytes] = 0;
  char *found = strstr(text, after);
  return found ? strtoul(found + strlen(after), NULL, 10) : 0;
}
int proc_pidinfo(int pid, int flavor, uint64_t argument, void *info, int nbytes) {
  struct { uint64_t virtual_size, resident_size, times[4]; int32_t counts[9], threadnum, rest[2]; } task = {0};
  if (flavor != 4 || nbytes != sizeof task || pid != getpid()) return 0;
  task.resident_size = number_in("/proc/self/status", "VmRSS:") * 1024;
  task.threadnum = number_in("/proc/self/status", "Threads:");
  memcpy(info, &task, sizeof task);
  return sizeof task;
}
unsigned mach_host_self(void) { return 1; }
int host_statistics64(unsigned host, int flavor, uint32_t *info, uint32_t *count) {
  if (host != 1 || flavor != 4 || *count != 38) return 5;  // KERN_FAILURE
  memset(info, 0, 38 * 4);
  info[0] = number_in("/proc/meminfo", "MemFree:") * 1024 / PAGE;  // free_count
  info[2] = (number_in("/proc/meminfo", "MemAvailable:") - number_in("/proc/meminfo", "MemFree:")) * 1024 / PAGE;
  return 0;
}

int getpagesize(void) { return FOREIGN ? KERNEL_PAGE : PAGE; }
extern long __sysconf(int name);
long sysconf(int name) {
  if (name == _SC_PAGESIZE) return FOREIGN ? KERNEL_PAGE : PAGE;
  int counts_pages = name == _SC_PHYS_PAGES || name == _SC_AVPHYS_PAGES;
  return counts_pages ? __sysconf(name) / (PAGE / KERNEL_PAGE) : __sysconf(name);
}
