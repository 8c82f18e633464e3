/* What shapes the code of this engine besides the guest's: translations serve whoever has the same. */
#include "engine/dbt/kept.h"

#include <cpuid.h>
#include <elf.h>
#include <link.h>

#include "engine/interp/native.h"
#include "x86/model.h"

/* The linker's digest of the program (NT_GNU_BUILD_ID). */
static int find_build_id(struct dl_phdr_info *info, size_t size, void *out)
{
    for (unsigned i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *ph = &info->dlpi_phdr[i];
        const char *at = (const char *)(info->dlpi_addr + ph->p_vaddr), *end = at + ph->p_memsz;
        while (ph->p_type == PT_NOTE && at + sizeof(ElfW(Nhdr)) <= end) {
            const ElfW(Nhdr) *note = (const void *)at;
            const char *text = at + sizeof(*note) + align_up(note->n_namesz, 4);
            if (note->n_type == NT_GNU_BUILD_ID && note->n_namesz == 4 && note->n_descsz >= 8) {
                *(uint64_t *)out = store_hash(text, note->n_descsz);
                return 1;
            }
            at = text + align_up(note->n_descsz, 4);
        }
    }
    return 1;                           /* the program is the first; libraries do not matter */
}

struct shape_parts {
    uint64_t build, zydis, code_start, vector_bytes;
    uint64_t has[ARRAY_SIZE(((struct cpu_model *)0)->has)];
    uint32_t host[6][4];                /* CPUID */
};

static void host_cpuid(struct shape_parts *parts)
{
    static const uint32_t leaf[][2] = { { 0, 0 }, { 1, 0 }, { 7, 0 }, { 7, 1 }, { 0x80000001, 0 }, { 0xD, 0 } };
    enum { CLFLUSH_SIZE = 0xFF00 };
    for (unsigned i = 0; i < ARRAY_SIZE(leaf); i++) {
        uint32_t *r = parts->host[i];
        if (!__get_cpuid_count(leaf[i][0], leaf[i][1], &r[0], &r[1], &r[2], &r[3]))
            memset(r, 0, sizeof(parts->host[i]));
    }
    parts->host[1][1] &= CLFLUSH_SIZE;  /* nothing about the processor that we happen to be on */
    memset(&parts->host[5][1], 0, 4);   /* what is enabled now */
}

void kept_attach(struct vcpu *vcpu, struct dbt *dbt)
{
    enum { VCPUS_FEW = 2 };             /* it costs about as much to keep a translation as to make another one */
    struct shape_parts parts = { .zydis = ZydisGetVersion(), .code_start = (uint64_t)(dbt->code_start - dbt->hot.base),
                                 .vector_bytes = native_host_vector_bytes() };
    dl_iterate_phdr(find_build_id, &parts.build);
    if (!vcpu->translations || !parts.build)
        return;
    memcpy(parts.has, vcpu->model->has, sizeof(parts.has));
    parts.has[FEATURE_HTT / 64] &= ~(1ull << FEATURE_HTT % 64);         /* no code depends on how many processors there are */
    host_cpuid(&parts);
    struct store_shape shape = { { store_hash(&parts, sizeof(parts)), parts.build } };
    if (store_open(vcpu->translations, &shape))
        dbt->store = vcpu->translations;
    dbt->keeps_supervisor = vcpu->all_count > VCPUS_FEW || store_is_saved(vcpu->translations);
}
