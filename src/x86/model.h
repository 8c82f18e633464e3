/* What a CPU model is: identity, sizes and features, fixed when the machine is made. Shared by all vCPUs. */
#ifndef DOPPEL_X86_MODEL_H
#define DOPPEL_X86_MODEL_H

#include "x86/x86.h"

enum { MODEL_CPUS_MAX = 64 };

struct cpu_model {
    char name[32];
    char brand[49];             /* CPUID 0x80000002-4 */
    uint32_t signature;         /* CPUID 1 EAX: family, model, stepping */
    uint32_t microcode;
    unsigned physical_bits;
    unsigned cpus;
    uint64_t tsc_hz;
    uint64_t xcr0;              /* user state components that can be enabled */
    struct vmx_offer vmx[MODEL_CPUS_MAX];       /* of VT-x: the only thing in which processors may differ */
    uint64_t has[(FEATURE_COUNT + 63) / 64];    /* a bit for each feature */
};

static inline bool model_has(const struct cpu_model *model, enum x86_feature feature)
{
    return model->has[feature / 64] >> (feature % 64) & 1;
}

/* Where a feature stands in CPUID. */
struct feature_place {
    const char *name;
    uint32_t leaf;
    uint8_t subleaf, reg, bit;
    bool ours;                  /* does not depend on the host */
};
extern const struct feature_place x86_feature_places[FEATURE_COUNT];

/* The features of the host that may be offered; those that are ours count as present. */
bool host_has(enum x86_feature feature);

#endif
