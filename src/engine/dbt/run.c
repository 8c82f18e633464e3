/* The engine: the interpreter's run function, with translations in the place of hot blocks. */
#include "base/clock.h"
#include "engine/dbt/beside.h"
#include "engine/dbt/dbt.h"
#include "engine/dbt/gs.h"
#include "engine/dbt/hot.h"
#include "engine/dbt/kept.h"
#include "mmu/window.h"
#include "vmx/vmx.h"

enum { DROPS_MAX = 2, FORGET_AFTER = 4 << 20 };
/* A block's translation is asked for after a third of the runs that make it hot, and waited for up to so many times those. */
enum { ASK_EARLIER = 3, PATIENCE = 4 };
#define BUDGET_LARGE (INT64_MAX / 2)            /* more than any number that somebody asked for */

typedef struct link *enter_fn(const uint8_t *code);

/* The jump that asks to be patched, or NULL. */
static struct link *enter(struct vcpu *vcpu, struct dbt *dbt, const uint8_t *code)
{
    dbt->flags = flags_pack(vcpu->rflags);
    struct link *link = ((enter_fn *)dbt->enter)(code);
    flags_set(vcpu, dbt->flags);
    if (!link)
        return NULL;
    vcpu->rip = link->target;
    dbt->interp.left += link->uncount;
    return link->field ? link : NULL;
}

/*
 * Each drop of code in a page doubles the runs that its blocks must make before they are translated again; as time goes by
 * the drops are forgotten, or what a kernel patches as it boots would never be translated.
 */
static unsigned heat_wanted(const struct dbt *dbt, const struct block *block)
{
    unsigned drops = dbt->drops[dbt_page(block->gpa)];
    return dbt->heat_wanted << (drops < DROPS_MAX ? drops : DROPS_MAX);
}

/* Can translations of the present mode be had from somebody else now? 32-bit code can not be moved (kept.h). */
static bool may_ask(const struct dbt *dbt) { return dbt->order_count >= dbt->ask_from && !(dbt->mode & MODE_32); }

/* Has it run often enough to be asked for, or to be translated now? */
static bool is_hot(const struct dbt *dbt, const struct block *block) { return block->heat >= heat_wanted(dbt, block) / (may_ask(dbt) ? ASK_EARLIER : 1); }

/* Is somebody else making it, and is that worth waiting for? */
static bool is_made_beside(const struct dbt *dbt, const struct block *block)
{
    return may_ask(dbt) && block->heat < PATIENCE * heat_wanted(dbt, block) && requests_have(dbt->requests, block);
}

/* The same, from now on at the latest; or is it too early to make it here? */
static bool waits(struct vcpu *vcpu, const struct dbt *dbt, struct block *block)
{
    unsigned wanted = heat_wanted(dbt, block);
    return is_made_beside(dbt, block) || (may_ask(dbt) && block->heat < PATIENCE * wanted && requests_ask(dbt->requests, vcpu, block)) || block->heat < wanted;
}

static void forget_drops(struct dbt *dbt, uint64_t instructions)
{
    dbt->since_forgotten += instructions;
    if (dbt->since_forgotten < FORGET_AFTER)
        return;
    dbt->since_forgotten = 0;
    for (unsigned i = 0; i < ARRAY_SIZE(dbt->drops); i++)
        dbt->drops[i] /= 2;
}

static void remember(const struct dbt *dbt, struct block *block, struct translation *t)
{
    if (!t)
        return;
    block->translation = t;
    block->generation = dbt->generation;
}

/* The one that there is; its block remembers it. */
static struct translation *find_translation(const struct dbt *dbt, struct block *block, uint64_t rip)
{
    struct translation *t = block->translation;
    if (block->generation == dbt->generation && t->rip == rip && t->mode == dbt->mode && !t->dropped)
        return t;
    t = dbt_find(dbt, block->gpa, rip, dbt->mode);
    remember(dbt, block, t);
    return t;
}

/* The translation of a block, old or new, which jumps will find; NULL: not yet, or not possible. */
static struct translation *translation_of(struct vcpu *vcpu, struct dbt *dbt, struct block *block)
{
    if (!is_hot(dbt, block))
        return NULL;
    struct translation *t = find_translation(dbt, block, vcpu->rip);
    if (t && t->gpa2 != block->gpa2) {
        dbt_drop(vcpu, t->gpa, 1);
        t = NULL;
    }
    if (!t)
        t = kept_use(vcpu, dbt);                /* from another vCPU or process since the block was decoded */
    if (!t && waits(vcpu, dbt, block))
        return NULL;
    if (!t)
        t = dbt_translate(vcpu, dbt, block);
    remember(dbt, block, t);
    if (t)
        dbt_remember_jump(vcpu, dbt, t);
    return t;
}

/* Runs a block, and those that it is linked to, as long as they are cold, or waited for. */
static void interpret(struct vcpu *vcpu, struct dbt *dbt, struct block *block)
{
    struct interp *interp = &dbt->interp;
    do {
        if (block->heat < UINT32_MAX)
            block->heat++;
        interp->left -= block->count;
        block = block->op[0].run(vcpu, block->op);
    } while (block && (!is_hot(dbt, block) || (is_made_beside(dbt, block) && !requests_done(dbt->requests))) && interp->left >= block->count &&
             !atomic_load_explicit(&vcpu->request, memory_order_relaxed));
}

/* 32-bit code as systems have it: no segment that it uses by itself has a base or a limit. What is above ESP stays as it is, so it must be 0. */
static bool is_flat32(const struct vcpu *vcpu, const struct interp *interp)
{
    unsigned flat = KEY_FLAT_DATA | KEY_STACK32 | KEY_FLAT_CODE, mode = interp->key & KEY_MODE;
    return (mode == MODE_PROTECTED32 || mode == MODE_COMPAT32) && (interp->key & flat) == flat && vcpu->gpr[RSP] == (uint32_t)vcpu->gpr[RSP];
}

/* Nobody runs at CPL 1 and 2; without them what is not user code may do everything. */
static bool translatable(const struct vcpu *vcpu, const struct interp *interp)
{
    return ((interp->key & KEY_MODE) == MODE_LONG64 || is_flat32(vcpu, interp)) && !(interp->key & KEY_ALIGNMENT) && (vcpu->cpl == 0 || vcpu->cpl == 3);
}

/* SDM1 §13.1 to §13.5, SDM3 §13.1: what must hold before a vector instruction may run without a fault. */
static enum simd_level simd_level(const struct vcpu *vcpu)
{
    if ((vcpu->cr0 & (CR0_EM | CR0_TS)) || !(vcpu->cr4 & CR4_OSFXSR))
        return SIMD_NONE;
    if (!(vcpu->cr4 & CR4_OSXSAVE) || (vcpu->xcr0 & (XCR0_SSE | XCR0_AVX)) != (XCR0_SSE | XCR0_AVX))
        return SIMD_SSE;
    return (vcpu->xcr0 & XCR0_AVX512) == XCR0_AVX512 ? SIMD_AVX512 : SIMD_AVX;
}

static void set_exact(struct dbt *dbt)
{
    bool exact = dbt->interp.left < BUDGET_LARGE;
    if (exact != dbt->exact) {
        dbt_flush(dbt);
        dbt->exact = exact;
    }
}

/* Writable data, all of it. */
static bool has_no_limit(const struct segment *s)
{
    uint32_t want = SEG_S | SEG_P | SEG_WRITABLE, unwanted = SEG_CODE | SEG_EXPAND_DOWN | SEG_UNUSABLE;
    return s->limit == 0xFFFFFFFF && (s->attr & (want | unwanted)) == want;
}

/* Before translated code is looked for: which, and where. */
static void set_mode(struct vcpu *vcpu, struct dbt *dbt)
{
    bool wide = vcpu->mode == MODE_LONG64;
    uintptr_t table = vcpu->cpl == 3 && wide ? window_table(vcpu) : 0;
    dbt->context = table + WINDOW_BIAS;
    dbt->mode = (uint8_t)((vcpu->cpl == 3 ? MODE_USER : 0) | (table ? MODE_WINDOW : 0) |
                          (vmx_guest(vcpu) ? MODE_VMX_GUEST : 0) | simd_level(vcpu) << MODE_SIMD_SHIFT);
    if (!wide)
        dbt->mode |= (uint8_t)(MODE_32 | (has_no_limit(&vcpu->seg[FS]) ? MODE_FLAT_FS : 0) | (has_no_limit(&vcpu->seg[GS]) ? MODE_FLAT_GS : 0));
    dbt->tsc_delta = vcpu->tsc_offset - dbt->tsc_base;
    dbt->tsc_by_site = !dbt->tsc_known || vmx_guest(vcpu) || (vcpu->cpl != 0 && (vcpu->cr4 & CR4_TSD));
    dbt_pick_jumps(vcpu, dbt);
}

/* The translation at rip if there is one and the TLB knows the page. */
static struct translation *known_translation(struct vcpu *vcpu, struct dbt *dbt)
{
    const struct tlb_table *table = vcpu->tlb_code;
    unsigned i = tlb_index(vcpu->rip);
    if (table->entry[i].tag[MMU_FETCH] != (vcpu->rip & ~PAGE_MASK) || dbt->stub_flushes != dbt->interp.cache->stub_flushes)
        return NULL;
    uint64_t gpa = (table->info[i] & ~PAGE_MASK) | (vcpu->rip & PAGE_MASK);
    struct translation *t = dbt_find(dbt, gpa, vcpu->rip, dbt->mode);
    if (!t || t->gpa2 != BLOCK_DROPPED)
        return NULL;
    dbt_remember_jump(vcpu, dbt, t);
    return t;
}

/*
 * What is asked for if the jump table has nothing: a bucket of each hash. In cold code each is a wait for memory, so they are had at once. If the TLB
 * does not know the page, they are others, and no harm is done.
 */
static void expect_code(const struct vcpu *vcpu, const struct dbt *dbt)
{
    uint64_t gpa = (vcpu->tlb_code->info[tlb_index(vcpu->rip)] & ~PAGE_MASK) | (vcpu->rip & PAGE_MASK);
    dbt_expect(dbt, gpa, vcpu->rip);
    block_expect(dbt->interp.cache, gpa, dbt->interp.key);
}

/* One that is kept, for code that is met for the first time: where there is a block, one was looked for before. */
static struct translation *kept_translation(struct vcpu *vcpu, struct dbt *dbt)
{
    if (!kept_suits(dbt))
        return NULL;
    unsigned i = tlb_index(vcpu->rip);
    uint64_t gpa = (vcpu->tlb_code->info[i] & ~PAGE_MASK) | (vcpu->rip & PAGE_MASK);
    if (dbt->stub_flushes != dbt->interp.cache->stub_flushes || block_lookup(dbt->interp.cache, gpa, dbt->interp.key))
        return NULL;
    struct translation *t = kept_use(vcpu, dbt);
    if (t)
        dbt_remember_jump(vcpu, dbt, t);
    return t;
}

/* `generation`: of the cache that the link is of. */
static const uint8_t *enter_new(struct dbt *dbt, struct link *link, uint32_t generation, struct translation *t)
{
    if (link && dbt->generation == generation)
        dbt_link(dbt, link, t);
    dbt->interp.link_from = NULL;
    return t->entry;
}

/* The code to run at rip; NULL: a block was interpreted, or could not be fetched, or the budget is at its end (*stop). */
static const uint8_t *find_code(struct vcpu *vcpu, struct dbt *dbt, struct link *link, bool *stop)
{
    struct interp *interp = &dbt->interp;
    struct translation *known = known_translation(vcpu, dbt);
    *stop = false;
    if (known && likely(interp->left >= known->count)) {
        if (link)
            dbt_link(dbt, link, known);
        interp->link_from = NULL;
        return known->entry;
    }
    uint32_t generation = dbt->generation;
    struct translation *kept = known ? NULL : kept_translation(vcpu, dbt);
    if (kept && likely(interp->left >= kept->count))
        return enter_new(dbt, link, generation, kept);
    struct block *block = interp_next_block(vcpu, interp);
    if (unlikely(!block)) {
        interp->changed = true;
        return NULL;
    }
    if (dbt->stub_flushes != interp->cache->stub_flushes)
        dbt_flush(dbt);
    struct translation *t = translation_of(vcpu, dbt, block);
    if (t && likely(interp->left >= t->count))
        return enter_new(dbt, link, generation, t);
    *stop = interp->left < block->count;
    if (!*stop)
        interpret(vcpu, dbt, block);
    return NULL;
}

/* --- going on behind an instruction that changed something --- */

/* The stretch of user code, if it was one, ends. */
static void account(struct vcpu *vcpu, struct dbt *dbt)
{
    if (dbt->mode & MODE_USER) {
        dbt->user_ran += (uint64_t)(dbt->user_since - dbt->interp.left);
        if (!(dbt->mode & MODE_32))
            window_account(vcpu, (uint64_t)(dbt->user_since - dbt->interp.left));
    }
    dbt->user_since = dbt->interp.left;
}

/* The loop's part, done here: a fault or trap goes to the guest's handler. False: there is one, and it is not so simple. */
static bool deliver(struct vcpu *vcpu, struct interp *interp)
{
    struct event event = vcpu->pending;
    if (event.kind == EVENT_NONE)
        return true;
    if (event.kind == EVENT_STEP)
        return false;
    if (event.kind != EVENT_VM_EXIT)
        vcpu->pending.kind = EVENT_NONE;
    if (interp->left == interp->sti_left)
        vcpu->shadow |= SHADOW_STI;     /* a VM exit reports it; delivery of an event ends it */
    interp->sti_left = -1;
    x86_deliver_event(vcpu, &event);
    return true;
}

/* What the loop and `run` do between two calls of run_blocks. True: it may go on, and the mode is set. */
static bool settle(struct vcpu *vcpu, struct dbt *dbt)
{
    struct interp *interp = &dbt->interp;
    if (dbt->exact)
        return false;
    account(vcpu, dbt);
    if (!deliver(vcpu, interp) || vmx_steps(vcpu) || !interp_goes_on(vcpu, interp))
        return false;
    if (!translatable(vcpu, interp)) {
        interp->changed = true;
        return false;
    }
    set_mode(vcpu, dbt);
    return true;
}

/* The next translation if there is one already, and nothing has to be seen to before it. */
static const uint8_t *next_code(struct vcpu *vcpu, struct dbt *dbt)
{
    if (dbt->exact || dbt->stub_flushes != dbt->interp.cache->stub_flushes || (dbt->interp.changed && !settle(vcpu, dbt)))
        return NULL;
    const uint8_t *code = dbt_find_jump(dbt, vcpu->rip);
    if (code)
        return code;
    struct translation *t = known_translation(vcpu, dbt);
    return t ? t->entry : NULL;
}

struct onward dbt_go_on(struct vcpu *vcpu)
{
    struct dbt *dbt = dbt_of(vcpu);
    const uint8_t *code = next_code(vcpu, dbt);
    dbt->flags = flags_pack(vcpu->rflags);
    return (struct onward){ .code = code };
}

/* True: links are not what they were. */
static bool take_finished(struct vcpu *vcpu, struct dbt *dbt)
{
    uint32_t generation = dbt->generation;
    if (likely(!dbt->requests || !requests_done(dbt->requests)))
        return false;
    requests_take(dbt->requests, vcpu);
    return dbt->generation != generation;
}

static void run_blocks(struct vcpu *vcpu, struct interp *interp)
{
    struct dbt *dbt = dbt_of(vcpu);
    struct link *link = NULL;
    bool stop = false;
    if (!translatable(vcpu, interp)) {
        interp_run_blocks(vcpu, interp);
        return;
    }
    gs_point_at(vcpu, dbt->gs_instruction);
    dbt_traps_for(dbt);
    set_exact(dbt);
    dbt->tsc_known = clock_tsc_base(vcpu->clock, &dbt->tsc_base);       /* nobody pauses the clock before the processors */
    set_mode(vcpu, dbt);
    int64_t left = dbt->user_since = interp->left;
    while (!atomic_load_explicit(&vcpu->request, memory_order_relaxed) && !stop) {
        if (interp->changed) {
            if (!settle(vcpu, dbt))
                break;
            link = NULL;                /* of another mode, perhaps */
        }
        expect_code(vcpu, dbt);
        const uint8_t *code = link || dbt->exact ? NULL : dbt_find_jump(dbt, vcpu->rip);
        if (!code && take_finished(vcpu, dbt))
            link = NULL;
        if (!code)
            code = find_code(vcpu, dbt, link, &stop);
        link = code ? enter(vcpu, dbt, code) : NULL;
    }
    forget_drops(dbt, (uint64_t)(left - interp->left));
    account(vcpu, dbt);
}

void dbt_set_hot(struct vcpu *vcpu, unsigned runs)
{
    struct dbt *dbt = dbt_of(vcpu);
    dbt->heat_wanted = runs;
    requests_destroy(dbt->requests);
    dbt->requests = NULL;
}

bool dbt_set_beside(struct vcpu *vcpu, unsigned runs, struct beside *beside, bool at_once)
{
    struct dbt *dbt = dbt_of(vcpu);
    dbt_set_hot(vcpu, runs);
    vcpu->beside = beside;
    dbt->requests = requests_create(vcpu, dbt);
    dbt->ask_from = 0;
    return dbt->requests && (!at_once || requests_at_once(dbt->requests));
}

bool dbt_beside_is_busy(const struct vcpu *vcpu) { return requests_are_open(dbt_of(vcpu)->requests); }

/* --- the engine --- */

static void code_overwritten(struct vcpu *vcpu, uint64_t gpa, uint64_t size)
{
    dbt_drop(vcpu, gpa, size);
    block_overwritten(vcpu, gpa, size);
}

static void code_written(struct vcpu *vcpu, uint64_t gpa, uint64_t size)
{
    dbt_drop(vcpu, gpa, size);
    block_drop(vcpu, gpa, size);
}

static void dbt_detach(struct vcpu *vcpu)
{
    struct dbt *dbt = vcpu->engine_state;
    if (!dbt)
        return;
    dbt_traps_for(NULL);
    requests_destroy(dbt->requests);
    ahead_destroy(dbt->ahead);          /* before anything that it might be granting goes */
    dbt->ahead = NULL;
    interp_fini(vcpu, &dbt->interp);
    dbt_destroy(dbt);
}

static bool dbt_attach(struct vcpu *vcpu)
{
    struct dbt *dbt = dbt_create();
    if (!dbt)
        return false;
    if (!interp_init(vcpu, &dbt->interp) || !dbt_install_traps()) {
        dbt_destroy(dbt);
        return false;
    }
    if (__builtin_cpu_supports("bmi2"))         /* else nothing is translated */
        dbt->interp.run_blocks = run_blocks;
    dbt->interp.cache->ahead = dbt->ahead;
    if (!vcpu->index)                           /* the one that is sure to run */
        dbt_expect_use(dbt);
    dbt->gs_instruction = gs_has_instruction();
    dbt->shifts_write_all = dbt_shifts_write_all_flags();
    dbt_limit(dbt, vcpu->code_cache);
    dbt_make_thunks(vcpu, dbt);
    kept_attach(vcpu, dbt);
    dbt->requests = requests_create(vcpu, dbt);
    vcpu->code_overwritten = code_overwritten;
    return true;
}

const struct engine engine_dbt = {
    .name = "dbt",
    .text = "the binary translator: hot code runs as host code",
    .attach = dbt_attach,
    .detach = dbt_detach,
    .run = interp_run,
    .code_written = code_written,
    .print_sites = dbt_print_sites,
};
