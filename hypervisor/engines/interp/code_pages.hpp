// Which vCPUs of a VM keep decoded code of a guest page, and which may keep its writable
// translation: how self- and cross-modifying code stays coherent (SDM 3A 8.1.3).
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>

#include "mmu/address.hpp"
#include "mmu/mmu.hpp"

namespace strata::interp {

inline constexpr unsigned kMaxGroup = 8;
/// One bit per vCPU of a group.
using VcpuMask = std::uint8_t;

/// One 16-bit word per guest page: writers in the upper half, coders in the lower. Thread-safe.
///
/// A vCPU becomes a writer before it stores to a page without announcing the store, and stays one
/// as long as its TLB may hold a writable translation of the page. It becomes a coder before it
/// reads instructions to decode. The claim for writing fails while there are coders; a new coder
/// waits until every writer has dropped its translation (VcpuGroup). So once code has been read,
/// every store to its page is announced.
class CodePages {
 public:
  /// `pages`: guest pages from PPN 0. Pages beyond share one word, which is merely slower.
  explicit CodePages(std::uint64_t pages);

  /// Before a store that will not be announced. False: there are coders, so it must be.
  [[nodiscard]] bool claim_write(PPN ppn, VcpuId vcpu) noexcept {
    const Word word = at(ppn);
    const std::uint16_t bit = writer(vcpu);
    std::uint16_t seen = word.load(std::memory_order_relaxed);
    while ((seen & kCoders) == 0) {
      if ((seen & bit) != 0) return true;
      if (word.compare_exchange_weak(seen, static_cast<std::uint16_t>(seen | bit))) return true;
    }
    return false;
  }
  /// Before instructions are read. Returns the writers, which must let go first.
  [[nodiscard]] VcpuMask claim_code(PPN ppn, VcpuId vcpu) noexcept {
    return static_cast<VcpuMask>(at(ppn).fetch_or(coder(vcpu)) >> 8);
  }
  /// The vCPU's TLB holds no writable translation of the page any more.
  void release_write(PPN ppn, VcpuId vcpu) noexcept { clear(ppn, writer(vcpu)); }
  /// The vCPU keeps no code of the page any more.
  void release_code(PPN ppn, VcpuId vcpu) noexcept { clear(ppn, coder(vcpu)); }
  /// Who must hear of a store that this thread has just made. The fence orders the store before the
  /// look: a vCPU that becomes a coder afterwards reads the new bytes.
  [[nodiscard]] VcpuMask coders(PPN ppn) noexcept {
    std::atomic_thread_fence(std::memory_order_seq_cst);
    return static_cast<VcpuMask>(at(ppn).load(std::memory_order_relaxed) & kCoders);
  }
  /// Host memory that the words take at most.
  [[nodiscard]] std::size_t bytes() const noexcept { return pages_ * sizeof(std::uint16_t); }

 private:
  using Word = std::atomic_ref<std::uint16_t>;
  struct Free {
    void operator()(std::uint16_t* words) const noexcept { std::free(words); }
  };
  static constexpr std::uint16_t kCoders = 0xFF;
  static constexpr std::uint16_t coder(VcpuId vcpu) noexcept {
    return static_cast<std::uint16_t>(1U << vcpu);
  }
  static constexpr std::uint16_t writer(VcpuId vcpu) noexcept {
    return static_cast<std::uint16_t>(0x100U << vcpu);
  }
  [[nodiscard]] Word at(PPN ppn) noexcept {
    return Word{ppn.value() < pages_ ? words_.get()[ppn.value()] : beyond_};
  }
  void clear(PPN ppn, std::uint16_t bit) noexcept {
    // Of the shared word nobody can say that the last page has gone.
    if (ppn.value() < pages_) at(ppn).fetch_and(static_cast<std::uint16_t>(~bit));
  }

  std::uint64_t pages_;
  /// From calloc: large ones come as untouched zero pages, so that only RAM in use costs anything.
  std::unique_ptr<std::uint16_t, Free> words_;
  std::uint16_t beyond_ = 0;
};

}  // namespace strata::interp
