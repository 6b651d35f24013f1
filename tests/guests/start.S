# Entry by PVH in 32-bit protected mode, the way to long mode, and everything C++ can not say:
# trap entries, probes that may fault, the way to ring 3 and back.

        .section .note.Xen, "a", @note
        .balign 4
        .long 4                         # name size
        .long 4                         # descriptor size
        .long 18                        # XEN_ELFNOTE_PHYS32_ENTRY
        .asciz "Xen"
        .long _start

        .set KERNEL_CODE, 0x08
        .set KERNEL_DATA, 0x10
        .set USER_DATA, 0x20
        .set USER_CODE, 0x28
        .set TSS_SELECTOR, 0x30

        .section .text.start, "ax"
        .code32
        .globl _start
_start:
        cld
        movl    $boot_stack_end, %esp
        movl    %ebx, start_info_address
        # Identity map of 4 GiB: one PML4 entry, four PDPT entries, 2048 pages of 2 MiB.
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
        movl    %cr4, %eax
        orl     $0x620, %eax            # PAE, OSFXSR, OSXMMEXCPT
        movl    %eax, %cr4
        movl    $pml4, %eax
        movl    %eax, %cr3
        movl    $0xC0000080, %ecx       # EFER: SCE, LME, NXE
        rdmsr
        orl     $0x901, %eax
        wrmsr
        movl    %cr0, %eax
        andl    $0xFFFFFFFB, %eax       # not EM
        orl     $0x80010023, %eax       # PG, WP, NE, MP, PE
        movl    %eax, %cr0
        lgdt    gdt_pointer
        ljmp    $KERNEL_CODE, $start64

        .code64
start64:
        movl    $KERNEL_DATA, %eax
        movl    %eax, %ds
        movl    %eax, %es
        movl    %eax, %ss
        xorl    %eax, %eax
        movl    %eax, %fs
        movl    %eax, %gs
        movl    $boot_stack_end, %esp
        # The TSS descriptor's base, in three places.
        movl    $tss, %eax
        movw    %ax, gdt_tss + 2
        shrl    $16, %eax
        movb    %al, gdt_tss + 4
        movb    %ah, gdt_tss + 7
        movl    $trap_stack_end, %eax
        movq    %rax, tss + 4           # RSP0
        movl    $fault_stack_end, %eax
        movq    %rax, tss + 36          # IST1: double faults
        movl    $TSS_SELECTOR, %eax
        ltr     %ax
        movl    start_info_address, %edi
        call    guest_main
3:      cli
        hlt
        jmp     3b

        .text
# Trap entries: the error code (or 0) and the vector, then the registers as struct TrapFrame.
        .set vector, 0
        .balign 16
trap_stubs:
        .rept 256
        .balign 16
        .if vector == 8 || (vector >= 10 && vector <= 14) || vector == 17
        .else
        pushq   $0
        .endif
        pushq   $vector
        jmp     trap_common
        .set vector, vector + 1
        .endr

trap_common:
        pushq   %rax
        pushq   %rcx
        pushq   %rdx
        pushq   %rbx
        pushq   %rbp
        pushq   %rsi
        pushq   %rdi
        pushq   %r8
        pushq   %r9
        pushq   %r10
        pushq   %r11
        pushq   %r12
        pushq   %r13
        pushq   %r14
        pushq   %r15
        cld
        movq    %rsp, %rdi
        call    handle_trap
        popq    %r15
        popq    %r14
        popq    %r13
        popq    %r12
        popq    %r11
        popq    %r10
        popq    %r9
        popq    %r8
        popq    %rdi
        popq    %rsi
        popq    %rbp
        popq    %rbx
        popq    %rdx
        popq    %rcx
        popq    %rax
        addq    $16, %rsp               # vector, error code
        iretq

# Probes: RDI is the address. The trap handler resumes at probe_resume when one faults.
        .globl probe_read, probe_write, probe_read8, probe_execute, probe_divide, probe_undefined
        .globl probe_breakpoint, probe_general, probe_copy, probe_resume
probe_read:
        movb    (%rdi), %al
        ret
probe_read8:
        movq    (%rdi), %rax
        ret
probe_write:
        movb    $0x5A, (%rdi)
        ret
probe_execute:
        jmp     *%rdi                   # what is there returns to our caller
probe_divide:
        xorl    %edx, %edx
        xorl    %ecx, %ecx
        movl    $1, %eax
        divl    %ecx
        ret
probe_undefined:
        ud2
        ret
probe_breakpoint:
        int3
        ret
probe_general:
        movq    $0x8000000000000000, %rax
        movb    (%rax), %al             # not canonical
        ret
probe_copy:                             # RDI to, RSI from, RDX bytes; RAX: bytes left
        movq    %rdx, %rcx
        rep movsb
        movq    %rcx, %rax
        ret
probe_resume:
        movq    %rcx, %rax
        ret

# uint64_t enter_user(rip, rsp): runs ring 3 until it executes SYSCALL and returns its RAX; also
# the way back from an armed fault in ring 3.
        .globl enter_user, user_fault_resume, syscall_entry
enter_user:
        pushq   %rbx
        pushq   %rbp
        pushq   %r12
        pushq   %r13
        pushq   %r14
        pushq   %r15
        movq    %rsp, kernel_rsp
        movq    %rdi, %rcx
        movq    %rsi, %rsp
        movl    $2, %r11d
        sysretq
syscall_entry:
        movq    kernel_rsp, %rsp
user_fault_resume:
        popq    %r15
        popq    %r14
        popq    %r13
        popq    %r12
        popq    %rbp
        popq    %rbx
        ret

# Code that checks copy to a user page. Position independent.
        .globl user_syscall, user_syscall_end, user_read, user_read_end, user_int80, user_int80_end
        .globl user_privileged, user_privileged_end
user_syscall:
        movl    $20, %eax
        leal    22(%rax), %eax
        pushq   %rax
        popq    %rax
        syscall
user_syscall_end:
user_read:                              # reads a supervisor page (the image) from ring 3
        movabsq $0x100000, %rdx
        movb    (%rdx), %al
        syscall
user_read_end:
user_int80:
        movl    $0x1234, %eax
        int     $0x80                   # the handler adds one to RAX
        syscall
user_int80_end:
user_privileged:
        cli
        syscall
user_privileged_end:

# uint32_t sse_sum(a, b): whether vector registers hold what is put in.
        .globl sse_sum
sse_sum:
        movd    %edi, %xmm0
        movd    %esi, %xmm9
        paddd   %xmm9, %xmm0
        movd    %xmm0, %eax
        ret

        .section .rodata
        .balign 8
        .globl trap_stub_base
trap_stub_base:
        .quad trap_stubs

        .data
        .balign 16
        .globl gdt
gdt:
        .quad 0
        .quad 0x00AF9B000000FFFF        # 08 kernel code, 64-bit
        .quad 0x00CF93000000FFFF        # 10 kernel data
        .quad 0x00CFFB000000FFFF        # 18 user code, 32-bit: SYSRET's base
        .quad 0x00CFF3000000FFFF        # 20 user data
        .quad 0x00AFFB000000FFFF        # 28 user code, 64-bit
gdt_tss:
        .quad 0x0000890000000067        # 30 TSS, base filled in
        .quad 0
gdt_end:
        .globl gdt_pointer
gdt_pointer:
        .word gdt_end - gdt - 1
        .quad gdt

        .bss
        .balign 4096
        .globl pml4, kernel_rsp
pml4:   .skip 4096
pdpt:   .skip 4096
page_directories:
        .skip 4 * 4096
boot_stack:
        .skip 16384
boot_stack_end:
        .skip 16384
trap_stack_end:
        .skip 4096
fault_stack_end:
tss:    .skip 104
        .balign 8
kernel_rsp:
        .skip 8
start_info_address:
        .skip 8
