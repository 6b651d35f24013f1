// The P2M's entries as a radix-table format: leaves and runs are P2mEntry words, and a state that
// no page can have marks the pointer to a table.
#pragma once

#include <cstdint>

#include "machine/formats.hpp"
#include "mmu/p2m.hpp"

namespace strata::machine {

struct P2mFormat : WideEntries {
  static constexpr unsigned kLevels = 4;
  static constexpr std::uint64_t kStateMask = 0xF;
  static constexpr std::uint64_t kTableState = 0xF;
  static_assert(static_cast<std::uint64_t>(PageState::poisoned) < kTableState);

  /// An absent page that was something before keeps its version, and counts as an entry.
  static constexpr bool present(Entry e) { return e != 0; }
  static constexpr bool large(Entry e, unsigned level, const WalkControls& /*c*/) {
    return level > 1 && e != 0 && (e & kStateMask) != kTableState;
  }
  static constexpr Entry make_table(std::uint64_t address) { return address | kTableState; }
  /// Whether the payload is the page's machine frame and so grows along a run.
  static constexpr bool has_frame(PageState s) {
    return s == PageState::private_page || s == PageState::rom;
  }
  /// The entry of a smaller run or page, `pages` after the start of the run `e`.
  static constexpr Entry advance(Entry e, std::uint64_t pages) {
    const P2mEntry run{e};
    if (!has_frame(run.state())) return e;
    return run.with_state(run.state(), run.payload() + pages).raw();
  }
  /// Version and marks carry over: splitting is no change of any page.
  static constexpr Entry child_leaf(Entry e, unsigned level, unsigned index) {
    return advance(e, static_cast<std::uint64_t>(index) << (shift(level - 1) - kPageShift));
  }
};

}  // namespace strata::machine
