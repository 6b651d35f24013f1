#include "engines/kvm/cpuid.hpp"

#include <algorithm>

namespace strata::kvm {

namespace {

using Entries = std::vector<kvm_cpuid_entry2>;

const kvm_cpuid_entry2* find(const Entries& entries, std::uint32_t leaf, std::uint32_t subleaf) {
  const auto found = std::find_if(entries.begin(), entries.end(), [&](const kvm_cpuid_entry2& e) {
    return e.function == leaf && e.index == subleaf;
  });
  return found == entries.end() ? nullptr : &*found;
}

/// Feature bits that are the VMM's to give, by leaf and register.
constexpr std::uint32_t kLeaf1Ecx = 1U << 21 | 1U << 24 | 1U << 31;  // x2APIC, TSC deadline, VM
constexpr std::uint32_t kLeaf1Edx = 1U << 9 | 1U << 28;              // APIC, HTT
constexpr std::uint32_t kXsave = 1U << 26;                           // CPUID.1:ECX

class Builder {
 public:
  Builder(const cpu::CpuModel& model, const cpu::DynamicState& state, const Entries& supported)
      : model_{model}, state_{state}, supported_{supported} {}

  Entries build() {
    leaves(0);
    leaves(0x4000'0000);
    leaves(0x8000'0000);
    return std::move(entries_);
  }

 private:
  void leaves(std::uint32_t first) {
    const std::uint32_t last = model_.cpuid(first, 0, state_).eax;
    if (last < first || last - first > 0xFF) return;
    for (std::uint32_t leaf = first; leaf <= last; ++leaf) {
      if (leaf == 4 || leaf == 0xB) {
        until_empty(leaf);
      } else if (leaf == 7) {
        add(7, 0, true);
      } else if (leaf == 0xD) {
        xsave_leaves();
      } else {
        add(leaf, 0, false);
      }
    }
  }

  kvm_cpuid_entry2& add(std::uint32_t leaf, std::uint32_t subleaf, bool indexed) {
    const cpu::CpuidResult r = model_.cpuid(leaf, subleaf, state_);
    kvm_cpuid_entry2 e{};
    e.function = leaf;
    e.index = subleaf;
    e.flags = indexed ? KVM_CPUID_FLAG_SIGNIFCANT_INDEX : 0U;
    e.eax = r.eax;
    e.ebx = r.ebx;
    e.ecx = r.ecx;
    e.edx = r.edx;
    limit(e);
    entries_.push_back(e);
    return entries_.back();
  }

  /// Takes away what the host's KVM cannot run.
  void limit(kvm_cpuid_entry2& e) const {
    const kvm_cpuid_entry2* host = find(supported_, e.function, e.index);
    const kvm_cpuid_entry2 none{};
    if (host == nullptr) host = &none;
    switch (e.function) {
      case 1:
        e.ecx &= host->ecx | kLeaf1Ecx;
        e.edx &= host->edx | kLeaf1Edx;
        break;
      case 7:
        e.eax = 0;
        e.ebx &= host->ebx;
        e.ecx &= host->ecx;
        e.edx &= host->edx;
        break;
      case 0x8000'0001:
        e.ecx &= host->ecx;
        e.edx &= host->edx;
        break;
      case 0x8000'0007:
        e.edx &= host->edx;
        break;
      case 0x8000'0008:
        e.ebx &= host->ebx;
        break;
      default:
        break;
    }
  }

  /// Leaves 4 and 0Bh list caches and levels until one of type 0 (SDM 2A, CPUID).
  void until_empty(std::uint32_t leaf) {
    for (std::uint32_t subleaf = 0; subleaf < 32; ++subleaf) {
      const kvm_cpuid_entry2& e = add(leaf, subleaf, true);
      const std::uint32_t type = leaf == 4 ? e.eax & 0x1F : e.ecx >> 8 & 0xFF;
      if (type == 0) return;
    }
  }

  void xsave_leaves() {
    const kvm_cpuid_entry2* one = find(entries_, 1, 0);
    const kvm_cpuid_entry2* host = find(supported_, 0xD, 0);
    if (one == nullptr || (one->ecx & kXsave) == 0 || host == nullptr) return;
    const std::uint64_t mask = model_.xcr0_mask() & (host->eax | std::uint64_t{host->edx} << 32);
    std::uint32_t bytes = 576;  // legacy region and header
    Entries components;
    for (std::uint32_t n = 2; n < 63; ++n) {
      const kvm_cpuid_entry2* component = find(supported_, 0xD, n);
      if ((mask >> n & 1) == 0 || component == nullptr) continue;
      components.push_back(*component);
      bytes = std::max(bytes, component->ebx + component->eax);
    }
    kvm_cpuid_entry2& all = add(0xD, 0, true);
    all.eax = static_cast<std::uint32_t>(mask);
    all.edx = static_cast<std::uint32_t>(mask >> 32);
    all.ebx = all.ecx = bytes;
    kvm_cpuid_entry2& instructions = add(0xD, 1, true);
    const kvm_cpuid_entry2* host_one = find(supported_, 0xD, 1);
    instructions.eax &= host_one == nullptr ? 0 : host_one->eax;
    instructions.ebx = instructions.ecx = instructions.edx = 0;
    entries_.insert(entries_.end(), components.begin(), components.end());
  }

  const cpu::CpuModel& model_;
  const cpu::DynamicState& state_;
  const Entries& supported_;
  Entries entries_;
};

}  // namespace

std::vector<kvm_cpuid_entry2> guest_cpuid(const cpu::CpuModel& model,
                                          const cpu::DynamicState& state,
                                          const std::vector<kvm_cpuid_entry2>& supported) {
  return Builder{model, state, supported}.build();
}

XsaveLayout xsave_layout(const std::vector<kvm_cpuid_entry2>& supported) noexcept {
  XsaveLayout layout;
  const kvm_cpuid_entry2* all = find(supported, 0xD, 0);
  if (all == nullptr) return layout;
  const std::uint64_t offered = all->eax | std::uint64_t{all->edx} << 32;
  layout.components = 3;
  if (const auto* avx = find(supported, 0xD, 2); avx != nullptr && (offered & 4) != 0) {
    layout.components |= 4;
    layout.avx_offset = avx->ebx;
  }
  if (const auto* pkru = find(supported, 0xD, 9); pkru != nullptr && (offered & 1U << 9) != 0) {
    layout.components |= 1U << 9;
    layout.pkru_offset = pkru->ebx;
  }
  return layout;
}

}  // namespace strata::kvm
