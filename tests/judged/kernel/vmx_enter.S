# The way into a guest and out of it by VMLAUNCH.

        .text
# std::uint64_t enter(std::uint64_t rbx, std::uint64_t rcx): one VMLAUNCH of the current VMCS;
# returns the guest's RAX. HOST_RIP is `vm_exit`, HOST_RSP is set here.
        .globl enter
enter:
        pushq   %rbx
        pushq   %rbp
        pushq   %r12
        pushq   %r13
        pushq   %r14
        pushq   %r15
        movl    $0x6C14, %eax           # HOST_RSP
        vmwrite %rsp, %rax
        movq    %rdi, %rbx
        movq    %rsi, %rcx
        xorl    %eax, %eax
        vmlaunch
        movq    $-1, %rax               # refused
        .globl vm_exit
vm_exit:
        popq    %r15
        popq    %r14
        popq    %r13
        popq    %r12
        popq    %rbp
        popq    %rbx
        ret

        .section .note.GNU-stack, "", @progbits
