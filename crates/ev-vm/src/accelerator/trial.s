# The trial guest: what an ordinary guest's kernel does first, in under a kilobyte. A Multiboot (version 1) kernel for QEMU's
# -kernel. It names each stage that it has passed on the debug console (port 0xe9) and, at the end, ends QEMU through
# isa-debug-exit (port 0xf4) with a value that nothing else produces.
#
# Stages: P protected mode (as the boot loader left it), L long mode with 4-level paging, F an exception was delivered
# and returned from, M a page table was changed and the change was seen, U user mode was entered and left by a page
# fault and by SYSCALL, T the local APIC's timer interrupted a loop.
#
# The bytes in src/accelerator/payload.rs are made of it by (a test compares them where `as` is installed):
#   as --64 -o trial.o trial.s && ld -m elf_x86_64 --oformat binary -Ttext 0x100000 -e start -o trial.bin trial.o

    .set    LOAD, 0x100000
    .set    PML4, 0x200000          # page tables: PML4, PDPT, PD (identity, 2 MiB pages), PT (for 0x40000000)
    .set    PDPT, 0x201000
    .set    PD0,  0x202000
    .set    PD1,  0x203000
    .set    PT1,  0x204000
    .set    IDT,  0x205000
    .set    PAGE_A, 0x206000
    .set    PAGE_B, 0x207000
    .set    PD3,  0x208000
    .set    USER_STACK, 0x20a000
    .set    TSS,  0x20b000
    .set    STACK, 0x210000
    .set    WINDOW, 0x40000000      # mapped with a 4 KiB page to PAGE_A, then to PAGE_B
    .set    SUCCESS, 0x2a

    .code32
    .globl  start
header:
    .long   0x1badb002              # magic
    .long   0x00010000              # flags: the address fields below are valid
    .long   -(0x1badb002 + 0x00010000)
    .long   header                  # header, load, end of data, end of bss, entry
    .long   header
    .long   end
    .long   end
    .long   start

start:
    cli
    mov     $STACK, %esp
    mov     $'P', %al
    out     %al, $0xe9

    # Page tables: clear, then identity-map the first GiB in 2 MiB pages, all accessible to user mode.
    mov     $PML4, %edi
    xor     %eax, %eax
    mov     $(STACK - PML4) / 4, %ecx
    rep     stosl
    movl    $PDPT + 7, PML4
    movl    $PD0 + 7, PDPT
    movl    $PD1 + 7, PDPT + 8
    movl    $PT1 + 7, PD1
    movl    $PAGE_A + 7, PT1
    mov     $PD0, %edi
    mov     $0x87, %eax
1:  mov     %eax, (%edi)
    add     $0x200000, %eax
    add     $8, %edi
    cmp     $PD0 + 4096, %edi
    jne     1b
    # The local APIC's registers lie at 0xfee00000: one uncached 2 MiB page.
    movl    $PD3 + 7, PDPT + 24
    movl    $0xfee00000 + 0x9b, PD3 + 503 * 8

    mov     %cr4, %eax
    or      $0x620, %eax            # PAE, OSFXSR, OSXMMEXCPT
    mov     %eax, %cr4
    mov     $PML4, %eax
    mov     %eax, %cr3
    mov     $0xc0000080, %ecx       # EFER: LME, SCE, NXE
    rdmsr
    or      $0x901, %eax
    wrmsr
    mov     %cr0, %eax
    and     $0xfffffffb, %eax       # no emulation
    or      $0x80010002, %eax       # PG, WP, MP
    mov     %eax, %cr0
    lgdt    gdt_pointer
    ljmp    $0x08, $long_mode

    .code64
long_mode:
    mov     $0x10, %eax
    mov     %eax, %ds
    mov     %eax, %es
    mov     %eax, %ss
    mov     $STACK, %rsp
    mov     $'L', %al
    out     %al, $0xe9

    # Handlers: 6 invalid opcode, 14 page fault, 0x40 timer, 0xff spurious; anything else ends in a triple fault.
    lidt    idt_pointer(%rip)
    mov     $6, %edi
    lea     on_invalid_opcode(%rip), %rsi
    call    set_handler
    mov     $14, %edi
    lea     on_page_fault(%rip), %rsi
    call    set_handler
    mov     $0x40, %edi
    lea     on_timer(%rip), %rsi
    call    set_handler
    mov     $0xff, %edi
    lea     on_spurious(%rip), %rsi
    call    set_handler
    movq    $STACK, TSS + 4         # stack for entries from user mode
    mov     $0x28, %eax
    ltr     %ax

    # F: an exception, and return past the instruction that raised it. SSE state lives through it.
    movabs  $0x123456789abcdef0, %rax
    movq    %rax, %xmm3
    xor     %ebx, %ebx
    ud2
    cmp     $6, %ebx
    jne     fail
    movq    %xmm3, %rcx
    cmp     %rax, %rcx
    jne     fail
    mov     $'F', %al
    out     %al, $0xe9

    # M: the same linear address shows two pages in turn.
    movl    $0x1111, PAGE_A
    movl    $0x2222, PAGE_B
    cmpl    $0x1111, WINDOW
    jne     fail
    movl    $PAGE_B + 7, PT1
    invlpg  WINDOW
    cmpl    $0x2222, WINDOW
    jne     fail
    movl    $0, PT1                 # not present: the page fault handler maps PAGE_A again
    invlpg  WINDOW
    xor     %ebx, %ebx
    cmpl    $0x1111, WINDOW
    jne     fail
    cmp     $14, %ebx
    jne     fail
    mov     $'M', %al
    out     %al, $0xe9

    # U: user mode, a page fault in it, SYSCALL back.
    mov     $0xc0000081, %ecx       # STAR: kernel 0x08, user base 0x10 (SS 0x1b, CS 0x23)
    xor     %eax, %eax
    mov     $0x00100008, %edx
    wrmsr
    mov     $0xc0000082, %ecx       # LSTAR
    lea     on_syscall(%rip), %rax
    xor     %edx, %edx
    wrmsr
    mov     $0xc0000084, %ecx       # SFMASK: interrupts off
    mov     $0x200, %eax
    xor     %edx, %edx
    wrmsr
    movl    $0, PT1
    invlpg  WINDOW
    xor     %ebx, %ebx
    pushq   $0x1b
    pushq   $USER_STACK
    pushq   $0x2
    pushq   $0x23
    lea     user(%rip), %rax
    push    %rax
    iretq
user:
    cmpl    $0x1111, WINDOW         # page fault, from user mode
    jne     2f
    mov     $0x600d, %edx
2:  syscall
    ud2
on_syscall:
    mov     $STACK, %rsp
    cmp     $0x600d, %edx
    jne     fail
    cmp     $14, %ebx
    jne     fail
    mov     $'U', %al
    out     %al, $0xe9

    # T: a timer interrupt ends a loop that otherwise does not end. The BIOS left the old interrupt controllers on,
    # whose clock must not come in between.
    mov     $0xff, %al
    out     %al, $0x21
    out     %al, $0xa1
    mov     $0xfee00000, %eax
    mov     %eax, %edi
    movl    $0x1ff, 0xf0(%rdi)      # enable, spurious vector 0xff
    movl    $0x0b, 0x3e0(%rdi)      # divide by 1
    movl    $0x40, 0x320(%rdi)      # one shot, vector 0x40
    xor     %ebx, %ebx
    movl    $100000, 0x380(%rdi)
    sti
3:  cmp     $0x40, %ebx
    jne     3b
    cli
    mov     $'T', %al
    out     %al, $0xe9

    mov     $SUCCESS, %eax
    out     %eax, $0xf4
fail:
    mov     $1, %eax
    out     %eax, $0xf4
4:  hlt
    jmp     4b

# Makes interrupt gate %edi lead to %rsi.
set_handler:
    shl     $4, %edi
    add     $IDT, %edi
    mov     %esi, %eax
    and     $0xffff, %eax
    or      $0x00080000, %eax
    mov     %eax, (%rdi)
    mov     %esi, %eax
    and     $0xffff0000, %eax
    or      $0x8e00, %eax
    mov     %eax, 4(%rdi)
    movq    $0, 8(%rdi)
    ret

on_invalid_opcode:
    mov     $6, %ebx
    addq    $2, (%rsp)
    iretq

on_page_fault:
    mov     $14, %ebx
    push    %rax
    mov     %cr2, %rax
    cmp     $WINDOW, %rax
    jne     fail
    movl    $PAGE_A + 7, PT1
    invlpg  WINDOW
    pop     %rax
    add     $8, %rsp                # the error code
    iretq

on_timer:
    mov     $0x40, %ebx
    movl    $0, 0xb0(%rdi)          # end of interrupt
    iretq

on_spurious:
    iretq

    .balign 8
gdt:
    .quad   0
    .quad   0x00af9b000000ffff      # 0x08 kernel code, 64 bit
    .quad   0x00cf93000000ffff      # 0x10 kernel data
    .quad   0x00cff3000000ffff      # 0x18 user data
    .quad   0x00affb000000ffff      # 0x20 user code, 64 bit
    .quad   0x0000890000000067 | ((TSS & 0xffffff) << 16)
    .quad   0
gdt_pointer:
    .word   gdt_pointer - gdt - 1
    .quad   gdt
idt_pointer:
    .word   0xfff
    .quad   IDT
end:
