// Addresses and the inline TLB.
#include <utility>

#include "engines/bt/emitter.hpp"
#include "engines/bt/window.hpp"
#include "engines/interp/vector.hpp"

namespace strata::bt {
namespace {

static_assert(sizeof(interp::TlbEntry) == 32);
constexpr unsigned kIndexShift = kPageShift - 5;  // VA -> byte offset of the entry
constexpr std::int32_t kIndexMask = static_cast<std::int32_t>((interp::kTlbEntries - 1) << 5);

bool is_fs_or_gs(ZydisRegister segment) {
  return segment == ZYDIS_REGISTER_FS || segment == ZYDIS_REGISTER_GS;
}

}  // namespace

void Emitter::load_page_va(Reg to, std::int64_t plus) {
  if (to == kT2) homed_in_t2_ = kNotHomed;
  a_.load(to, absolute(&c_.state->page_va));
  if (plus != 0) {
    a_.lea(to, {.base = to, .disp = static_cast<std::int32_t>(plus)}, long_mode());
  }
}

Reg Emitter::address(const Insn& i, const ZydisDecodedOperand& op) {
  const auto& m = op.mem;
  const bool wide = i.insn.address_width == 64;
  const auto disp = m.disp.has_displacement ? m.disp.value : 0;
  const bool has_base = m.base != ZYDIS_REGISTER_NONE;
  const bool has_index = m.index != ZYDIS_REGISTER_NONE && m.scale != 0;
  const bool segment = is_fs_or_gs(m.segment);
  if (m.base == ZYDIS_REGISTER_RIP || m.base == ZYDIS_REGISTER_EIP) {
    load_page_va(kT0, end_of(i) + disp);
    if (!wide) a_.mov32(kT0, kT0);
  } else if (!has_base && !has_index) {
    if (wide) {
      a_.mov_imm(kT0, static_cast<std::uint64_t>(disp));
    } else {
      a_.mov_imm32(kT0, static_cast<std::uint32_t>(disp));
    }
  } else {
    Mem ea{.disp = static_cast<std::int32_t>(disp)};
    if (has_base) ea.base = value(m.base, kT0);
    if (has_index) {
      ea.index = value(m.index, kT1);
      if (ea.index == kT1) group_in_t1_ = GroupedAccess::kNone;
      while ((1U << ea.scale) < m.scale) ++ea.scale;
    }
    if (wide && has_base && !has_index && disp == 0 && !segment) return ea.base;
    a_.lea(kT0, ea, wide);
  }
  if (segment) {
    const unsigned name = m.segment == ZYDIS_REGISTER_FS ? cpu::FS : cpu::GS;
    if (!long_mode()) check_limit(i, m.segment, op.size / 8U);
    const Mem base = absolute(&c_.core->segment_base[name]);
    if (code_.windowed) {
      homed_in_t2_ = kNotHomed;
      a_.load(kT2, base);  // EFLAGS may be the guest's
      a_.lea(kT0, {.base = kT0, .index = kT2});
    } else {
      a_.op_mem({0, 0x03}, long_mode(), kT0, base);
    }
  }
  return kT0;
}

/// FS and GS are not flat even where everything else is.
void Emitter::check_limit(const Insn& i, ZydisRegister segment, unsigned size) {
  const unsigned which = segment == ZYDIS_REGISTER_FS ? 0 : 1;
  homed_in_t2_ = kNotHomed;
  a_.lea(kT2, {.base = kT0, .disp = static_cast<std::int32_t>(size) - 1});
  a_.alu(7, kT2, absolute(&c_.state->segment_limit[which]));
  const std::uint32_t site = add_site(i);
  cold(a_.jcc_later(kAbove), [this, site] { call_stub(c_.stubs->interpret, site); });
}

void Emitter::check(const Insn& i, Reg va, unsigned size, bool write, bool aligned,
                    std::uint64_t stub) {
  if (stub == 0) stub = c_.stubs->memory;
  forget_temporaries();
  const std::uint32_t site = add_site(i, write, size);
  last_site_ = site;
  c_.cache->site(site).aligned = aligned;
  const interp::TlbEntry& first = *c_.tlb;
  Mem tag = absolute(write ? &first.write_tag : &first.read_tag);
  Mem addend = absolute(&first.addend);
  tag.base = addend.base = kT1;
  a_.mov32(kT1, va);
  a_.shift_right32(kT1, kIndexShift);
  a_.op_mem({0, 0x33}, false, kT1, absolute(&c_.state->tlb_place));
  a_.alu_imm(4, kT1, kIndexMask, false);
  if (size == 1 || aligned) {
    a_.mov(kT2, va);
  } else {
    a_.lea(kT2, {.base = va, .disp = static_cast<std::int32_t>(size) - 1});
  }
  // An access that leaves its page, or is not aligned where it must be, differs from every tag.
  const auto within = static_cast<std::int32_t>(kPageMask);
  a_.alu_imm(4, kT2, aligned ? ~within | (static_cast<std::int32_t>(size) - 1) : ~within);
  a_.alu(0, kT2, absolute(&c_.state->pcid));
  a_.alu(7, kT2, tag);
  const Insn* source = flags_are_derived() ? flag_source_.insn : nullptr;
  cold(a_.jcc_later(kNotEqual), [this, site, va, stub, source] {
    if (va != kT0) a_.mov(kT0, va);
    if (source != nullptr) {
      derive_flags(*source);
      store_flags();
    }
    call_stub(stub, site);
  });
  a_.load(kT1, addend);
}

bool Emitter::check_grouped(const Insn& i, Reg base) {
  const GroupedAccess& access = i.access;
  if (!access.is_grouped()) return false;
  if (!access.first) {
    a_.load(kT1, group_slot(i));
    return true;
  }
  free_eflags(i);
  const AccessGroup& g = region_.groups[group_of(i)];
  const auto span = static_cast<unsigned>(g.to - g.from);
  a_.lea(kT0, {.base = base, .disp = g.from - access.moved});
  check(i, kT0, span, g.write, false, c_.stubs->group);
  Site& site = c_.cache->site(last_site_);
  site.first_at = static_cast<std::uint16_t>(access.at - g.from);
  site.first_size = access.size;
  site.first_write = access.write;
  a_.store(group_slot(i), kT1);
  return true;
}

Mem Emitter::operand(const Insn& i, const ZydisDecodedOperand& op, bool write) {
  const bool vector = i.opcode.cls == isa::OpcodeClass::vector;
  const bool aligned = (vector && interp::required_alignment(i.insn, op) > 1) ||
                       i.insn.mnemonic == ZYDIS_MNEMONIC_CMPXCHG16B;
  if (windowed(i)) return windowed_operand(i, op, write, aligned);
  if (i.access.is_grouped()) {
    if (i.access.first) free_eflags(i);  // before a temporary holds the base
    const Reg base = value(op.mem.base, kT2);
    (void)check_grouped(i, base);
    // A homed base was used up as a temporary by the check.
    const Reg again = base == kT2 ? value(op.mem.base, kT0) : base;
    return {
        .base = again,
        .index = kT1,
        .disp = static_cast<std::int32_t>(op.mem.disp.has_displacement ? op.mem.disp.value : 0)};
  }
  free_eflags(i);
  const Reg va = address(i, op);
  check(i, va, op.size / 8U, write, aligned);
  return {.base = va, .index = kT1};
}

// ---- windows ------------------------------------------------------------------------------------

void Emitter::begin_access(const Insn& i, unsigned size, bool write, bool aligned,
                           std::function<void()> va) {
  const std::uint32_t site = add_site(i, write, size);
  c_.cache->site(site).aligned = aligned;
  open_access_ = WindowAccess{.site = site,
                              .begin = a_.here(),
                              .va = std::move(va),
                              .flags_at_begin = in_host_,
                              .homed_in_t2 = homed_in_t2_,
                              .stack_behind = stack_behind_};
}

void Emitter::accessed() {
  if (!open_access_) return;
  open_access_->end = a_.here();
  open_access_->save_flags = in_host_ && !in_memory_;
  window_accesses_.push_back(*std::exchange(open_access_, std::nullopt));
}

/// What a fault of an access leads to: the VMM lets the window allow it and the access is tried
/// again from its beginning, or the instruction becomes the interpreter's.
void Emitter::emit_window_exits() {
  for (const WindowAccess& w : window_accesses_) {
    c_.cache->add_fault({.begin = static_cast<std::uint32_t>(w.begin),
                         .end = static_cast<std::uint32_t>(w.end),
                         .cold = static_cast<std::uint32_t>(a_.here())});
    if (w.save_flags) store_flags();
    stack_behind_ = w.stack_behind;
    settle_stack();
    w.va();
    call_stub(c_.stubs->window, w.site);
    if (!w.flags_at_begin && !w.group && w.homed_in_t2 == kNotHomed && w.stack_behind == 0)
      continue;
    c_.cache->site(w.site).resume = static_cast<std::uint32_t>(a_.here());
    if (w.group) a_.load(kT1, *w.group);
    stack_behind_ = -w.stack_behind;
    settle_stack();
    if (w.flags_at_begin) load_flags();
    if (w.homed_in_t2 != kNotHomed) a_.load(kT2, absolute(&c_.core->r[w.homed_in_t2]));
    a_.jmp(w.begin);
  }
}

void Emitter::load_addend(Reg va) {
  group_in_t1_ = GroupedAccess::kNone;
  // RORX leaves EFLAGS alone, and MOVZX takes bits 40 to 47.
  a_.vex_reg({.map = 3, .w = 1, .pp = 3, .code = 0xF0}, kT1, va);
  a_.byte(kSliceShift);
  a_.op_reg({1, 0xB6}, false, kT1, kT1);
  Mem slice = absolute(c_.state->slices.data());
  slice.index = kT1;
  slice.scale = 3;
  a_.load(kT1, slice);
}

Mem Emitter::grouped_operand(const Insn& i, unsigned base, std::int32_t disp) {
  const AccessGroup& g = region_.groups[group_of(i)];
  if (group_in_t1_ == i.access.group) {
    open_access_->group = group_slot(i);
  } else if (i.access.first) {
    look_up_group(i);
  } else {
    a_.load(kT1, group_slot(i));
  }
  group_in_t1_ = i.access.group;
  if (g.anchored) return {.base = kT1, .disp = i.access.at};
  return {.base = value(base, kT0), .index = kT1, .disp = disp};
}

void Emitter::look_up_group(const Insn& i) {
  const AccessGroup& g = region_.groups[group_of(i)];
  const Pointer& p = g.pointer;
  Reg va = kT0;
  if (p.base == Pointer::kPage) {
    a_.load(kT0, absolute(&c_.state->page_va));
  } else {
    Mem ea{.disp = g.anchored ? -i.access.moved : 0};
    if (p.base != Pointer::kNothing) ea.base = va = value(p.base, kT0);
    if (p.index != Pointer::kNothing) {
      ea.index = value(p.index, kT1);
      while ((1U << ea.scale) < p.scale) ++ea.scale;
    }
    if (ea.index != kNoReg || ea.disp != 0) {
      va = kT0;
      a_.lea(kT0, ea);
    }
  }
  load_addend(va);
  if (g.anchored) a_.lea(kT1, {.base = va, .index = kT1});
  a_.store(group_slot(i), kT1);
}

Mem Emitter::windowed_operand(const Insn& i, const ZydisDecodedOperand& op, bool write,
                              bool aligned) {
  begin_access(i, op.size / 8U, write, aligned, [this, &i, &op] {
    const Reg va = address(i, op);
    if (va != kT0) a_.mov(kT0, va);
  });
  const auto& m = op.mem;
  const bool has_index = m.index != ZYDIS_REGISTER_NONE && m.scale != 0;
  const std::int64_t distance = m.disp.has_displacement ? m.disp.value : 0;
  const auto disp = static_cast<std::int32_t>(distance);
  // The slice of the base: what a displacement or a near index leads to beyond it is a guard zone.
  Mem mem{.base = kT1, .disp = disp};
  if (i.access.is_grouped()) {
    mem = grouped_operand(i, number(m.base), disp);
  } else if (i.insn.address_width != 64 || m.base == ZYDIS_REGISTER_RIP || is_fs_or_gs(m.segment) ||
             (has_index && !i.access.near_index) || disp != distance) {
    const Reg va = address(i, op);
    load_addend(va);
    return {.base = va, .index = kT1};
  } else if (m.base == ZYDIS_REGISTER_NONE) {
    group_in_t1_ = GroupedAccess::kNone;
    a_.load(kT1, absolute(&c_.state->slices[slice_of(static_cast<std::uint64_t>(distance))]));
  } else {
    const Reg base = value(m.base, kT0);
    load_addend(base);
    if (!has_index) return {.base = base, .index = kT1, .disp = disp};
    a_.lea(kT1, {.base = base, .index = kT1});
  }
  if (has_index && i.access.near_index) {
    mem.index = value(m.index, kT0);
    while ((1U << mem.scale) < m.scale) ++mem.scale;
  }
  return mem;
}

}  // namespace strata::bt
