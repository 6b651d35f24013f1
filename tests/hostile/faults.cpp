// Exceptions without end: handlers that fault on their first instruction, and what comes of it.
#include "cases.hpp"

namespace strata::hostile {
namespace {

using namespace layout;

void undefined(Guest& g, std::uint64_t at) { g.put(at, {0x0F, 0x0B}); }

/// #UD's handler is a #UD, on a stack that never grows.
void handler_faults(Guest& g) {
  undefined(g, kCode);
  undefined(g, kCode + 0x100);
  g.gate(cpu::UD, kCode + 0x100, 1);
}
void handler_faults_on_data(Guest& g) {
  undefined(g, kCode);
  g.unmap(0x300000);
  g.put(kCode + 0x100, {0x48, 0x8B, 0x04, 0x25, 0, 0, 0x30, 0});  // mov rax, [0x300000]
  g.gate(cpu::UD, kCode + 0x100, 1);
  g.gate(cpu::PF, kCode + 0x100, 1);
}
/// The handler is not even mapped.
void handler_is_absent(Guest& g) {
  g.unmap(0x300000);
  undefined(g, kCode);
  g.gate(cpu::UD, 0x300000, 1);
  g.gate(cpu::PF, 0x300000, 1);
}
/// An exception whose delivery fails with another one whose delivery fails: #DF, whose handler
/// begins it all again.
void double_faults(Guest& g) {
  undefined(g, kCode);
  undefined(g, kCode + 0x100);
  g.poke<std::uint64_t>(kIdt + cpu::UD * 16, 0);
  g.poke<std::uint64_t>(kIdt + cpu::GP * 16, 0);
  g.gate(cpu::DF, kCode + 0x100, 1);
}
/// A handler that faults, on a stack that runs into a hole.
void stack_runs_out(Guest& g) {
  handler_faults(g);
  g.gate(cpu::UD, kCode + 0x100);
  g.unmap(kStackFloor);
}
void breakpoint_is_its_handler(Guest& g) {
  g.put(kCode, {0xCC});
  g.gate(cpu::BP, kCode, 1);
}
/// The handler of every single step asks for the next one.
void single_steps(Guest& g) {
  Code c{64};
  c.put({0x9C, 0x81, 0x0C, 0x24, 0, 1, 0, 0, 0x9D});  // pushf; or dword [rsp], TF; popf
  c.put({0xEB, 0xFE});
  g.put(c);
  Code h{64, kCode + 0x100};
  h.put({0x80, 0x4C, 0x24, 0x11, 1, 0x48, 0xCF});  // or byte [rsp + 17], TF; iretq
  g.put(h);
  g.gate(cpu::DB, h.origin, 1);
}
void idt_of_nothing(Guest& g) {
  undefined(g, kCode);
  g.state.idtr.limit = 0;
}
/// An IDT at the last bytes of the lower half: entries reach into what no address is.
void idt_ends_the_half(Guest& g) {
  undefined(g, kCode);
  g.state.idtr.base = 0x7FFF'FFFF'FFF8;
  g.map(0x7FFF'FFFF'F000, kData);
}
void idt_in_mmio(Guest& g) {
  undefined(g, kCode);
  g.state.idtr.base = kMmio;
}
void idt_in_rom(Guest& g) {
  undefined(g, kCode);
  g.state.idtr.base = kRom;
}
/// From CPL 3, where the stack comes from a TSS that has none.
void task_state_of_nothing(Guest& g) {
  undefined(g, kCode);
  g.state.tr.limit = 0;
  g.state.segment[cpu::CS] = {0, 0xFFFFFFFF, kUserCode64, 0xA0FB};
  g.state.segment[cpu::SS] = {0, 0xFFFFFFFF, kUserData, 0xC0F3};
}
/// 32-bit code, whose #UD is a task that begins with #UD.
void task_faults(Guest& g) {
  constexpr std::uint16_t kOther = kFirstFree;
  constexpr std::uint64_t kOtherTss = kData;
  undefined(g, kCode);
  g.descriptor(kOther, segment(kOtherTss, 0x67, 9, 0, true, 0));
  g.poke(kIdt + cpu::UD * 8, gate_to(kOther, 0, 5));
  g.poke<std::uint32_t>(kOtherTss + 32, kCode);
  g.poke<std::uint32_t>(kOtherTss + 36, 2);
  g.poke<std::uint32_t>(kOtherTss + 56, kStack);
  for (unsigned at = 72; at <= 92; at += 4) g.poke<std::uint16_t>(kOtherTss + at, kFlatData);
  g.poke<std::uint16_t>(kOtherTss + 76, kCode32);
}
/// An expand-down stack, of which there is less with every exception.
void stack_runs_out_32(Guest& g) {
  undefined(g, kCode);
  g.gate(cpu::UD, kCode);
  g.gate(cpu::SS_FAULT, kCode);
  g.state.segment[cpu::SS] = {0, kStackFloor - 1, kFlatData, 0xC097};
}

}  // namespace

std::vector<Case> fault_cases() {
  return {
      {"HandlerFaults", handler_faults, End::kicked},
      {"HandlerFaultsOnData", handler_faults_on_data, End::kicked},
      {"HandlerIsAbsent", handler_is_absent, End::kicked},
      {"DoubleFaults", double_faults, End::kicked},
      {"StackRunsOut", stack_runs_out, End::triple_fault},
      {"BreakpointIsItsHandler", breakpoint_is_its_handler, End::count},
      {"SingleSteps", single_steps, End::count},
      {"IdtOfNothing", idt_of_nothing, End::triple_fault},
      {"IdtEndsTheHalf", idt_ends_the_half, End::triple_fault},
      {"IdtInMmio", idt_in_mmio, End::triple_fault},
      {"IdtInRom", idt_in_rom, End::triple_fault},
      {"TaskStateOfNothing", task_state_of_nothing, End::triple_fault},
      {"TaskFaults", task_faults, End::halt, 32},
      {"StackRunsOut32", stack_runs_out_32, End::triple_fault, 32},
  };
}

}  // namespace strata::hostile
