#include "tableless.hpp"

namespace example {

using strata::Access;
using strata::AccessKind;
using strata::Expected;
using strata::Fault;
using strata::FaultKind;
using strata::PA;
using strata::PagingMode;
using strata::Stage;
using strata::Translation;
using strata::Unexpected;
using strata::VA;

namespace {

// SDM 3A tables 4-15 to 4-20.
constexpr std::uint64_t kPresent = 1, kWritable = 2, kUser = 4, kAccessed = 1 << 5, kDirty = 1 << 6,
                        kLarge = 1 << 7, kGlobal = 1 << 8, kNoExecute = 1ULL << 63;
constexpr std::uint64_t kAddress = 0x000F'FFFF'FFFF'F000;

}  // namespace

/// What the guest's tables say about one address.
struct TablelessMmu::GuestPage {
  PA pa{};
  bool write = true, user = true, execute = true;
  bool global = false, dirty = true;
  unsigned shift = strata::kPageShift;

  [[nodiscard]] bool permits(AccessKind kind, Access access, const strata::PagingContext& c) const {
    if (access.user && !user) return false;
    if (kind == AccessKind::execute) return execute && !(c.smep && !access.user && user);
    if (!access.user && user && c.smap && !access.ac) return false;
    return kind == AccessKind::read || write || (!access.user && !c.wp);
  }
};

TablelessMmu::TablelessMmu(strata::P2m& p2m, strata::MachineWindow window, unsigned vcpus)
    : p2m_{p2m}, window_{window}, contexts_(vcpus) {
  p2m_.add_observer(*this);
}

TablelessMmu::~TablelessMmu() { p2m_.remove_observer(*this); }

void TablelessMmu::set_context(strata::VcpuId vcpu, const strata::PagingContext& context) {
  contexts_.at(vcpu) = context;
}

/// The host word that holds the guest table entry at `pa`.
Expected<std::uint64_t*, Fault> TablelessMmu::entry_at(PA pa, AccessKind kind) {
  const auto place = p2m_.resolve(strata::page_of(pa), kind);
  if (!place) return Unexpected{place.error()};
  const auto target = strata::target_of(place->entry, p2m_.zero_frame());
  references_.fetch_add(1, std::memory_order_relaxed);
  return reinterpret_cast<std::uint64_t*>(
      window_.host(strata::address_of(target.mpn) + pa.page_offset()));
}

Expected<TablelessMmu::GuestPage, Fault> TablelessMmu::walk(const strata::PagingContext& c, VA va,
                                                            Access access) {
  GuestPage page;
  const bool write = access.kind == AccessKind::write;
  std::uint32_t code =
      (write ? strata::pf::kWrite : 0) | (access.user ? strata::pf::kUser : 0) |
      (access.kind == AccessKind::execute && (c.nxe || c.smep) ? strata::pf::kFetch : 0);
  std::array<PA, 5> used{};
  PA table = c.root;
  for (unsigned level = 4;; --level) {
    const unsigned shift = 12 + 9 * (level - 1);
    used.at(level) = table + (va.value() >> shift & 511) * 8;
    const auto word = entry_at(used.at(level), AccessKind::read);
    if (!word) return Unexpected{word.error()};
    const std::uint64_t e = Word{**word}.load();
    // What nobody makes leaves no accessed bits behind.
    const std::uint64_t needed = kPresent | (access.speculative ? kAccessed : 0);
    if ((e & needed) != needed) {
      return Unexpected{Fault{Stage::guest_table, FaultKind::page_fault, code, va, {}}};
    }
    code |= strata::pf::kPresent;
    page.write = page.write && (e & kWritable) != 0;
    page.user = page.user && (e & kUser) != 0;
    page.execute = page.execute && !(c.nxe && (e & kNoExecute) != 0);
    table = PA{e & kAddress};
    if (level > 1 && !(level < 4 && (e & kLarge) != 0)) {
      code &= ~strata::pf::kPresent;
      continue;
    }
    page.shift = shift;
    page.global = c.pge && (e & kGlobal) != 0;
    page.dirty = write || (e & kDirty) != 0;
    const std::uint64_t inside = (1ULL << shift) - 1;
    page.pa = PA{(e & kAddress & ~inside) | (va.value() & inside)};
    break;
  }
  if (!page.permits(access.kind, access, c)) {
    return Unexpected{Fault{Stage::guest_table, FaultKind::page_fault, code, va, {}}};
  }
  // Accessed on the way, dirty at the leaf of a write (SDM 3A 4.8).
  const unsigned leaf = (page.shift - 12) / 9 + 1;
  for (unsigned level = leaf; level <= 4; ++level) {
    const auto word = entry_at(used.at(level), AccessKind::write);
    if (!word) return Unexpected{word.error()};
    Word{**word}.fetch_or(kAccessed | (level == leaf && write ? kDirty : 0));
  }
  return page;
}

/// The second half of the way: PA -> MA, and what of the rights may be cached.
Expected<Translation, Fault> TablelessMmu::to_machine(const strata::PagingContext& c,
                                                      const GuestPage& page, VA va, Access access) {
  const auto place = p2m_.resolve(strata::page_of(page.pa), access.kind);
  if (!place) {
    Fault fault = place.error();
    fault.va = va;
    fault.pa = page.pa;
    return Unexpected{fault};
  }
  const auto target = strata::target_of(place->entry, p2m_.zero_frame());
  // The engine uses it for other kinds of access too, unasked: each right has to hold by itself.
  const auto permits = [&](AccessKind kind) { return page.permits(kind, access, c); };
  return Translation{.page = strata::address_of(target.mpn),
                     .pa = page.pa.page_base(),
                     .readable = permits(AccessKind::read),
                     // A clean page stays read-only in the TLB, so that its first write comes here
                     // and sets D.
                     .writable = target.writable && page.dirty && permits(AccessKind::write),
                     .executable = permits(AccessKind::execute),
                     .global = page.global,
                     .page_shift = page.shift};
}

Expected<Translation, Fault> TablelessMmu::translate(strata::VcpuId vcpu, VA va, Access access) {
  translations_.fetch_add(1, std::memory_order_relaxed);
  const strata::PagingContext& c = contexts_.at(vcpu);
  if (c.mode == PagingMode::off) {
    // No page is a user page without paging: SMEP and SMAP have nothing to look at.
    return to_machine({}, GuestPage{.pa = PA{va.value()}}, va, access);
  }
  if (c.mode != PagingMode::long4) {
    return Unexpected{Fault{Stage::engine, FaultKind::out_of_memory, 0, va, {}}};
  }
  const auto page = walk(c, va, access);
  if (!page) {
    faults_.fetch_add(1, std::memory_order_relaxed);
    return Unexpected{page.error()};
  }
  return to_machine(c, *page, va, access);
}

strata::MmuStats TablelessMmu::stats() const noexcept {
  strata::MmuStats s;
  s.translations = s.walks = translations_.load();
  s.guest_references = references_.load();
  s.guest_faults = faults_.load();
  return s;
}

}  // namespace example
