#include <cpuid.h>

#include "cpu/cpu_model.hpp"

namespace strata::cpu {
namespace {

class RealHost final : public HostCpu {
 public:
  [[nodiscard]] CpuidResult cpuid(std::uint32_t leaf, std::uint32_t subleaf) const override {
    CpuidResult r;
    // __get_cpuid_count answers 0 for leaves beyond the host's maximum, where the instruction
    // itself would repeat another leaf.
    if (__get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx) == 0) return {};
    return r;
  }

  [[nodiscard]] std::uint64_t xcr0() const override {
    constexpr std::uint32_t kOsxsave = 1U << 27;
    if ((cpuid(1, 0).ecx & kOsxsave) == 0) return xstate::kX87;
    std::uint32_t low = 0;
    std::uint32_t high = 0;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return static_cast<std::uint64_t>(high) << 32 | low;
  }
};

}  // namespace

const HostCpu& host_cpu() noexcept {
  static const RealHost host;
  return host;
}

}  // namespace strata::cpu
