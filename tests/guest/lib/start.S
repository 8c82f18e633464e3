/*
 * Start of a bare-metal test guest: entered by Multiboot v1 in flat 32-bit protected mode, paging off. Identity-maps the first 4 GiB
 * with 2 MiB pages, enters 64-bit mode and calls guest_main. AP processors start at ap_start (copied below 1 MiB by lib.c).
 */
    .set MAGIC, 0x1BADB002
    .set FLAGS, 3                       /* page-align modules, memory map */

    .section .multiboot, "a"
    .align 4
    .long MAGIC, FLAGS, -(MAGIC + FLAGS)

    .bss
    .align 4096
    .global boot_pml4
boot_pml4:  .skip 4096
    .global boot_pdpt
boot_pdpt:  .skip 4096
    .global boot_pd
boot_pd:    .skip 4096 * 4
    .skip 65536
stack_top:
    .global ap_stacks
ap_stacks:  .skip 16384 * 9            /* by number, the boot processor's unused */

    .data
    .align 16
    .global boot_gdt
boot_gdt:
    .quad 0
    .quad 0x00AF9B000000FFFF            /* 0x08 64-bit code, DPL 0 */
    .quad 0x00CF93000000FFFF            /* 0x10 data, DPL 0 */
    .quad 0x00CF9B000000FFFF            /* 0x18 32-bit code, DPL 0 */
    .quad 0x00CFFB000000FFFF            /* 0x20 32-bit code, DPL 3 */
    .quad 0x00CFF3000000FFFF            /* 0x28 data, DPL 3 */
    .quad 0x00AFFB000000FFFF            /* 0x30 64-bit code, DPL 3 */
    .quad 0x008F9B000000FFFF            /* 0x38 16-bit code, DPL 0 */
    .quad 0x008F93000000FFFF            /* 0x40 16-bit data, DPL 0 */
    .skip 8 * 64                        /* 0x48: TSS (two entries), then free for tests */
boot_gdt_end:
    .global boot_gdtr
boot_gdtr:
    .word boot_gdt_end - boot_gdt - 1
    .quad boot_gdt
    .global multiboot_info
multiboot_info: .quad 0

    .text
    .code32
    .global _start
_start:
    cli
    mov $stack_top, %esp
    mov %ebx, multiboot_info
    mov $boot_pd, %edi
    mov $0x83, %eax                     /* present, writable, 2 MiB */
    mov $2048, %ecx
1:  mov %eax, (%edi)
    movl $0, 4(%edi)
    add $0x200000, %eax
    add $8, %edi
    loop 1b
    mov $boot_pd + 3, %eax
    mov $boot_pdpt, %edi
    mov $4, %ecx
2:  mov %eax, (%edi)
    add $0x1000, %eax
    add $8, %edi
    loop 2b
    movl $boot_pdpt + 3, boot_pml4
    call enter_long_mode
    .code64
    mov $stack_top, %rsp
    call guest_main
    hlt

/* Turns paging and 64-bit mode on with boot_pml4; returns in 64-bit mode (the return address is a 32-bit one). */
    .code32
enter_long_mode:
    pop %ebp
    lgdt boot_gdtr
    mov %cr4, %eax
    or $0x6A0, %eax                     /* PAE, PGE, OSFXSR, OSXMMEXCPT */
    mov %eax, %cr4
    mov $boot_pml4, %eax
    mov %eax, %cr3
    mov $0xC0000080, %ecx
    rdmsr
    or $0x901, %eax                     /* NXE, LME, SCE */
    wrmsr
    mov $0x80010033, %eax               /* PG, WP, NE, ET, MP, PE */
    mov %eax, %cr0
    ljmp $0x08, $3f
    .code64
3:  mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    xor %eax, %eax
    mov %eax, %fs
    mov %eax, %gs
    jmp *%rbp

/*
 * Application processors: real mode, CS = start page. Copied to the start page; addresses below are relative to it.
 */
    .code16
    .global ap_start
ap_start:
    cli
    mov %cs, %ax
    mov %ax, %ds
    lgdtl ap_gdtr - ap_start
    mov %cr0, %eax
    or $1, %al
    mov %eax, %cr0
    ljmpl $0x18, $ap_protected
    .align 4
ap_gdtr:
    .word boot_gdt_end - boot_gdt - 1
    .long boot_gdt
    .global ap_end
ap_end:
    .code32
ap_protected:
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov $1, %ebx
    lock xadd %ebx, ap_counter
    inc %ebx                            /* this processor's number, from 1 */
    mov %ebx, %edi
    mov %ebx, %esp
    shl $14, %esp
    add $ap_stacks, %esp
    call enter_long_mode
    .code64
    mov %esp, %esp                      /* clear the upper half */
    mov %edi, %edi
    call ap_main
4:  hlt
    jmp 4b

    .data
    .align 4
    .global ap_counter
ap_counter: .long 0

/* Exception and interrupt stubs: push vector (and a zero where the processor pushes no error code), then C. */
    .text
    .code64
    .altmacro
    .macro stub n
stub_\n:
    .if (\n == 8) || ((\n >= 10) && (\n <= 14)) || (\n == 17) || (\n == 21)
    .else
    pushq $0
    .endif
    pushq $\n
    jmp common_stub
    .endm
    .set i, 0
    .rept 256
    stub %i
    .set i, i + 1
    .endr

common_stub:
    push %rax
    push %rcx
    push %rdx
    push %rbx
    push %rbp
    push %rsi
    push %rdi
    push %r8
    push %r9
    push %r10
    push %r11
    push %r12
    push %r13
    push %r14
    push %r15
    cld
    mov %rsp, %rdi
    mov %rsp, %rbp
    and $-16, %rsp
    call trap_c
    mov %rbp, %rsp
    .global trap_return
trap_return:
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %r11
    pop %r10
    pop %r9
    pop %r8
    pop %rdi
    pop %rsi
    pop %rbp
    pop %rbx
    pop %rdx
    pop %rcx
    pop %rax
    add $16, %rsp
    iretq

    .section .rodata
    .align 8
    .global stub_table
    .macro stub_address n
    .quad stub_\n
    .endm
stub_table:
    .set i, 0
    .rept 256
    stub_address %i
    .set i, i + 1
    .endr

/* int save_context(uint64_t context[8]); void restore_context(uint64_t context[8]) : as setjmp and longjmp with 1. */
    .text
    .global save_context
save_context:
    mov %rbx, 0(%rdi)
    mov %rbp, 8(%rdi)
    mov %r12, 16(%rdi)
    mov %r13, 24(%rdi)
    mov %r14, 32(%rdi)
    mov %r15, 40(%rdi)
    lea 8(%rsp), %rax
    mov %rax, 48(%rdi)
    mov (%rsp), %rax
    mov %rax, 56(%rdi)
    xor %eax, %eax
    ret
    .global restore_context
restore_context:
    mov 0(%rdi), %rbx
    mov 8(%rdi), %rbp
    mov 16(%rdi), %r12
    mov 24(%rdi), %r13
    mov 32(%rdi), %r14
    mov 40(%rdi), %r15
    mov 48(%rdi), %rsp
    mov $1, %eax
    jmp *56(%rdi)

    .section .note.GNU-stack, "", @progbits
