// What the Cores of one VM have in common: cached code, and stopping all others for a moment.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <mutex>

#include "engines/interp/code_pages.hpp"

namespace strata::interp {

class Core;

/// Cores join when they are made and leave when they are destroyed, none of them running.
/// Everything else: any vCPU thread of the group.
class VcpuGroup {
 public:
  /// `pages`: guest pages from PPN 0; see CodePages.
  explicit VcpuGroup(std::uint64_t pages) : code_pages{pages} {}
  VcpuGroup(const VcpuGroup&) = delete;
  VcpuGroup& operator=(const VcpuGroup&) = delete;

  void join(VcpuId id, Core& core) noexcept { cores_[id] = &core; }
  void leave(VcpuId id) noexcept { cores_[id] = nullptr; }

  /// `self` has stored `length` bytes at `pa`, within a page: the others that cache its code drop
  /// what overlaps at their next instruction boundary. They have been told when this returns, so
  /// whoever sees a later store of `self` has been told as well: the protocol of SDM 3A 8.1.3.
  void code_written(VcpuId self, PA pa, std::uint64_t length) noexcept;
  /// Takes writable translations of `ppn` away from `writers`. The caller counts as quiescent.
  void revoke_writes(VcpuMask writers, PPN ppn) noexcept;

  /// A vCPU begins to execute instructions, or to translate for them; waits while another one is
  /// exclusive. Every begin() has its end().
  void begin(VcpuId self) noexcept;
  void end(VcpuId self) noexcept { inside_[self].store(false); }
  /// Somebody else is or becomes exclusive: end() and begin() as soon as possible.
  [[nodiscard]] bool must_park(VcpuId self) const noexcept {
    const int owner = owner_.load();
    return owner >= 0 && owner != static_cast<int>(self);
  }

  CodePages code_pages;

 private:
  friend class Exclusive;
  void stop_others(VcpuId self) noexcept;
  void resume_others() noexcept;

  static constexpr int kNobody = -1;
  std::array<Core*, kMaxGroup> cores_{};
  /// By vCPU: between begin() and end().
  std::array<std::atomic<bool>, kMaxGroup> inside_{};
  std::mutex turn_;  ///< held by the exclusive vCPU; taken while counting as quiescent
  std::atomic<int> owner_{kNobody};
};

/// While it lives, no other vCPU of the VM executes an instruction or walks a table: what this one
/// does to memory is one step to them, whatever it touches. For LOCK across a cache line or page,
/// where the host's own LOCK would be a bus lock or impossible. Devices that write memory on their
/// own threads are not stopped; a real processor's bus lock would hold them off, but no driver
/// shares unaligned counters with a device.
///
/// Made at the start of an instruction: translations found before are stale afterwards.
class Exclusive {
 public:
  explicit Exclusive(Core& core);
  ~Exclusive();
  Exclusive(const Exclusive&) = delete;
  Exclusive& operator=(const Exclusive&) = delete;

 private:
  VcpuGroup& group_;
};

}  // namespace strata::interp
