# The last 64 KiB below 4 GiB, where Bochs looks for firmware: from the reset vector straight into
# the kernel's 32-bit entry, once the kernel is where it belongs.

        .code16
        .text
reset:
        cli
        lgdtl   %cs:gdt_pointer
        movl    %cr0, %eax
        orl     $1, %eax
        movl    %eax, %cr0
        ljmpl   $0x08, $0xFFFF0000 + protected
        .code32
protected:
        movl    $0x10, %eax
        movl    %eax, %ds
        movl    %eax, %es
        movl    %eax, %ss
        cld
        movl    $0xFFE00000, %esi       # kRomBase
        movl    $0x1000000, %edi        # kKernel
        movl    $0x4000, %ecx           # kRomPages / 4
        rep movsl
        movl    $0x1000000, %eax
        jmp     *%eax

        .balign 8
gdt:    .quad 0
        .quad 0x00CF9B000000FFFF
        .quad 0x00CF93000000FFFF
gdt_pointer:
        .word . - gdt - 1
        .long 0xFFFF0000 + gdt

        .org 0xFFF0
        .code16
        jmp     reset
        .org 0xFFFF
        .byte 0
