// Which address spaces have a window, by what windows cost and what they save.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engines/bt/window.hpp"
#include "engines/interp/accelerator.hpp"
#include "engines/interp/tlb.hpp"

namespace strata::bt {

/// An address space as code of one privilege sees it.
struct SpaceKey {
  std::uint16_t pcid = 0;  ///< architectural; 0 without PCIDs
  std::uint8_t mode = 0;   ///< interp::TlbMode
  friend bool operator==(const SpaceKey&, const SpaceKey&) = default;
};

/// What a TLB entry for `va` says, as an extent of one page.
[[nodiscard]] Extent extent_of(const interp::TlbEntry& e, VA va) noexcept;
/// An extent at `next_at` goes on where `e` ends.
[[nodiscard]] bool continues(const Extent& e, VA at, const Extent& next, VA next_at) noexcept;

/// What a vCPU has done since something was last told.
struct Executed {
  std::uint64_t instructions = 0;
  std::uint64_t misses = 0;  ///< of the soft TLB
  std::uint64_t faults = 0;  ///< page faults that the guest was given
};

/// What windows have done, for VcpuStats.
struct WindowCounts {
  std::uint64_t promotions = 0;
  std::uint64_t demotions = 0;
  std::uint64_t fills = 0;          ///< extents mapped
  std::uint64_t filled_pages = 0;   ///< with how many pages
  std::uint64_t flushes = 0;        ///< of a whole window
  std::uint64_t checked_pages = 0;  ///< looked at again behind one
  std::uint64_t instructions = 0;   ///< executed with a window
};

/// The page at a VA as an extent of one, as the guest's tables have it. False: there is none that a
/// window could have.
using LookUpPage = std::function<bool(VA, Extent&)>;

/// The windows of one vCPU; its thread only. Hears of what its TLB loses and loses it as well.
class Windows final : public interp::TlbMirror {
 public:
  /// `table` is what translated code reads.
  Windows(SliceTable& table, interp::WindowUse use);
  ~Windows() override;

  /// The guest is about to execute in the address space `key`, whose TLB entries have `asid`;
  /// `executed` is since the last call. True: through a window, which holds what the TLB did if it
  /// is new, and what lies between: `look_up` is asked for that. Null: nothing is.
  [[nodiscard]] bool enter(SpaceKey key, std::uint16_t asid, Executed executed, interp::Tlb& tlb,
                           const LookUpPage& look_up = {});
  /// ... or where no window is wanted.
  void enter_none(Executed executed);

  /// The address space that executes has a window, and it may be used.
  [[nodiscard]] bool active() const noexcept;
  /// It has one, but there was a flush: revalidate() comes before its use.
  [[nodiscard]] bool stale() const noexcept;
  /// Loses every page, given as an extent of one, for which holds() is false: the guest's tables
  /// say something else by now. A flush often changes nothing, and to look costs a hundredth of a
  /// fault.
  void revalidate(const std::function<bool(VA, const Extent&)>& holds);
  /// Its window allows the access already.
  [[nodiscard]] bool allows(VA va, bool write) const noexcept;
  /// Pages that the TLB has, or would have if it were larger, into its window. False: no room.
  bool fill(VA va, const Extent& e);

  void flush_all() noexcept override;
  void flush_asid(std::uint16_t asid, bool every) noexcept override;
  void flush_page(VA va, std::uint16_t asid) noexcept override;
  void forget(VA va) noexcept override;
  void flush_physical(const std::vector<PpnRange>& ranges) noexcept override;
  void revoke_writes(PPN ppn) noexcept override;
  void revoke_all_writes() noexcept override;

  [[nodiscard]] const WindowCounts& counts() const noexcept { return counts_; }
  /// Host memory in use, the kernel's for mappings and page tables included.
  [[nodiscard]] std::size_t bytes() const noexcept;

 private:
  struct Space;
  struct KeyHash {
    std::size_t operator()(const SpaceKey& k) const noexcept {
      return static_cast<std::size_t>(k.pcid) << 2 | k.mode;
    }
  };
  using Spaces = std::unordered_map<SpaceKey, Space, KeyHash>;

  void account(Executed executed) noexcept;
  [[nodiscard]] Space& space(SpaceKey key);
  void switch_to(Space* next) noexcept;
  using Range = std::pair<VA, Extent>;
  /// What the TLB has of an address space.
  [[nodiscard]] static std::vector<Range> ranges_of(std::uint8_t mode, std::uint16_t asid,
                                                    interp::Tlb& tlb, const LookUpPage& look_up);
  /// Makes `range` go on as far as `next`, if the pages between do.
  static void bridge(Range& range, const Range& next, const LookUpPage& look_up);
  /// Gives it a window with that, if it has executed enough for it.
  void promote(Space& s, const std::vector<Range>& ranges);
  void demote(Space& s) noexcept;
  void flush(Space& s) noexcept;
  bool map(Space& s, VA va, const Extent& e);
  void make_room(Space& wanted) noexcept;

  SliceTable& table_;
  const interp::WindowUse use_;
  SlicePool pool_;
  Spaces spaces_;
  Space* current_ = nullptr;  ///< what executes, if it is to be accounted for
  std::uint64_t heard_ = 0;   ///< of so many changes to what the TLB has
  WindowCounts counts_;
};

}  // namespace strata::bt
