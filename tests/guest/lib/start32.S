/*
 * Start of a 32-bit test guest: flat protected mode, paging off. Exception stubs for 256 vectors, and excursions to real
 * mode, 16-bit protected mode and virtual-8086 mode for guest32.c's callers.
 */
    .set MAGIC, 0x1BADB002
    .set FLAGS, 3

    .section .multiboot, "a"
    .align 4
    .long MAGIC, FLAGS, -(MAGIC + FLAGS)

    .bss
    .align 4096
    .skip 65536
stack_top:

    .text
    .code32
    .global _start
_start:
    cli
    mov $stack_top, %esp
    call guest_main32
    hlt

    .altmacro
    .macro stub n
stub_\n:
    .if (\n == 8) || ((\n >= 10) && (\n <= 14)) || (\n == 17) || (\n == 21)
    .else
    pushl $0
    .endif
    pushl $\n
    jmp common_stub
    .endm
    .set i, 0
    .rept 256
    stub %i
    .set i, i + 1
    .endr

common_stub:
    pushl %gs
    pushl %fs
    pushl %es
    pushl %ds
    pusha
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    cld
    push %esp
    call trap32_c
    add $4, %esp
    popa
    popl %ds
    popl %es
    popl %fs
    popl %gs
    add $8, %esp
    iret

    .section .rodata
    .align 4
    .global stub_table32
    .macro stub_address n
    .long stub_\n
    .endm
stub_table32:
    .set i, 0
    .rept 256
    stub_address %i
    .set i, i + 1
    .endr

    .text
    .global save_context32
save_context32:
    mov 4(%esp), %eax
    mov %ebx, 0(%eax)
    mov %esi, 4(%eax)
    mov %edi, 8(%eax)
    mov %ebp, 12(%eax)
    lea 4(%esp), %ecx
    mov %ecx, 16(%eax)
    mov (%esp), %ecx
    mov %ecx, 20(%eax)
    xor %eax, %eax
    ret
    .global restore_context32
restore_context32:
    mov 4(%esp), %edx
    mov 0(%edx), %ebx
    mov 4(%edx), %esi
    mov 8(%edx), %edi
    mov 12(%edx), %ebp
    mov 16(%edx), %esp
    mov $1, %eax
    jmp *20(%edx)

/*
 * Real mode and back. low_code is copied to 0x7000 (linear) and entered there by a far jump to a 16-bit code segment with base
 * 0x7000; it clears PE, runs with real segments, and returns to protected mode. Results are left at 0x6000.
 */
    .global real_mode_trip
real_mode_trip:
    push %ebx
    push %esi
    push %edi
    push %ebp
    mov %esp, saved_esp
    sidt saved_idtr
    lidt real_idtr
    ljmp $0x38, $0                      /* 16-bit code, base 0x7000 */
back_in_protected:
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %fs
    mov %eax, %gs
    mov %eax, %ss
    mov saved_esp, %esp
    lidt saved_idtr
    pop %ebp
    pop %edi
    pop %esi
    pop %ebx
    ret
    .data
    .align 4
saved_esp: .long 0
saved_idtr: .skip 8
real_idtr: .word 0x3FF
    .long 0

    .text
    .code16
    .global low_code
low_code:
    mov $0x40, %ax                      /* 16-bit data, so that limits are the real-mode ones */
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %ss
    mov %cr0, %eax
    and $~1, %al
    mov %eax, %cr0
    ljmp $0x700, $1f - low_code
1:  xor %ax, %ax
    mov %ax, %ds
    mov %ax, %ss
    mov $0x5000, %sp
    mov $0x600, %ax
    mov %ax, %es
    /* real mode: addresses are selector * 16 + offset */
    mov $0x1234, %ax
    mov %ax, %es:0
    mov %cs, %ax
    mov %ax, %es:2
    /* software interrupt through the vector table at 0 */
    movw $isr - low_code, 0x80 * 4
    movw $0x700, 0x80 * 4 + 2
    int $0x80
    mov %ax, %es:4
    /* 32-bit operands in 16-bit code, stack of 16 bits */
    pushl $0x89ABCDEF
    popl %eax
    mov %eax, %es:8
    mov %sp, %ax
    mov %ax, %es:12
    /* 20-bit wrap is not emulated: FFFF:0010 is 0x100000 */
    mov $0xFFFF, %ax
    mov %ax, %fs
    mov %fs:0x10, %eax
    mov %eax, %es:16
    /* REP with 16-bit counts */
    mov $0x6100, %di
    push %es
    xor %ax, %ax
    mov %ax, %es
    mov $0x5A, %al
    mov $300, %cx
    cld
    rep stosb
    pop %es
    mov %di, %ax
    mov %ax, %es:20
    mov %cr0, %eax
    or $1, %al
    mov %eax, %cr0
    ljmpl $0x18, $back_in_protected
isr:
    mov $0xBEEF, %ax
    iret
    .global low_code_end
low_code_end:

/* Virtual-8086 code, copied to 0x8000; entered with CS = 0x800. */
    .global v86_code
v86_code:
    mov $0x1000, %ax
    mov %ax, %ds
    movw $0x4321, 0                     /* 1000:0 */
    cli                                 /* IOPL 3: allowed */
    pushf
    pop %ax
    mov %ax, 2
    int $0x21                           /* to the protected-mode handler: IOPL 3, no VME redirection */
    mov %ax, 4
    hlt                                 /* #GP: privileged */
    .global v86_code_end
v86_code_end:
    .code32

/* A task that counts and returns by IRET (nested), then is switched to again and goes on behind it. */
    .global task_code
task_code:
1:  incl task_runs
    str %ax
    mov %ax, task_tr
    iret
    jmp 1b

    .section .note.GNU-stack, "", @progbits
