# Where SIPI starts an application processor: real mode, then long mode in one step. Copied to a
# page below 1 MiB, so position independent up to the far jump.

        .set KERNEL_CODE, 0x08
        .set KERNEL_DATA, 0x10
        .set AP_STACK_SHIFT, 14

        .section .rodata
        .globl ap_trampoline, ap_trampoline_end
        .code16
ap_trampoline:
        cli
        cld
        movw    %cs, %ax
        movw    %ax, %ds
        lgdtl   ap_gdt_pointer - ap_trampoline
        movl    $0x620, %eax            # PAE, OSFXSR, OSXMMEXCPT
        movl    %eax, %cr4
        movl    $pml4, %eax
        movl    %eax, %cr3
        movl    $0xC0000080, %ecx       # EFER: SCE, LME, NXE
        rdmsr
        orl     $0x901, %eax
        wrmsr
        movl    $0x80010023, %eax       # PG, WP, NE, MP, PE
        movl    %eax, %cr0
        ljmpl   $KERNEL_CODE, $ap_start64
ap_gdt_pointer:
        .word   0x37
        .long   gdt
ap_trampoline_end:

        .text
        .code64
ap_start64:
        movl    $KERNEL_DATA, %eax
        movl    %eax, %ds
        movl    %eax, %es
        movl    %eax, %ss
        xorl    %eax, %eax
        movl    %eax, %fs
        movl    %eax, %gs
        movl    $1, %eax
        cpuid
        shrl    $24, %ebx               # the APIC id: 1 and up
        movl    %ebx, %edi
        movl    %ebx, %esp
        shll    $AP_STACK_SHIFT, %esp
        addl    $ap_stacks, %esp
        call    ap_main
1:      cli
        hlt
        jmp     1b

# mov eax, imm32; ret: modified while others run it.
        .globl changing_function
        .balign 4096
changing_function:
        movl    $0, %eax
        ret
        .balign 4096

        .bss
        .balign 4096
ap_stacks:
        .skip   7 << AP_STACK_SHIFT
