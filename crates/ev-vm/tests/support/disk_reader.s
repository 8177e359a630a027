# A boot sector that has the BIOS read the disk (virtio) into memory for ever: 64 sectors at a time, from each place of
# the disk to one of eight places in memory, so that QEMU's own device writes guest memory. Says 'r' each time it has
# read the whole disk.

    .set    SECTORS, 2048
    .set    COUNT, 64
    .set    COM1, 0x3f8

    .code16
    .globl  start
start:
    xor     %ax, %ax
    mov     %ax, %ds
    mov     %ax, %ss
    mov     $0x7c00, %sp
    mov     %dl, drive
    # The target: 0x10000, 0x18000 … 0x88000, shifted by 512 bytes each time the disk was read.
again:
    movl    $0, place
    addw    $32, shift
    andw    $0x7f, shift
next:
    mov     place, %ax
    shr     $6, %ax
    and     $0xf, %ax
    shl     $11, %ax
    add     $0x1000, %ax
    add     shift, %ax
    mov     %ax, segment
    mov     drive, %dl
    mov     $packet, %si
    mov     $0x42, %ah
    int     $0x13
    jc      failed
    addl    $COUNT, place
    cmpl    $SECTORS, place
    jb      next
    mov     $'r', %al
say:
    mov     $COM1, %dx
    out     %al, %dx
    jmp     again
failed:
    mov     $'E', %al
    jmp     say

drive:
    .byte   0
shift:
    .word   0
    .balign 4
packet:
    .byte   16, 0
    .word   COUNT
    .word   0
segment:
    .word   0
place:
    .long   0, 0

    .org    510
    .word   0xaa55
