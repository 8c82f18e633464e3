#include "mem/fetch.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/error.h"
#include "base/thread.h"

/* So much comes with a page that is touched: what lies beside it is likely to be next, and a fault costs more than copying some pages. */
enum { BLOCK = 64 * 1024, MESSAGES = 16 };

struct ram_fetcher {
    int fd, stop_fd;
    pthread_t thread;
    bool started;
    const struct ram_slot *slot[RAM_SLOTS_MAX];
    unsigned slot_count;
};

/* --- the thread --- */

/* What is missing of the block comes from the source; whoever waits for any of it goes on. */
static void fetch(const struct ram_fetcher *fetcher, const struct ram_slot *slot, uint64_t offset)
{
    uint64_t at = align_down(offset, BLOCK), end = min_u64(at + BLOCK, slot->size);
    struct uffdio_range all = { .start = (uintptr_t)slot->host + at, .len = end - at };
    while (at < end) {
        struct uffdio_copy copy = { .dst = (uintptr_t)slot->host + at, .src = (uintptr_t)slot->source + at, .len = end - at };
        if (ioctl(fetcher->fd, UFFDIO_COPY, &copy) == 0)
            break;
        if (copy.copy > 0)
            at += (uint64_t)copy.copy;
        else if (errno == EEXIST)
            at += PAGE_SIZE;
        else if (errno != EAGAIN)
            raise(SIGBUS);              /* as a mapping of the file would */
    }
    ioctl(fetcher->fd, UFFDIO_WAKE, &all);
}

static void answer(const struct ram_fetcher *fetcher, uintptr_t address)
{
    for (unsigned i = 0; i < fetcher->slot_count; i++)
        if (address - (uintptr_t)fetcher->slot[i]->host < fetcher->slot[i]->size)
            fetch(fetcher, fetcher->slot[i], address - (uintptr_t)fetcher->slot[i]->host);
}

static void *run(void *opaque)
{
    const struct ram_fetcher *fetcher = opaque;
    struct pollfd fds[] = { { .fd = fetcher->fd, .events = POLLIN }, { .fd = fetcher->stop_fd, .events = POLLIN } };
    struct uffd_msg message[MESSAGES];
    while (!fds[1].revents) {
        if (poll(fds, ARRAY_SIZE(fds), -1) <= 0)
            continue;
        ssize_t got = read(fetcher->fd, message, sizeof(message));
        for (ssize_t i = 0; i < got / (ssize_t)sizeof(*message); i++)
            if (message[i].event == UFFD_EVENT_PAGEFAULT)
                answer(fetcher, message[i].arg.pagefault.address);
    }
    return NULL;
}

bool ram_fetcher_start(struct ram_fetcher *fetcher, struct error *err)
{
    fetcher->started = !thread_start(&fetcher->thread, "memory", run, fetcher);
    return fetcher->started || error_set(err, "cannot start a thread that fetches memory");
}

/* --- making one --- */

static int open_userfaultfd(void)
{
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    int device = fd < 0 ? open("/dev/userfaultfd", O_RDWR | O_CLOEXEC) : -1;
    if (device >= 0) {
        fd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
        close(device);
    }
    return fd;
}

struct ram_fetcher *ram_fetcher_create(struct error *err)
{
    struct ram_fetcher *fetcher = calloc(1, sizeof(*fetcher));
    struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_MISSING_SHMEM };
    if (!fetcher) {
        error_set(err, "no memory for a thread that fetches memory");
        return NULL;
    }
    fetcher->fd = open_userfaultfd();
    fetcher->stop_fd = eventfd(0, EFD_CLOEXEC);
    if (fetcher->fd < 0 || fetcher->stop_fd < 0 || ioctl(fetcher->fd, UFFDIO_API, &api) < 0)
        error_errno(err, errno, "the host does not allow memory to be fetched on demand");
    else
        return fetcher;
    ram_fetcher_destroy(fetcher);
    return NULL;
}

void ram_fetcher_destroy(struct ram_fetcher *fetcher)
{
    if (!fetcher)
        return;
    if (fetcher->started && eventfd_write(fetcher->stop_fd, 1) == 0)
        pthread_join(fetcher->thread, NULL);
    if (fetcher->fd >= 0)
        close(fetcher->fd);
    if (fetcher->stop_fd >= 0)
        close(fetcher->stop_fd);
    free(fetcher);
}

static bool make_source(struct ram_slot *slot, struct error *err)
{
    void *source = mmap(NULL, slot->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    slot->of_file = calloc((slot->size >> PAGE_SHIFT) / 64 + 1, sizeof(*slot->of_file));
    if (source == MAP_FAILED || !slot->of_file)
        return error_set(err, "memory %s: the host refuses address space", slot->name);
    madvise(source, slot->size, MADV_DONTDUMP);
    slot->source = source;
    return true;
}

bool ram_fetcher_add(struct ram_fetcher *fetcher, struct ram_slot *slot, struct error *err)
{
    struct uffdio_register area = { .range = { (uintptr_t)slot->host, slot->size }, .mode = UFFDIO_REGISTER_MODE_MISSING };
    if (!make_source(slot, err))
        return false;
    /* Only what was never there is missing, and a large page would fill in more than what was asked for. */
    if (ftruncate(slot->fd, 0) < 0 || ftruncate(slot->fd, (off_t)(slot->fd_offset + slot->size)) < 0)
        return error_errno(err, errno, "memory %s: cannot empty it", slot->name);
    madvise(slot->host, slot->size, MADV_NOHUGEPAGE);
    if (ioctl(fetcher->fd, UFFDIO_REGISTER, &area) < 0)
        return error_errno(err, errno, "memory %s: the host does not let it be fetched on demand", slot->name);
    fetcher->slot[fetcher->slot_count++] = slot;
    return true;
}
