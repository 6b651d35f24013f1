# The way into a guest and out of it by VMRUN.

        .text
# void enter(std::uint64_t vmcb, std::uint64_t rbx, std::uint64_t rcx): one VMRUN. RAX and RSP of
# the guest are in the VMCB, what it leaves in the other registers nobody needs.
        .globl enter
enter:
        pushq   %rbx
        pushq   %rbp
        pushq   %r12
        pushq   %r13
        pushq   %r14
        pushq   %r15
        movq    %rdi, %rax
        movq    %rsi, %rbx
        movq    %rdx, %rcx
        vmrun   %rax
        popq    %r15
        popq    %r14
        popq    %r13
        popq    %r12
        popq    %rbp
        popq    %rbx
        ret


        .section .note.GNU-stack, "", @progbits
