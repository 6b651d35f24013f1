// What lower_system() is made of: one lowerer for each topic. Each returns false if the instruction
// is not one of its own, or not one that the model has.
#pragma once

#include "engines/interp/lower.hpp"

namespace strata::interp {

bool lower_segments(Lowering& l);           ///< segment registers: MOV, PUSH, POP, LDS..., bases
bool lower_descriptor_tables(Lowering& l);  ///< LGDT, SGDT, LLDT, LTR, LAR, LSL, VERR, ARPL...
bool lower_far_transfers(Lowering& l);      ///< far CALL, JMP and RET, IRET, INT n
bool lower_control_registers(Lowering& l);  ///< MOV CR and DR, LMSW, SMSW, CLTS, INVLPG, INVPCID
bool lower_msrs(Lowering& l);               ///< RDMSR, WRMSR, RDTSC, RDTSCP, RDPID, RDPMC, CPUID
bool lower_syscalls(Lowering& l);           ///< SYSCALL, SYSENTER and their returns, SWAPGS
bool lower_ports(Lowering& l);              ///< IN, OUT, INS, OUTS
bool lower_flags(Lowering& l);              ///< PUSHF, POPF, CLI, STI, CLAC, STAC
bool lower_processor(Lowering& l);          ///< HLT, WBINVD, VMCALL

/// Size in bytes of the instruction's operands: 2, 4 or 8.
[[nodiscard]] inline std::uint8_t operand_bytes(const Lowering& l) noexcept {
  return static_cast<std::uint8_t>(l.insn.operand_width / 8);
}
[[nodiscard]] inline bool is_register(const ZydisDecodedOperand& op) noexcept {
  return op.type == ZYDIS_OPERAND_TYPE_REGISTER;
}
[[nodiscard]] inline bool is_memory(const ZydisDecodedOperand& op) noexcept {
  return op.type == ZYDIS_OPERAND_TYPE_MEMORY;
}
/// A step of an instruction with one r/m operand: aux its size in bytes, aux2 whether it is a
/// register, which is then in src and dst.
[[nodiscard]] inline Uop rm_step(const Lowering& l, Handler fn) {
  Uop u = l.step(fn);
  u.aux = operand_bytes(l);
  u.aux2 = is_register(l.ops[0]) ? 1 : 0;
  if (u.aux2 != 0) u.src = u.dst = Lowering::reg_offset(l.ops[0].reg.value);
  return u;
}
/// Emits one step that goes through the run loop, as anything that changes modes must.
inline bool emit_last(Lowering& l, const Uop& u) {
  l.emit(u);
  l.end_block();
  return true;
}

}  // namespace strata::interp
