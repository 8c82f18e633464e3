#include "engine/dbt/beside.h"

#include <limits.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
#include <x86intrin.h>

#include "base/thread.h"
#include "engine/dbt/kept_entry.h"
#include "engine/dbt/plan.h"
#include "mem/ram.h"
#include "x86/model.h"
#include "x86/templates.h"

enum {
    REQUESTS = 64,                      /* of a vCPU that wait, are being made, or are to be installed */
    ENTRY_MOST = 16 << 10,              /* bytes; larger ones the vCPU makes for itself */
    PART_MOST = 64 << 10,               /* of a trace's hot and of its cold code */
    FROM = 1024,                        /* translations of a vCPU before it asks: a machine that runs less code has no such thread */
    PATIENCE_CYCLES = 2 << 20,          /* of the host's TSC, about a millisecond: who waits longer for the oldest request waits in vain */
    DISTRUST = 64,                      /* translations until it asks again then */
    STUCK_CYCLES = 1 << 18,             /* some 100 us: a thread that has not come on for so long waits behind somebody */
    WAKE_AFTER = 4,                     /* requests that find the thread asleep; the vCPU serves them itself */
    WATCH_CYCLES = 1 << 17,             /* of the TSC, some 50 us: how long the thread looks for another request before it sleeps */
    WATCH_TURNS = 64,                   /* between two looks */
};

struct request {
    struct trace trace;                 /* its parts point into what follows */
    struct op op[TRACE_MAX];
    uint8_t code[TRACE_MAX * INSN_LENGTH_MAX];
    uint8_t first[PROBE];               /* the guest's bytes at its beginning; `shared` */
    bool shared;                        /* others may find it */
    uint64_t since;                     /* of the host's TSC */
    size_t size;                        /* of the entry; 0: there is none */
    _Alignas(8) uint8_t entry[ENTRY_MOST];
};

struct requests {
    struct beside *beside;
    struct vcpu *vcpu;
    struct dbt *dbt;
    bool started;                       /* the thread, and it knows of this ring */
    bool at_once;                       /* there is no thread */
    unsigned slept;                     /* that found the thread asleep */
    uint32_t seen_done;                 /* how far the thread had come when the vCPU looked last, */
    uint64_t move_at;                   /* and when it is moved to another processor unless it comes on, by the host's TSC */
    uint32_t taken;                     /* that were installed or given up */
    _Atomic uint32_t asked, done;
    struct request request[REQUESTS];
};

struct beside {
    pthread_mutex_t mutex;              /* guards `thread`, `started`, `failed`, and what sleeps on `changed` */
    pthread_cond_t changed;
    pthread_t thread;
    bool started, failed;               /* failed: there is no thread, and none is tried again */
    atomic_bool asleep, stop;
    pthread_mutex_t serving;            /* guards what follows */
    struct requests *of[MODEL_CPUS_MAX];     /* by the vCPU's index */
    unsigned vcpus;                     /* one more than the highest index that there was */
    struct decoder decoder;
    struct work_room room;
    struct work work;
    uint8_t part[2][PART_MOST];
};

static uint32_t asked(const struct requests *requests) { return atomic_load_explicit(&requests->asked, memory_order_relaxed); }

/* --- the thread --- */

static void make(struct beside *beside, struct requests *requests, struct request *request)
{
    struct work *w = &beside->work;
    const struct dbt *dbt = requests->dbt;
    uint8_t *hot = beside->part[0];
    beside->room.translation = (struct translation){ .hash_next = NULL };
    w->t = &beside->room.translation;
    w->dbt = requests->dbt;
    w->vcpu = requests->vcpu;
    /* As if it were the first one in the cache. */
    work_translate(w, &request->trace, hot, beside->part[1], dbt->code_start + dbt->shift - hot, true);
    struct kept_find find = { .code = request->first };
    size_t size = kept_make(w, request->shared, &find);
    request->size = size <= ENTRY_MOST ? size : 0;
    memcpy(request->entry, w->entry, request->size);
    if (request->shared)
        kept_share(w, &find, size);
}

/* True: there was one. */
static bool serve_one(struct beside *beside, struct requests *requests)
{
    uint32_t done = atomic_load_explicit(&requests->done, memory_order_relaxed);
    if (atomic_load_explicit(&requests->asked, memory_order_acquire) == done)
        return false;
    make(beside, requests, &requests->request[done % REQUESTS]);
    atomic_store_explicit(&requests->done, done + 1, memory_order_release);
    return true;
}

/* A request of each vCPU. */
static bool serve(struct beside *beside)
{
    bool some = false;
    pthread_mutex_lock(&beside->serving);
    for (unsigned i = 0; i < beside->vcpus; i++)
        if (beside->of[i])
            some |= serve_one(beside, beside->of[i]);
    pthread_mutex_unlock(&beside->serving);
    return some;
}

static bool is_stopped(const struct beside *beside) { return atomic_load_explicit(&beside->stop, memory_order_relaxed); }

/* Looks for another request for a while. */
static bool watch(struct beside *beside)
{
    uint64_t since = __rdtsc();
    do {
        if (serve(beside) || is_stopped(beside))
            return true;
        for (unsigned i = 0; i < WATCH_TURNS; i++)
            __builtin_ia32_pause();
    } while (__rdtsc() - since < WATCH_CYCLES);
    return false;
}

/* A request that came a moment before is served when another one wakes the thread. */
static void sleep_until_asked(struct beside *beside)
{
    pthread_mutex_lock(&beside->mutex);
    atomic_store_explicit(&beside->asleep, true, memory_order_relaxed);
    while (atomic_load_explicit(&beside->asleep, memory_order_relaxed) && !is_stopped(beside))
        pthread_cond_wait(&beside->changed, &beside->mutex);
    pthread_mutex_unlock(&beside->mutex);
}

/* It takes what processors nobody else wants: who has none of those is better off translating for himself. */
static void *run(void *opaque)
{
    struct beside *beside = opaque;
    sched_setscheduler(0, SCHED_IDLE, &(struct sched_param){ 0 });      /* a refusal does no harm */
    while (!is_stopped(beside))
        if (!serve(beside) && !watch(beside))
            sleep_until_asked(beside);
    return NULL;
}

static void wake(struct beside *beside)
{
    pthread_mutex_lock(&beside->mutex);
    atomic_store_explicit(&beside->asleep, false, memory_order_relaxed);
    pthread_cond_signal(&beside->changed);
    pthread_mutex_unlock(&beside->mutex);
}

/* --- the machine's --- */

struct beside *beside_create(void)
{
    struct beside *beside = mmap(NULL, sizeof(*beside), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (beside == MAP_FAILED)
        return NULL;
    pthread_mutex_init(&beside->mutex, NULL);
    pthread_mutex_init(&beside->serving, NULL);
    pthread_cond_init(&beside->changed, NULL);
    beside->work.decoder = &beside->decoder;
    beside->work.room = &beside->room;
    return beside;
}

void beside_destroy(struct beside *beside)
{
    if (!beside)
        return;
    if (beside->started) {
        atomic_store_explicit(&beside->stop, true, memory_order_relaxed);
        wake(beside);
        pthread_join(beside->thread, NULL);
    }
    pthread_cond_destroy(&beside->changed);
    pthread_mutex_destroy(&beside->serving);
    pthread_mutex_destroy(&beside->mutex);
    templates_destroy(beside->decoder.templates);
    munmap(beside, sizeof(*beside));
}

/* --- the vCPU's --- */

struct requests *requests_create(struct vcpu *vcpu, struct dbt *dbt)
{
    if (!vcpu->beside || vcpu->index >= MODEL_CPUS_MAX)
        return NULL;
    struct requests *requests = mmap(NULL, sizeof(*requests), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (requests == MAP_FAILED)
        return NULL;
    requests->beside = vcpu->beside;
    requests->vcpu = vcpu;
    requests->dbt = dbt;
    dbt->ask_from = FROM;
    return requests;
}

static void set_requests(struct beside *beside, unsigned index, struct requests *requests)
{
    pthread_mutex_lock(&beside->serving);
    beside->of[index] = requests;
    if (beside->vcpus <= index)
        beside->vcpus = index + 1;
    pthread_mutex_unlock(&beside->serving);
}

void requests_destroy(struct requests *requests)
{
    if (!requests)
        return;
    set_requests(requests->beside, requests->vcpu->index, NULL);
    requests->dbt->ask_from = UINT_MAX;
    munmap(requests, sizeof(*requests));
}

static bool learn(struct beside *beside, const struct vcpu *vcpu)
{
    decoder_init(&beside->decoder, vcpu, MODE_LONG64);
    beside->decoder.templates = templates_create(decoder_zydis(&beside->decoder));
    return beside->decoder.templates != NULL;
}

bool requests_at_once(struct requests *requests)
{
    return requests->at_once = learn(requests->beside, requests->vcpu);
}

/* The first vCPU that asks has the thread start. */
static bool start(struct requests *requests)
{
    struct beside *beside = requests->beside;
    set_requests(beside, requests->vcpu->index, requests);
    pthread_mutex_lock(&beside->mutex);
    if (!beside->started && !beside->failed) {
        beside->started = learn(beside, requests->vcpu) && !thread_start(&beside->thread, "translate", run, beside);
        beside->failed = !beside->started;
    }
    bool started = beside->started;
    pthread_mutex_unlock(&beside->mutex);
    return started;
}

/*
 * To another processor than the vCPU's. Who takes only what nobody else wants comes to nothing beside it, and a host that gathers its work on few
 * processors leaves it there although others are idle.
 */
static void move_away(const struct beside *beside)
{
    cpu_set_t others;
    int here = sched_getcpu();
    if (here < 0 || sched_getaffinity(getpid(), sizeof(others), &others))
        return;
    CPU_CLR(here, &others);
    if (CPU_COUNT(&others))
        pthread_setaffinity_np(beside->thread, sizeof(others), &others);       /* a refusal does no harm */
}

/* Looked at by a vCPU that asks or waits: a thread that does not come on is moved, now and then. */
static void watch_progress(struct requests *requests, uint64_t now)
{
    uint32_t done = atomic_load_explicit(&requests->done, memory_order_relaxed);
    if (done != requests->seen_done || done == asked(requests)) {
        requests->seen_done = done;
        requests->move_at = now + STUCK_CYCLES;
    } else if (now > requests->move_at && !requests->at_once) {
        move_away(requests->beside);
        requests->move_at = now + PATIENCE_CYCLES;
    }
}

/* Is there somebody to ask? */
static bool is_awake(struct requests *requests)
{
    if (requests->at_once)
        return true;
    if (!requests->started && !(requests->started = start(requests)))
        return false;
    if (!atomic_load_explicit(&requests->beside->asleep, memory_order_relaxed))
        return true;
    if (++requests->slept % WAKE_AFTER == 0)
        wake(requests->beside);
    return false;
}

bool requests_have(struct requests *requests, const struct block *block)
{
    const struct request *oldest = &requests->request[requests->taken % REQUESTS];
    if ((uint16_t)(block->asked - requests->taken - 1) >= (uint16_t)(asked(requests) - requests->taken))
        return false;
    uint64_t now = __rdtsc();
    watch_progress(requests, now);
    if (now - oldest->since < PATIENCE_CYCLES || requests->at_once)
        return true;
    requests->dbt->ask_from = requests->dbt->order_count + DISTRUST;
    return false;
}

/* What the blocks of the trace are made of stays as it is in the request; they know its number. */
static void copy_parts(struct request *request, uint32_t number)
{
    struct op *op = request->op;
    uint8_t *code = request->code;
    for (struct trace_part *part = request->trace.part; part < request->trace.part + request->trace.parts; part++) {
        block_of(part->op)->asked = (uint16_t)number;
        memcpy(op, part->op, part->count * sizeof(*op));
        memcpy(code, part->code, part->bytes);
        part->op = op;
        part->code = code;
        op += part->count;
        code += part->bytes;
    }
}

bool requests_ask(struct requests *requests, struct vcpu *vcpu, struct block *block)
{
    struct dbt *dbt = requests->dbt;
    uint32_t number = asked(requests);
    struct request *request = &requests->request[number % REQUESTS];
    uint64_t gpa;
    if (block == dbt->interp.scratch || block->stale || block->gpa2 != BLOCK_DROPPED || !is_awake(requests) ||
        number - requests->taken == REQUESTS)
        return false;
    request->since = __rdtsc();
    watch_progress(requests, request->since);
    trace_choose(vcpu, dbt, &request->trace, block);
    copy_parts(request, number + 1);
    const uint8_t *code = kept_suits(dbt) ? kept_code_at(vcpu, &gpa) : NULL;
    request->shared = code;
    if (code)
        memcpy(request->first, code, PROBE);
    atomic_store_explicit(&requests->asked, number + 1, memory_order_release);
    return !requests->at_once || serve_one(requests->beside, requests);
}

bool requests_are_open(const struct requests *requests) { return atomic_load_explicit(&requests->done, memory_order_relaxed) != asked(requests); }

bool requests_done(const struct requests *requests) { return atomic_load_explicit(&requests->done, memory_order_acquire) != requests->taken; }

static void install(struct dbt *dbt, struct vcpu *vcpu, const struct request *request)
{
    const struct trace *trace = &request->trace;
    const uint8_t *page = ram_host(vcpu->ram, trace->gpa & ~PAGE_MASK);
    if (request->size && page && trace->exact == dbt->exact && !dbt_find(dbt, trace->gpa, trace->rip, trace->mode) &&
        kept_install(vcpu, dbt, (const struct kept *)request->entry, page, trace->gpa, trace->rip))
        counter_add(&vcpu->counters, COUNTER_translations, 1);
}

void requests_take(struct requests *requests, struct vcpu *vcpu)
{
    uint32_t done = atomic_load_explicit(&requests->done, memory_order_acquire);
    for (; requests->taken != done; requests->taken++)
        install(requests->dbt, vcpu, &requests->request[requests->taken % REQUESTS]);
}
