# Interrupt handlers of a PC's BIOS, in real mode, without the services of one: see bios.hpp.
# Runs at F000:kBiosRomEntry; position independent.

        .set BDA_SEGMENT, 0x40
        .set TICKS_LOW, 0x6C            # since midnight, in PIT periods of 65536 counts
        .set TICKS_HIGH, 0x6E
        .set DAYS, 0x70
        .set TICKS_A_DAY, 0x1800B0
        .set TICK_HOOK, 0x1C            # the vector of programs that want to be called each tick
        .set PIC_MASTER, 0x20
        .set PIC_SLAVE, 0xA0
        .set EOI, 0x20
        .set UNSUPPORTED, 0x86

        .section .rodata.bios, "a"
        .globl strata_bios_begin, strata_bios_end
        .globl strata_bios_tick, strata_bios_irq_master, strata_bios_irq_slave
        .globl strata_bios_unsupported, strata_bios_iret
        .code16
strata_bios_begin:
strata_bios_tick:
        pushw   %ds
        pushw   %ax
        pushw   %dx                     # the hook may change these three
        movw    $BDA_SEGMENT, %ax
        movw    %ax, %ds
        incw    TICKS_LOW
        jnz     1f
        incw    TICKS_HIGH
1:      cmpw    $(TICKS_A_DAY >> 16), TICKS_HIGH
        jne     2f
        cmpw    $(TICKS_A_DAY & 0xFFFF), TICKS_LOW
        jne     2f
        movw    $0, TICKS_LOW
        movw    $0, TICKS_HIGH
        incb    DAYS
2:      int     $TICK_HOOK
        popw    %dx
        popw    %ax
        popw    %ds
        # The tick itself still has to be ended.
strata_bios_irq_master:
        pushw   %ax
        movb    $EOI, %al
        jmp     3f
strata_bios_irq_slave:
        pushw   %ax
        movb    $EOI, %al
        outb    %al, $PIC_SLAVE
3:      outb    %al, $PIC_MASTER
        popw    %ax
strata_bios_iret:
        iretw

# Carry set in the flags that IRET restores, and AH: "function not supported".
strata_bios_unsupported:
        pushw   %bp
        movw    %sp, %bp
        orb     $1, 6(%bp)
        popw    %bp
        movb    $UNSUPPORTED, %ah
        iretw
strata_bios_end:

        .section .note.GNU-stack, "", @progbits
