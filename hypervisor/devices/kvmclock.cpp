#include "devices/kvmclock.hpp"

#include <array>
#include <bit>
#include <type_traits>

namespace strata::devices {

namespace {

/// struct pvclock_vcpu_time_info (Documentation/virt/kvm/x86/msr.rst, MSR_KVM_SYSTEM_TIME_NEW).
struct TimeInfo {
  std::uint32_t version = 0;
  std::uint32_t pad0 = 0;
  std::uint64_t tsc_timestamp = 0;
  std::uint64_t system_time = 0;
  std::uint32_t tsc_to_system_mul = 0;
  std::int8_t tsc_shift = 0;
  std::uint8_t flags = 0;
  std::uint8_t pad[2]{};
};
static_assert(sizeof(TimeInfo) == 32);

/// struct pvclock_wall_clock (MSR_KVM_WALL_CLOCK_NEW).
struct WallClock {
  std::uint32_t version = 0;
  std::uint32_t seconds = 0;
  std::uint32_t nanoseconds = 0;
};
static_assert(sizeof(WallClock) == 12);

constexpr std::uint8_t kTscStable = 1U << 0;
constexpr std::uint64_t kEnable = 1U << 0;

/// Writes `data` so that a reader on another vCPU never takes a half-written one for whole: its
/// version (the first field) is odd until the rest is there.
template <class Data>
bool publish(MemoryWriter& memory, PA where, Data data) {
  static_assert(std::is_trivially_copyable_v<Data>);
  const std::uint32_t done = data.version;
  data.version = done - 1;
  const auto bytes = std::bit_cast<std::array<std::byte, sizeof(Data)>>(data);
  const auto last = std::bit_cast<std::array<std::byte, sizeof done>>(done);
  const std::span all{bytes};
  return memory.write(where, all.first(sizeof done)) &&
         memory.write(where + sizeof done, all.subspan(sizeof done)) && memory.write(where, last);
}

/// The structure may not wrap around the end of the address space.
constexpr bool fits(std::uint64_t pa, std::uint64_t size) noexcept { return pa <= ~0ULL - size; }

}  // namespace

/// multiplier = floor(10^6 * 2^(32 - shift) / khz), with the shift that puts it in [2^31, 2^32):
/// ns = tsc * 10^6 / khz, cut down by less than one part in 2^31.
ClockScale clock_scale(std::uint64_t khz) noexcept {
  for (int shift = 31; shift > -32; --shift) {
    const std::uint64_t multiplier = shift >= 0 ? scale(1'000'000, 1ULL << (32 - shift), khz)
                                                : scale(1'000'000ULL << -shift, 1ULL << 32, khz);
    if (multiplier >= 1ULL << 31 && multiplier < 1ULL << 32) {
      return {static_cast<std::uint32_t>(multiplier), static_cast<std::int8_t>(shift)};
    }
  }
  return {};
}

KvmClock::KvmClock(Clock& clock, MemoryWriter& memory, unsigned vcpus)
    : clock_{clock},
      memory_{memory},
      scale_{clock_scale(clock.tsc_khz())},
      base_tsc_{clock.tsc()},
      base_ns_{clock.now()},
      system_time_(vcpus, 0),
      versions_(vcpus, 0) {}

bool KvmClock::owns_msr(std::uint32_t msr) noexcept {
  return msr == kMsrKvmWallClock || msr == kMsrKvmSystemTime || msr == kMsrKvmWallClockOld ||
         msr == kMsrKvmSystemTimeOld;
}

std::optional<std::uint64_t> KvmClock::read_msr(unsigned vcpu, std::uint32_t msr) const {
  const std::lock_guard lock{mutex_};
  if (vcpu >= system_time_.size() || !owns_msr(msr)) return std::nullopt;
  const bool time = msr == kMsrKvmSystemTime || msr == kMsrKvmSystemTimeOld;
  return time ? system_time_[vcpu] : wall_clock_;
}

bool KvmClock::write_msr(unsigned vcpu, std::uint32_t msr, std::uint64_t value) {
  const std::lock_guard lock{mutex_};
  if (vcpu >= system_time_.size() || !owns_msr(msr)) return false;
  if (msr == kMsrKvmWallClock || msr == kMsrKvmWallClockOld) {
    wall_clock_ = value;
    publish_wall_clock(PA{value});
    return true;
  }
  system_time_[vcpu] = value;
  if ((value & kEnable) != 0) publish_time(vcpu, PA{value & ~kEnable});
  return true;
}

/// The pair (TSC, time) is the same for all and for ever: the guest's TSC runs at a constant rate
/// on all vCPUs, which is what the stable flag says.
void KvmClock::publish_time(unsigned vcpu, PA where) {
  if (!fits(where.value(), sizeof(TimeInfo))) return;
  versions_[vcpu] += 2;
  TimeInfo info;
  info.version = versions_[vcpu];
  info.tsc_timestamp = base_tsc_;
  info.system_time = base_ns_;
  info.tsc_to_system_mul = scale_.multiplier;
  info.tsc_shift = scale_.shift;
  info.flags = kTscStable;
  (void)publish(memory_, where, info);
}

/// The wall clock at system time 0.
void KvmClock::publish_wall_clock(PA where) {
  if (!fits(where.value(), sizeof(WallClock))) return;
  const std::int64_t boot = clock_.realtime() - static_cast<std::int64_t>(clock_.now());
  const std::uint64_t positive = boot < 0 ? 0 : static_cast<std::uint64_t>(boot);
  wall_version_ += 2;
  WallClock wall;
  wall.version = wall_version_;
  wall.seconds = static_cast<std::uint32_t>(positive / kNanosecondsPerSecond);
  wall.nanoseconds = static_cast<std::uint32_t>(positive % kNanosecondsPerSecond);
  (void)publish(memory_, where, wall);
}

}  // namespace strata::devices
