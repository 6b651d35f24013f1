// Near branches. Targets in the block's own page go through link slots (Core::jump_linked), others
// through the jump cache.
#include "engines/interp/branches.hpp"

#include "engines/interp/integer.hpp"
#include "engines/interp/stack.hpp"

namespace strata::interp {
namespace {

/// How wide the instruction pointer is: 64-bit mode, or the operand size elsewhere (SDM 2A JMP:
/// EIP is truncated to the operand size). Outside 64-bit mode CS has a base.
enum class Ip : std::uint8_t { ip64, ip32, ip16 };

template <Ip W>
constexpr bool kLong = W == Ip::ip64;

template <Ip W>
std::uint64_t truncate(std::uint64_t ip) noexcept {
  if constexpr (W == Ip::ip64) return ip;
  if constexpr (W == Ip::ip32) return static_cast<std::uint32_t>(ip);
  return static_cast<std::uint16_t>(ip);
}

/// VA of instruction pointer `ip`.
template <Ip W>
[[gnu::always_inline]] inline std::uint64_t target_of(const Core& core, std::uint64_t ip) noexcept {
  if constexpr (W == Ip::ip64) return ip;
  return static_cast<std::uint32_t>(truncate<W>(ip) + core.segment_base[cpu::CS]);
}

/// Target of a relative branch: imm is its distance from the block's first byte.
template <Ip W>
[[gnu::always_inline]] inline std::uint64_t relative(const Core& core, const Uop* u) noexcept {
  const std::uint64_t va = core.r[kPcSlot] + u->imm;
  if constexpr (W == Ip::ip64) return va;
  return target_of<W>(core, va - core.segment_base[cpu::CS]);
}

/// VA of the next instruction.
template <Ip W>
[[gnu::always_inline]] inline std::uint64_t following(const Core& core, const Uop* u) noexcept {
  const std::uint64_t va = core.r[kPcSlot] + u->offset + u->length;
  return W == Ip::ip64 ? va : static_cast<std::uint32_t>(va);
}

/// What CALL pushes.
template <Ip W>
[[gnu::always_inline]] inline auto return_address(const Core& core, const Uop* u) noexcept {
  const std::uint64_t va = core.r[kPcSlot] + u->offset + u->length;
  if constexpr (W == Ip::ip64) {
    return va;
  } else {
    const std::uint64_t ip = va - core.segment_base[cpu::CS];
    if constexpr (W == Ip::ip32) {
      return static_cast<std::uint32_t>(ip);
    } else {
      return static_cast<std::uint16_t>(ip);
    }
  }
}

/// A target beyond CS.limit is #GP at the branch.
template <Ip W>
[[nodiscard, gnu::always_inline]] inline bool in_code(const Core& core, std::uint64_t va) noexcept {
  if constexpr (W == Ip::ip64) return true;
  return core.ip_at(va) <= core.arch.segment[cpu::CS].limit;
}

template <bool Linked>
[[gnu::always_inline]] inline const Uop* go(Core& core, const Uop* u, std::uint64_t va,
                                            const Uop* slot) {
  if constexpr (Linked) return core.jump_linked(u, va, slot);
  return core.jump(u, va);
}

/// Bits 63:47 of a 48-bit address are equal (SDM 1 3.3.7.1).
bool canonical_target(std::uint64_t va) noexcept {
  return static_cast<std::uint64_t>(static_cast<std::int64_t>(va << 16) >> 16) == va;
}

/// Branch to an address that the program computed: #GP at the branch if it is not canonical.
template <Ip W>
[[nodiscard]] bool allowed(const Core& core, std::uint64_t ip) noexcept {
  if constexpr (W == Ip::ip64) return canonical_target(ip);
  return ip <= core.arch.segment[cpu::CS].limit;
}

template <Ip W, bool Linked>
const Uop* jmp_relative(Core& core, const Uop* u) {
  const std::uint64_t va = relative<W>(core, u);
  if (!Linked && !in_code<W>(core, va)) [[unlikely]]
    return core.fault(u, cpu::GP, 0);
  return go<Linked>(core, u, va, u + 1);
}

template <unsigned Code, Ip W, bool LinkTaken, bool LinkNext>
const Uop* jcc(Core& core, const Uop* u) {
  if (condition<Code>(core.flags)) {
    const std::uint64_t va = relative<W>(core, u);
    if (!LinkTaken && !in_code<W>(core, va)) [[unlikely]]
      return core.fault(u, cpu::GP, 0);
    return go<LinkTaken>(core, u, va, u + 1);
  }
  return go<LinkNext>(core, u, following<W>(core, u), u + 2);
}

enum class Loop : std::uint8_t { loop, loope, loopne, jcxz };

/// LOOPcc and JrCXZ; T is the counter's width, which the address size decides.
template <Loop Kind, class T, Ip W>
const Uop* loop(Core& core, const Uop* u) {
  T count = core.reg<T>(cpu::RCX * 8);
  bool taken = count == 0;
  if constexpr (Kind != Loop::jcxz) {
    --count;
    const bool zero = (core.flags & kFlagZF) != 0;
    taken = count != 0 && (Kind == Loop::loop || zero == (Kind == Loop::loope));
  }
  const std::uint64_t va = taken ? relative<W>(core, u) : following<W>(core, u);
  if (taken && !in_code<W>(core, va)) [[unlikely]]
    return core.fault(u, cpu::GP, 0);
  if constexpr (Kind != Loop::jcxz) core.set_reg<T>(cpu::RCX * 8, count);
  const bool linked = (u->aux & (taken ? 1U : 2U)) != 0;
  return linked ? core.jump_linked(u, va, u + (taken ? 1 : 2)) : core.jump(u, va);
}

template <Ip W, bool Linked>
const Uop* call_relative(Core& core, const Uop* u) {
  const std::uint64_t va = relative<W>(core, u);
  if (!Linked && !in_code<W>(core, va)) [[unlikely]]
    return core.fault(u, cpu::GP, 0);
  if (!push_value<kLong<W>>(core, return_address<W>(core, u))) return refuse_stack(core, u);
  return go<Linked>(core, u, va, u + 1);
}

template <Ip W>
using IpType = decltype(return_address<W>(std::declval<const Core&>(), nullptr));

template <Ip W, bool Memory>
[[gnu::always_inline]] inline bool indirect_target(Core& core, const Uop* u, IpType<W>& ip) {
  if constexpr (Memory) return load_operand(core, u, ip);
  ip = core.reg<IpType<W>>(u->src);
  return true;
}

template <Ip W, bool Memory>
const Uop* jmp_indirect(Core& core, const Uop* u) {
  IpType<W> ip{};
  if (!indirect_target<W, Memory>(core, u, ip)) return refuse(core, u);
  if (!allowed<W>(core, ip)) [[unlikely]]
    return core.fault(u, cpu::GP, 0);
  return core.jump(u, target_of<W>(core, ip));
}

template <Ip W, bool Memory>
const Uop* call_indirect(Core& core, const Uop* u) {
  IpType<W> ip{};
  if (!indirect_target<W, Memory>(core, u, ip)) return refuse(core, u);
  if (!allowed<W>(core, ip)) [[unlikely]]
    return core.fault(u, cpu::GP, 0);
  if (!push_value<kLong<W>>(core, return_address<W>(core, u))) return refuse_stack(core, u);
  return core.jump(u, target_of<W>(core, ip));
}

/// imm: bytes of arguments that RET imm16 drops.
template <Ip W>
const Uop* ret(Core& core, const Uop* u) {
  using S = Stack<kLong<W>>;
  IpType<W> ip{};
  if (!peek_value<kLong<W>>(core, ip)) return refuse_stack(core, u);
  if (!allowed<W>(core, ip)) [[unlikely]]
    return core.fault(u, cpu::GP, 0);
  S::commit(core, S::moved(core, sizeof ip + u->imm));
  return core.jump(u, target_of<W>(core, ip));
}

template <bool Linked>
const Uop* fall_through(Core& core, const Uop* u) {
  return go<Linked>(core, u, core.wrap_ip(core.pc_of(u)), u + 1);
}

const Uop* raise_ud(Core& core, const Uop* u) { return core.fault(u, cpu::UD); }
const Uop* raise_gp(Core& core, const Uop* u) { return core.fault(u, cpu::GP, 0); }

// ---- lowering -----------------------------------------------------------------------------------

/// Picks by instruction pointer width: f.template operator()<W>().
template <class F>
Handler ip_handler(const Lowering& l, F f) {
  if (l.mode.bits == 64) return f.template operator()<Ip::ip64>();
  return l.insn.operand_width == 16 ? f.template operator()<Ip::ip16>()
                                    : f.template operator()<Ip::ip32>();
}

/// A relative branch's target and how to reach it and the next instruction.
struct Reach {
  std::int64_t target = 0;
  bool link_taken = false;
  bool link_next = false;
};

/// A target whose IP is truncated to 16 bits may be elsewhere than its distance says: never linked.
Reach reach_of(const Lowering& l) {
  const std::int64_t next = l.d.offset + l.insn.length;
  const std::int64_t target = next + l.ops[0].imm.value.s;
  const bool truncated = l.mode.bits != 64 && l.insn.operand_width == 16;
  const bool linked = !l.mode.checked;  // a link knows no limit
  return {target, linked && !truncated && l.in_block_page(target), linked && l.in_block_page(next)};
}

/// Emits a relative branch with its two link slots.
bool emit_relative(Lowering& l, Handler fn, const Reach& r) {
  Uop u = l.step(fn);
  u.imm = static_cast<std::uint64_t>(r.target);
  u.aux = static_cast<std::uint8_t>((r.link_taken ? 1 : 0) | (r.link_next ? 2 : 0));
  l.emit(u);
  l.emit_link_slot();
  l.emit_link_slot();
  l.end_block();
  return true;
}

bool lower_jcc(Lowering& l) {
  const Reach r = reach_of(l);
  const Handler fn = ip_handler(l, [&]<Ip W>() -> Handler {
    return with_condition(condition_of(l.insn.mnemonic), [&r]<unsigned Code>() -> Handler {
      return with_bool(r.link_taken, [&r]<bool Taken>() -> Handler {
        return r.link_next ? &jcc<Code, W, Taken, true> : &jcc<Code, W, Taken, false>;
      });
    });
  });
  return emit_relative(l, fn, r);
}

template <Loop Kind>
bool lower_loop(Lowering& l) {
  const Handler fn = ip_handler(l, [&l]<Ip W>() -> Handler {
    return with_wide_size(l.insn.address_width,
                          []<class T>() -> Handler { return &loop<Kind, T, W>; });
  });
  return emit_relative(l, fn, reach_of(l));
}

bool emit_indirect(Lowering& l, Handler fn) {
  Uop u = l.step(fn);
  if (l.ops[0].type == ZYDIS_OPERAND_TYPE_REGISTER) {
    u.src = Lowering::reg_offset(l.ops[0].reg.value);
  }
  l.emit(u);
  l.end_block();
  return true;
}

bool lower_jmp(Lowering& l) {
  if (l.ops[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
    const Reach r = reach_of(l);
    return emit_relative(l,
                         ip_handler(l,
                                    [&r]<Ip W>() -> Handler {
                                      return r.link_taken ? &jmp_relative<W, true>
                                                          : &jmp_relative<W, false>;
                                    }),
                         r);
  }
  const bool memory = l.ops[0].type == ZYDIS_OPERAND_TYPE_MEMORY;
  return emit_indirect(l, ip_handler(l, [memory]<Ip W>() -> Handler {
                         return memory ? &jmp_indirect<W, true> : &jmp_indirect<W, false>;
                       }));
}

bool lower_call(Lowering& l) {
  if (l.ops[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
    const Reach r = reach_of(l);
    return emit_relative(l,
                         ip_handler(l,
                                    [&r]<Ip W>() -> Handler {
                                      return r.link_taken ? &call_relative<W, true>
                                                          : &call_relative<W, false>;
                                    }),
                         r);
  }
  const bool memory = l.ops[0].type == ZYDIS_OPERAND_TYPE_MEMORY;
  return emit_indirect(l, ip_handler(l, [memory]<Ip W>() -> Handler {
                         return memory ? &call_indirect<W, true> : &call_indirect<W, false>;
                       }));
}

bool lower_ret(Lowering& l) {
  Uop u = l.step(ip_handler(l, []<Ip W>() -> Handler { return &ret<W>; }));
  if (l.ops[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE) u.imm = l.ops[0].imm.value.u & 0xFFFF;
  l.emit(u);
  l.end_block();
  return true;
}

}  // namespace

void emit_fall_through(std::vector<Uop>& out, std::uint16_t offset, bool in_page) {
  Uop u;
  u.offset = offset;
  u.fn = in_page ? &fall_through<true> : &fall_through<false>;
  out.push_back(u);
  out.push_back(u);  // the link slot
}

void emit_fault(std::vector<Uop>& out, std::uint16_t offset, std::uint8_t vector) {
  Uop u;
  u.offset = offset;
  u.fn = vector == cpu::GP ? &raise_gp : &raise_ud;
  out.push_back(u);
}

bool lower_branches(Lowering& l) {
  switch (l.insn.mnemonic) {
    case ZYDIS_MNEMONIC_JMP:
      return lower_jmp(l);
    case ZYDIS_MNEMONIC_CALL:
      return lower_call(l);
    case ZYDIS_MNEMONIC_RET:
      return lower_ret(l);
    case ZYDIS_MNEMONIC_LOOP:
      return lower_loop<Loop::loop>(l);
    case ZYDIS_MNEMONIC_LOOPE:
      return lower_loop<Loop::loope>(l);
    case ZYDIS_MNEMONIC_LOOPNE:
      return lower_loop<Loop::loopne>(l);
    case ZYDIS_MNEMONIC_JCXZ:
    case ZYDIS_MNEMONIC_JECXZ:
    case ZYDIS_MNEMONIC_JRCXZ:
      return lower_loop<Loop::jcxz>(l);
    default:
      break;
  }
  if (l.insn.meta.category == ZYDIS_CATEGORY_COND_BR && condition_of(l.insn.mnemonic) < 16) {
    return lower_jcc(l);
  }
  return false;
}

}  // namespace strata::interp
