# A guest for tests of the control socket, started in real mode by --boot flat=0x7c00: prints '>', echoes what is typed, and powers off when
# the power button is pressed. Typed 'i': from then on it ignores the button. 'q': powers off.
    .code16
    .globl _start
_start:
    xor %bx, %bx
    mov $'>', %al
    call put
again:
    pause
    mov $0x3FD, %dx             # UART: line status, bit 0: a byte has come
    in %dx, %al
    test $1, %al
    jz button
    mov $0x3F8, %dx
    in %dx, %al
    call put
    cmp $'q', %al
    je off
    cmp $'i', %al
    jne button
    mov $1, %bx
button:
    test %bx, %bx
    jnz again
    mov $0x600, %dx             # ACPI PM1 status, bit 8: the power button
    in %dx, %ax
    test $0x100, %ax
    jz again
off:
    mov $0x604, %dx             # ACPI PM1 control: SLP_TYP 5, SLP_EN
    mov $0x3400, %ax
    out %ax, %dx
halt:
    hlt
    jmp halt

put:                            # AL to the UART, once it is ready
    push %ax
    mov $0x3FD, %dx
wait:
    in %dx, %al
    test $0x20, %al
    jz wait
    pop %ax
    mov $0x3F8, %dx
    out %al, %dx
    ret
