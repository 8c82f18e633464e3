/*
 * A boot sector: says on the BIOS's screen which drive it came from, reads the sector after it with the BIOS's help and prints
 * what that says, waits for a key and shows it, then for half a second by the BIOS's clock, and powers off.
 */
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
    mov %dl, drive
    mov %dl, %al
    shr $4, %al
    add $'0', %al
    mov %al, number
    mov $hello, %si
    call print
    mov $0x42, %ah          /* extended read */
    mov drive, %dl
    mov $packet, %si
    int $0x13
    jc end
    mov $0x8000, %si
    call print
end:
    xor %ah, %ah            /* read a key */
    int $0x16
    mov %al, key
    mov $pressed, %si
    call print
    cmpb $'q', key
    jne end
    mov $0x86, %ah          /* wait CX:DX microseconds */
    mov $0x07, %cx
    mov $0xa120, %dx
    int $0x15
    mov $0x604, %dx         /* off, by the sleep type that QEMU has, too */
    mov $0x2000, %ax
    out %ax, %dx
    hlt
print:
    lodsb
    test %al, %al
    jz 1f
    mov $0x0e, %ah          /* teletype output */
    mov $7, %bx
    int $0x10
    jmp print
1:  ret
drive: .byte 0
hello: .ascii "drive "
number: .ascii "?0\r\n\0"
pressed: .ascii "key "
key: .ascii "?\r\n\0"
    .align 4
packet: .byte 16, 0         /* one sector, the second, to 0000:8000 */
    .word 1, 0x8000, 0
    .quad 1
    .org 510
    .word 0xaa55
    .asciz "the second sector was read\r\n"
    .org 1024
