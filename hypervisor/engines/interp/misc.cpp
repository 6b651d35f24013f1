// Flag instructions, hints, fences, cache control, random numbers, XLAT, undefined opcodes.
#include <optional>

#include "engines/interp/access.hpp"
#include "engines/interp/integer.hpp"

namespace strata::interp {
namespace {

constexpr std::uint8_t kAl = cpu::RAX * 8;
constexpr std::uint8_t kAh = cpu::RAX * 8 + 1;

const Uop* nop(Core& core, const Uop* u) { return next(core, u); }

/// SF ZF AF PF CF are the flags word's upper byte just as they are AH (SDM 2A LAHF); bit 1 is 1.
const Uop* lahf(Core& core, const Uop* u) {
  core.set_reg<std::uint8_t>(kAh, static_cast<std::uint8_t>((core.flags >> 8 & 0xD5) | 2));
  return next(core, u);
}

const Uop* sahf(Core& core, const Uop* u) {
  const unsigned upper = (core.reg<std::uint8_t>(kAh) & 0xD5U) << 8;
  core.flags = static_cast<ArithFlags>(upper | (core.flags & kFlagOF));
  return next(core, u);
}

enum class Carry : std::uint8_t { clear, set, complement };

template <Carry How>
const Uop* change_carry(Core& core, const Uop* u) {
  unsigned f = core.flags;
  if constexpr (How == Carry::clear) f &= ~unsigned{kFlagCF};
  if constexpr (How == Carry::set) f |= kFlagCF;
  if constexpr (How == Carry::complement) f ^= kFlagCF;
  core.flags = static_cast<ArithFlags>(f);
  return next(core, u);
}

template <bool Set>
const Uop* change_direction(Core& core, const Uop* u) {
  if constexpr (Set) {
    core.rflags_other |= cpu::rflags::DF;
  } else {
    core.rflags_other &= ~cpu::rflags::DF;
  }
  return next(core, u);
}

/// SALC (undocumented, D6): AL = CF ? FF : 0.
const Uop* salc(Core& core, const Uop* u) {
  core.set_reg<std::uint8_t>(kAl, (core.flags & kFlagCF) != 0 ? 0xFF : 0);
  return next(core, u);
}

const Uop* full_fence(Core& core, const Uop* u) {
  std::atomic_thread_fence(std::memory_order_seq_cst);
  return next(core, u);
}

const Uop* pause_hint(Core& core, const Uop* u) {
  __builtin_ia32_pause();
  return core.rest(u);
}

/// CLFLUSH and family fault as a load of one byte does (SDM 2A CLFLUSH); memory here is coherent.
const Uop* touch(Core& core, const Uop* u) {
  std::uint8_t v;
  if (!load_operand(core, u, v)) return refuse(core, u);
  return next(core, u);
}

/// Blocks behind SERIALIZE are looked up afresh.
const Uop* serialize(Core& core, const Uop* u) { return core.finish(u); }

const Uop* undefined(Core& core, const Uop* u) { return core.fault(u, cpu::UD); }

/// XLAT: AL = [BX + AL], BX and the sum in the address size.
const Uop* xlat(Core& core, const Uop* u) {
  std::uint64_t offset = core.r[cpu::RBX] + core.reg<std::uint8_t>(kAl);
  if (u->aux == 32) offset = static_cast<std::uint32_t>(offset);
  if (u->aux == 16) offset = static_cast<std::uint16_t>(offset);
  std::uint8_t v;
  if (!load_value(core, core.linear(u, offset), v)) return core.abort(u);
  core.set_reg<std::uint8_t>(kAl, v);
  return next(core, u);
}

template <bool Seed>
std::optional<std::uint64_t> host_random() noexcept {
  std::uint64_t v = 0;
  bool valid = false;
  if constexpr (Seed) {
    asm volatile("rdseed %[v]" : [v] "=r"(v), "=@ccc"(valid));
  } else {
    asm volatile("rdrand %[v]" : [v] "=r"(v), "=@ccc"(valid));
  }
  return valid ? std::optional{v} : std::nullopt;
}

/// RDRAND and RDSEED: CF says whether there was a number, the other flags are 0 (SDM 2B RDRAND).
/// Without one the destination becomes 0.
template <class T, bool Seed>
const Uop* random_number(Core& core, const Uop* u) {
  core.note_position(u);
  const auto v =
      core.env.random != nullptr ? core.env.random->random(Seed, sizeof(T)) : host_random<Seed>();
  core.set_reg<T>(u->dst, static_cast<T>(v.value_or(0)));
  core.flags = v ? kFlagCF : ArithFlags{0};
  return next(core, u);
}

// ---- lowering -----------------------------------------------------------------------------------

bool emit_plain(Lowering& l, Handler fn) {
  l.emit(l.step(fn));
  return true;
}

bool emit_last(Lowering& l, Handler fn) {
  l.emit(l.step(fn));
  l.end_block();
  return true;
}

template <bool Seed>
bool lower_random(Lowering& l) {
  Uop u = l.step(
      with_wide_size(l.ops[0].size, []<class T>() -> Handler { return &random_number<T, Seed>; }));
  u.dst = Lowering::reg_offset(l.ops[0].reg.value);
  l.emit(u);
  return true;
}

bool lower_xlat(Lowering& l) {
  Uop u = l.step(&xlat);
  for (unsigned i = 0; i < l.insn.operand_count; ++i) {
    if (l.ops[i].type == ZYDIS_OPERAND_TYPE_MEMORY) {
      l.implicit_memory(u, l.ops[i].mem.segment);
    }
  }
  u.aux = l.insn.address_width;
  l.emit(u);
  return true;
}

}  // namespace

bool lower_misc(Lowering& l) {
  switch (l.insn.mnemonic) {
    case ZYDIS_MNEMONIC_NOP:
    case ZYDIS_MNEMONIC_ENDBR32:
    case ZYDIS_MNEMONIC_ENDBR64:
    case ZYDIS_MNEMONIC_CLDEMOTE:
    case ZYDIS_MNEMONIC_PREFETCH:
    case ZYDIS_MNEMONIC_PREFETCHNTA:
    case ZYDIS_MNEMONIC_PREFETCHT0:
    case ZYDIS_MNEMONIC_PREFETCHT1:
    case ZYDIS_MNEMONIC_PREFETCHT2:
    case ZYDIS_MNEMONIC_PREFETCHW:
    case ZYDIS_MNEMONIC_PREFETCHWT1:
      return emit_plain(l, &nop);
    case ZYDIS_MNEMONIC_PAUSE:
      return emit_plain(l, &pause_hint);
    case ZYDIS_MNEMONIC_LFENCE:
    case ZYDIS_MNEMONIC_MFENCE:
    case ZYDIS_MNEMONIC_SFENCE:
      return emit_plain(l, &full_fence);
    case ZYDIS_MNEMONIC_CLFLUSH:
    case ZYDIS_MNEMONIC_CLFLUSHOPT:
    case ZYDIS_MNEMONIC_CLWB:
      return emit_plain(l, &touch);
    case ZYDIS_MNEMONIC_SERIALIZE:
      return emit_last(l, &serialize);
    case ZYDIS_MNEMONIC_UD0:
    case ZYDIS_MNEMONIC_UD1:
    case ZYDIS_MNEMONIC_UD2:
      return emit_last(l, &undefined);
    case ZYDIS_MNEMONIC_LAHF:
      return emit_plain(l, &lahf);
    case ZYDIS_MNEMONIC_SAHF:
      return emit_plain(l, &sahf);
    case ZYDIS_MNEMONIC_CLC:
      return emit_plain(l, &change_carry<Carry::clear>);
    case ZYDIS_MNEMONIC_STC:
      return emit_plain(l, &change_carry<Carry::set>);
    case ZYDIS_MNEMONIC_CMC:
      return emit_plain(l, &change_carry<Carry::complement>);
    case ZYDIS_MNEMONIC_CLD:
      return emit_plain(l, &change_direction<false>);
    case ZYDIS_MNEMONIC_STD:
      return emit_plain(l, &change_direction<true>);
    case ZYDIS_MNEMONIC_SALC:
      return emit_plain(l, &salc);
    case ZYDIS_MNEMONIC_XLAT:
      return lower_xlat(l);
    case ZYDIS_MNEMONIC_RDRAND:
      return lower_random<false>(l);
    case ZYDIS_MNEMONIC_RDSEED:
      return lower_random<true>(l);
    default:
      return false;
  }
}

}  // namespace strata::interp
