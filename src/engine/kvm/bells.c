/*
 * Bells (bus/bus.h): writes of which only matters that they were made, as those by which a driver tells a virtio device of work. KVM notes them in
 * an eventfd each (KVM §4.59) and lets the guest go on; a thread carries them out.
 *
 * When the guest is left for longer, because it waits or stands still, its vCPU carries out what is noted: nothing is under way then, and what
 * the host has at hand is answered before the vCPU sleeps.
 */
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "bus/bus.h"
#include "engine/kvm/kvm.h"

enum { BELLS_MAX = 128, AT_ONCE = 16 };

struct bell {
    uint64_t gpa;
    int fd;                             /* -1: there is none at this place */
};

struct kvm_bells {
    int vm_fd, epoll, stop;
    struct bus *bus;
    pthread_t thread;
    pthread_mutex_t mutex;              /* guards what follows; held while a bell is carried out, so the board lock comes after it */
    struct bell bell[BELLS_MAX];
    _Atomic uint64_t generation;        /* of the bus, when the bells were hung */
};

/* --- carrying out --- */

/* With the mutex. The thread and a vCPU may both have heard it. */
static void carry_out(struct kvm_bells *bells, const struct bell *bell)
{
    uint64_t times;
    if (bell->fd >= 0 && read(bell->fd, &times, sizeof(times)) == sizeof(times))
        bus_ring(bells->bus, bell->gpa);
}

/* How many were heard, among them perhaps the sign to stop, which has no bell. */
static int carry_out_heard(struct kvm_bells *bells, const struct epoll_event *heard, int count, bool *stop)
{
    for (int i = 0; i < count; i++)
        if (heard[i].data.ptr)
            carry_out(bells, heard[i].data.ptr);
        else
            *stop = true;
    return count;
}

static void *thread_main(void *argument)
{
    struct kvm_bells *bells = argument;
    struct epoll_event heard[AT_ONCE];
    for (bool stop = false; !stop;) {
        int count = epoll_wait(bells->epoll, heard, AT_ONCE, -1);
        pthread_mutex_lock(&bells->mutex);
        carry_out_heard(bells, heard, count, &stop);
        pthread_mutex_unlock(&bells->mutex);
    }
    return NULL;
}

/* The mutex comes first: what the thread has begun ends before. */
void kvm_heed_bells(struct kvm_bells *bells)
{
    struct epoll_event heard[AT_ONCE];
    bool stop = false;
    if (!bells)
        return;
    pthread_mutex_lock(&bells->mutex);
    while (carry_out_heard(bells, heard, epoll_wait(bells->epoll, heard, AT_ONCE, 0), &stop) == AT_ONCE)
        ;
    pthread_mutex_unlock(&bells->mutex);
}

/* --- hanging --- */

static bool tell(const struct kvm_bells *bells, const struct bell *bell, uint32_t flags)
{
    struct kvm_ioeventfd request = { .addr = bell->gpa, .len = 0, .fd = bell->fd, .flags = flags };
    return !ioctl(bells->vm_fd, KVM_IOEVENTFD, &request);
}

static void take_down(struct kvm_bells *bells, struct bell *bell)
{
    tell(bells, bell, KVM_IOEVENTFD_FLAG_DEASSIGN);
    close(bell->fd);
    bell->fd = -1;
}

/* One that cannot be hung leaves the guest, as any other write to a device. */
static void hang(struct kvm_bells *bells, uint64_t gpa)
{
    struct bell *bell = bells->bell;
    while (bell < bells->bell + BELLS_MAX && bell->fd >= 0)
        bell++;
    int fd = bell < bells->bell + BELLS_MAX ? eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC) : -1;
    if (fd < 0)
        return;
    *bell = (struct bell){ gpa, fd };
    struct epoll_event event = { .events = EPOLLIN, .data.ptr = bell };
    if (!epoll_ctl(bells->epoll, EPOLL_CTL_ADD, fd, &event) && tell(bells, bell, 0))
        return;
    close(fd);
    bell->fd = -1;
}

static bool is_among(uint64_t gpa, const uint64_t *all, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        if (all[i] == gpa)
            return true;
    return false;
}

static bool hangs(const struct kvm_bells *bells, uint64_t gpa)
{
    for (const struct bell *bell = bells->bell; bell < bells->bell + BELLS_MAX; bell++)
        if (bell->fd >= 0 && bell->gpa == gpa)
            return true;
    return false;
}

/* What was rung at a place that goes is carried out before, if it still means something there. */
static void hang_anew(struct kvm_bells *bells)
{
    uint64_t wanted[BELLS_MAX];
    unsigned count = bus_bells(bells->bus, wanted, BELLS_MAX);
    for (struct bell *bell = bells->bell; bell < bells->bell + BELLS_MAX; bell++)
        if (bell->fd >= 0 && !is_among(bell->gpa, wanted, count)) {
            carry_out(bells, bell);
            take_down(bells, bell);
        }
    for (unsigned i = 0; i < count; i++)
        if (!hangs(bells, wanted[i]))
            hang(bells, wanted[i]);
}

void kvm_hang_bells(struct kvm_bells *bells)
{
    if (!bells || atomic_load(&bells->generation) == bus_generation(bells->bus))
        return;
    pthread_mutex_lock(&bells->mutex);
    uint64_t generation = bus_generation(bells->bus);       /* before the look: what changes since is looked at again */
    if (atomic_load(&bells->generation) != generation)
        hang_anew(bells);
    atomic_store(&bells->generation, generation);
    pthread_mutex_unlock(&bells->mutex);
}

/* --- life --- */

static bool offered(int vm_fd)
{
    return ioctl(vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_IOEVENTFD) > 0 && ioctl(vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_IOEVENTFD_ANY_LENGTH) > 0;
}

static bool start(struct kvm_bells *bells)
{
    struct epoll_event stop = { .events = EPOLLIN };
    bells->epoll = epoll_create1(EPOLL_CLOEXEC);
    bells->stop = eventfd(0, EFD_CLOEXEC);
    if (bells->epoll < 0 || bells->stop < 0 || epoll_ctl(bells->epoll, EPOLL_CTL_ADD, bells->stop, &stop) ||
        pthread_create(&bells->thread, NULL, thread_main, bells))
        return false;
    pthread_setname_np(bells->thread, "bells");
    return true;
}

static void release(struct kvm_bells *bells)
{
    if (bells->epoll >= 0)
        close(bells->epoll);
    if (bells->stop >= 0)
        close(bells->stop);
    pthread_mutex_destroy(&bells->mutex);
    free(bells);
}

struct kvm_bells *kvm_bells_create(int vm_fd, struct bus *bus)
{
    struct kvm_bells *bells = offered(vm_fd) ? calloc(1, sizeof(*bells)) : NULL;
    if (!bells)
        return NULL;
    bells->vm_fd = vm_fd;
    bells->bus = bus;
    bells->generation = UINT64_MAX;
    pthread_mutex_init(&bells->mutex, NULL);
    for (unsigned i = 0; i < BELLS_MAX; i++)
        bells->bell[i].fd = -1;
    if (start(bells))
        return bells;
    release(bells);
    return NULL;
}

void kvm_bells_destroy(struct kvm_bells *bells)
{
    if (!bells)
        return;
    uint64_t one = 1;
    while (write(bells->stop, &one, sizeof(one)) < 0 && errno == EINTR)
        ;
    pthread_join(bells->thread, NULL);
    for (struct bell *bell = bells->bell; bell < bells->bell + BELLS_MAX; bell++)
        if (bell->fd >= 0)
            take_down(bells, bell);
    release(bells);
}
