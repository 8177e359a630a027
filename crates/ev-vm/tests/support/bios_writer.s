# A machine's whole firmware (the last 64 KiB below 1 MiB): writes words to random places from 0x10000 to 0x8ffff, for
# ever, with pauses, so that each look finds some pages written and others not. It never leaves real mode, so it runs
# wherever KVM accepts a VM at all.
#   as --32 -o x.o bios_writer.s && ld -m elf_i386 --oformat binary -Ttext 0 -e start -o bios.bin x.o

    .code16
    .globl  start
start:
    cli
    xor     %ax, %ax
    mov     %ax, %ss
    mov     $0x1234567, %edx
next:
    imul    $1664525, %edx, %edx
    add     $1013904223, %edx
    # The segment: 0x1000, 0x2000 … 0x8000.
    mov     %edx, %eax
    shr     $17, %eax
    and     $0x7000, %ax
    add     $0x1000, %ax
    mov     %ax, %es
    mov     %edx, %edi
    shr     $8, %edi
    and     $0xfffc, %edi
    mov     %edx, %es:(%di)
    mov     $20, %cx
wait:
    loop    wait
    jmp     next

    .org    0xfff0
    ljmp    $0xf000, $start
    .org    0x10000
