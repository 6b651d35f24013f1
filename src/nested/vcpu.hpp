// What the nested backend keeps for each vCPU.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <tuple>
#include <vector>

#include "machine/formats.hpp"
#include "mmu/mmu.hpp"
#include "nested/caches.hpp"
#include "nested/nested_mmu.hpp"

namespace strata::nested {

/// Written by one thread at a time, read by any.
class Counter {
 public:
  void add(std::uint64_t n = 1) noexcept {
    value_.store(value_.load(std::memory_order_relaxed) + n, std::memory_order_relaxed);
  }
  [[nodiscard]] std::uint64_t value() const noexcept {
    return value_.load(std::memory_order_relaxed);
  }

 private:
  std::atomic<std::uint64_t> value_{0};
};

struct VcpuCounters {
  Counter translations, walks, guest_references, nested_references, ad_writes, violations;
  Counter guest_faults, invalidations, guest_cache_hits, nested_tlb_hits, nested_cache_hits;
  std::array<Counter, std::tuple_size_v<decltype(NestedStats::references)>> references;
};

/// `lock` is held by the vCPU's thread while it walks: so it guards the caches and the walk's hold
/// on nested tables at once. Who takes something out of the nested table holds the locks of all
/// vCPUs. Uncontended for the vCPU itself: cheaper than a lock that all vCPUs share.
struct alignas(128) Vcpu {
  mutable std::mutex lock;
  PagingContext context;  ///< guarded by lock, as everything down to last
  machine::WalkControls controls;
  PagingStructureCache guest_tables;
  PagingStructureCache nested_tables;
  NestedTlb nested_tlb;
  std::uint64_t relocks = 0;  ///< how often a walk let go of lock: MAs seen before are stale
  WalkReferences last;
  VcpuCounters count;  ///< written by the vCPU's thread, read by any
};

using Vcpus = std::vector<std::unique_ptr<Vcpu>>;

/// Keeps every vCPU out of the nested table while it lives. Locks are taken in the order of ids.
class AllVcpusStopped {
 public:
  explicit AllVcpusStopped(const Vcpus& vcpus) : vcpus_{&vcpus} {
    for (const auto& v : vcpus) v->lock.lock();
  }
  AllVcpusStopped(const AllVcpusStopped&) = delete;
  AllVcpusStopped& operator=(const AllVcpusStopped&) = delete;
  ~AllVcpusStopped() {
    for (const auto& v : *vcpus_) v->lock.unlock();
  }

 private:
  const Vcpus* vcpus_;
};

}  // namespace strata::nested
