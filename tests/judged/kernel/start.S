# Entry by PVH (or by rom.S) in 32-bit protected mode, and the way to long mode.

        .section .note.Xen, "a", @note
        .balign 4
        .long 4                         # name size
        .long 4                         # descriptor size
        .long 18                        # XEN_ELFNOTE_PHYS32_ENTRY
        .asciz "Xen"
        .long _start

        .section .text.start, "ax"
        .code32
        .globl _start
_start:
        cld
        movl    $stack_end, %esp
        # Identity map of 4 GiB by 2 MiB pages.
        movl    $pdpt + 3, pml4
        movl    $page_directories + 3, %eax
        movl    $pdpt, %edi
        movl    $4, %ecx
1:      movl    %eax, (%edi)
        addl    $4096, %eax
        addl    $8, %edi
        loop    1b
        movl    $0x83, %eax             # present, writable, large
        movl    $page_directories, %edi
        movl    $2048, %ecx
2:      movl    %eax, (%edi)
        addl    $0x200000, %eax
        addl    $8, %edi
        loop    2b
        movl    $0x20, %eax             # PAE
        movl    %eax, %cr4
        movl    $pml4, %eax
        movl    %eax, %cr3
        movl    $0xC0000080, %ecx       # EFER: LME, NXE; the kernel adds SVME
        rdmsr
        orl     $0x900, %eax
        wrmsr
        movl    $0x80010033, %eax       # PG, WP, NE, ET, MP, PE
        movl    %eax, %cr0
        lgdt    gdt_pointer
        ljmp    $0x08, $start64

        .code64
start64:
        movl    $0x10, %eax
        movl    %eax, %ds
        movl    %eax, %es
        movl    %eax, %ss
        call    judge_main
3:      hlt
        jmp     3b

        .section .rodata
        .balign 8
gdt:    .quad 0
        .quad 0x00AF9B000000FFFF        # 64-bit code
        .quad 0x00CF93000000FFFF        # data
        .quad 0x00008B0000000067, 0     # a TSS that nobody uses
gdt_pointer:
        .word . - gdt - 1
        .quad gdt

        .bss
        .balign 4096
pml4:   .skip 4096
pdpt:   .skip 4096
page_directories:
        .skip 4 * 4096
        .skip 16384
stack_end:

        .section .note.GNU-stack, "", @progbits
