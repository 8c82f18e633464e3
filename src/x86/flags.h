/* Bits of the flags, control, debug and segment attribute words, by the manual's names (SDM3 §2.3, §2.5, §2.2.1, §18.2). */
#ifndef DOPPEL_X86_FLAGS_H
#define DOPPEL_X86_FLAGS_H

enum {
    RFLAGS_CF = 1u << 0, RFLAGS_FIXED = 1u << 1, RFLAGS_PF = 1u << 2, RFLAGS_AF = 1u << 4, RFLAGS_ZF = 1u << 6,
    RFLAGS_SF = 1u << 7, RFLAGS_TF = 1u << 8, RFLAGS_IF = 1u << 9, RFLAGS_DF = 1u << 10, RFLAGS_OF = 1u << 11,
    RFLAGS_IOPL = 3u << 12, RFLAGS_NT = 1u << 14, RFLAGS_RF = 1u << 16, RFLAGS_VM = 1u << 17, RFLAGS_AC = 1u << 18,
    RFLAGS_VIF = 1u << 19, RFLAGS_VIP = 1u << 20, RFLAGS_ID = 1u << 21,
    RFLAGS_STATUS = RFLAGS_CF | RFLAGS_PF | RFLAGS_AF | RFLAGS_ZF | RFLAGS_SF | RFLAGS_OF,
    RFLAGS_DEFINED = RFLAGS_STATUS | RFLAGS_FIXED | RFLAGS_TF | RFLAGS_IF | RFLAGS_DF | RFLAGS_IOPL | RFLAGS_NT | RFLAGS_RF |
                     RFLAGS_VM | RFLAGS_AC | RFLAGS_VIF | RFLAGS_VIP | RFLAGS_ID,
};

enum {
    CR0_PE = 1u << 0, CR0_MP = 1u << 1, CR0_EM = 1u << 2, CR0_TS = 1u << 3, CR0_ET = 1u << 4, CR0_NE = 1u << 5,
    CR0_WP = 1u << 16, CR0_AM = 1u << 18, CR0_NW = 1u << 29, CR0_CD = 1u << 30,
};
#define CR0_PG (1ull << 31)

enum {
    CR4_VME = 1u << 0, CR4_PVI = 1u << 1, CR4_TSD = 1u << 2, CR4_DE = 1u << 3, CR4_PSE = 1u << 4, CR4_PAE = 1u << 5,
    CR4_MCE = 1u << 6, CR4_PGE = 1u << 7, CR4_PCE = 1u << 8, CR4_OSFXSR = 1u << 9, CR4_OSXMMEXCPT = 1u << 10,
    CR4_UMIP = 1u << 11, CR4_LA57 = 1u << 12, CR4_VMXE = 1u << 13, CR4_SMXE = 1u << 14, CR4_FSGSBASE = 1u << 16,
    CR4_PCIDE = 1u << 17, CR4_OSXSAVE = 1u << 18, CR4_SMEP = 1u << 20, CR4_SMAP = 1u << 21, CR4_PKE = 1u << 22,
};

enum { EFER_SCE = 1u << 0, EFER_LME = 1u << 8, EFER_LMA = 1u << 10, EFER_NXE = 1u << 11 };

enum { XCR0_X87 = 1u << 0, XCR0_SSE = 1u << 1, XCR0_AVX = 1u << 2, XCR0_OPMASK = 1u << 5, XCR0_ZMM_HI256 = 1u << 6,
       XCR0_HI16_ZMM = 1u << 7, XCR0_PKRU = 1u << 9, XCR0_AVX512 = XCR0_OPMASK | XCR0_ZMM_HI256 | XCR0_HI16_ZMM };

enum { DR6_BS = 1u << 14, DR6_BT = 1u << 15, DR6_BD = 1u << 13, DR6_FIXED = 0xFFFF0FF0u, DR7_GD = 1u << 13, DR7_FIXED = 1u << 10 };

/* struct segment .attr */
enum {
    SEG_TYPE = 0xF, SEG_S = 1u << 4, SEG_DPL = 3u << 5, SEG_P = 1u << 7, SEG_AVL = 1u << 12, SEG_L = 1u << 13,
    SEG_DB = 1u << 14, SEG_G = 1u << 15, SEG_UNUSABLE = 1u << 16,
    SEG_ACCESSED = 1, SEG_WRITABLE = 2, SEG_READABLE = 2, SEG_EXPAND_DOWN = 4, SEG_CONFORMING = 4, SEG_CODE = 8,
};
#define SEG_DPL_OF(attr) (((attr) >> 5) & 3)

/* Exception vectors (SDM3 §6.3.1, table 6-1). */
enum vector {
    VEC_DE = 0, VEC_DB = 1, VEC_NMI = 2, VEC_BP = 3, VEC_OF = 4, VEC_BR = 5, VEC_UD = 6, VEC_NM = 7, VEC_DF = 8,
    VEC_TS = 10, VEC_NP = 11, VEC_SS = 12, VEC_GP = 13, VEC_PF = 14, VEC_MF = 16, VEC_AC = 17, VEC_MC = 18, VEC_XM = 19,
};

/* Page-fault error code (SDM3 §4.7 "Page-Fault Exceptions"). */
enum { PF_P = 1, PF_W = 2, PF_U = 4, PF_RSVD = 8, PF_I = 16, PF_PK = 32 };

#endif
