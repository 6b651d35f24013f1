#include "engines/interp/vm86.hpp"

#include "engines/interp/far_transfers.hpp"

namespace strata::interp {

namespace rf = cpu::rflags;

bool uses_virtual_if(const Core& core) noexcept {
  if (vm86(core)) return (core.arch.cr4 & cpu::cr4::VME) != 0 && iopl(core) < 3;
  return protected_mode(core) && core.cpl == 3 && iopl(core) < 3 &&
         (core.arch.cr4 & cpu::cr4::PVI) != 0;
}

std::uint64_t virtual_flags(const Core& core) noexcept {
  const std::uint64_t flags = (core.rflags() & ~rf::IF) | rf::IOPL;
  return (flags & rf::VIF) != 0 ? flags | rf::IF : flags;
}

Outcome pop_virtual_flags(const Core& core, std::uint64_t image, std::uint64_t& after) noexcept {
  const bool pending = (core.rflags_other & rf::VIP) != 0;
  const bool enables = (image & rf::IF) != 0;
  if ((enables && pending) || (image & rf::TF) != 0) return raised(cpu::GP, 0);
  // IF and IOPL are out of reach for popped_flags() here.
  after = popped_flags(core, image, 2) & ~rf::VIF;
  if (enables) after |= rf::VIF;
  return done();
}

namespace {

/// Reads the vector's bit of the redirection bitmap, the 32 bytes below the I/O permission map
/// (SDM 3B 21.3.1). Without a bit, as with a set one, the monitor gets the interrupt.
Outcome stays_with_monitor(Core& core, std::uint8_t vector, bool& monitor) {
  constexpr std::uint64_t kIoMapBase = 102, kBitmapBytes = 32;
  const cpu::Segment& tr = core.arch.tr;
  monitor = true;
  if ((tr.type() & 8) == 0 || kIoMapBase + 1 > tr.limit) return done();
  std::uint16_t map = 0;
  if (!core.system_load(system_va(core, tr.base + kIoMapBase), map)) return aborted();
  const std::uint64_t at = map - kBitmapBytes + vector / 8U;
  if (map < kBitmapBytes || at > tr.limit) return done();
  std::uint8_t bits = 0;
  if (!core.system_load(system_va(core, tr.base + at), bits)) return aborted();
  monitor = (bits >> (vector & 7U) & 1) != 0;
  return done();
}

}  // namespace

Outcome redirect_interrupt(Core& core, std::uint8_t vector, std::uint64_t return_ip,
                           bool& redirected) {
  bool monitor = true;
  redirected = false;
  if (auto o = stays_with_monitor(core, vector, monitor); !o.ok() || monitor) return o;
  std::uint32_t entry = 0;
  if (!core.load(std::uint64_t{vector} * 4, entry)) return aborted();
  const bool own_if = iopl(core) == 3;
  Stack stack{core};
  const std::uint64_t image = own_if ? core.rflags() : virtual_flags(core);
  if (auto o = stack.push(image, 2); !o.ok()) return o;
  if (auto o = stack.push(core.arch.segment[cpu::CS].selector, 2); !o.ok()) return o;
  if (auto o = stack.push(return_ip, 2); !o.ok()) return o;
  core.r[cpu::RSP] = stack.pointer();
  put_segment(core, cpu::CS, real_segment({}, static_cast<std::uint16_t>(entry >> 16), true));
  core.set_rflags(core.rflags() & ~(rf::TF | rf::RF | (own_if ? rf::IF : rf::VIF)));
  core.set_ip(entry & 0xFFFF);
  redirected = true;
  return done();
}

}  // namespace strata::interp
