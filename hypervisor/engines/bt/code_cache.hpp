// Translated blocks of one vCPU, keyed by physical address and mode, in executable memory of
// bounded size.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <unordered_map>
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
  PPN second{};
  TranslatedBlock* hash_next = nullptr;
  TranslatedBlock* page_next = nullptr;
};

/// A place in a block from which translated code calls the VMM.
struct Site {
  std::uint32_t resume = 0;       ///< host address to go on at
  std::uint16_t page_offset = 0;  ///< of the guest instruction
  std::uint16_t remaining = 0;    ///< instructions of the block not retired yet, this one included
  bool write = false;             ///< kind and size of the memory access
  std::uint16_t size = 0;
  std::uint8_t refusals = 0;   ///< how often a window could not be made to allow it
  bool aligned = false;        ///< it must be aligned to its size
  std::uint16_t first_at = 0;  ///< a group's first access: distance from its span's beginning
  std::uint8_t first_size = 0;
  bool first_write = false;
  bool branches = false;           ///< the steps end with a near branch
  bool direct = false;             ///< nothing but the mode and the address space may change
  interp::Block* steps = nullptr;  ///< for an instruction that the interpreter executes
};

/// A jump to another page that may be linked for one VA and context at a time: what is to be filled
/// in, as distances from its beginning. Emitter::go_far() makes it.
struct FarJump {
  static constexpr std::uint64_t kPageVa = 2, kContext = 26;  ///< operands of MOV
  static constexpr std::uint64_t kJump = 64;                  ///< to the target
  static constexpr std::uint64_t kMiss = 90;                  ///< taken elsewhere, or otherwise
};
/// What it is linked for.
struct FarLink {
  /// Neither a page's VA nor a context.
  static constexpr std::uint64_t kNever = 1;
  std::uint64_t page_va = kNever;
  std::uint64_t context = kNever;
  std::uint64_t target = 0;
  std::uint64_t miss = 0;  ///< what finds the way where the link is not for
};

/// Used by one vCPU thread. The same pages are mapped twice, executable and writable, and never
/// both at one address.
class CodeCache {
 public:
  /// No memory (size() 0) if the host refuses it, or has none left below 2 GiB.
  explicit CodeCache(std::size_t bytes);
  CodeCache(const CodeCache&) = delete;
  CodeCache& operator=(const CodeCache&) = delete;
  ~CodeCache();

  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  /// Where the next code goes.
  [[nodiscard]] std::uint64_t cursor() const noexcept { return executable_ + used_; }
  [[nodiscard]] bool has_room(std::size_t code_bytes) const noexcept {
    return used_ + code_bytes <= size_ && sites_.size() < kMaxSites;
  }
  /// Copies code to cursor().
  void append(std::span<const std::uint8_t> code) noexcept;
  /// Keeps everything appended so far through flush(): stubs.
  void keep() noexcept { kept_ = used_; }
  /// Makes the jump whose 32-bit distance lies at `field` go to `target`.
  void patch_jump(std::uint64_t field, std::uint64_t target) noexcept;

  /// Fills in a jump that begins at `at`.
  void link_far(std::uint64_t at, const FarLink& link) noexcept;

  [[nodiscard]] const TranslatedBlock* find(PA pa, std::uint32_t key) const noexcept;
  /// The same for an instruction that goes on in `second`.
  [[nodiscard]] const TranslatedBlock* find_crossing(PA pa, std::uint32_t key,
                                                     PPN second) const noexcept;
  const TranslatedBlock* insert(const TranslatedBlock& block);
  /// Drops the blocks that overlap the bytes: each one's first instructions become
  /// "go to `stale` with the block's entry in R10". Returns how many.
  std::size_t drop(PA pa, std::uint64_t length, std::uint64_t stale) noexcept;
  /// Of a dropped block: where in its page it began.
  [[nodiscard]] std::uint16_t dropped_offset(std::uint32_t entry) const {
    return dropped_.at(entry);
  }
  /// A dropped block goes straight to `target` from now on.
  void redirect(std::uint32_t entry, std::uint64_t target) noexcept;
  [[nodiscard]] bool has_code(PPN ppn) const noexcept {
    return pages_.contains(ppn) || crossing_.contains(ppn);
  }
  void flush() noexcept;
  /// Grows with every flush() and every drop() of something: code that was there may be gone.
  [[nodiscard]] std::uint64_t changes() const noexcept { return changes_; }
  [[nodiscard]] std::uint64_t flushes() const noexcept { return flushes_; }

  std::uint32_t add_site(const Site& site) {
    sites_.push_back(site);
    return static_cast<std::uint32_t>(sites_.size() - 1);
  }
  [[nodiscard]] Site& site(std::uint32_t index) noexcept { return sites_[index]; }
  /// Room for the steps of an instruction that stays with the interpreter; lives until flush().
  [[nodiscard]] interp::Block* add_steps(std::span<const interp::Uop> steps);

  /// An access in host code at [begin, end) that may fault goes on at `cold` then. In the order of
  /// addresses.
  struct FaultRange {
    std::uint32_t begin = 0, end = 0;
    std::uint32_t cold = 0;
  };
  void add_fault(const FaultRange& range) { faults_.push_back(range); }
  /// Where to go on after a fault at the host address; 0: no access that was announced. May be
  /// called by a signal handler of the thread that executes the code.
  [[nodiscard]] std::uint64_t find_fault(std::uint64_t at) const noexcept;

  [[nodiscard]] std::size_t blocks() const noexcept { return blocks_.size(); }
  [[nodiscard]] std::size_t used() const noexcept { return used_; }
  /// Host memory in use.
  [[nodiscard]] std::size_t bytes() const noexcept;

 private:
  static constexpr std::size_t kMaxSites = 1U << 20;
  [[nodiscard]] static std::size_t bucket(PA pa, std::uint32_t key) noexcept;
  /// What is left of a block that is in no list any more.
  void retire(TranslatedBlock* block, std::uint64_t stale) noexcept;
  std::size_t drop_in_page(TranslatedBlock*& first, PA pa, PA end, std::uint64_t stale) noexcept;
  std::size_t drop_crossing_into(PPN ppn, std::uint64_t stale) noexcept;
  void unhash(const TranslatedBlock* block) noexcept;

  std::size_t size_ = 0;
  std::size_t used_ = 0;
  std::size_t kept_ = 0;
  std::uint64_t executable_ = 0;
  std::byte* writable_ = nullptr;
  std::uint64_t changes_ = 0;
  std::uint64_t flushes_ = 0;
  std::deque<TranslatedBlock> blocks_;
  std::vector<TranslatedBlock*> buckets_;
  std::unordered_map<PPN, TranslatedBlock*> pages_;
  /// Blocks whose second page is the key.
  std::unordered_map<PPN, std::vector<TranslatedBlock*>> crossing_;
  std::unordered_map<std::uint32_t, std::uint16_t> dropped_;
  std::vector<Site> sites_;
  std::vector<FaultRange> faults_;  ///< sorted
  std::vector<std::unique_ptr<std::byte[]>> steps_;
  std::size_t step_bytes_ = 0;
};

}  // namespace strata::bt
