// What follows from the architectural state: CPL, decode mode, TLBs, the Mmu's context; and the
// state as a whole, in and out.
#include <algorithm>

#include "cpu/cpu_model.hpp"
#include "engines/interp/core.hpp"
#include "engines/interp/segments.hpp"

namespace strata::interp {

using cpu::VcpuState;

namespace {

/// SDM 3A 4.1.1. CR0.PG without CR4.PAE is 32-bit paging; LMA tells 4-level from PAE paging.
PagingMode paging_mode(const VcpuState& s) noexcept {
  if ((s.cr0 & cpu::cr0::PG) == 0) return PagingMode::off;
  if ((s.cr4 & cpu::cr4::PAE) == 0) return PagingMode::i386;
  return (s.efer & cpu::efer::LMA) != 0 ? PagingMode::long4 : PagingMode::pae;
}

PagingContext make_context(const VcpuState& s, const cpu::CpuModel& model) {
  PagingContext c;
  c.mode = paging_mode(s);
  c.maxphyaddr = static_cast<std::uint8_t>(model.maxphyaddr());
  c.pcide = (s.cr4 & cpu::cr4::PCIDE) != 0;
  if (c.mode == PagingMode::i386) c.root = PA{s.cr3 & 0xFFFFF000};
  if (c.mode == PagingMode::long4) {
    c.root = PA{s.cr3 & ~kPageMask & ((1ULL << c.maxphyaddr) - 1)};
  }
  c.pcid = static_cast<std::uint16_t>(c.pcide ? s.cr3 & 0xFFF : 0);
  c.wp = (s.cr0 & cpu::cr0::WP) != 0;
  c.pse = (s.cr4 & cpu::cr4::PSE) != 0;
  c.pge = (s.cr4 & cpu::cr4::PGE) != 0;
  c.smep = (s.cr4 & cpu::cr4::SMEP) != 0;
  c.smap = (s.cr4 & cpu::cr4::SMAP) != 0;
  c.pke = (s.cr4 & cpu::cr4::PKE) != 0;
  c.nxe = (s.efer & cpu::efer::NXE) != 0;
  c.huge_pages = model.has(cpu::Feature::page_1g);
  c.pkru = s.pkru;
  return c;
}

/// A segment whose accesses need no check, wherever its base is.
bool flat_data(const cpu::Segment& s) noexcept {
  constexpr unsigned kCodeOrDown = 0xC, kWritable = 2;
  return !s.unusable() && s.limit == 0xFFFFFFFF &&
         (s.type() & (kCodeOrDown | kWritable)) == kWritable;
}

}  // namespace

void Core::segments_changed() {
  const cpu::Segment& cs = arch.segment[cpu::CS];
  const cpu::Segment& ss = arch.segment[cpu::SS];
  // CPL is kept in SS.DPL, as VMX does (SDM 3C 24.4.1): conforming code makes CS.DPL useless.
  cpl = static_cast<std::uint8_t>(!protected_mode(*this) ? 0 : vm86(*this) ? 3 : ss.dpl());

  DecodeMode mode;
  if (ia32e(*this) && cs.long_mode()) {
    mode.bits = 64;
  } else {
    mode.bits = cs.big() ? 32 : 16;
    mode.stack32 = ss.big();
    mode.checked = cs.limit != 0xFFFFFFFF || !flat_data(ss) || !flat_data(arch.segment[cpu::DS]) ||
                   !flat_data(arch.segment[cpu::ES]);
    mode.real = !descriptors_in_use(*this);
    // Blocks of checked code were measured against the CS they were found through.
    if (mode.checked && (checked_base_ != cs.base || checked_limit_ != cs.limit)) {
      checked_base_ = cs.base;
      checked_limit_ = cs.limit;
      ++generation_;
    }
  }
  mode.aligned = cpl == 3 && ac() && (arch.cr0 & cpu::cr0::AM) != 0;
  mode.single = (rflags_other & cpu::rflags::TF) != 0 || breakpoints.code || breakpoints.data;
  decode_mode = mode;
  // `single` is the run loop's business.
  mode.single = false;
  jump_context_ = static_cast<std::uint32_t>(pcid) << 1 | (cpl == 3 ? 1U : 0U) | mode.key() << 16;

  for (unsigned i = 0; i < arch.segment.size(); ++i) {
    // 64-bit mode ignores the bases of all but FS and GS (SDM 3A 3.4.4).
    segment_base[i] = mode.bits == 64 && i < cpu::FS ? 0 : arch.segment[i].base;
  }
  const bool smap = (arch.cr4 & cpu::cr4::SMAP) != 0;
  data_mode = cpl == 3 ? kUser : !smap || ac() ? kSupervisorAc : kSupervisor;
  dtlb = tlb_.bank(data_mode, pcid);
}

void Core::update_derived() {
  pcid = asid_of(arch_pcid());
  segments_changed();
  PagingContext context = make_context(arch, *env.model);
  if (context.mode == PagingMode::pae) context.pdpte = pdpte;
  if (context == context_) return;
  context_ = context;
  env.mmu->set_context(env.id, context_);
}

void Core::set_rflags(std::uint64_t value) noexcept {
  flags = from_rflags(value);
  rflags_other = (value & ~cpu::rflags::ARITHMETIC) | cpu::rflags::FIXED;
  segments_changed();
}

VcpuState Core::state() const {
  VcpuState s = arch;
  std::copy_n(r.begin(), s.gpr.size(), s.gpr.begin());
  s.rip = ip();
  s.rflags = rflags();
  s.debug_shadow = debug_shadow;
  s.pending_debug = debug_hits;
  return s;
}

void Core::set_state(const VcpuState& state) {
  arch = state;
  r = {};
  std::copy(state.gpr.begin(), state.gpr.end(), r.begin());
  flags = from_rflags(state.rflags);
  rflags_other = (state.rflags & ~cpu::rflags::ARITHMETIC) | cpu::rflags::FIXED;
  exception = {};
  debug_hits = state.pending_debug;
  debug_shadow = state.debug_shadow;
  iteration_done();
  exited_ = false;
  rep_remaining_ = 0;
  note_boundary();
  pdpte = {};
  context_ = PagingContext{};
  env.mmu->set_context(env.id, context_);
  if (paging_mode(arch) == PagingMode::pae && !read_pdptes(arch.cr3, pdpte)) {
    // The first access will fault or exit for the same reason.
    pdpte = {};
    exception = {};
  }
  update_derived();
  debug_registers_changed();
  set_ip(state.rip);
  flush_tlb(FlushScope::all, 0, VA{});
  quiesce();  // not running: nobody has to wait for this vCPU
}

/// The number that stands for a PCID in TLB tags and in what is known of code by VA.
std::uint16_t Core::asid_of(std::uint16_t which_pcid) {
  if ((arch.cr4 & cpu::cr4::PCIDE) == 0) return 0;
  if (const auto known = tlb_.asid(which_pcid)) return *known;
  tlb_.flush_all();
  tlb_.restart_asids();
  fetched_.flush_all();
  ++generation_;
  ++places_;
  pcid = *tlb_.asid(arch_pcid());
  return *tlb_.asid(which_pcid);
}

void Core::flush_tlb(FlushScope scope, std::uint16_t which_pcid, VA va) {
  switch (scope) {
    case FlushScope::address:
      tlb_.flush_page(va, asid_of(which_pcid));
      fetched_.flush_page(va);
      break;
    case FlushScope::pcid:
      if ((arch.cr4 & cpu::cr4::PCIDE) == 0) {
        tlb_.flush_pcid(pcid, false, true);
        fetched_.flush_non_global();
        break;
      }
      tlb_.forget_asid(which_pcid);
      pcid = asid_of(arch_pcid());
      segments_changed();
      break;
    case FlushScope::all_non_global:
      tlb_.flush_pcid(0, true, true);
      fetched_.flush_non_global();
      break;
    case FlushScope::all:
      tlb_.flush_all();
      fetched_.flush_all();
      break;
  }
  ++generation_;
  ++counters.tlb_flushes;
  env.mmu->invalidate(env.id, scope, which_pcid, va);
}

void Core::flush_page(VA va) {
  tlb_.flush_page(va, pcid);
  fetched_.flush_page(va);
  ++generation_;
  ++counters.tlb_flushes;
  env.mmu->invalidate_page(env.id, va);
}

void Core::rights_changed() {
  // The Mmu keeps what it has: its tables hold the guest's bits, and rights are a function of those
  // and the context. This TLB holds the answers of that function.
  tlb_.flush_all();
  fetched_.flush_all();
  ++generation_;
  update_derived();
}

bool Core::system_set_bits(std::uint64_t va, std::uint8_t bits) {
  // An implicit supervisor access, so done as CPL 0 without AC would do it (SDM 3A 4.6.1).
  const auto saved_cpl = std::exchange(cpl, std::uint8_t{0});
  const auto saved_flags = std::exchange(rflags_other, rflags_other & ~cpu::rflags::AC);
  TlbEntry* saved_tlb =
      std::exchange(dtlb, tlb_.bank(mode_of({AccessKind::write, false, false}), pcid));
  Rmw m;
  bool ok = rmw_begin<std::uint8_t>(va, m);
  if (ok) {
    std::atomic_ref<std::uint8_t>{*static_cast<std::uint8_t*>(m.host)}.fetch_or(bits);
    ok = rmw_end(m);
  }
  cpl = saved_cpl;
  rflags_other = saved_flags;
  dtlb = saved_tlb;
  return ok;
}

bool Core::read_pdptes(std::uint64_t cr3, std::array<std::uint64_t, 4>& out) {
  // CR3[31:5] of PAE paging names 32 bytes of guest-physical memory (SDM 3A 4.4.1). With paging off
  // linear addresses are guest-physical ones, so the Mmu can be asked for them.
  const VA at{cr3 & 0xFFFFFFE0};
  const Access access{AccessKind::read, false, false};
  PagingContext off = context_;
  off.mode = PagingMode::off;
  env.mmu->set_context(env.id, off);
  const auto t = ask_mmu(at, access);
  if (t) guest::copy(out.data(), env.window.host(t->page) + at.page_offset(), sizeof out);
  env.mmu->set_context(env.id, context_);
  if (t) return true;
  if (t.error().kind == FaultKind::mmio) {
    out.fill(~0ULL);  // nobody answers: all ones, which the reserved-bit check refuses
    return true;
  }
  return record_fault(t.error(), access);
}

}  // namespace strata::interp
