#include "vcpu/work.h"

#include <stdlib.h>

#include "base/log.h"
#include "vcpu/thread.h"

/* A vCPU that sleeps is woken when so much has gathered: its list is memory, which a guest that patches code would fill. */
enum { POSTS_ASLEEP = 64 };

/* Returns how many are in the list. */
static unsigned enqueue(struct vcpu *target, struct vcpu_work *work)
{
    pthread_mutex_lock(&target->mutex);
    work->next = target->work;
    target->work = work;
    unsigned count = ++target->work_count;
    pthread_mutex_unlock(&target->mutex);
    return count;
}

/* Even one that waits in vcpu_run_on, which looks at its list and not at requests. */
static void wake_for_work(struct vcpu *vcpu)
{
    atomic_fetch_or(&vcpu->request, REQUEST_WORK);
    vcpu_wake(vcpu);
}

bool vcpu_post(struct vcpu *vcpu, void (*run)(struct vcpu *, void *), void *argument)
{
    struct vcpu_work *work = calloc(1, sizeof(*work));
    if (!work) {
        log_message(vcpu->log, LOG_ERROR, "out of memory: work for vCPU %u is lost", vcpu->index);
        return false;
    }
    work->run = run;
    work->argument = argument;
    work->owned = true;
    if (enqueue(vcpu, work) < POSTS_ASLEEP)
        vcpu_tell(vcpu, REQUEST_WORK);
    else
        wake_for_work(vcpu);
    return true;
}

/* The list is kept newest first; it runs oldest first. `inside`: takes only what may run inside an instruction. */
static struct vcpu_work *take_list(struct vcpu *vcpu, bool inside)
{
    struct vcpu_work *ordered = NULL;
    pthread_mutex_lock(&vcpu->mutex);
    for (struct vcpu_work **link = &vcpu->work; *link;) {
        struct vcpu_work *work = *link;
        if (inside && !work->inside) {
            link = &work->next;
            continue;
        }
        *link = work->next;
        work->next = ordered;
        ordered = work;
        vcpu->work_count--;
    }
    pthread_mutex_unlock(&vcpu->mutex);
    return ordered;
}

/* With the mutex held. */
static bool has_inside(const struct vcpu *vcpu)
{
    for (const struct vcpu_work *work = vcpu->work; work; work = work->next)
        if (work->inside)
            return true;
    return false;
}

/* The waiter's work lives on its stack: it may be gone as soon as the waiter's mutex is released. */
static void finish(struct vcpu_work *work)
{
    if (work->owned) {
        free(work);
        return;
    }
    pthread_mutex_t *mutex = work->waiter_mutex;
    pthread_mutex_lock(mutex);
    work->done = true;
    pthread_cond_broadcast(work->waiter_wake);
    pthread_mutex_unlock(mutex);
}

static void run_list(struct vcpu *vcpu, struct vcpu_work *work)
{
    for (struct vcpu_work *next; work; work = next) {
        next = work->next;
        work->run(vcpu, work->argument);
        finish(work);
    }
}

void vcpu_serve_work(struct vcpu *vcpu)
{
    /* Cleared before the list is taken: a post that comes later sets it again. */
    atomic_fetch_and(&vcpu->request, ~(uint32_t)REQUEST_WORK);
    run_list(vcpu, take_list(vcpu, false));
}

void vcpu_end_work(struct vcpu *vcpu)
{
    for (;;) {
        pthread_mutex_lock(&vcpu->mutex);
        bool done = vcpu->threadless = !vcpu->work;
        pthread_mutex_unlock(&vcpu->mutex);
        if (done)
            return;
        vcpu_serve_work(vcpu);
    }
}

static void end_serving(struct vcpu *target)
{
    pthread_mutex_lock(&target->mutex);
    target->serving = false;
    if (target->serving_awaited)
        pthread_cond_broadcast(&target->wake);
    target->serving_awaited = false;
    pthread_mutex_unlock(&target->mutex);
}

/* In the place of a thread that is not there. */
static void serve_for(struct vcpu *target)
{
    pthread_mutex_lock(&target->mutex);
    while (target->serving) {
        target->serving_awaited = true;
        pthread_cond_wait(&target->wake, &target->mutex);
    }
    bool threadless = target->threadless;
    target->serving = threadless;
    pthread_mutex_unlock(&target->mutex);
    if (!threadless)
        return;
    vcpu_serve_work(target);
    end_serving(target);
}

/* In the place of a vCPU that sleeps: to wake it takes the host longer than the work. False: it does not, or somebody does it already. */
static bool serve_sleeper(struct vcpu *target)
{
    pthread_mutex_lock(&target->mutex);
    bool sleeps = target->asleep && !target->serving;
    if (sleeps)
        target->serving = true;
    pthread_mutex_unlock(&target->mutex);
    if (!sleeps)
        return false;
    run_list(target, take_list(target, true));
    end_serving(target);
    return true;
}

/* Takes the work back if nobody has begun it. */
static bool withdraw(struct vcpu *target, struct vcpu_work *work)
{
    bool found = false;
    pthread_mutex_lock(&target->mutex);
    for (struct vcpu_work **link = &target->work; *link; link = &(*link)->next) {
        if (*link == work) {
            *link = work->next;
            target->work_count--;
            found = true;
            break;
        }
    }
    pthread_mutex_unlock(&target->mutex);
    return found;
}

/* A target that runs comes to a block border within microseconds. To sleep until it has, and be woken, takes longer. */
static void watch(const struct vcpu_work *work)
{
    enum { LOOKS = 1500 };              /* some 20 us */
    for (unsigned i = 0; i < LOOKS && !atomic_load_explicit(&work->done, memory_order_relaxed); i++)
        __builtin_ia32_pause();
}

/* Waits for `work` on the caller's own thread, serving what other vCPUs ask of the caller meanwhile. */
static void wait_serving(struct vcpu *caller, struct vcpu *target, struct vcpu_work *work)
{
    pthread_mutex_lock(&caller->mutex);
    while (!work->done) {
        bool exiting = atomic_load(&caller->request) & REQUEST_EXIT;
        bool to_serve = has_inside(caller);
        if (!to_serve && !exiting) {
            pthread_cond_wait(&caller->wake, &caller->mutex);
            continue;
        }
        pthread_mutex_unlock(&caller->mutex);
        if (to_serve)
            run_list(caller, take_list(caller, true));
        else if (withdraw(target, work))
            return;
        else
            sched_yield();
        pthread_mutex_lock(&caller->mutex);
    }
    pthread_mutex_unlock(&caller->mutex);
}

static void wait_plain(struct vcpu_work *work)
{
    pthread_mutex_lock(work->waiter_mutex);
    while (!work->done)
        pthread_cond_wait(work->waiter_wake, work->waiter_mutex);
    pthread_mutex_unlock(work->waiter_mutex);
}

void vcpu_run_on(struct vcpu *caller, struct vcpu *target, void (*run)(struct vcpu *, void *), void *argument)
{
    if (caller == target) {
        run(target, argument);
        return;
    }
    pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
    struct vcpu_work work = {
        .run = run, .argument = argument, .inside = caller,
        .waiter_mutex = caller ? &caller->mutex : &mutex, .waiter_wake = caller ? &caller->wake : &wake,
    };
    enqueue(target, &work);
    if (!caller || !serve_sleeper(target))
        wake_for_work(target);
    if (caller) {
        if (caller->watches)
            watch(&work);
        wait_serving(caller, target, &work);
        return;
    }
    serve_for(target);
    wait_plain(&work);
}
