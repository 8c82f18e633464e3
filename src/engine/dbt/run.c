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

/* The translation of what is at rip, if there is one, and the host address of the code. */
static struct translation *find(struct vcpu *vcpu, struct dbt *dbt, const uint8_t **host)
{
    const struct tlb_table *table = vcpu->tlb_code;
    unsigned i = tlb_index(vcpu->rip);
    if (unlikely(table->entry[i].tag[MMU_FETCH] != (vcpu->rip & ~PAGE_MASK)))
        return NULL;
    *host = (const uint8_t *)(vcpu->rip + table->entry[i].addend);
    return dbt_find(dbt, (table->info[i] & ~PAGE_MASK) | (vcpu->rip & PAGE_MASK), vcpu->rip);
}

/* Each drop of code in a page doubles the runs that its blocks must make before they are translated again. */
static struct translation *translate_hot(struct vcpu *vcpu, struct dbt *dbt, struct block *block)
{
    const uint8_t *host;
    unsigned drops = dbt->drops[dbt_page(block->gpa)];
    if (block->heat++ < dbt->hot << (drops < DROPS_MAX ? drops : DROPS_MAX) || find(vcpu, dbt, &host))
        return NULL;
    return dbt_translate(vcpu, dbt, block);
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
    gs_point_at(vcpu);
    while (!atomic_load_explicit(&vcpu->request, memory_order_relaxed)) {
        const uint8_t *host = NULL;
        struct translation *t = find(vcpu, dbt, &host);
        if (!t) {
            struct block *block = interp_next_block(vcpu, interp);
            if (unlikely(!block)) {
                interp->changed = true;
                return;
            }
            if (dbt->flushes != interp->cache->flushes)
                dbt_flush(dbt), link = NULL;
            uint8_t *code = dbt->code;
            t = translate_hot(vcpu, dbt, block);
            if (dbt->code < code)
                link = NULL;            /* everything was flushed */
            if (!t) {
                link = NULL;
                if (unlikely(interp->left < block->count))
                    return;
                interp->left -= block->count;
                block->op[0].run(vcpu, block->op);
                if (unlikely(interp->changed))
                    return;
                continue;
            }
            find(vcpu, dbt, &host);
        }
        interp->link_from = NULL;
        if (link)
            dbt_link(dbt, link, t);
        if (unlikely(interp->left < t->count))
            return;
        if (host)
            dbt_remember_jump(dbt, t, host);
        link = enter(vcpu, dbt, t);
        if (unlikely(interp->changed))
            return;
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
