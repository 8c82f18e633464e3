#include "vcpu/work.h"

#include <stdlib.h>

#include "base/log.h"

/* Under target->mutex. The broadcast is for a target that waits in vcpu_run_on: there it looks at its list, not at requests. */
static void enqueue(struct vcpu *target, struct vcpu_work *work)
{
    pthread_mutex_lock(&target->mutex);
    work->next = target->work;
    target->work = work;
    pthread_cond_broadcast(&target->wake);
    pthread_mutex_unlock(&target->mutex);
    vcpu_kick(target, REQUEST_WORK);
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
    enqueue(vcpu, work);
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

/* In the place of a thread that is not there. */
static void serve_for(struct vcpu *target)
{
    pthread_mutex_lock(&target->mutex);
    while (target->serving)
        pthread_cond_wait(&target->wake, &target->mutex);
    bool threadless = target->threadless;
    target->serving = threadless;
    pthread_mutex_unlock(&target->mutex);
    if (!threadless)
        return;
    vcpu_serve_work(target);
    pthread_mutex_lock(&target->mutex);
    target->serving = false;
    pthread_cond_broadcast(&target->wake);
    pthread_mutex_unlock(&target->mutex);
}

/* Takes the work back if nobody has begun it. */
static bool withdraw(struct vcpu *target, struct vcpu_work *work)
{
    bool found = false;
    pthread_mutex_lock(&target->mutex);
    for (struct vcpu_work **link = &target->work; *link; link = &(*link)->next) {
        if (*link == work) {
            *link = work->next;
            found = true;
            break;
        }
    }
    pthread_mutex_unlock(&target->mutex);
    return found;
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
    if (caller) {
        wait_serving(caller, target, &work);
        return;
    }
    serve_for(target);
    wait_plain(&work);
}
