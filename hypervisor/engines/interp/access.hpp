// What the integer handlers share: going on to the next step, and memory operands. The fast paths
// repeat those of Core so that no local variable of a handler has its address taken: operands then
// stay in registers.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "engines/interp/core.hpp"

namespace strata::interp {

/// The instruction is done; nothing special happened.
[[gnu::always_inline]] inline const Uop* next(Core& /*core*/, const Uop* u) noexcept {
  return u + 1;
}

/// A non-canonical address is #SS instead of #GP where the access went through SS: on the stack,
/// and by default with RSP or RBP as the base (SDM 3A 6.15 interrupt 12).
[[gnu::noinline]] inline const Uop* refuse_stack(Core& core, const Uop* u) {
  if (core.exception.valid && core.exception.vector == cpu::GP) {
    core.exception.vector = cpu::SS_FAULT;
  }
  return core.abort(u);
}
/// Memory said no to the explicit operand.
[[gnu::noinline]] inline const Uop* refuse(Core& core, const Uop* u) {
  const bool stack_base = u->base == cpu::RSP * 8 || u->base == cpu::RBP * 8;
  const bool other_segment =
      u->segment == cpu::SegmentName::FS || u->segment == cpu::SegmentName::GS;
  return stack_base && !other_segment ? refuse_stack(core, u) : core.abort(u);
}

/// Linear address of the memory operand.
[[gnu::always_inline]] inline std::uint64_t address_of(Core& core, const Uop* u) noexcept {
  if (u->address_form == 0) [[likely]] {
    return core.reg<std::uint64_t>(u->base) + (core.reg<std::uint64_t>(u->index) << u->scale) +
           static_cast<std::uint64_t>(static_cast<std::int64_t>(u->disp));
  }
  return core.ea(u);
}

/// Core::load() into a variable that may live in a register.
template <class T>
[[nodiscard, gnu::always_inline]] inline bool load_value(Core& core, std::uint64_t va, T& out) {
  const TlbEntry& e = core.dtlb[tlb_index(va, core.pcid)];
  if (e.read_tag == (((va + sizeof(T) - 1) & ~kPageMask) | core.pcid)) [[likely]] {
    out = guest::load<T>(reinterpret_cast<const void*>(va + e.addend));
    return true;
  }
  T slow{};
  if (!core.load(va, slow)) return false;
  out = slow;
  return true;
}

/// The memory operand's value.
template <class T>
[[nodiscard, gnu::always_inline]] inline bool load_operand(Core& core, const Uop* u, T& out) {
  return load_value(core, address_of(core, u), out);
}

/// The source in u->src, or in memory. False: refuse().
template <class T, bool Memory>
[[nodiscard, gnu::always_inline]] inline bool operand(Core& core, const Uop* u, T& out) {
  if constexpr (Memory) return load_operand(core, u, out);
  out = core.reg<T>(u->src);
  return true;
}

/// An operand in memory, wherever it lies.
template <class T>
[[gnu::always_inline]] inline T get(const void* host) noexcept {
  return guest::load<T>(host);
}
template <class T>
[[gnu::always_inline]] inline void put(void* host, T v) noexcept {
  guest::store(host, v);
}

template <class T, class Apply, class Result>
[[nodiscard, gnu::noinline]] bool modify_slow(Core& core, std::uint64_t va, Apply apply,
                                              Result& result) {
  Rmw m;
  if (!core.rmw_begin<T>(va, m)) return false;
  result = apply(m.host);
  return core.rmw_end(m);
}

/// Read-modify-write of the T at `va`: apply(host) changes it in place and returns what
/// commit(result) then puts into registers and flags, once the store can no longer fail.
template <class T, class Apply, class Commit>
[[gnu::always_inline]] inline const Uop* modify(Core& core, const Uop* u, std::uint64_t va,
                                                Apply apply, Commit commit) {
  using Result = std::invoke_result_t<Apply, void*>;
  const TlbEntry& e = core.dtlb[tlb_index(va, core.pcid)];
  if (e.write_tag == (((va + sizeof(T) - 1) & ~kPageMask) | core.pcid)) [[likely]] {
    commit(apply(reinterpret_cast<void*>(va + e.addend)));
    return next(core, u);
  }
  Result slow{};
  if (!modify_slow<T>(core, va, apply, slow)) return refuse(core, u);
  commit(slow);
  return next(core, u);
}

template <class T, class Apply, class Result>
[[nodiscard, gnu::noinline]] bool modify_alone(Core& core, std::uint64_t va, Apply apply,
                                               Result& result) {
  const Exclusive alone{core};
  Rmw m;
  if (!core.rmw_begin_copy(va, sizeof(T), m)) return false;
  result = apply(m.host);
  return core.rmw_end(m);
}

/// modify() as LOCK asks for it: `apply` uses the host's atomic instructions, which are atomic
/// against all other vCPUs' accesses within a cache line. Where the operand crosses one, all other
/// vCPUs stand still meanwhile: a split lock of the host's would slow the whole host down or, where
/// the host forbids them, end this process.
template <class T, class Apply, class Commit>
[[gnu::always_inline]] inline const Uop* modify_locked(Core& core, const Uop* u, std::uint64_t va,
                                                       Apply apply, Commit commit) {
  constexpr std::uint64_t kCacheLine = 64;
  if ((va & (kCacheLine - 1)) + sizeof(T) <= kCacheLine) [[likely]] {
    return modify<T>(core, u, va, apply, commit);
  }
  std::invoke_result_t<Apply, void*> result{};
  if (!modify_alone<T>(core, va, apply, result)) return refuse(core, u);
  commit(result);
  return next(core, u);
}

/// modify_locked() or modify(), for handlers that exist with and without LOCK.
template <class T, bool Lock, class Apply, class Commit>
[[gnu::always_inline]] inline const Uop* modify_as(Core& core, const Uop* u, std::uint64_t va,
                                                   Apply apply, Commit commit) {
  if constexpr (Lock) return modify_locked<T>(core, u, va, apply, commit);
  return modify<T>(core, u, va, apply, commit);
}

/// What an arithmetic instruction leaves behind.
template <class T>
struct ValueAndFlags {
  T value{};
  ArithFlags flags = 0;
};

/// Picks an instantiation by operand size: f.template operator()<T>() with the unsigned type of
/// `bits`. For instructions without byte operands.
template <class F>
[[nodiscard]] auto with_wide_size(unsigned bits, F f) {
  switch (bits) {
    case 16:
      return f.template operator()<std::uint16_t>();
    case 32:
      return f.template operator()<std::uint32_t>();
    default:
      return f.template operator()<std::uint64_t>();
  }
}
/// The same for instructions that have byte operands too.
template <class F>
[[nodiscard]] auto with_size(unsigned bits, F f) {
  return bits == 8 ? f.template operator()<std::uint8_t>() : with_wide_size(bits, f);
}
/// And for those with 32- and 64-bit operands only.
template <class F>
[[nodiscard]] auto with_vex_size(unsigned bits, F f) {
  return bits == 64 ? f.template operator()<std::uint64_t>()
                    : f.template operator()<std::uint32_t>();
}
template <class F>
[[nodiscard]] auto with_bool(bool b, F f) {
  return b ? f.template operator()<true>() : f.template operator()<false>();
}

}  // namespace strata::interp
