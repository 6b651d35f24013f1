// XCHG, XADD, CMPXCHG, CMPXCHG8B, CMPXCHG16B. XCHG with memory is atomic without LOCK; the others
// are made atomic with and without, which nobody can tell from the weaker form.
#include <array>

#include "engines/interp/access.hpp"
#include "engines/interp/host_alu.hpp"
#include "engines/interp/integer.hpp"

namespace strata::interp {
namespace {

constexpr std::uint8_t kAx = cpu::RAX * 8;
constexpr std::uint8_t kDx = cpu::RDX * 8;

template <class T>
const Uop* xchg_register(Core& core, const Uop* u) {
  const T a = core.reg<T>(u->dst);
  const T b = core.reg<T>(u->src);
  core.set_reg<T>(u->src, a);
  core.set_reg<T>(u->dst, b);
  return next(core, u);
}

template <class T>
const Uop* xchg_memory(Core& core, const Uop* u) {
  const T mine = core.reg<T>(u->src);
  return modify_locked<T>(
      core, u, address_of(core, u),
      [mine](void* p) {
        T v = mine;
        asm volatile("xchg %[v], %[m]"
                     : [v] "+r"(v), [m] "+m"(static_cast<host::Unaligned<T>*>(p)->value)
                     :
                     : "memory");
        return v;
      },
      [&core, u](T old) { core.set_reg<T>(u->src, old); });
}

/// XADD dst, src: src = dst, then dst = the sum, which wins if they are one register.
template <class T>
const Uop* xadd_register(Core& core, const Uop* u) {
  const T old = core.reg<T>(u->dst);
  T sum = old;
  const ArithFlags f = host::binary<host::Binary::add>(sum, core.reg<T>(u->src), core.flags);
  core.set_reg<T>(u->src, old);
  core.set_reg<T>(u->dst, sum);
  core.flags = f;
  return next(core, u);
}

template <class T>
const Uop* xadd_memory(Core& core, const Uop* u) {
  const T addend = core.reg<T>(u->src);
  return modify_locked<T>(
      core, u, address_of(core, u),
      [addend](void* p) {
        ValueAndFlags<T> r{addend, 0};
        asm volatile("lock xadd %[v], %[m]\n\tlahf\n\tseto %%al"
                     : [v] "+&r"(r.value), [m] "+m"(static_cast<host::Unaligned<T>*>(p)->value),
                       "=&a"(r.flags)
                     :
                     : "cc", "memory");
        return r;
      },
      [&core, u](ValueAndFlags<T> r) {
        core.set_reg<T>(u->src, r.value);
        core.flags = r.flags;
      });
}

/// The accumulator is written only if the comparison failed, so a 32-bit success leaves RAX's upper
/// half alone.
template <class T>
[[gnu::always_inline]] inline void commit_accumulator(Core& core, T found, ArithFlags f) {
  if ((f & kFlagZF) == 0) core.set_reg<T>(kAx, found);
  core.flags = f;
}

/// Whether a failed 32-bit comparison clears the destination's upper half differs between makers:
/// the host's instruction works on the whole registers.
[[gnu::always_inline]] inline ArithFlags host_cmpxchg32(std::uint64_t& accumulator,
                                                        std::uint64_t& destination,
                                                        std::uint64_t source) noexcept {
  std::uint64_t a = accumulator;
  std::uint64_t found = 0;
  asm("cmpxchg %k[s], %k[d]\n\tmov %%rax, %[f]\n\tlahf\n\tseto %%al"
      : [d] "+&r"(destination), "+&a"(a), [f] "=&r"(found)
      : [s] "r"(source)
      : "cc");
  accumulator = found;
  return static_cast<ArithFlags>(a);
}

template <class T>
const Uop* cmpxchg_register(Core& core, const Uop* u) {
  if constexpr (sizeof(T) == 4) {
    auto accumulator = core.reg<std::uint64_t>(kAx);
    auto destination = core.reg<std::uint64_t>(u->dst);
    const ArithFlags f = host_cmpxchg32(accumulator, destination, core.reg<std::uint64_t>(u->src));
    // One register may be both: a failed comparison writes the accumulator last.
    core.set_reg<std::uint64_t>(u->dst, destination);
    if ((f & kFlagZF) == 0) core.set_reg<std::uint64_t>(kAx, accumulator);
    core.flags = f;
  } else {
    T expected = core.reg<T>(kAx);
    const T found = core.reg<T>(u->dst);
    const ArithFlags f = host::binary<host::Binary::cmp>(expected, found, core.flags);
    if ((f & kFlagZF) != 0) core.set_reg<T>(u->dst, core.reg<T>(u->src));
    commit_accumulator(core, found, f);
  }
  return next(core, u);
}

template <class T>
const Uop* cmpxchg_memory(Core& core, const Uop* u) {
  const T expected = core.reg<T>(kAx);
  const T desired = core.reg<T>(u->src);
  return modify_locked<T>(
      core, u, address_of(core, u),
      [expected, desired](void* p) {
        ValueAndFlags<T> r{expected, 0};
        r.flags = host::locked_exchange_if<T>(p, r.value, desired);
        return r;
      },
      [&core](ValueAndFlags<T> r) { commit_accumulator(core, r.value, r.flags); });
}

/// Outcome of CMPXCHG8B and CMPXCHG16B: they change ZF alone.
template <class T>
struct Pair {
  T lo{};
  T hi{};
  bool equal = false;
};

template <class T>
void commit_pair(Core& core, const Pair<T>& r) {
  core.flags = static_cast<ArithFlags>((core.flags & ~kFlagZF) | (r.equal ? kFlagZF : 0));
  if (r.equal) return;
  core.set_reg<T>(kAx, r.lo);
  core.set_reg<T>(kDx, r.hi);
}

const Uop* cmpxchg8b(Core& core, const Uop* u) {
  using T = std::uint32_t;
  Pair<T> expected{core.reg<T>(kAx), core.reg<T>(kDx), false};
  const auto desired = std::uint64_t{core.reg<T>(cpu::RCX * 8)} << 32 | core.reg<T>(cpu::RBX * 8);
  return modify_locked<std::uint64_t>(
      core, u, address_of(core, u),
      [expected, desired](void* p) {
        std::uint64_t v = std::uint64_t{expected.hi} << 32 | expected.lo;
        const ArithFlags f = host::locked_exchange_if<std::uint64_t>(p, v, desired);
        return Pair<T>{static_cast<T>(v), static_cast<T>(v >> 32), (f & kFlagZF) != 0};
      },
      [&core](const Pair<T>& r) { commit_pair(core, r); });
}

/// The operand must be aligned to 16 bytes (#GP), so it never crosses pages.
const Uop* cmpxchg16b(Core& core, const Uop* u) {
  using T = std::uint64_t;
  struct Operand {
    T lo, hi;
  };
  const std::uint64_t va = address_of(core, u);
  if ((va & 15) != 0) return core.fault(u, cpu::GP, 0);
  Pair<T> r{core.r[cpu::RAX], core.r[cpu::RDX], false};
  const T low = core.r[cpu::RBX];
  const T high = core.r[cpu::RCX];
  return modify_locked<Operand>(
      core, u, va,
      [r, low, high](void* p) mutable {
        asm volatile("lock cmpxchg16b %[m]\n\tsetz %[z]"
                     : [m] "+m"(static_cast<host::Unaligned<Operand>*>(p)->value), "+a"(r.lo),
                       "+d"(r.hi), [z] "=q"(r.equal)
                     : "b"(low), "c"(high)
                     : "cc", "memory");
        return r;
      },
      [&core](const Pair<T>& done) { commit_pair(core, done); });
}

// ---- lowering -----------------------------------------------------------------------------------

bool is_register(const ZydisDecodedOperand& op) { return op.type == ZYDIS_OPERAND_TYPE_REGISTER; }

bool lower_xchg(Lowering& l) {
  // Either operand of XCHG may be the one in memory.
  const bool swapped = !is_register(l.ops[1]);
  const ZydisDecodedOperand& rm = l.ops[swapped ? 1 : 0];
  const ZydisDecodedOperand& reg = l.ops[swapped ? 0 : 1];
  Uop u = l.step(with_size(reg.size, [&rm]<class T>() -> Handler {
    return is_register(rm) ? &xchg_register<T> : &xchg_memory<T>;
  }));
  if (is_register(rm)) u.dst = Lowering::reg_offset(rm.reg.value);
  u.src = Lowering::reg_offset(reg.reg.value);
  l.emit(u);
  return true;
}

/// XADD and CMPXCHG: r/m, reg.
template <class F>
bool lower_exchange(Lowering& l, F handler) {
  Uop u = l.step(with_size(l.ops[0].size, handler));
  if (is_register(l.ops[0])) u.dst = Lowering::reg_offset(l.ops[0].reg.value);
  u.src = Lowering::reg_offset(l.ops[1].reg.value);
  l.emit(u);
  return true;
}

}  // namespace

bool lower_atomics(Lowering& l) {
  const bool reg = is_register(l.ops[0]);
  switch (l.insn.mnemonic) {
    case ZYDIS_MNEMONIC_XCHG:
      return lower_xchg(l);
    case ZYDIS_MNEMONIC_XADD:
      return lower_exchange(
          l, [reg]<class T>() -> Handler { return reg ? &xadd_register<T> : &xadd_memory<T>; });
    case ZYDIS_MNEMONIC_CMPXCHG:
      return lower_exchange(l, [reg]<class T>() -> Handler {
        return reg ? &cmpxchg_register<T> : &cmpxchg_memory<T>;
      });
    case ZYDIS_MNEMONIC_CMPXCHG8B:
      l.emit(l.step(&cmpxchg8b));
      return true;
    case ZYDIS_MNEMONIC_CMPXCHG16B:
      l.emit(l.step(&cmpxchg16b));
      return true;
    default:
      return false;
  }
}

}  // namespace strata::interp
