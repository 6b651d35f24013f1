// Descriptors, selectors and the checks that every segment load shares (SDM 3A 3.4, 5.5-5.8).
#pragma once

#include <cstdint>
#include <utility>

#include "cpu/vcpu_state.hpp"
#include "engines/interp/core.hpp"

namespace strata::interp {

/// How a part of a system instruction ended. Nothing architectural has changed unless it is `done`.
struct [[nodiscard]] Outcome {
  enum class Kind : std::uint8_t { done, exception, aborted };
  Kind kind = Kind::done;
  std::uint8_t vector = 0;
  bool has_error = false;
  std::uint32_t error = 0;

  [[nodiscard]] constexpr bool ok() const noexcept { return kind == Kind::done; }
};
[[nodiscard]] constexpr Outcome done() noexcept { return {}; }
/// An access failed; the Core has recorded why.
[[nodiscard]] constexpr Outcome aborted() noexcept { return {Outcome::Kind::aborted}; }
/// An exception that pushes an error code: #DF, #TS, #NP, #SS, #GP.
[[nodiscard]] constexpr Outcome raised(std::uint8_t vector, std::uint32_t error) noexcept {
  return {Outcome::Kind::exception, vector, true, error};
}
[[nodiscard]] constexpr Outcome undefined() noexcept {
  return {Outcome::Kind::exception, cpu::UD, false, 0};
}
/// What a handler returns for an outcome that is not `done`.
const Uop* give_up(Core& core, const Uop* u, const Outcome& outcome) noexcept;

/// Error-code bits (SDM 3A 6.13).
namespace error_code {
inline constexpr std::uint32_t kExternal = 1, kIdt = 2;
}
/// The error code that names a selector: its RPL bits make room for EXT and IDT.
[[nodiscard]] constexpr std::uint32_t selector_error(std::uint16_t selector,
                                                     std::uint32_t external = 0) noexcept {
  return (selector & 0xFFFCU) | external;
}
[[nodiscard]] constexpr bool is_null(std::uint16_t selector) noexcept {
  return (selector & 0xFFFCU) == 0;
}
[[nodiscard]] constexpr unsigned rpl_of(std::uint16_t selector) noexcept { return selector & 3U; }

/// System descriptor types (SDM 3A table 3-2).
namespace system_type {
inline constexpr unsigned kTss16 = 1, kLdt = 2, kTss16Busy = 3, kCallGate16 = 4, kTaskGate = 5,
                          kInterruptGate16 = 6, kTrapGate16 = 7, kTss32 = 9, kTss32Busy = 11,
                          kCallGate32 = 12, kInterruptGate32 = 14, kTrapGate32 = 15;
}

/// Eight bytes of a descriptor table, and where they were. System descriptors and gates are sixteen
/// bytes in IA-32e mode; `upper` is the second half then.
struct Descriptor {
  std::uint64_t low = 0;
  std::uint64_t upper = 0;
  std::uint64_t va = 0;
  std::uint16_t selector = 0;

  [[nodiscard]] constexpr unsigned type() const noexcept {
    return static_cast<unsigned>(low >> 40 & 0xF);
  }
  /// Code or data, not a system segment or gate.
  [[nodiscard]] constexpr bool ordinary() const noexcept { return (low >> 44 & 1) != 0; }
  [[nodiscard]] constexpr bool code() const noexcept { return ordinary() && (type() & 8) != 0; }
  [[nodiscard]] constexpr bool conforming() const noexcept { return (type() & 4) != 0; }
  /// Of code: readable. Of data: writable.
  [[nodiscard]] constexpr bool bit1() const noexcept { return (type() & 2) != 0; }
  [[nodiscard]] constexpr bool writable_data() const noexcept {
    return ordinary() && (type() & 0xA) == 2;
  }
  [[nodiscard]] constexpr bool readable() const noexcept {
    return ordinary() && (type() & 0xA) != 8;
  }
  [[nodiscard]] constexpr unsigned dpl() const noexcept {
    return static_cast<unsigned>(low >> 45 & 3);
  }
  [[nodiscard]] constexpr bool present() const noexcept { return (low >> 47 & 1) != 0; }
  [[nodiscard]] constexpr bool long_code() const noexcept { return (low >> 53 & 1) != 0; }
  [[nodiscard]] constexpr bool big() const noexcept { return (low >> 54 & 1) != 0; }
  [[nodiscard]] constexpr std::uint64_t base() const noexcept {
    return (low >> 16 & 0xFFFFFF) | (low >> 32 & 0xFF000000) | (upper & 0xFFFFFFFF) << 32;
  }
  [[nodiscard]] constexpr std::uint32_t limit() const noexcept {
    const auto raw = static_cast<std::uint32_t>((low & 0xFFFF) | (low >> 32 & 0xF0000));
    return (low >> 55 & 1) != 0 ? raw << 12 | 0xFFFU : raw;
  }
  [[nodiscard]] constexpr std::uint32_t attributes() const noexcept {
    return static_cast<std::uint32_t>((low >> 40 & 0xFF) | (low >> 40 & 0xF000));
  }
  /// Fields of a gate.
  [[nodiscard]] constexpr std::uint16_t gate_selector() const noexcept {
    return static_cast<std::uint16_t>(low >> 16);
  }
  [[nodiscard]] constexpr std::uint64_t gate_offset() const noexcept {
    return (low & 0xFFFF) | (low >> 32 & 0xFFFF0000) | (upper & 0xFFFFFFFF) << 32;
  }
};

[[nodiscard]] constexpr bool canonical(std::uint64_t va) noexcept {
  return static_cast<std::uint64_t>(static_cast<std::int64_t>(va << 16) >> 16) == va;
}

[[nodiscard]] inline bool protected_mode(const Core& core) noexcept {
  return (core.arch.cr0 & cpu::cr0::PE) != 0;
}
[[nodiscard]] inline bool vm86(const Core& core) noexcept {
  return (core.rflags_other & cpu::rflags::VM) != 0;
}
/// Protected mode proper: selectors name descriptors.
[[nodiscard]] inline bool descriptors_in_use(const Core& core) noexcept {
  return protected_mode(core) && !vm86(core);
}
/// IA-32e mode: 64-bit or compatibility.
[[nodiscard]] inline bool ia32e(const Core& core) noexcept {
  return (core.arch.efer & cpu::efer::LMA) != 0;
}
/// The linear address of a system structure: 64 bits wide in IA-32e mode only.
[[nodiscard]] inline std::uint64_t system_va(const Core& core, std::uint64_t va) noexcept {
  return ia32e(core) ? va : static_cast<std::uint32_t>(va);
}
[[nodiscard]] inline unsigned iopl(const Core& core) noexcept {
  return static_cast<unsigned>(core.rflags_other >> 12 & 3);
}

/// Where the descriptor of `selector` lies; false beyond the table's limit or without an LDT.
[[nodiscard]] bool descriptor_address(const Core& core, std::uint16_t selector, unsigned bytes,
                                      std::uint64_t& va) noexcept;
/// Reads the descriptor of `selector`; outside its table: `vector`(selector | external).
Outcome read_descriptor(Core& core, std::uint16_t selector, std::uint8_t vector,
                        std::uint32_t external, Descriptor& out);
/// Reads the second half of a sixteen-byte system descriptor. Its type field must be zero.
Outcome read_upper_half(Core& core, std::uint8_t vector, std::uint32_t external, Descriptor& d);
/// Sets the accessed bit in the table and in `d`. The last check before a commit.
Outcome mark_accessed(Core& core, Descriptor& d);

[[nodiscard]] cpu::Segment to_segment(const Descriptor& d, std::uint16_t selector) noexcept;
/// A null selector's register. SS keeps the CPL in its DPL field, as VMX has it.
[[nodiscard]] cpu::Segment null_segment(std::uint16_t selector, unsigned dpl) noexcept;
/// What a load in real or virtual-8086 mode makes of the register: base follows the selector.
[[nodiscard]] cpu::Segment real_segment(const cpu::Segment& old, std::uint16_t selector,
                                        bool is_vm86) noexcept;

/// Checks and reads what MOV, POP, LDS... load into `name` (SDM 2A, MOV; not CS).
Outcome load_segment(Core& core, cpu::SegmentName name, std::uint16_t selector, cpu::Segment& out);
/// A stack segment for privilege level `level`, which RPL and DPL must equal: inner stacks from the
/// TSS (`vector` #TS), SS of a return to an outer level (#GP). Not present is #SS.
Outcome load_stack_segment(Core& core, std::uint16_t selector, unsigned level, std::uint8_t vector,
                           std::uint32_t external, Descriptor& out);
/// LLDT's and a task switch's check and load.
Outcome load_ldt(Core& core, std::uint16_t selector, cpu::Segment& out);

/// Puts a segment into the register and keeps what follows from it up to date, but for what
/// Core::segments_changed() derives from CPL.
inline void put_segment(Core& core, cpu::SegmentName name, const cpu::Segment& s) noexcept {
  core.arch.segment[name] = s;
}
/// Data segments that the new, outer privilege level may not see become null (SDM 2A, RET).
void drop_inner_segments(Core& core, unsigned new_cpl) noexcept;

/// A stack while it is being pushed to or popped from: addresses and accesses of one privilege
/// level, RSP kept aside until the instruction commits.
class Stack {
 public:
  /// `base`, `limit`, `mask` (0xFFFF, 0xFFFFFFFF or all ones) as SS has them; `implicit` for frames
  /// on an inner level's stack, which are supervisor accesses whatever the CPL is now.
  Stack(Core& core, const cpu::Segment& ss, std::uint64_t pointer, std::uint64_t mask,
        bool implicit, std::uint32_t external = 0) noexcept
      : core_{core},
        ss_{ss},
        pointer_{pointer},
        mask_{mask},
        implicit_{implicit},
        external_{external} {}
  /// The current stack.
  explicit Stack(Core& core) noexcept;

  /// Pushes (pops) `size` bytes: 2, 4 or 8.
  Outcome push(std::uint64_t value, unsigned size);
  Outcome pop(std::uint64_t& value, unsigned size);
  /// Discards bytes, as RET n does.
  void skip(std::uint64_t bytes) noexcept { move(bytes); }
  /// RSP with the part the stack's width covers replaced.
  [[nodiscard]] std::uint64_t pointer() const noexcept { return pointer_; }

 private:
  void move(std::uint64_t by) noexcept {
    pointer_ = (pointer_ & ~mask_) | ((pointer_ + by) & mask_);
  }
  [[nodiscard]] Outcome address(unsigned size, std::uint64_t& va) const noexcept;

  Core& core_;
  cpu::Segment ss_;
  std::uint64_t pointer_;
  std::uint64_t mask_;
  bool implicit_;
  std::uint32_t external_;
};

/// The stack pointer mask that SS (in the mode that its code segment gives) implies.
[[nodiscard]] inline std::uint64_t stack_mask(const cpu::Segment& ss, bool in_64bit) noexcept {
  return in_64bit ? ~0ULL : ss.big() ? 0xFFFFFFFFULL : 0xFFFFULL;
}
/// Whether `bytes` at `offset` lie within a segment's limit (expand-down as well).
[[nodiscard]] bool within_limit(const cpu::Segment& s, std::uint64_t offset,
                                unsigned bytes) noexcept;

}  // namespace strata::interp
