// A unit of the code cache: code and everything that is kept about it, which goes all at once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <new>
#include <span>
#include <vector>

#include "engines/interp/uop.hpp"
#include "mmu/address.hpp"

namespace strata::bt {

/// A translated run of guest instructions; lies in one guest page.
struct TranslatedBlock {
  PA pa{};                  ///< of the first byte
  std::uint32_t entry = 0;  ///< address of its host code
  std::uint32_t chain = 0;  ///< where other code of its page may jump to
  std::uint32_t key = 0;    ///< mode it was translated for
  std::uint16_t bytes = 0;  ///< guest bytes covered
  /// Page offsets it depends on: more than its bytes where flags were looked for behind them.
  std::uint16_t from = 0, to = 0;
  bool crosses = false;  ///< one instruction, that ends in `second`
  bool dropped = false;  ///< in no list: code that still jumps to it is sent on
  PPN second{};
  TranslatedBlock* hash_next = nullptr;
  TranslatedBlock* page_next = nullptr;
};

/// A place in a block from which translated code calls the VMM.
struct Site {
  std::uint32_t resume = 0;       ///< host address to go on at
  std::uint16_t page_offset = 0;  ///< of the guest instruction
  std::uint16_t remaining = 0;    ///< instructions of the block not retired yet, this one included
  bool write : 1 = false;         ///< kind and size of the memory access
  bool aligned : 1 = false;       ///< it must be aligned to its size
  bool first_write : 1 = false;   ///< a group's first access
  bool branches : 1 = false;      ///< the steps end with a near branch
  bool direct : 1 = false;        ///< nothing but the mode and the address space may change
  std::uint8_t first_size = 0;
  std::uint16_t first_at = 0;  ///< distance from the group's span's beginning
  std::uint16_t size = 0;
  std::uint8_t refusals = 0;  ///< how often a window could not be made to allow it
  std::uint32_t steps = 0;    ///< CodeCache::add_steps(): what the interpreter executes
};
// Most of what is known of a block is sites.
static_assert(sizeof(Site) == 20);

/// What leads from a unit's code into another unit's, to be taken back when that one goes.
enum class LinkKind : std::uint8_t { jump, far, redirect };
struct Link {
  std::uint32_t at = 0;    ///< a jump's distance field, a FarJump, or a dropped block's entry
  std::uint16_t unit = 0;  ///< where it leads
  LinkKind kind = LinkKind::jump;
};

/// An access in host code at [begin, end) that may fault goes on at `cold` then.
struct FaultRange {
  std::uint32_t begin = 0, end = 0;
  std::uint32_t cold = 0;
};

/// A block in two pages, in a list of those with such a second page.
struct Crossing {
  TranslatedBlock* block = nullptr;
  Crossing* next = nullptr;
};

/// Host addresses.
struct CodeRange {
  std::uint64_t from = 0, to = 0;
  [[nodiscard]] bool empty() const noexcept { return from == to; }
  [[nodiscard]] bool contains(std::uint64_t at) const noexcept { return from <= at && at < to; }
};

/// Has a share of the cache's code bytes, and one of the bytes for tables.
class CodeUnit {
 public:
  /// What a block may take at most, of either share.
  static constexpr std::size_t kCodeRoom = 16U << 10, kTableRoom = 8U << 10;

  CodeUnit(CodeRange code, std::size_t table_share)
      : start_{code.from},
        kept_{code.from},
        next_{code.from},
        touched_{code.from},
        end_{code.to},
        table_share_{table_share} {}

  /// Where the next block's code goes.
  [[nodiscard]] std::uint64_t next() const noexcept { return next_; }
  /// What blocks have taken.
  [[nodiscard]] CodeRange code() const noexcept { return {kept_, next_}; }
  /// For one more block.
  [[nodiscard]] bool has_room() const noexcept;
  /// False: it is more than there is.
  [[nodiscard]] bool take(std::size_t code_bytes) noexcept;
  /// What was taken so far stays for good.
  void keep() noexcept { kept_ = next_; }

  [[nodiscard]] std::uint32_t add_steps(std::span<const interp::Uop> steps);
  [[nodiscard]] interp::Block* steps(std::uint32_t number) noexcept {
    return std::launder(reinterpret_cast<interp::Block*>(steps_[number].get()));
  }
  /// False: too many.
  [[nodiscard]] bool add_link(const Link& link);
  /// Where to go on after a fault at the host address; 0: no access that was announced.
  [[nodiscard]] std::uint64_t find_fault(std::uint64_t at) const noexcept;
  /// The block that begins at `entry`.
  [[nodiscard]] const TranslatedBlock& block_with(std::uint32_t entry) const noexcept;

  /// Forgets it all; nothing refers to it any more.
  void clear() noexcept;
  [[nodiscard]] std::size_t table_bytes() const noexcept;
  /// Host memory in use. Pages stay when their code has gone.
  [[nodiscard]] std::size_t bytes() const noexcept {
    return static_cast<std::size_t>(touched_ - start_) + table_bytes();
  }

  // Deques: references stay good, and no room is held that nobody uses.
  std::deque<TranslatedBlock> blocks;  ///< by ascending entry
  std::deque<Crossing> crossings;
  std::deque<Site> sites;
  std::deque<FaultRange> faults;  ///< by ascending address

  std::deque<Link> links;  ///< from here into other units

 private:
  std::uint64_t start_, kept_, next_;
  std::uint64_t touched_;  ///< the highest next_ so far
  std::uint64_t end_;
  std::size_t table_share_;
  std::vector<std::unique_ptr<std::byte[]>> steps_;
  std::size_t step_bytes_ = 0;
};

}  // namespace strata::bt
