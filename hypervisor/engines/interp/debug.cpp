// Debug registers and single step (SDM 3B 18.2, 18.3): what is watched, and when it is reported.
// While a breakpoint on code or data is enabled, blocks are one instruction long and every
// instruction goes through the run loop; pages with watched bytes stay out of the TLB, so that
// their accesses take the slow path, where note_access() sees them.
#include <array>
#include <utility>

#include "engines/interp/core.hpp"
#include "engines/interp/segments.hpp"

namespace strata::interp {

namespace {

constexpr std::uint64_t kSingleStep = 1ULL << 14;  ///< DR6.BS
constexpr std::uint64_t kBranchTrap = 2;           ///< IA32_DEBUGCTL.BTF

enum class Watch : std::uint8_t { code = 0, write = 1, io = 2, access = 3 };

/// One of the four breakpoints, as DR7 describes it (SDM 3B 18.2.4).
struct Breakpoint {
  bool enabled = false;
  Watch watch = Watch::code;
  std::uint64_t at = 0;
  std::uint64_t length = 1;

  [[nodiscard]] bool is_data() const noexcept {
    return enabled && (watch == Watch::write || watch == Watch::access);
  }
  [[nodiscard]] bool overlaps(std::uint64_t from, std::uint64_t size) const noexcept {
    return from < at + length && at < from + size;
  }
};

Breakpoint breakpoint(const Core& core, unsigned i) noexcept {
  constexpr std::array<std::uint64_t, 4> kLengths{1, 2, 8, 4};
  const std::uint64_t dr7 = core.arch.dr[7];
  Breakpoint b;
  b.enabled = (dr7 >> (2 * i) & 3) != 0;
  b.watch = static_cast<Watch>(dr7 >> (16 + 4 * i) & 3);
  b.length = kLengths[dr7 >> (18 + 4 * i) & 3];
  b.at = core.arch.dr[i] & ~(b.length - 1);  // low bits are ignored (SDM 3B 18.2.5)
  if (!ia32e(core)) b.at = static_cast<std::uint32_t>(b.at);
  return b;
}

}  // namespace

void Core::debug_registers_changed() noexcept {
  const bool had_data = breakpoints.data;
  breakpoints = {};
  for (unsigned i = 0; i < 4; ++i) {
    const Breakpoint b = breakpoint(*this, i);
    if (!b.enabled) continue;
    breakpoints.code = breakpoints.code || b.watch == Watch::code;
    breakpoints.data = breakpoints.data || b.is_data();
    const bool ports = b.watch == Watch::io && (arch.cr4 & cpu::cr4::DE) != 0;
    breakpoints.io = breakpoints.io || ports;
  }
  if (had_data || breakpoints.data) tlb_.flush_all();
  segments_changed();
}

void Core::note_access(std::uint64_t at, unsigned size, bool write, bool io) noexcept {
  for (unsigned i = 0; i < 4; ++i) {
    const Breakpoint b = breakpoint(*this, i);
    if (!b.enabled || !b.overlaps(at, size)) continue;
    const bool hit = io ? b.watch == Watch::io : b.is_data() && (write || b.watch == Watch::access);
    if (hit) debug_hits |= 1ULL << i;
  }
}

bool Core::page_watched(std::uint64_t va) const noexcept {
  for (unsigned i = 0; i < 4; ++i) {
    const Breakpoint b = breakpoint(*this, i);
    if (b.is_data() && b.overlaps(va & ~kPageMask, kPageSize)) return true;
  }
  return false;
}

bool Core::at_breakpoint() noexcept {
  if ((rflags_other & cpu::rflags::RF) != 0) return false;
  std::uint64_t hits = 0;
  for (unsigned i = 0; i < 4; ++i) {
    const Breakpoint b = breakpoint(*this, i);
    if (b.enabled && b.watch == Watch::code && b.at == rip) hits |= 1ULL << i;
  }
  if (hits == 0) return false;
  record_exception(cpu::DB, std::nullopt);
  exception.dr6 = hits;
  return true;
}

void Core::arm_debug_traps(const Block& b) noexcept {
  trap_armed_ = (rflags_other & cpu::rflags::TF) != 0;
  resume_armed_ = (rflags_other & cpu::rflags::RF) != 0;
  sequel_ = wrap_ip(rip + b.bytes);
}

void Core::debug_after_instruction(bool retired) noexcept {
  std::uint64_t hits = std::exchange(debug_hits, 0);
  const bool resumed = std::exchange(resume_armed_, false);
  const bool trap = std::exchange(trap_armed_, false);
  if (!retired || exception.valid) return;
  if (resumed) rflags_other &= ~cpu::rflags::RF;
  if (debug_shadow) {
    // MOV SS: breakpoints it met are reported with the next instruction's; that one's single step
    // stands for both (SDM 3A 6.8.3).
    debug_hits = hits;
    return;
  }
  // BTF: only branches trap. One to the next instruction passes for none.
  const bool branches_only = (arch.msr.debugctl & kBranchTrap) != 0;
  if (trap && !(branches_only && rip == sequel_)) hits |= kSingleStep;
  if (hits != 0) exception = {.valid = true, .vector = cpu::DB, .dr6 = hits};
}

}  // namespace strata::interp
