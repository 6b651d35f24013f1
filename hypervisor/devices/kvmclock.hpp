// KVM's paravirtual clock (Linux Documentation/virt/kvm/x86/msr.rst and cpuid.rst).
#pragma once

#include <cstdint>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "devices/clock.hpp"
#include "devices/state_result.hpp"
#include "mmu/address.hpp"

namespace strata::devices {

inline constexpr std::uint32_t kMsrKvmWallClockOld = 0x11, kMsrKvmSystemTimeOld = 0x12;
inline constexpr std::uint32_t kMsrKvmWallClock = 0x4B564D00, kMsrKvmSystemTime = 0x4B564D01;

/// Writes guest memory for KvmClock. Any thread.
class MemoryWriter {
 public:
  MemoryWriter() = default;
  MemoryWriter(const MemoryWriter&) = delete;
  MemoryWriter& operator=(const MemoryWriter&) = delete;
  virtual ~MemoryWriter() = default;
  /// False: not all of [pa, pa + bytes.size()) is RAM; nothing or a part was written.
  virtual bool write(PA pa, std::span<const std::byte> bytes) = 0;
};

/// ns = ((shift >= 0 ? tsc << shift : tsc >> -shift) * multiplier) >> 32.
struct ClockScale {
  std::uint32_t multiplier = 0;
  std::int8_t shift = 0;
};
/// The most precise scale for a TSC of `khz` (> 0): the multiplier has its top bit set.
[[nodiscard]] ClockScale clock_scale(std::uint64_t khz) noexcept;

/// The clock of all vCPUs of a VM. Every vCPU gets the same (TSC, time) pair, so the "TSC stable"
/// flag is true and the guest reads a clock that is monotonic across vCPUs. All functions: any
/// thread.
class KvmClock {
 public:
  KvmClock(Clock& clock, MemoryWriter& memory, unsigned vcpus);
  [[nodiscard]] static bool owns_msr(std::uint32_t msr) noexcept;
  /// Nothing: not one of its MSRs, or no such vCPU: #GP(0).
  [[nodiscard]] std::optional<std::uint64_t> read_msr(unsigned vcpu, std::uint32_t msr) const;
  /// False: #GP(0). Memory that is not RAM is not an error to the guest: no clock appears there.
  [[nodiscard]] bool write_msr(unsigned vcpu, std::uint32_t msr, std::uint64_t value);

  /// The device's state for a saved VM, and back. No vCPU runs meanwhile. load() checks what it is
  /// given; after an error the device must not be used.
  [[nodiscard]] nlohmann::json save();
  [[nodiscard]] StateResult load(const nlohmann::json& state);

 private:
  template <class Archive>
  void fields(Archive& a);
  void publish_time(unsigned vcpu, PA where);
  void publish_wall_clock(PA where);

  Clock& clock_;
  MemoryWriter& memory_;
  const ClockScale scale_;
  /// The pair every vCPU is told: the clock at power-on.
  std::uint64_t base_tsc_;
  Nanoseconds base_ns_;
  mutable std::mutex mutex_;  ///< guards the rest; held while memory_ is written
  std::vector<std::uint64_t> system_time_;
  std::vector<std::uint32_t> versions_;
  std::uint64_t wall_clock_ = 0;
  std::uint32_t wall_version_ = 0;
};

}  // namespace strata::devices
