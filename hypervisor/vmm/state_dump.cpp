#include "vmm/state_dump.hpp"

#include <fmt/format.h>

#include <array>
#include <string_view>

namespace strata::vmm {

namespace {

constexpr std::array<std::string_view, 16> kGprNames{"RAX", "RCX", "RDX", "RBX", "RSP", "RBP",
                                                     "RSI", "RDI", "R8",  "R9",  "R10", "R11",
                                                     "R12", "R13", "R14", "R15"};
constexpr std::array<std::string_view, 6> kSegmentNames{"ES", "CS", "SS", "DS", "FS", "GS"};

std::string segment_line(std::string_view name, const cpu::Segment& s) {
  return fmt::format("{:<4} {:04x} base {:016x} limit {:08x} attributes {:05x}\n", name, s.selector,
                     s.base, s.limit, s.attributes);
}

}  // namespace

std::string describe(const cpu::VcpuState& state) {
  std::string text;
  for (std::size_t i = 0; i < state.gpr.size(); ++i) {
    text +=
        fmt::format("{:<3} {:016x}{}", kGprNames.at(i), state.gpr.at(i), i % 4 == 3 ? "\n" : "  ");
  }
  text += fmt::format("RIP {:016x}  RFLAGS {:08x}  {}{}\n", state.rip, state.rflags,
                      state.halted ? "halted " : "", state.nmi_blocked ? "nmi-blocked" : "");
  text += fmt::format("CR0 {:08x}  CR2 {:016x}  CR3 {:016x}  CR4 {:08x}  EFER {:04x}\n", state.cr0,
                      state.cr2, state.cr3, state.cr4, state.efer);
  for (std::size_t i = 0; i < state.segment.size(); ++i) {
    text += segment_line(kSegmentNames.at(i), state.segment.at(i));
  }
  text += segment_line("LDTR", state.ldtr) + segment_line("TR", state.tr);
  text += fmt::format("GDTR base {:016x} limit {:04x}   IDTR base {:016x} limit {:04x}\n",
                      state.gdtr.base, state.gdtr.limit, state.idtr.base, state.idtr.limit);
  return text;
}

}  // namespace strata::vmm
