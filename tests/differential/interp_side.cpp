#include "interp_side.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>

#include "engines/interp/host_thunk.hpp"
#include "engines/interp/lower.hpp"

namespace strata::differential {
namespace {

constexpr std::uint64_t kIdt = 0x30000, kTss = 0x31000, kStubs = 0x32000, kGdt = 0x33000,
                        kIst = 0x40000;
constexpr std::uint8_t kHalt = 0xF4;

}  // namespace

InterpSide::InterpSide(std::span<const std::uint8_t> pattern)
    : pattern_(pattern.begin(), pattern.end()), base_{interp::test::Machine::long_mode_state()} {
  auto& mmu = machine_.mmu;
  for (std::uint64_t va = 0; va < mmu.size(); va += kPageSize) mmu.page(va).present = false;
  for (const std::uint64_t va : {kIdt, kTss, kStubs, kGdt, kIst - kPageSize}) {
    mmu.page(va).present = true;
    mmu.page(va).user = false;
  }
  for (std::uint64_t va = kCode; va < kCode + kCodeBytes; va += kPageSize) {
    mmu.page(va).present = true;
  }
  for (std::uint64_t va = kData; va < kAbsent; va += kPageSize) {
    mmu.page(va).present = true;
    mmu.page(va).executable = false;
  }
  mmu.page(kReadOnly).writable = false;
  std::memset(mmu.base() + kCode, kBreakpoint, kCodeBytes);
  std::memcpy(mmu.base() + kData, pattern_.data(), pattern_.size());
  build_gates();
}

void InterpSide::build_gates() {
  machine_.poke<std::uint64_t>(kGdt + 8, 0x00AF'9B00'0000'FFFF);
  machine_.poke<std::uint64_t>(kTss + 36, kIst);
  // No I/O permission bitmap: every port is forbidden.
  machine_.poke<std::uint16_t>(kTss + 0x66, 0x68);
  for (unsigned v = 0; v < 32; ++v) {
    const std::uint64_t stub = kStubs + v * 16;
    machine_.poke<std::uint8_t>(stub, kHalt);
    // Interrupt gates on IST 1; the breakpoint may be executed at CPL 3.
    const std::uint64_t access = v == 3 ? 0xEE : 0x8E;
    machine_.poke<std::uint64_t>(kIdt + v * 16, (stub & 0xFFFF) | 8ULL << 16 | 1ULL << 32 |
                                                    access << 40 | (stub >> 16 & 0xFFFF) << 48);
    machine_.poke<std::uint64_t>(kIdt + v * 16 + 8, 0);
  }
  base_.gdtr = {kGdt, 0x0F};
  base_.idtr = {kIdt, 32 * 16 - 1};
  base_.tr.base = kTss;
  base_.cr0 |= cpu::cr0::AM | cpu::cr0::NE;
  for (cpu::Segment& s : base_.segment) s = {0, 0xFFFFFFFF, 0x2B, 0xC0F3};
  base_.segment[cpu::CS] = {0, 0xFFFFFFFF, 0x33, 0xA0FB};
}

cpu::VcpuState InterpSide::state_before(const Case& c) const {
  cpu::VcpuState s = base_;
  s.gpr = c.before.gpr;
  s.rip = c.before.rip;
  s.rflags = c.before.rflags;
  if (c.bits == 32) s.segment[cpu::CS] = {0, 0xFFFFFFFF, 0x23, 0xC0FB};
  std::memcpy(s.vector.legacy.data(), c.before.fx.data(), 512);
  std::memcpy(&s.vector.mxcsr, c.before.fx.data() + 24, 4);
  s.vector.ymm = c.before.ymm;
  return s;
}

bool InterpSide::runs_on_host(const Case& c, const cpu::CpuModel& model) {
  interp::DecodeMode mode;
  mode.bits = static_cast<std::uint8_t>(c.bits);
  mode.single = true;
  std::vector<interp::Uop> steps;
  interp::decode_block(reinterpret_cast<const std::byte*>(c.code.data()), c.length, kCode, mode,
                       model, steps);
  return std::ranges::any_of(
      steps, [](const interp::Uop& u) { return interp::thunk_cache().holds(u.imm); });
}

void InterpSide::run(const Case& c, Result& out) {
  auto* memory = reinterpret_cast<std::uint8_t*>(machine_.mmu.base());
  std::memcpy(memory + c.before.rip, c.code.data(), c.length);
  std::memcpy(memory + c.patch_at, c.patch.data(), c.patch.size());
  machine_.core->memory_written(PA{c.before.rip}, c.length);
  machine_.core->set_state(state_before(c));
  machine_.mmu.flushes.clear();
  const engine::Exit exit = machine_.core->run();
  if (exit.kind != engine::ExitKind::halt) {
    throw std::runtime_error(
        fmt::format("the interpreter left with {} {}", name_of(exit.kind), exit.reason));
  }
  const cpu::VcpuState s = machine_.core->state();
  out.vector = static_cast<std::uint32_t>((s.rip - 1 - kStubs) / 16);
  const std::uint64_t frame = s.gpr[cpu::RSP];
  const bool has_error = frame == kIst - 48;
  const std::uint64_t at = frame + (has_error ? 8 : 0);
  out.error = has_error ? machine_.read<std::uint32_t>(frame) : 0;
  out.cr2 = out.vector == cpu::PF ? s.cr2 : 0;
  out.after.gpr = s.gpr;
  out.after.rip = machine_.read<std::uint64_t>(at);
  out.after.rflags = machine_.read<std::uint64_t>(at + 16);
  out.after.gpr[cpu::RSP] = machine_.read<std::uint64_t>(at + 24);
  std::memcpy(out.after.fx.data(), s.vector.legacy.data(), 512);
  std::memcpy(out.after.fx.data() + 24, &s.vector.mxcsr, 4);
  out.after.ymm = s.vector.ymm;
  take_changes(memory + kData, pattern_.data(), c, out);
  if (restore_code(memory + kCode, c)) machine_.core->memory_written(PA{kCode}, kCodeBytes);
  machine_.core->memory_written(PA{c.before.rip}, c.length);
}

}  // namespace strata::differential
