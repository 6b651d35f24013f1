// GDTR, IDTR, LDTR, TR, and the instructions that look into descriptors (SDM 2A, 2B; SDM 3A 5.10).
#include "engines/interp/core.hpp"
#include "engines/interp/segments.hpp"
#include "engines/interp/system.hpp"

namespace strata::interp {

using cpu::Segment;

namespace {

bool umip_refuses(const Core& core) noexcept {
  return core.cpl != 0 && (core.arch.cr4 & cpu::cr4::UMIP) != 0;
}

void set_zf(Core& core, bool value) noexcept {
  core.flags = static_cast<ArithFlags>(value ? core.flags | kFlagZF : core.flags & ~kFlagZF);
}

/// r/m16 as source: aux2 says register.
bool load_selector(Core& core, const Uop* u, std::uint16_t& selector) {
  if (u->aux2 == 0) return core.load(core.ea(u), selector);
  selector = core.reg<std::uint16_t>(u->src);
  return true;
}

/// Stores a selector: 16 bits in memory, zero-extended to the operand size in a register.
const Uop* store_selector(Core& core, const Uop* u, std::uint16_t selector) {
  if (u->aux2 == 0) return core.store(core.ea(u), selector) ? u + 1 : core.abort(u);
  if (u->aux == 2) {
    core.set_reg(u->dst, selector);
  } else {
    core.set_reg(u->dst, std::uint64_t{selector});
  }
  return u + 1;
}

// ---- GDTR, IDTR ---------------------------------------------------------------------------------

/// aux: operand size; aux2: IDTR.
const Uop* load_table(Core& core, const Uop* u) {
  if (core.cpl != 0) return core.fault(u, cpu::GP, 0);
  const std::uint64_t offset = core.offset_of(u);
  cpu::DescriptorTable table;
  if (!core.load(core.linear(u, offset), table.limit)) return core.abort(u);
  const std::uint64_t at = core.linear(u, offset + 2);
  if (core.long_mode()) {
    if (!core.load(at, table.base)) return core.abort(u);
    if (!canonical(table.base)) return core.fault(u, cpu::GP, 0);
  } else {
    std::uint32_t base = 0;
    if (!core.load(at, base)) return core.abort(u);
    table.base = u->aux == 2 ? base & 0xFFFFFF : base;
  }
  (u->aux2 != 0 ? core.arch.idtr : core.arch.gdtr) = table;
  return u + 1;
}

const Uop* store_table(Core& core, const Uop* u) {
  if (umip_refuses(core)) return core.fault(u, cpu::GP, 0);
  const cpu::DescriptorTable& table = u->aux2 != 0 ? core.arch.idtr : core.arch.gdtr;
  std::array<std::byte, 10> image{};
  std::memcpy(image.data(), &table.limit, 2);
  std::memcpy(image.data() + 2, &table.base, 8);
  const unsigned size = core.long_mode() ? 10 : 6;
  return core.store_bytes(core.ea(u), image.data(), size) ? u + 1 : core.abort(u);
}

// ---- LDTR, TR -----------------------------------------------------------------------------------

Outcome load_task(Core& core, std::uint16_t selector, Segment& out) {
  if (is_null(selector)) return raised(cpu::GP, 0);
  const std::uint32_t error = selector_error(selector);
  if ((selector & 4U) != 0) return raised(cpu::GP, error);
  Descriptor d;
  if (auto o = read_descriptor(core, selector, cpu::GP, 0, d); !o.ok()) return o;
  using namespace system_type;
  const bool available = d.type() == kTss32 || (!ia32e(core) && d.type() == kTss16);
  if (d.ordinary() || !available) return raised(cpu::GP, error);
  if (!d.present()) return raised(cpu::NP, error);
  if (ia32e(core)) {
    if (auto o = read_upper_half(core, cpu::GP, 0, d); !o.ok()) return o;
    if (!canonical(d.base())) return raised(cpu::GP, error);
  }
  constexpr std::uint8_t kBusy = 2;
  if (!core.system_set_bits(d.va + 5, kBusy)) return aborted();
  out = to_segment(d, selector);
  out.attributes |= kBusy;
  return done();
}

/// LLDT and LTR.
template <Outcome (*Load)(Core&, std::uint16_t, Segment&), Segment cpu::VcpuState::*Register>
const Uop* load_system_segment(Core& core, const Uop* u) {
  if (!descriptors_in_use(core)) return core.fault(u, cpu::UD);
  if (core.cpl != 0) return core.fault(u, cpu::GP, 0);
  std::uint16_t selector = 0;
  if (!load_selector(core, u, selector)) return core.abort(u);
  Segment loaded;
  if (const Outcome o = Load(core, selector, loaded); !o.ok()) return give_up(core, u, o);
  core.arch.*Register = loaded;
  return u + 1;
}

const Uop* sldt(Core& core, const Uop* u) {
  if (!descriptors_in_use(core)) return core.fault(u, cpu::UD);
  if (umip_refuses(core)) return core.fault(u, cpu::GP, 0);
  return store_selector(core, u, core.arch.ldtr.selector);
}

const Uop* str(Core& core, const Uop* u) {
  if (!descriptors_in_use(core)) return core.fault(u, cpu::UD);
  if (umip_refuses(core)) return core.fault(u, cpu::GP, 0);
  return store_selector(core, u, core.arch.tr.selector);
}

// ---- LAR, LSL, VERR, VERW, ARPL -----------------------------------------------------------------

/// The descriptor if it can be seen at all; `visible` false makes ZF clear. False: abort.
bool inspect(Core& core, std::uint16_t selector, Descriptor& d, bool& visible) {
  visible = false;
  if (is_null(selector)) return true;
  const Outcome o = read_descriptor(core, selector, cpu::GP, 0, d);
  if (o.kind == Outcome::Kind::aborted) return false;
  if (!o.ok()) return true;
  const bool any_privilege = d.code() && d.conforming();
  visible = any_privilege || (core.cpl <= d.dpl() && rpl_of(selector) <= d.dpl());
  return true;
}

/// System descriptors that LAR and LSL know, as a bit mask by type.
constexpr unsigned type_mask(std::initializer_list<unsigned> types) {
  unsigned mask = 0;
  for (const unsigned t : types) mask |= 1U << t;
  return mask;
}
constexpr unsigned kLarLegacy = type_mask({1, 2, 3, 4, 5, 9, 11, 12});
constexpr unsigned kLarLong = type_mask({2, 9, 11, 12});
constexpr unsigned kLslLegacy = type_mask({1, 2, 3, 9, 11});
constexpr unsigned kLslLong = type_mask({2, 9, 11});

template <bool Rights>
const Uop* lar_lsl(Core& core, const Uop* u) {
  if (!descriptors_in_use(core)) return core.fault(u, cpu::UD);
  std::uint16_t selector = 0;
  if (!load_selector(core, u, selector)) return core.abort(u);
  Descriptor d;
  bool visible = false;
  if (!inspect(core, selector, d, visible)) return core.abort(u);
  const unsigned known =
      Rights ? (ia32e(core) ? kLarLong : kLarLegacy) : (ia32e(core) ? kLslLong : kLslLegacy);
  if (!d.ordinary() && (known >> d.type() & 1) == 0) visible = false;
  set_zf(core, visible);
  if (!visible) return u + 1;
  const std::uint32_t value =
      Rights ? static_cast<std::uint32_t>(d.low >> 32) & 0x00F0FF00U : d.limit();
  if (u->aux == 2) {
    core.set_reg(u->dst, static_cast<std::uint16_t>(value));
  } else {
    core.set_reg(u->dst, value);
  }
  return u + 1;
}

template <bool Write>
const Uop* verify(Core& core, const Uop* u) {
  if (!descriptors_in_use(core)) return core.fault(u, cpu::UD);
  std::uint16_t selector = 0;
  if (!load_selector(core, u, selector)) return core.abort(u);
  Descriptor d;
  bool visible = false;
  if (!inspect(core, selector, d, visible)) return core.abort(u);
  set_zf(core, visible && (Write ? d.writable_data() : d.readable()));
  return u + 1;
}

const Uop* arpl(Core& core, const Uop* u) {
  if (!descriptors_in_use(core)) return core.fault(u, cpu::UD);
  const unsigned rpl = core.reg<std::uint16_t>(u->src) & 3U;
  const auto adjust = [rpl](std::uint16_t s) {
    return static_cast<std::uint16_t>((s & ~3U) | rpl);
  };
  if (u->aux2 != 0) {
    const auto selector = core.reg<std::uint16_t>(u->dst);
    const bool lower = rpl_of(selector) < rpl;
    if (lower) core.set_reg(u->dst, adjust(selector));
    set_zf(core, lower);
    return u + 1;
  }
  Rmw m;
  std::uint16_t selector = 0;
  if (!core.rmw_begin<std::uint16_t>(core.ea(u), m)) return core.abort(u);
  std::memcpy(&selector, m.host, sizeof selector);
  const bool lower = rpl_of(selector) < rpl;
  if (lower) selector = adjust(selector);
  std::memcpy(m.host, &selector, sizeof selector);
  if (!core.rmw_end(m)) return core.abort(u);
  set_zf(core, lower);
  return u + 1;
}

// ---- lowering -----------------------------------------------------------------------------------

bool lower_table(Lowering& l, Handler fn, bool idtr) {
  Uop u = l.step(fn);
  u.aux = operand_bytes(l);
  u.aux2 = idtr ? 1 : 0;
  l.emit(u);
  return true;
}

/// Instructions with one r/m16.
bool lower_selector(Lowering& l, Handler fn) {
  l.emit(rm_step(l, fn));
  return true;
}

bool lower_inspection(Lowering& l, Handler fn) {
  Uop u = l.step(fn);
  u.aux = operand_bytes(l);
  u.aux2 = is_register(l.ops[1]) ? 1 : 0;
  u.dst = Lowering::reg_offset(l.ops[0].reg.value);
  if (u.aux2 != 0) u.src = Lowering::reg_offset(l.ops[1].reg.value);
  l.emit(u);
  return true;
}

bool lower_arpl(Lowering& l) {
  Uop u = l.step(&arpl);
  u.aux2 = is_register(l.ops[0]) ? 1 : 0;
  if (u.aux2 != 0) u.dst = Lowering::reg_offset(l.ops[0].reg.value);
  u.src = Lowering::reg_offset(l.ops[1].reg.value);
  l.emit(u);
  return true;
}

}  // namespace

bool lower_descriptor_tables(Lowering& l) {
  switch (l.insn.mnemonic) {
    case ZYDIS_MNEMONIC_LGDT:
      return lower_table(l, &load_table, false);
    case ZYDIS_MNEMONIC_LIDT:
      return lower_table(l, &load_table, true);
    case ZYDIS_MNEMONIC_SGDT:
      return lower_table(l, &store_table, false);
    case ZYDIS_MNEMONIC_SIDT:
      return lower_table(l, &store_table, true);
    case ZYDIS_MNEMONIC_LLDT:
      return lower_selector(l, &load_system_segment<load_ldt, &cpu::VcpuState::ldtr>);
    case ZYDIS_MNEMONIC_LTR:
      return lower_selector(l, &load_system_segment<load_task, &cpu::VcpuState::tr>);
    case ZYDIS_MNEMONIC_SLDT:
      return lower_selector(l, &sldt);
    case ZYDIS_MNEMONIC_STR:
      return lower_selector(l, &str);
    case ZYDIS_MNEMONIC_LAR:
      return lower_inspection(l, &lar_lsl<true>);
    case ZYDIS_MNEMONIC_LSL:
      return lower_inspection(l, &lar_lsl<false>);
    case ZYDIS_MNEMONIC_VERR:
      return lower_selector(l, &verify<false>);
    case ZYDIS_MNEMONIC_VERW:
      return lower_selector(l, &verify<true>);
    case ZYDIS_MNEMONIC_ARPL:
      return lower_arpl(l);
    default:
      return false;
  }
}

}  // namespace strata::interp
