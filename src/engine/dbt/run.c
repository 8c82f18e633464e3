/* The engine: the interpreter's run function, with translated blocks in the place of hot ones. */
#include "engine/dbt/dbt.h"
#include "engine/dbt/gs.h"
#include "engine/dbt/hot.h"

enum { DROPS_MAX = 12 };

typedef struct link *enter_fn(const uint8_t *code);

static struct link *enter(struct vcpu *vcpu, struct dbt *dbt, const struct translation *t)
{
    dbt->flags = flags_pack(vcpu->rflags);
    struct link *link = ((enter_fn *)dbt->enter)(t->indirect_entry);
    flags_set(vcpu, dbt->flags);
    return link;
}

/* The host address of the code at rip, NULL if the TLB does not say. */
static const uint8_t *host_code(const struct vcpu *vcpu)
{
    const struct tlb_entry *entry = &vcpu->tlb_code->entry[tlb_index(vcpu->rip)];
    if (unlikely(entry->tag[MMU_FETCH] != (vcpu->rip & ~PAGE_MASK)))
        return NULL;
    return (const uint8_t *)(vcpu->rip + entry->addend);
}

static struct translation *find_jump(struct vcpu *vcpu, struct dbt *dbt)
{
    const struct jump *jump = dbt_jump(dbt, vcpu->rip);
    const uint8_t *host = host_code(vcpu);
    return host && jump->host == (uintptr_t)host && jump->rip == vcpu->rip ? jump->translation : NULL;
}

/* Each drop of code in a page doubles the runs that its blocks must make before they are translated again. */
static bool is_hot(const struct dbt *dbt, const struct block *block)
{
    unsigned drops = dbt->drops[dbt_page(block->gpa)];
    return block->heat >= dbt->hot << (drops < DROPS_MAX ? drops : DROPS_MAX);
}

/* The translation of a block, old or new, which jumps will find; NULL: not yet, or not possible. */
static struct translation *translation_of(struct vcpu *vcpu, struct dbt *dbt, struct block *block)
{
    if (!is_hot(dbt, block))
        return NULL;
    struct translation *t = dbt_find(dbt, block->gpa, vcpu->rip);
    if (!t)
        t = dbt_translate(vcpu, dbt, block);
    const uint8_t *host = host_code(vcpu);
    if (t && host)
        dbt_remember_jump(dbt, t, host);
    return t;
}

/* Runs a block, and those that it is linked to, as long as they are cold. */
static void interpret(struct vcpu *vcpu, struct dbt *dbt, struct block *block)
{
    struct interp *interp = &dbt->interp;
    do {
        if (block->heat < UINT32_MAX)
            block->heat++;
        interp->left -= block->count;
        block = block->op[0].run(vcpu, block->op);
    } while (block && !is_hot(dbt, block) && interp->left >= block->count &&
             !atomic_load_explicit(&vcpu->request, memory_order_relaxed));
}

static bool translatable(const struct interp *interp)
{
    return (interp->key & KEY_MODE) == MODE_LONG64 && !(interp->key & KEY_ALIGNMENT);
}

static void run_blocks(struct vcpu *vcpu, struct interp *interp)
{
    struct dbt *dbt = dbt_of(vcpu);
    struct link *link = NULL;
    if (!translatable(interp)) {
        interp_run_blocks(vcpu, interp);
        return;
    }
    gs_point_at(vcpu, dbt->gs_instruction);
    while (!atomic_load_explicit(&vcpu->request, memory_order_relaxed) && !interp->changed) {
        struct translation *t = find_jump(vcpu, dbt);
        if (!t) {
            struct block *block = interp_next_block(vcpu, interp);
            if (unlikely(!block)) {
                interp->changed = true;
                return;
            }
            const uint8_t *code = dbt->code;
            if (dbt->flushes != interp->cache->flushes)
                dbt_flush(dbt);
            t = translation_of(vcpu, dbt, block);
            if (dbt->code < code)
                link = NULL;            /* everything was flushed, links too */
            if (!t) {
                link = NULL;
                if (unlikely(interp->left < block->count))
                    return;
                interpret(vcpu, dbt, block);
                continue;
            }
        }
        interp->link_from = NULL;
        if (link)
            dbt_link(dbt, link, t);
        if (unlikely(interp->left < t->count))
            return;
        link = enter(vcpu, dbt, t);
    }
}

void dbt_set_hot(struct vcpu *vcpu, unsigned runs) { dbt_of(vcpu)->hot = runs; }

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
    interp_fini(vcpu, &dbt->interp);
    dbt_destroy(dbt);
}

static bool dbt_attach(struct vcpu *vcpu)
{
    struct dbt *dbt = dbt_create();
    if (!dbt)
        return false;
    if (!interp_init(vcpu, &dbt->interp)) {
        dbt_destroy(dbt);
        return false;
    }
    if (__builtin_cpu_supports("bmi2"))         /* else nothing is translated */
        dbt->interp.run_blocks = run_blocks;
    dbt->gs_instruction = gs_has_instruction();
    dbt_make_thunks(vcpu, dbt);
    vcpu->code_overwritten = code_overwritten;
    return true;
}

const struct engine engine_dbt = {
    .name = "dbt",
    .text = "the binary translator: hot 64-bit code runs as host code",
    .attach = dbt_attach,
    .detach = dbt_detach,
    .run = interp_run,
    .code_written = code_written,
};
