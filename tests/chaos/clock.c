/* Shifts the wall clock that Python reads, by the seconds in the file CHAOS_CLOCK. Calls of other code, such as waits
   until a time of the kernel's clock, see the true clock: the kernel's own does not jump. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static const volatile long long *offset;
static const void *executable;

__attribute__((constructor)) static void open_clock(void) {
    Dl_info entry;
    const char *path = getenv("CHAOS_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0)
        return;
    void *page = mmap(NULL, sizeof(*offset), PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (page != MAP_FAILED && dladdr((void *)getauxval(AT_ENTRY), &entry)) {
        executable = entry.dli_fbase;
        offset = page;
    }
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*original)(clockid_t, struct timespec *);
    Dl_info caller;
    if (!original)
        original = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int result = original(clock, now);
    if (offset && clock == CLOCK_REALTIME && dladdr(__builtin_return_address(0), &caller) &&
        (caller.dli_fbase == executable || strstr(caller.dli_fname, "/libpython")))
        now->tv_sec += *offset;
    return result;
}
