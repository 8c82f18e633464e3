/* Recording of faults. They are delivered by deliver.c when the engine has come back with them. */
#include "x86/x86.h"

/* SDM3 table 6-1: the exceptions that push an error code. */
static bool vector_has_error(uint8_t vector)
{
    return vector == VEC_DF || (vector >= VEC_TS && vector <= VEC_PF) || vector == VEC_AC;
}

static bool raise(struct vcpu *vcpu, uint8_t vector, uint32_t error, uint64_t payload)
{
    vcpu->pending = (struct event){
        .kind = EVENT_FAULT, .vector = vector, .has_error = vector_has_error(vector), .error = error, .payload = payload,
    };
    return false;
}

bool x86_raise(struct vcpu *vcpu, uint8_t vector)
{
    return raise(vcpu, vector, 0, 0);
}

bool x86_raise_error(struct vcpu *vcpu, uint8_t vector, uint32_t error)
{
    return raise(vcpu, vector, error, 0);
}

bool x86_raise_page_fault(struct vcpu *vcpu, uint64_t gla, uint32_t error)
{
    return raise(vcpu, VEC_PF, error, gla);
}

bool x86_require_cpl0(struct vcpu *vcpu)
{
    return vcpu->cpl == 0 || x86_raise_error(vcpu, VEC_GP, 0);
}
