# A machine's whole firmware (the last 64 KiB below 1 MiB): two processors, each of which writes words to random places of its own
# 256 KiB (the first one from 0x10000 on, the second one from 0x50000 on), for ever, with pauses, so that each look finds some pages
# written and others not. It never leaves real mode, so it runs wherever KVM accepts a VM at all.
#   as --32 -o x.o bios_writer.s && ld -m elf_i386 --oformat binary -Ttext 0 -e start -o bios.bin x.o

    .set    APIC_BASE, 0x1b
    .set    IS_FIRST, 1 << 8
    .set    X2APIC, 3 << 10
    .set    INTERRUPT_COMMAND, 0x830
    # To all but the sender.
    .set    INIT, 0xc4500
    # Likewise: begin at 0xf0000, which is `start`.
    .set    START_UP, 0xc46f0

    .code16
    .globl  start
start:
    cli
    xor     %ax, %ax
    mov     %ax, %ss
    mov     $APIC_BASE, %ecx
    rdmsr
    mov     %eax, %ebp
    or      $X2APIC, %eax
    wrmsr
    mov     $0x5000, %bx
    test    $IS_FIRST, %ebp
    jz      begin
    mov     $0x1000, %bx
    mov     $INTERRUPT_COMMAND, %ecx
    xor     %edx, %edx
    mov     $INIT, %eax
    wrmsr
    mov     $START_UP, %eax
    wrmsr
begin:
    movzwl  %bx, %edx
next:
    imul    $1664525, %edx, %edx
    add     $1013904223, %edx
    # The segment: one of four from its first one on.
    mov     %edx, %eax
    shr     $17, %eax
    and     $0x3000, %ax
    add     %bx, %ax
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
