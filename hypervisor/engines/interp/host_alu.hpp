// Arithmetic by the host's own instructions, flags and all: undefined flags come out as a real
// processor leaves them. Flag inputs are set by ADD $127 to the OF byte (1 + 127 overflows, 0 + 127
// does not) and SAHF; results are read by LAHF and SETO (see flags.hpp).
#pragma once

#include <cstdint>
#include <type_traits>

#include "engines/interp/flags.hpp"
#include "engines/interp/guest_access.hpp"

namespace strata::interp::host {

/// In the order of the opcode map (SDM 2D table ).
enum class Binary : std::uint8_t { add, or_, adc, sbb, and_, sub, xor_, cmp, test };

/// a = a op b. `in` matters to ADC and SBB only.
template <Binary Op, class T>
[[gnu::always_inline]] inline ArithFlags binary(T& a, T b, ArithFlags in) noexcept {
  ArithFlags f = in;
  if constexpr (Op == Binary::add) {
    asm("add %[b], %[a]\n\tlahf\n\tseto %%al" : [a] "+r"(a), "=a"(f) : [b] "r"(b) : "cc");
  } else if constexpr (Op == Binary::or_) {
    asm("or %[b], %[a]\n\tlahf\n\tseto %%al" : [a] "+r"(a), "=a"(f) : [b] "r"(b) : "cc");
  } else if constexpr (Op == Binary::adc) {
    asm("sahf\n\tadc %[b], %[a]\n\tlahf\n\tseto %%al" : [a] "+&r"(a), "+&a"(f) : [b] "r"(b) : "cc");
  } else if constexpr (Op == Binary::sbb) {
    asm("sahf\n\tsbb %[b], %[a]\n\tlahf\n\tseto %%al" : [a] "+&r"(a), "+&a"(f) : [b] "r"(b) : "cc");
  } else if constexpr (Op == Binary::and_) {
    asm("and %[b], %[a]\n\tlahf\n\tseto %%al" : [a] "+r"(a), "=a"(f) : [b] "r"(b) : "cc");
  } else if constexpr (Op == Binary::sub) {
    asm("sub %[b], %[a]\n\tlahf\n\tseto %%al" : [a] "+r"(a), "=a"(f) : [b] "r"(b) : "cc");
  } else if constexpr (Op == Binary::xor_) {
    asm("xor %[b], %[a]\n\tlahf\n\tseto %%al" : [a] "+r"(a), "=a"(f) : [b] "r"(b) : "cc");
  } else if constexpr (Op == Binary::cmp) {
    asm("cmp %[b], %[a]\n\tlahf\n\tseto %%al" : "=a"(f) : [a] "r"(a), [b] "r"(b) : "cc");
  } else {
    asm("test %[b], %[a]\n\tlahf\n\tseto %%al" : "=a"(f) : [a] "r"(a), [b] "r"(b) : "cc");
  }
  return f;
}

/// The same where nobody reads the flags.
template <Binary Op, class T>
[[nodiscard]] constexpr T binary_value(T a, T b, ArithFlags in) noexcept {
  const unsigned carry = (in & kFlagCF) != 0 ? 1 : 0;
  if constexpr (Op == Binary::add) return static_cast<T>(a + b);
  if constexpr (Op == Binary::or_) return static_cast<T>(a | b);
  if constexpr (Op == Binary::adc) return static_cast<T>(a + b + carry);
  if constexpr (Op == Binary::sbb) return static_cast<T>(a - b - carry);
  if constexpr (Op == Binary::and_) return static_cast<T>(a & b);
  if constexpr (Op == Binary::sub) return static_cast<T>(a - b);
  if constexpr (Op == Binary::xor_) return static_cast<T>(a ^ b);
  return a;
}

/// A T at any address, as an asm operand.
template <class T>
struct [[gnu::packed, gnu::may_alias]] Unaligned {
  T value;
};

/// *p op= b atomically. Not for CMP and TEST, which take no LOCK.
template <Binary Op, class T>
[[gnu::always_inline]] inline ArithFlags locked_binary(void* p, T b, ArithFlags in) noexcept {
  auto& m = *static_cast<Unaligned<T>*>(p);
  ArithFlags f = in;
  if constexpr (Op == Binary::add) {
    asm volatile("lock add %[b], %[m]\n\tlahf\n\tseto %%al"
                 : [m] "+m"(m.value), "=&a"(f)
                 : [b] "r"(b)
                 : "cc", "memory");
  } else if constexpr (Op == Binary::or_) {
    asm volatile("lock or %[b], %[m]\n\tlahf\n\tseto %%al"
                 : [m] "+m"(m.value), "=&a"(f)
                 : [b] "r"(b)
                 : "cc", "memory");
  } else if constexpr (Op == Binary::adc) {
    asm volatile("sahf\n\tlock adc %[b], %[m]\n\tlahf\n\tseto %%al"
                 : [m] "+m"(m.value), "+&a"(f)
                 : [b] "r"(b)
                 : "cc", "memory");
  } else if constexpr (Op == Binary::sbb) {
    asm volatile("sahf\n\tlock sbb %[b], %[m]\n\tlahf\n\tseto %%al"
                 : [m] "+m"(m.value), "+&a"(f)
                 : [b] "r"(b)
                 : "cc", "memory");
  } else if constexpr (Op == Binary::and_) {
    asm volatile("lock and %[b], %[m]\n\tlahf\n\tseto %%al"
                 : [m] "+m"(m.value), "=&a"(f)
                 : [b] "r"(b)
                 : "cc", "memory");
  } else if constexpr (Op == Binary::sub) {
    asm volatile("lock sub %[b], %[m]\n\tlahf\n\tseto %%al"
                 : [m] "+m"(m.value), "=&a"(f)
                 : [b] "r"(b)
                 : "cc", "memory");
  } else {
    static_assert(Op == Binary::xor_);
    asm volatile("lock xor %[b], %[m]\n\tlahf\n\tseto %%al"
                 : [m] "+m"(m.value), "=&a"(f)
                 : [b] "r"(b)
                 : "cc", "memory");
  }
  return f;
}

enum class Unary : std::uint8_t { inc, dec, neg, not_ };

/// a = op a. NOT leaves the flags; INC and DEC leave CF.
template <Unary Op, class T>
[[gnu::always_inline]] inline ArithFlags unary(T& a, ArithFlags in) noexcept {
  ArithFlags f = in;
  if constexpr (Op == Unary::inc) {
    asm("sahf\n\tinc %[a]\n\tlahf\n\tseto %%al" : [a] "+&r"(a), "+&a"(f) : : "cc");
  } else if constexpr (Op == Unary::dec) {
    asm("sahf\n\tdec %[a]\n\tlahf\n\tseto %%al" : [a] "+&r"(a), "+&a"(f) : : "cc");
  } else if constexpr (Op == Unary::neg) {
    asm("neg %[a]\n\tlahf\n\tseto %%al" : [a] "+r"(a), "=a"(f) : : "cc");
  } else {
    a = static_cast<T>(~a);
  }
  return f;
}

template <Unary Op, class T>
[[nodiscard]] constexpr T unary_value(T a) noexcept {
  if constexpr (Op == Unary::inc) return static_cast<T>(a + 1);
  if constexpr (Op == Unary::dec) return static_cast<T>(a - 1);
  if constexpr (Op == Unary::neg) return static_cast<T>(0 - a);
  return static_cast<T>(~a);
}

/// CMPXCHG's heart: if *p == expected then *p = desired, else expected = *p; atomic. Returns the
/// flags of comparing `expected` with *p.
template <class T>
[[gnu::always_inline]] inline ArithFlags locked_exchange_if(void* p, T& expected,
                                                            T desired) noexcept {
  auto& m = *static_cast<Unaligned<T>*>(p);
  std::uint64_t a = expected;
  ArithFlags f = 0;
  asm volatile("lock cmpxchg %[d], %[m]\n\tmov %%rax, %%rcx\n\tlahf\n\tseto %%al"
               : [m] "+m"(m.value), "+&a"(a), "=&c"(expected)
               : [d] "r"(desired)
               : "cc", "memory");
  f = static_cast<ArithFlags>(a);
  return f;
}

/// *p = op *p atomically.
template <Unary Op, class T>
[[gnu::always_inline]] inline ArithFlags locked_unary(void* p, ArithFlags in) noexcept {
  T old = guest::load<T>(p);
  for (;;) {
    T changed = old;
    const ArithFlags f = unary<Op, T>(changed, in);
    if ((locked_exchange_if<T>(p, old, changed) & kFlagZF) != 0) return f;
  }
}

/// In the order of the opcode map's group 2.
enum class Shift : std::uint8_t { rol, ror, rcl, rcr, shl, shr, sal, sar };

/// x = x op count. A count of zero (after masking) leaves the flags; so all of them go in.
template <Shift Op, class T>
[[gnu::always_inline]] inline ArithFlags shift(T& x, std::uint8_t count, ArithFlags in) noexcept {
  ArithFlags f = in;
  if constexpr (Op == Shift::rol) {
    asm("add $127, %%al\n\tsahf\n\trol %%cl, %[x]\n\tlahf\n\tseto %%al"
        : [x] "+&r"(x), "+&a"(f)
        : "c"(count)
        : "cc");
  } else if constexpr (Op == Shift::ror) {
    asm("add $127, %%al\n\tsahf\n\tror %%cl, %[x]\n\tlahf\n\tseto %%al"
        : [x] "+&r"(x), "+&a"(f)
        : "c"(count)
        : "cc");
  } else if constexpr (Op == Shift::rcl) {
    asm("add $127, %%al\n\tsahf\n\trcl %%cl, %[x]\n\tlahf\n\tseto %%al"
        : [x] "+&r"(x), "+&a"(f)
        : "c"(count)
        : "cc");
  } else if constexpr (Op == Shift::rcr) {
    asm("add $127, %%al\n\tsahf\n\trcr %%cl, %[x]\n\tlahf\n\tseto %%al"
        : [x] "+&r"(x), "+&a"(f)
        : "c"(count)
        : "cc");
  } else if constexpr (Op == Shift::shl || Op == Shift::sal) {
    asm("add $127, %%al\n\tsahf\n\tshl %%cl, %[x]\n\tlahf\n\tseto %%al"
        : [x] "+&r"(x), "+&a"(f)
        : "c"(count)
        : "cc");
  } else if constexpr (Op == Shift::shr) {
    asm("add $127, %%al\n\tsahf\n\tshr %%cl, %[x]\n\tlahf\n\tseto %%al"
        : [x] "+&r"(x), "+&a"(f)
        : "c"(count)
        : "cc");
  } else {
    asm("add $127, %%al\n\tsahf\n\tsar %%cl, %[x]\n\tlahf\n\tseto %%al"
        : [x] "+&r"(x), "+&a"(f)
        : "c"(count)
        : "cc");
  }
  return f;
}

/// SHLD (Left) and SHRD.
template <bool Left, class T>
[[gnu::always_inline]] inline ArithFlags double_shift(T& x, T y, std::uint8_t count,
                                                      ArithFlags in) noexcept {
  ArithFlags f = in;
  if constexpr (Left) {
    asm("add $127, %%al\n\tsahf\n\tshld %%cl, %[y], %[x]\n\tlahf\n\tseto %%al"
        : [x] "+&r"(x), "+&a"(f)
        : [y] "r"(y), "c"(count)
        : "cc");
  } else {
    asm("add $127, %%al\n\tsahf\n\tshrd %%cl, %[y], %[x]\n\tlahf\n\tseto %%al"
        : [x] "+&r"(x), "+&a"(f)
        : [y] "r"(y), "c"(count)
        : "cc");
  }
  return f;
}

}  // namespace strata::interp::host
