// Hosts with chosen features.
#pragma once

#include <cstdint>
#include <map>
#include <utility>

#include "cpu/cpu_model.hpp"

namespace strata::cpu::test {

class FakeHost final : public HostCpu {
 public:
  /// A host with every bit of every feature register set, AVX enabled.
  static FakeHost everything() { return FakeHost{0xFFFFFFFF, 7}; }
  /// Nothing but what x86-64 begins with.
  static FakeHost nothing() { return FakeHost{0, 1}; }
  FakeHost(const FakeHost& other)
      : HostCpu{}, fill_{other.fill_}, xcr0_{other.xcr0_}, leaves_{other.leaves_} {}
  FakeHost& operator=(const FakeHost&) = delete;
  ~FakeHost() override = default;

  FakeHost& with_xcr0(std::uint64_t value) {
    xcr0_ = value;
    return *this;
  }
  FakeHost& with(std::uint32_t leaf, std::uint32_t subleaf, CpuidResult value) {
    leaves_[{leaf, subleaf}] = value;
    return *this;
  }

  [[nodiscard]] CpuidResult cpuid(std::uint32_t leaf, std::uint32_t subleaf) const override {
    const auto it = leaves_.find({leaf, subleaf});
    if (it != leaves_.end()) return it->second;
    if (leaf == 0xD && subleaf > 1) return {};
    return {fill_, fill_, fill_, fill_};
  }
  [[nodiscard]] std::uint64_t xcr0() const override { return xcr0_; }

 private:
  FakeHost(std::uint32_t fill, std::uint64_t xcr0) : fill_{fill}, xcr0_{xcr0} {}
  std::uint32_t fill_;
  std::uint64_t xcr0_;
  std::map<std::pair<std::uint32_t, std::uint32_t>, CpuidResult> leaves_;
};

}  // namespace strata::cpu::test
