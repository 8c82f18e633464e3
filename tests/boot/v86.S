/*
 * A boot sector and what follows it: reads the rest by the BIOS's help, enters protected mode and runs a task in virtual-8086 mode under a
 * small monitor (SDM3 §21.2), which reflects every interrupt, the BIOS's calls and the clock's, to the real-mode handlers
 * (§21.3). The task prints, waits for the clock and halts; the monitor goes back to real mode, tells how many it reflected, and powers off.
 */
    .set CODE, 0x08             # selectors
    .set DATA, 0x10
    .set TASK, 0x18
    .set CODE16, 0x20
    .set DATA16, 0x28
    .set IDT, 0x10000
    .set MONITOR_STACK, 0x18000
    .set TSS, 0x20000           # 104 bytes, and a bitmap that allows all ports
    .set TSS_SIZE, 104 + 8192 + 1
    .set TASK_STACK, 0x7000
    .set VM_FLAGS, 0x23202      # VM, IOPL 3, IF
    .set GENERAL_PROTECTION, 13
    .set HLT, 0xF4

    .code16
    .globl _start
_start:
    cli
    xor %ax, %ax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %ss
    mov $0x7c00, %sp
    sti
    mov $0x42, %ah              # extended read
    mov $packet, %si
    int $0x13
    jc dead
    mov $in_real_mode, %si
    call print
    cli
    lgdt gdt_pointer
    mov %cr0, %eax
    or $1, %al
    mov %eax, %cr0
    ljmpl $CODE, $protected
dead:
    hlt
    jmp dead
print:
    lodsb
    test %al, %al
    jz 1f
    mov $0x0e, %ah              # teletype output
    mov $7, %bx
    int $0x10
    jmp print
1:  ret
    .align 4
packet: .byte 16, 0             # the 15 sectors after this one, to 0000:7e00
    .word 15, 0x7e00, 0
    .quad 1
in_real_mode: .asciz "in real mode\r\n"
    .org 510
    .word 0xaa55

    .code32
protected:
    mov $DATA, %ax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %ss
    mov $MONITOR_STACK, %esp
    mov $IDT, %edi              # a gate for each vector: interrupt gate, of privilege 3
    mov $stubs, %eax
    mov $256, %ecx
1:  mov %ax, (%edi)
    movl $CODE, 2(%edi)
    movb $0xEE, 5(%edi)
    movw $0, 6(%edi)
    add $8, %edi
    add $16, %eax
    loop 1b
    lidt idt_pointer
    mov $TSS, %edi
    xor %eax, %eax
    mov $(TSS_SIZE / 4), %ecx
    rep stosl
    movb $0xFF, TSS + TSS_SIZE - 1
    movl $MONITOR_STACK, TSS + 4
    movl $DATA, TSS + 8
    movw $104, TSS + 102
    mov $TASK, %ax
    ltr %ax
    pushl $0                    # GS, FS, DS, ES
    pushl $0
    pushl $0
    pushl $0
    pushl $0                    # SS:ESP
    pushl $TASK_STACK
    pushl $VM_FLAGS
    pushl $0                    # CS:EIP
    pushl $task
    iret

    .align 16
stubs:
    .set vector, 0
    .rept 256
    .align 16
    pushl $vector
    jmp reflect
    .set vector, vector + 1
    .endr

/* On the stack: the vector, EIP, CS, EFLAGS, ESP, SS of the task. */
reflect:
    cmpl $GENERAL_PROTECTION, (%esp)
    je fault
    pushal
    mov $DATA, %ax
    mov %ax, %ds
    incw reflected
    movzwl 52(%esp), %ecx
    shl $4, %ecx
    subw $6, 48(%esp)
    movzwl 48(%esp), %ebx
    mov 36(%esp), %ax
    mov %ax, (%ecx, %ebx)
    mov 40(%esp), %ax
    mov %ax, 2(%ecx, %ebx)
    mov 44(%esp), %ax
    mov %ax, 4(%ecx, %ebx)
    andl $~0x300, 44(%esp)      # IF, TF
    mov 32(%esp), %eax
    movzwl (, %eax, 4), %ebx
    mov %ebx, 36(%esp)
    movzwl 2(, %eax, 4), %ebx
    mov %ebx, 40(%esp)
    popal
    add $4, %esp
    iret

/* The vector, the error code, EIP, CS. HLT, which is privileged, is how the task ends. */
fault:
    mov $DATA, %ax
    mov %ax, %ds
    mov 8(%esp), %eax
    movzwl 12(%esp), %ebx
    shl $4, %ebx
    cmpb $HLT, (%eax, %ebx)
    sete halted
    ljmp $CODE16, $leave

    .code16
leave:
    mov $DATA16, %ax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %ss
    lidt real_idt_pointer
    mov %cr0, %eax
    and $~1, %al
    mov %eax, %cr0
    ljmp $0, $1f
1:  xor %ax, %ax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %ss
    mov $0x7c00, %sp
    sti
    mov $4, %cx                 # the number in hexadecimal
    mov $digits, %di
1:  rolw $4, reflected
    mov reflected, %al
    and $15, %al
    cmp $10, %al
    sbb $0x69, %al
    das
    stosb
    loop 1b
    mov $unexpected, %si
    testb $1, halted
    jz 1f
    mov $back, %si
1:  call print
    mov $0x86, %ah              # wait CX:DX microseconds: until the serial line has it all
    mov $0x07, %cx
    mov $0xa120, %dx
    int $0x15
    mov $0x604, %dx             # S5
    mov $0x3400, %ax
    out %ax, %dx
    jmp dead

/* In virtual-8086 mode. */
task:
    smsw %ax
    test $1, %al
    jz 1f
    mov $in_v86, %si
    call print
1:  xor %ah, %ah                # the clock's ticks
    int $0x1a
    mov %dx, %bp
2:  xor %ah, %ah
    int $0x1a
    cmp %dx, %bp
    je 2b
    mov $ticked, %si
    call print
    hlt

in_v86: .asciz "in virtual-8086 mode\r\n"
ticked: .asciz "the clock ticked\r\n"
unexpected: .asciz "unexpected fault\r\n"
back: .ascii "back in real mode, reflected "
digits: .asciz "????\r\n"
reflected: .word 0
halted: .byte 0
    .align 8
gdt:
    .quad 0
    .quad 0x00CF9A000000FFFF    # flat code, data
    .quad 0x00CF92000000FFFF
    .word TSS_SIZE - 1, 0       # the TSS
    .byte TSS >> 16, 0x89, 0, 0
    .quad 0x00009A000000FFFF    # 16-bit code, data
    .quad 0x000092000000FFFF
gdt_pointer:
    .word . - gdt - 1
    .long gdt
idt_pointer:
    .word 256 * 8 - 1
    .long IDT
real_idt_pointer:
    .word 0x3FF
    .long 0
    .org 16 * 512
