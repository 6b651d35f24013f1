# A Multiboot kernel that goes back to real mode and looks at what a BIOS has left there. It ends
# with a byte at the debug-exit port: 2Ah, or the number of the check that failed.

        .set BASE, 0x8000               # where it is loaded
        .set TICKS, 0x46C
        .set DAYS, 0x470

        .section .rodata
        .globl bios_guest_begin, bios_guest_end
        .code32
bios_guest_begin:
        lgdtl   BASE + gdt_pointer - bios_guest_begin
        ljmpl   $8, $(BASE + protected16 - bios_guest_begin)
        .code16
protected16:
        movw    $0x10, %ax
        movw    %ax, %ds
        movw    %ax, %ss
        movl    %cr0, %eax
        andb    $0xFE, %al
        movl    %eax, %cr0
        ljmpw   $0, $(BASE + real - bios_guest_begin)
real:
        xorw    %ax, %ax
        movw    %ax, %ds
        movw    %ax, %ss
        movw    $BASE, %sp
        lidtl   BASE + vectors - bios_guest_begin
        sti

        # 1: the timer ticks, and goes on ticking; its handler keeps the registers.
        movw    $1, %bp
        movw    $0x1234, %dx
        movl    $2, %ecx
next_tick:
        movl    TICKS, %ebx
        movl    %ebx, %eax
wait_for_tick:
        hlt
        cmpl    %ebx, %eax
        jne     done
        cmpl    TICKS, %ebx
        je      wait_for_tick
        loopl   next_tick
        cmpw    $0x1234, %dx
        jne     done

        # 2: the program's hook is called in each tick.
        incw    %bp
        movl    $(BASE + hook - bios_guest_begin), 0x1C * 4
        hlt
        cmpb    $0x5A, BASE + hooked - bios_guest_begin
        jne     done

        # 3: a day ends.
        incw    %bp
        movl    $0x1800AF, TICKS
        hlt
        cmpl    $0, TICKS
        jne     done
        cmpb    $1, DAYS
        jne     done

        # 4: a call that there is not says so.
        incw    %bp
        movw    $0xE820, %ax
        clc
        int     $0x15
        jnc     done
        cmpb    $0x86, %ah
        jne     done

        # 5: an interrupt of the second 8259 is ended in both.
        incw    %bp
        movb    $0xFE, %al
        outb    %al, $0xA1              # the clock's input alone, IRQ 8
        movb    $0xFB, %al
        outb    %al, $0x21              # the cascade alone
        cli                             # it comes once: nobody reads the clock's register C
        movb    $0x0B, %al
        outb    %al, $0x70
        movb    $0x42, %al              # periodic interrupt, 24 hours
        outb    %al, $0x71
        sti
        hlt
        movb    $0x0B, %al              # read the in-service registers
        outb    %al, $0x20
        outb    %al, $0xA0
        inb     $0x20, %al
        testb   %al, %al
        jnz     done
        inb     $0xA0, %al
        testb   %al, %al
        jnz     done
        movw    $0x2A, %bp
done:
        movw    %bp, %ax
        outb    %al, $0xF4
        hlt

hook:
        movb    $0x5A, %cs:(BASE + hooked - bios_guest_begin)
        movw    $0, %ax                 # AX, DX and DS are the hook's to change
        movw    %ax, %dx
        movw    %ax, %ds
        iretw
hooked: .byte   0

        .balign 8
gdt:    .quad   0, 0x00009B000000FFFF, 0x000093000000FFFF
gdt_pointer:
        .word   23
        .long   BASE + gdt - bios_guest_begin
vectors:
        .word   0x3FF
        .long   0
bios_guest_end:

        .section .note.GNU-stack, "", @progbits
