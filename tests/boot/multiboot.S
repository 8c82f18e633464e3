/*
 * A Multiboot kernel that prints its command line and its first module to port 0xE9 and ends the run through the debug-exit
 * port with 0x21; with 0x7F if it was not started as the specification says.
 */
.code32
.text
.align 4
.long 0x1BADB002, 3, -(0x1BADB002 + 3)

.globl _start
_start:
    mov $0x7F, %ecx
    cmp $0x2BADB002, %eax
    jne end
    mov 16(%ebx), %esi          /* cmdline */
    call print
    cmpl $1, 20(%ebx)           /* mods_count */
    jne end
    mov 24(%ebx), %edi          /* mods_addr */
    mov 8(%edi), %esi           /* string */
    call print
    mov (%edi), %esi            /* start to end */
1:  cmp 4(%edi), %esi
    jae 2f
    lodsb
    outb %al, $0xE9
    jmp 1b
2:  mov $0x21, %ecx
end:
    mov %ecx, %eax
    mov $0xF4, %edx
    outl %eax, %dx
3:  hlt
    jmp 3b

/* The string at ESI, and a line end. */
print:
    lodsb
    test %al, %al
    jz 4f
    outb %al, $0xE9
    jmp print
4:  mov $10, %al
    outb %al, $0xE9
    ret
