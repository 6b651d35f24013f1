#include "engines/bt/stubs.hpp"

#include <array>
#include <vector>

namespace strata::bt {
namespace {

constexpr std::array kCalleeSaved = {kRbx, kRbp, kR12, kR13, kR14, kR15};

class StubEmitter {
 public:
  StubEmitter(Assembler& a, interp::Core& core, NativeState& state, void* runtime, bool avx)
      : a_{a}, core_{core}, state_{state}, runtime_{runtime}, avx_{avx} {}

  /// System V: RDI holds the code to run. The stack is aligned for calls afterwards.
  std::uint64_t enter() {
    const std::uint64_t at = a_.here();
    for (const Reg r : kCalleeSaved) push(r);
    a_.alu_imm(5, kRsp, 8);
    a_.store(absolute(&state_.host_rsp), kRsp);
    a_.store(absolute(&state_.resume), kRdi);
    load_registers();
    a_.jmp(absolute(&state_.resume));
    return at;
  }

  std::uint64_t leave() {
    const std::uint64_t at = a_.here();
    return_slice();
    a_.load(kRsp, absolute(&state_.host_rsp));
    a_.alu_imm(0, kRsp, 8);
    for (auto r = kCalleeSaved.rbegin(); r != kCalleeSaved.rend(); ++r) pop(*r);
    a_.byte(0xC3);
    return at;
  }

  /// Behind a host fault's handler, which found an RSP that it could not return to.
  void fault(Stubs& s) {
    s.fault = a_.here();
    a_.load(kRsp, absolute(&state_.fault_rsp));
    s.fault_jump = a_.here();
    a_.jmp(absolute(&state_.fault_resume));
  }

  /// A far jump that is not linked for where it is: R9 the VA, R10 the jump.
  std::uint64_t far(std::uint64_t link_far) {
    const std::uint64_t at = a_.here();
    a_.store(absolute(&state_.target), kT1);
    std::vector<std::size_t> misses;
    emit_look_up(a_, state_, [&misses](std::size_t fixup) { misses.push_back(fixup); });
    emit_enter_found(a_, state_, kT0);
    for (const std::size_t fixup : misses) a_.bind(fixup);
    a_.load(kT1, absolute(&state_.target));
    a_.jmp(link_far);
    return at;
  }

  /// A block counted more than is left of the slice.
  std::uint64_t slice(std::uint64_t attention, std::uint64_t budget) {
    const std::uint64_t at = a_.here();
    a_.alu(0, kBudget, kT1);
    a_.alu_imm(7, absolute(&core_.attention_flags), 0, false);
    const std::size_t attend = a_.jcc_later(kNotEqual);
    return_slice();
    take_slice();
    a_.alu(7, kBudget, kT1);
    const std::size_t over = a_.jcc_later(kLess);
    a_.op_reg({0, 0xFF}, false, 4, kT2);  // JMP
    a_.bind(attend);
    a_.jmp(attention);
    a_.bind(over);
    a_.alu(5, kBudget, kT1);
    a_.jmp(budget);
    return at;
  }

  std::uint64_t call(StubFunction function) {
    const std::uint64_t at = a_.here();
    save_registers();
    a_.store(absolute(&state_.arg0), kT0);
    a_.load(kRsp, absolute(&state_.host_rsp));
    vector_state(true);
    a_.mov_imm(kRdi, reinterpret_cast<std::uint64_t>(runtime_));
    a_.mov(kRsi, kT0);
    a_.mov(kRdx, kT1);
    a_.mov_imm(kRax, reinterpret_cast<std::uint64_t>(function));
    a_.op_reg({0, 0xFF}, false, 2, kRax);
    a_.store(absolute(&state_.resume), kRax);
    vector_state(false);
    load_registers();
    a_.load(kT0, absolute(&state_.arg0));
    a_.jmp(absolute(&state_.resume));
    return at;
  }

 private:
  void push(Reg r) {
    if (r >= kR8) a_.byte(0x41);
    a_.byte(0x50 | (r & 7U));
  }
  void pop(Reg r) {
    if (r >= kR8) a_.byte(0x41);
    a_.byte(0x58 | (r & 7U));
  }
  void save_registers() {
    for (unsigned i = 0; i < 16; ++i) {
      if (!is_homed(i)) a_.store(absolute(&core_.r[i]), static_cast<Reg>(i));
    }
    return_slice();
  }
  void load_registers() {
    for (unsigned i = 0; i < 16; ++i) {
      if (!is_homed(i)) a_.load(static_cast<Reg>(i), absolute(&core_.r[i]));
    }
    take_slice();
  }

  void return_slice() { a_.op_mem({0, 0x01}, true, kBudget, absolute(&core_.budget)); }  // ADD
  /// None if somebody wants attention: a loop that called the VMM in each round would otherwise
  /// never be at the end of one.
  void take_slice() {
    const Mem budget = absolute(&core_.budget);
    a_.mov_imm32(kBudget, 0);
    a_.alu_imm(7, absolute(&core_.attention_flags), 0, false);
    const std::size_t attend = a_.jcc_later(kNotEqual);
    a_.mov_imm32(kBudget, kBudgetSlice);
    a_.bind(attend);
    a_.alu(7, kBudget, budget);
    a_.op_mem({1, 0x4F}, true, kBudget, budget);  // CMOVG
    a_.op_mem({0, 0x29}, true, kBudget, budget);  // SUB
  }

  /// C++ code uses the vector registers as it likes: saves the guest's if they are loaded, or
  /// loads them again if they still count as loaded. The guest's MXCSR must not round the VMM's
  /// arithmetic, nor collect its flags.
  void vector_state(bool save) {
    a_.alu_imm8(7, absolute(&state_.simd_live), 0);
    const std::size_t skip = a_.jcc_later(kEqual);
    if (save) {
      save_vectors();
    } else {
      load_vectors();
    }
    a_.bind(skip);
  }

  void save_vectors() {
    move_vectors(true, avx_);
    a_.op_mem({1, 0xAE}, false, 3, absolute(&core_.arch.vector.mxcsr));  // STMXCSR
    a_.op_mem({1, 0xAE}, false, 2, absolute(&state_.host_mxcsr));        // LDMXCSR
    if (!avx_) return;
    for (std::uint8_t i = 1; i < 16; ++i) {
      a_.vex_reg({.map = 1, .vvvv = i, .l = 1, .pp = 0, .code = 0x56}, 0, 0);  // VORPS
    }
    a_.vex_reg({.map = 3, .l = 1, .pp = 1, .code = 0x19}, 0, 0);  // VEXTRACTF128
    a_.byte(1);
    a_.vex_reg({.map = 2, .l = 0, .pp = 1, .code = 0x17}, 0, 0);     // VPTEST
    a_.op_mem({1, 0x95}, false, 0, absolute(&state_.upper_halves));  // SETNE
    zero_upper_halves();
  }

  /// What loads upper halves makes every SSE instruction wait for the register that it writes, as
  /// its upper half is to be kept. Where all are zero none is loaded.
  void load_vectors() {
    if (avx_) {
      a_.alu_imm8(7, absolute(&state_.upper_halves), 0);
      const std::size_t none = a_.jcc_later(kEqual);
      move_vectors(false, true);
      const std::size_t done = a_.jmp_later();
      a_.bind(none);
      zero_upper_halves();
      move_vectors(false, false);
      a_.bind(done);
    } else {
      move_vectors(false, false);
    }
    a_.op_mem({1, 0xAE}, false, 2, absolute(&core_.arch.vector.mxcsr));
  }

  void move_vectors(bool save, bool whole) {
    for (unsigned i = 0; i < 16; ++i) {
      const Mem m = absolute(core_.arch.vector.ymm[i].data());
      const std::uint8_t code = save ? 0x11 : 0x10;  // VMOVUPS, MOVUPS
      if (whole) {
        a_.vex_mem({.map = 1, .l = 1, .pp = 0, .code = code}, i, m);
      } else {
        a_.op_mem({1, code}, false, i, m);
      }
    }
  }

  void zero_upper_halves() {
    a_.byte(0xC5);  // VZEROUPPER
    a_.byte(0xF8);
    a_.byte(0x77);
  }

  Assembler& a_;
  interp::Core& core_;
  NativeState& state_;
  void* runtime_;
  bool avx_;
};

}  // namespace

void emit_look_up(Assembler& a, const NativeState& state,
                  const std::function<void(std::size_t)>& miss) {
  const JumpEntry& first = state.jumps[0];
  Mem va = absolute(&first.va);
  Mem context = absolute(&first.context);
  va.base = context.base = kT1;
  // As jump_offset() does.
  a.op_reg({0, 0x69}, false, kT1, kT0);  // IMUL
  a.imm32(kJumpFactor);
  a.shift_right32(kT1, kJumpShift);
  a.op_mem({0, 0x33}, false, kT1, absolute(&state.jump_salt));
  a.alu_imm(4, kT1, static_cast<std::int32_t>(kJumpOffsets), false);
  a.alu(7, kT0, va);
  miss(a.jcc_later(kNotEqual));
  a.load(kT2, absolute(&state.context));
  a.alu(7, kT2, context);
  miss(a.jcc_later(kNotEqual));
}

void emit_enter_found(Assembler& a, const NativeState& state, Reg va) {
  Mem code = absolute(&state.jumps[0].code);
  code.base = kT1;
  a.alu_imm(4, va, ~static_cast<std::int32_t>(kPageMask));
  a.store(absolute(&state.page_va), va);
  a.jmp(code);
}

Stubs emit_stubs(Assembler& a, interp::Core& core, NativeState& state, const StubTargets& targets,
                 void* runtime, bool avx) {
  StubEmitter e{a, core, state, runtime, avx};
  Stubs s;
  s.enter = e.enter();
  s.leave = e.leave();
  s.look_up = e.call(targets.look_up);
  s.stale = e.call(targets.stale);
  s.link = e.call(targets.link);
  s.link_far = e.call(targets.link_far);
  s.far = e.far(s.link_far);
  const std::uint64_t attention = e.call(targets.attention);
  s.slice = e.slice(attention, e.call(targets.budget));
  s.memory = e.call(targets.memory);
  s.group = e.call(targets.group);
  s.window = e.call(targets.window);
  s.steps = e.call(targets.steps);
  s.jump = e.call(targets.jump);
  s.interpret = e.call(targets.interpret);
  s.simd = e.call(targets.simd);
  s.x87 = e.call(targets.x87);
  e.fault(s);
  return s;
}

}  // namespace strata::bt
