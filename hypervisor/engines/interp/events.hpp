// Delivery of interrupts and exceptions through the IDT (SDM 3A chapter 6; SDM 2A, INT n).
#pragma once

#include <cstdint>

#include "engines/interp/core.hpp"
#include "engines/interp/segments.hpp"

namespace strata::interp {

/// Something to deliver, whatever its source.
struct Event {
  std::uint8_t vector = 0;
  bool has_error = false;
  std::uint32_t error = 0;
  /// INT n, INT3, INTO: the gate's DPL is checked against CPL.
  bool check_gate_dpl = false;
  /// EXT bit of the error codes of faults on the way: clear for INT n, INT3 and INTO only
  /// (SDM 3A 6.13).
  std::uint32_t external = error_code::kExternal;
  /// Faults push RFLAGS with RF set, so that the instruction can be resumed past its breakpoint
  /// (SDM 3B 18.3.1.1).
  bool push_resume_flag = false;
  std::uint64_t return_ip = 0;
};

/// Runs the delivery in the current mode and commits it: segments, RSP, rip, RFLAGS. Anything but
/// `done` leaves the architectural state untouched, bytes below the stack pointers excepted.
Outcome deliver_event(Core& core, const Event& event);

/// A privilege level's stack from the legacy TSS in use (SDM 3A 5.8.5).
Outcome inner_stack_legacy(Core& core, unsigned level, std::uint32_t external,
                           std::uint16_t& selector, std::uint64_t& pointer);
/// RSP0-2 or, at `index` 3 + n, IST n from the 64-bit TSS (SDM 3A 7.7).
Outcome inner_stack_long(Core& core, unsigned index, std::uint32_t external,
                         std::uint64_t& pointer);

/// How exceptions combine (SDM 3A table 6-5). `first` was being delivered when `second` came up.
enum class Escalation : std::uint8_t { deliver_second, double_fault, shutdown };
[[nodiscard]] Escalation escalate(const PendingException& first, std::uint8_t second) noexcept;

}  // namespace strata::interp
