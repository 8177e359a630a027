# A Multiboot kernel for tests: says "KERNEL ", its command line, and the first line of its first module on the first
# serial port.
    .code32
    .globl  start
header:
    .long   0x1badb002
    .long   0x00010000
    .long   -(0x1badb002 + 0x00010000)
    .long   header
    .long   header
    .long   end
    .long   end
    .long   start

start:                          # EBX: Multiboot information; +16 command line, +20 modules' count, +24 modules
    mov     $0x200000, %esp
    mov     $name, %esi
    call    say
    mov     16(%ebx), %esi
    call    say
    mov     $space, %esi
    call    say
    cmpl    $0, 20(%ebx)
    je      done
    mov     24(%ebx), %esi
    mov     (%esi), %esi
    call    say
done:
    mov     $line, %esi
    call    say
1:  hlt
    jmp     1b

say:
    lodsb
    cmp     $10, %al
    jbe     3f
    mov     %al, %cl
    mov     $0x3fd, %dx
2:  in      %dx, %al
    test    $0x20, %al
    jz      2b
    mov     %cl, %al
    mov     $0x3f8, %dx
    out     %al, %dx
    jmp     say
3:  ret

name:
    .asciz  "KERNEL "
space:
    .asciz  " "
line:
    .asciz  "END"
end:
