// MOVS, STOS, LODS, CMPS, SCAS with and without REP. Repetitions go a page at a time where both
// sides can be reached directly and DF is 0, else one element at a time. What was done is committed
// before anything can fault, so a fault or an interrupt finds the registers of an iteration's end.
#include <algorithm>
#include <limits>

#include "engines/interp/access.hpp"
#include "engines/interp/host_alu.hpp"
#include "engines/interp/integer.hpp"
#include "engines/interp/segment_checks.hpp"

namespace strata::interp {
namespace {

enum class String : std::uint8_t { movs, stos, lods, cmps, scas };
/// Prefix: REP and REPE are one (F3); MOVS, STOS and LODS repeat alike under either.
enum class Repeat : std::uint8_t { none, while_equal, while_unequal };

constexpr bool reads_si(String op) { return op != String::stos && op != String::scas; }
constexpr bool uses_di(String op) { return op != String::lods; }
constexpr bool compares(String op) { return op == String::cmps || op == String::scas; }

constexpr std::uint8_t kAx = cpu::RAX * 8;
constexpr std::uint8_t kCx = cpu::RCX * 8;
constexpr std::uint8_t kSi = cpu::RSI * 8;
constexpr std::uint8_t kDi = cpu::RDI * 8;

/// DS:rSI, with an override.
[[gnu::always_inline]] inline std::uint64_t source_va(const Core& core, const Uop* u,
                                                      std::uint64_t offset) {
  return u->address_form == 0 ? offset : core.linear(u, offset);
}
/// ES:rDI, which takes no override.
[[gnu::always_inline]] inline std::uint64_t target_va(const Core& core, const Uop* u,
                                                      std::uint64_t offset) {
  if ((u->address_form & 0x80U) == 0) return offset;
  return static_cast<std::uint32_t>(offset + core.segment_base[cpu::SegmentName::ES]);
}

/// Bytes per element, or minus that with DF.
template <class T>
[[gnu::always_inline]] inline std::uint64_t stride(const Core& core) {
  const bool down = (core.rflags_other & cpu::rflags::DF) != 0;
  return down ? 0 - std::uint64_t{sizeof(T)} : sizeof(T);
}

/// Moves the index registers by `bytes`. A is as wide as an address.
template <String Op, class A>
[[gnu::always_inline]] inline void advance(Core& core, std::uint64_t bytes) {
  if constexpr (reads_si(Op)) core.set_reg<A>(kSi, static_cast<A>(core.reg<A>(kSi) + bytes));
  if constexpr (uses_di(Op)) core.set_reg<A>(kDi, static_cast<A>(core.reg<A>(kDi) + bytes));
}

/// Limits, rights and alignment of the element, where the block's mode checks them.
template <String Op, class T, class A>
[[gnu::noinline]] bool allowed(Core& core, const Uop* u) {
  if (reads_si(Op) && (u->aux & 1) != 0 &&
      !check_implicit(core, u->segment, core.reg<A>(kSi), sizeof(T), false)) {
    return false;
  }
  return !uses_di(Op) || (u->aux & 2) == 0 ||
         check_implicit(core, cpu::ES, core.reg<A>(kDi), sizeof(T), !compares(Op));
}

/// One element. Comparisons leave their flags in `flags`. False: memory said no.
template <String Op, class T, class A>
[[gnu::always_inline]] inline bool element(Core& core, const Uop* u, ArithFlags& flags) {
  T v = core.reg<T>(kAx);
  if (u->aux != 0 && !allowed<Op, T, A>(core, u)) return false;
  if constexpr (reads_si(Op)) {
    if (!load_value(core, source_va(core, u, core.reg<A>(kSi)), v)) return false;
  }
  if constexpr (Op == String::movs || Op == String::stos) {
    if (!core.store<T>(target_va(core, u, core.reg<A>(kDi)), v)) return false;
  } else if constexpr (Op == String::lods) {
    core.set_reg<T>(kAx, v);
  } else {
    T other;
    if (!load_value(core, target_va(core, u, core.reg<A>(kDi)), other)) return false;
    flags = host::binary<host::Binary::cmp>(v, other, flags);
  }
  advance<Op, A>(core, stride<T>(core));
  return true;
}

/// Elements from `offset` to where an address of this width wraps.
template <class T, class A>
std::uint64_t before_wrap(A offset) {
  if constexpr (sizeof(A) == 8) return ~std::uint64_t{0};
  return (std::uint64_t{std::numeric_limits<A>::max()} + 1 - offset) / sizeof(T);
}

const std::byte* source_span(Core& core, std::uint64_t va, std::uint64_t& available) {
  const TlbEntry& e = core.dtlb[tlb_index(va, core.pcid)];
  if (e.read_tag == ((va & ~kPageMask) | core.pcid)) [[likely]] {
    available = kPageSize - (va & kPageMask);
    return reinterpret_cast<const std::byte*>(va + e.addend);
  }
  return core.read_span(va, available);
}

std::byte* target_span(Core& core, std::uint64_t va, std::uint64_t& available) {
  const TlbEntry& e = core.dtlb[tlb_index(va, core.pcid)];
  if (e.write_tag == ((va & ~kPageMask) | core.pcid)) [[likely]] {
    available = kPageSize - (va & kPageMask);
    return reinterpret_cast<std::byte*>(va + e.addend);
  }
  return core.write_span(va, available);
}

/// Copies upwards, element after element: a target just above the source repeats a pattern.
template <class T>
void copy_up(std::byte* to, const std::byte* from, std::uint64_t elements) {
  const auto distance =
      reinterpret_cast<std::uintptr_t>(to) - reinterpret_cast<std::uintptr_t>(from);
  const std::uint64_t bytes = elements * sizeof(T);
  if (distance - 1 >= bytes - 1) {  // not in 1 .. bytes - 1, modulo 2^64
    guest::copy(to, from, bytes);
    return;
  }
  for (std::uint64_t i = 0; i < bytes; i += sizeof(T)) put(to + i, get<T>(from + i));
}

template <class T>
void fill_up(std::byte* to, T value, std::uint64_t elements) {
  if constexpr (sizeof(T) == 1) {
    guest::fill(to, value, elements);
  } else {
    for (std::uint64_t i = 0; i < elements; ++i) put(to + i * sizeof(T), value);
  }
}

/// Compares until the repetition's condition fails. Returns elements compared, at least one.
template <class T, Repeat Rep>
std::uint64_t compare_up(const std::byte* a, T accumulator, const std::byte* b,
                         std::uint64_t elements, ArithFlags& flags) {
  T left = accumulator;
  T right{};
  std::uint64_t i = 0;
  bool going = true;
  while (going && i < elements) {
    if (a != nullptr) left = get<T>(a + i * sizeof(T));
    right = get<T>(b + i * sizeof(T));
    going = (left == right) == (Rep == Repeat::while_equal);
    ++i;
  }
  flags = host::binary<host::Binary::cmp>(left, right, flags);
  return i;
}

/// As many of `count` iterations as both pages allow at once. 0: go by elements.
template <String Op, class T, class A, Repeat Rep>
std::uint64_t chunk(Core& core, const Uop* u, std::uint64_t count, ArithFlags& flags) {
  if ((core.rflags_other & cpu::rflags::DF) != 0 || Op == String::lods || u->aux != 0) return 0;
  const std::byte* from = nullptr;
  std::uint64_t available = kPageSize;
  const std::uint64_t places = core.places();
  if constexpr (reads_si(Op)) {
    const A si = core.reg<A>(kSi);
    from = source_span(core, source_va(core, u, si), available);
    if (from == nullptr) return 0;
    count = std::min({count, available / sizeof(T), before_wrap<T, A>(si)});
  }
  const A di = core.reg<A>(kDi);
  const std::uint64_t va = target_va(core, u, di);
  std::byte* to = nullptr;
  const std::byte* other = nullptr;
  if constexpr (compares(Op)) {
    other = source_span(core, va, available);
    if (other == nullptr) return 0;
  } else {
    to = target_span(core, va, available);
    if (to == nullptr) return 0;
  }
  // Finding the second page was a quiescent point: the first may have moved.
  if (core.places() != places) return 0;
  count = std::min({count, available / sizeof(T), before_wrap<T, A>(di)});
  if (count == 0) return 0;
  if constexpr (Op == String::movs) copy_up<T>(to, from, count);
  if constexpr (Op == String::stos) fill_up<T>(to, core.reg<T>(kAx), count);
  if constexpr (compares(Op))
    count = compare_up<T, Rep>(from, core.reg<T>(kAx), other, count, flags);
  advance<Op, A>(core, count * sizeof(T));
  return count;
}

template <String Op, class T, class A>
const Uop* string_once(Core& core, const Uop* u) {
  ArithFlags flags = core.flags;
  if (!element<Op, T, A>(core, u, flags)) return core.abort(u);
  core.flags = flags;
  return next(core, u);
}

/// A fault in the middle shows the flags from before the instruction (SDM 2B REP), so they are
/// committed at the end and when pausing.
template <String Op, class T, class A, Repeat Rep>
const Uop* string_repeated(Core& core, const Uop* u) {
  ArithFlags flags = core.flags;
  A count = core.reg<A>(kCx);
  if (count == 0) return next(core, u);
  for (;;) {
    const std::uint64_t until = count > core.rep_floor ? count - core.rep_floor : count;
    std::uint64_t done = chunk<Op, T, A, Rep>(core, u, until, flags);
    if (done == 0) {
      if (!element<Op, T, A>(core, u, flags)) return core.abort(u);
      done = 1;
    }
    count = static_cast<A>(count - done);
    core.set_reg<A>(kCx, count);
    if (count == 0) break;
    if (compares(Op) && ((flags & kFlagZF) != 0) != (Rep == Repeat::while_equal)) break;
    core.iteration_done();
    if (core.should_pause() || count == core.rep_floor) {
      core.flags = flags;
      return core.pause(u, count);
    }
  }
  core.flags = flags;
  return next(core, u);
}

// ---- lowering -----------------------------------------------------------------------------------

template <String Op, class T, class A>
Handler repeat_handler(Repeat rep) {
  switch (rep) {
    case Repeat::while_equal:
      return &string_repeated<Op, T, A, Repeat::while_equal>;
    case Repeat::while_unequal:
      // Without a comparison there is nothing to tell the prefixes apart by.
      return &string_repeated < Op, T, A,
             compares(Op) ? Repeat::while_unequal : Repeat::while_equal > ;
    default:
      return &string_once<Op, T, A>;
  }
}

/// Which prefix is in force: the last of F2 and F3 counts, which Zydis has sorted out.
Repeat repeat_of(const ZydisDecodedInstruction& insn) {
  if ((insn.attributes & ZYDIS_ATTRIB_HAS_REPNE) != 0) return Repeat::while_unequal;
  if ((insn.attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE)) != 0) {
    return Repeat::while_equal;
  }
  return Repeat::none;
}

/// The segment of DS:rSI after overrides.
ZydisRegister source_segment(const Lowering& l) {
  for (unsigned i = 0; i < l.insn.operand_count; ++i) {
    const ZydisDecodedOperand& op = l.ops[i];
    if (op.type == ZYDIS_OPERAND_TYPE_MEMORY &&
        ZydisRegisterGetId(op.mem.base) == ZydisRegisterGetId(ZYDIS_REGISTER_RSI)) {
      return op.mem.segment;
    }
  }
  return ZYDIS_REGISTER_DS;
}

template <String Op>
bool lower_string(Lowering& l, unsigned bits) {
  const Repeat rep = repeat_of(l.insn);
  Uop u = l.step(with_size(bits, [&l, rep]<class T>() -> Handler {
    return with_wide_size(l.insn.address_width,
                          [rep]<class A>() -> Handler { return repeat_handler<Op, T, A>(rep); });
  }));
  u.base = u.index = kZeroSlot * 8;
  u.disp = 0;
  l.implicit_memory(u, source_segment(l));
  u.aux = static_cast<std::uint8_t>((needs_checks(l.mode, u.segment) ? 1 : 0) |
                                    (needs_checks(l.mode, cpu::ES) ? 2 : 0));
  l.emit(u);
  return true;
}

}  // namespace

bool lower_strings(Lowering& l) {
  // MOVSD and CMPSD are strings here: the SSE2 ones never come to lower_integer().
  switch (l.insn.mnemonic) {
    case ZYDIS_MNEMONIC_MOVSB:
      return lower_string<String::movs>(l, 8);
    case ZYDIS_MNEMONIC_MOVSW:
      return lower_string<String::movs>(l, 16);
    case ZYDIS_MNEMONIC_MOVSD:
      return lower_string<String::movs>(l, 32);
    case ZYDIS_MNEMONIC_MOVSQ:
      return lower_string<String::movs>(l, 64);
    case ZYDIS_MNEMONIC_STOSB:
      return lower_string<String::stos>(l, 8);
    case ZYDIS_MNEMONIC_STOSW:
      return lower_string<String::stos>(l, 16);
    case ZYDIS_MNEMONIC_STOSD:
      return lower_string<String::stos>(l, 32);
    case ZYDIS_MNEMONIC_STOSQ:
      return lower_string<String::stos>(l, 64);
    case ZYDIS_MNEMONIC_LODSB:
      return lower_string<String::lods>(l, 8);
    case ZYDIS_MNEMONIC_LODSW:
      return lower_string<String::lods>(l, 16);
    case ZYDIS_MNEMONIC_LODSD:
      return lower_string<String::lods>(l, 32);
    case ZYDIS_MNEMONIC_LODSQ:
      return lower_string<String::lods>(l, 64);
    case ZYDIS_MNEMONIC_CMPSB:
      return lower_string<String::cmps>(l, 8);
    case ZYDIS_MNEMONIC_CMPSW:
      return lower_string<String::cmps>(l, 16);
    case ZYDIS_MNEMONIC_CMPSD:
      return lower_string<String::cmps>(l, 32);
    case ZYDIS_MNEMONIC_CMPSQ:
      return lower_string<String::cmps>(l, 64);
    case ZYDIS_MNEMONIC_SCASB:
      return lower_string<String::scas>(l, 8);
    case ZYDIS_MNEMONIC_SCASW:
      return lower_string<String::scas>(l, 16);
    case ZYDIS_MNEMONIC_SCASD:
      return lower_string<String::scas>(l, 32);
    case ZYDIS_MNEMONIC_SCASQ:
      return lower_string<String::scas>(l, 64);
    default:
      return false;
  }
}

}  // namespace strata::interp
