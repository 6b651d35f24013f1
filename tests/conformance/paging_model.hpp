// What the manual says one access through the guest's tables does (SDM 3A 4.3 to 4.8), as a
// prediction. Written from its sentences and apart from src/machine: it shares no table, mask or
// rule with what it judges.
#pragma once

#include <array>
#include <cstdint>
#include <functional>

#include "mmu/fault.hpp"
#include "mmu/mmu.hpp"

namespace strata::conformance {

/// One entry that the access reads.
struct EntryUse {
  PA address{};
  unsigned bytes = 8;
  std::uint64_t before = 0;
  std::uint64_t after = 0;  ///< with the accessed and dirty flags that the access must leave set
};

struct Prediction {
  bool allowed = false;
  std::uint32_t code = 0;  ///< of the #PF where not allowed
  PA pa{};                 ///< byte-exact where allowed
  unsigned page_shift = kPageShift;
  bool global = false;
  unsigned entries = 0;  ///< of `used`, from the top table down
  std::array<EntryUse, 4> used{};
};

/// Reads the guest's table entry of `bytes` bytes at an address.
using EntryReader = std::function<std::uint64_t(PA address, unsigned bytes)>;

/// What `access` to `va` does under `context` with the entries that `read` returns. An access that
/// faults marks nothing: SDM 3A 4.8 lets the processor set accessed flags above the faulting entry,
/// and ours does not.
[[nodiscard]] Prediction predict(const PagingContext& context, VA va, Access access,
                                 const EntryReader& read);

}  // namespace strata::conformance
