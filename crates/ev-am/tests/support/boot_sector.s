# A guest in one sector, for tests: BIOS boots it, and it obeys single characters on the first serial port.
#   it says "READY" first; r: reads sector 1 and says its first character; w: adds one to that character and writes it;
#   s: switches the machine off (q35's ACPI registers); anything else: says it back. '!' means that the disk failed.
    .code16
    .globl  start
start:
    xor     %ax, %ax
    mov     %ax, %ds
    mov     %ax, %es
    mov     %ax, %ss
    mov     $0x7000, %sp
    mov     %dl, drive
    mov     $message, %si
1:  lodsb
    test    %al, %al
    jz      next
    call    say
    jmp     1b

next:
    mov     $0x3fd, %dx
2:  in      %dx, %al
    test    $1, %al
    jz      2b
    mov     $0x3f8, %dx
    in      %dx, %al
    cmp     $'s', %al
    je      off
    cmp     $'r', %al
    je      read
    cmp     $'w', %al
    je      write
answer:
    call    say
    jmp     next

write:
    mov     $0x42, %ah
    call    disk
    incb    0x8000
    mov     $0x43, %ah
    call    disk
    jmp     shown
read:
    mov     $0x42, %ah
    call    disk
shown:
    mov     0x8000, %al
    jmp     answer

disk:
    mov     $packet, %si
    mov     drive, %dl
    xor     %al, %al
    int     $0x13
    jc      failed
    ret
failed:
    pop     %ax
    mov     $'!', %al
    jmp     answer

off:
    mov     $0x604, %dx
    mov     $0x2000, %ax
    out     %ax, %dx
    jmp     next

say:
    push    %dx
    push    %ax
    mov     $0x3fd, %dx
3:  in      %dx, %al
    test    $0x20, %al
    jz      3b
    pop     %ax
    mov     $0x3f8, %dx
    out     %al, %dx
    pop     %dx
    ret

drive:
    .byte   0
message:
    .asciz  "READY\n"
    .balign 4
packet:                         # INT 13h extensions: one sector, to 0000:8000, sector 1
    .byte   16, 0
    .word   1
    .word   0x8000, 0
    .quad   1
    .org    510
    .word   0xaa55
