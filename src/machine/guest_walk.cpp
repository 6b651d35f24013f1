#include "machine/guest_walk.hpp"

#include <atomic>

namespace strata::machine {
namespace {

/// Guest tables as the walker reaches them: addresses are PAs, memory is behind the P2M.
class GuestTables {
 public:
  GuestTables(P2m& p2m, MachineWindow window, GuestWalkCounters& counters) noexcept
      : p2m_{&p2m}, window_{window}, counters_{&counters} {}

  template <class Entry>
  Expected<Entry, Fault> read(std::uint64_t address, unsigned /*level*/) {
    ++counters_->references;
    const auto found = p2m_->resolve(page_of(PA{address}), AccessKind::read);
    if (!found) {
      // Nothing answers with an entry there: what comes back over the bus are ones.
      if (found.error().kind == FaultKind::mmio) return static_cast<Entry>(~Entry{0});
      return Unexpected{found.error()};
    }
    return word<Entry>(*found, address).load(std::memory_order_acquire);
  }

  template <class Entry>
  Expected<bool, Fault> compare_exchange(std::uint64_t address, Entry seen, Entry wanted) {
    const auto found = p2m_->resolve(page_of(PA{address}), AccessKind::write);
    if (!found) {
      const FaultKind kind = found.error().kind;
      // The store goes where stores to ROM and to no memory go. The walk stands.
      if (kind == FaultKind::mmio || kind == FaultKind::rom_write) return true;
      return Unexpected{found.error()};
    }
    return word<Entry>(*found, address)
        .compare_exchange_strong(seen, wanted, std::memory_order_acq_rel);
  }

 private:
  /// Entries are aligned: table addresses are page-aligned (PAE: the directories'), and so are
  /// indices.
  template <class Entry>
  [[nodiscard]] std::atomic_ref<Entry> word(const P2mLookup& found, std::uint64_t address) const {
    const P2mTarget target = target_of(found.entry, p2m_->zero_frame());
    std::byte* page = window_.host(address_of(target.mpn));
    return std::atomic_ref<Entry>{*reinterpret_cast<Entry*>(page + (address & kPageMask))};
  }

  P2m* p2m_;
  MachineWindow window_;
  GuestWalkCounters* counters_;
};

constexpr std::uint64_t kLow32 = 0xFFFF'FFFF;

Fault page_fault(const WalkFault& f, Access access, const PagingContext& context, VA va) noexcept {
  return {Stage::guest_table, FaultKind::page_fault,
          page_fault_code(f, access, has_fetch_bit(context)), va, PA{}};
}

template <class Format>
Expected<GuestWalk, Fault> walk_as(const PagingContext& context, VA va, std::uint64_t input,
                                   std::uint64_t root, Access access, GuestTables& tables,
                                   GuestWalkCounters& counters) {
  const WalkStart start{root, Format::kLevels, {}};
  const auto r = walk<Format>(start, input, access, controls_of(context), tables);
  if (!r) {
    const WalkFault& f = r.error();
    if (f.stop == WalkStop::memory) {
      Fault fault = f.memory_fault;
      fault.va = va;
      return Unexpected{fault};
    }
    ++counters.faults;
    return Unexpected{page_fault(f, access, context, va)};
  }
  counters.ad_writes += r->ad_writes;
  GuestWalk out;
  out.pa = PA{r->address};
  out.rights = r->rights;
  out.page_shift = r->page_shift;
  out.global = r->global && context.pge;
  out.dirty = (r->leaf & Format::kDirty) != 0;
  out.leaf = r->leaf;
  out.leaf_level = r->leaf_level;
  out.steps = r->steps;
  out.top_level = Format::kLevels;
  return out;
}

/// The four PDPTEs are registers, read without a memory reference (SDM 3A 4.4.1). They carry no
/// rights: only P and the address of a page directory.
Expected<GuestWalk, Fault> walk_pae(const PagingContext& context, VA va, Access access,
                                    GuestTables& tables, GuestWalkCounters& counters) {
  const std::uint64_t input = va.value() & kLow32;
  if (const auto stop = pdpte_stop(context, va)) {
    ++counters.faults;
    return Unexpected{page_fault({*stop, 3, {}, {}}, access, context, va)};
  }
  const std::uint64_t root = PaeFormat::table_address(context.pdpte[input >> kHugePageShift]);
  return walk_as<PaeFormat>(context, va, input, root, access, tables, counters);
}

GuestWalk identity(VA va) noexcept {
  GuestWalk out;
  out.pa = PA{va.value() & kLow32};
  out.dirty = true;
  return out;
}

}  // namespace

std::optional<WalkStop> pdpte_stop(const PagingContext& context, VA va) noexcept {
  const std::uint64_t pdpte = context.pdpte[va.value() >> kHugePageShift & 3];
  if ((pdpte & X86Bits::kPresent) == 0) return WalkStop::not_present;
  const std::uint64_t reserved =
      bit_range(1, 2) | bit_range(5, 8) | bit_range(context.maxphyaddr, 63);
  if ((pdpte & reserved) != 0) return WalkStop::reserved;
  return std::nullopt;
}

Expected<GuestWalk, Fault> guest_walk(const PagingContext& context, VA va, Access access, P2m& p2m,
                                      MachineWindow window, GuestWalkCounters& counters) {
  if (context.mode == PagingMode::off) return identity(va);
  ++counters.walks;
  GuestTables tables{p2m, window, counters};
  const std::uint64_t low = va.value() & kLow32;
  const std::uint64_t root = context.root.value();
  switch (context.mode) {
    case PagingMode::i386:
      return walk_as<I386Format>(context, va, low, root & 0xFFFF'F000U, access, tables, counters);
    case PagingMode::pae:
      return walk_pae(context, va, access, tables, counters);
    default:
      return walk_as<Long4Format>(context, va, va.value(), Long4Format::table_address(root), access,
                                  tables, counters);
  }
}

}  // namespace strata::machine
