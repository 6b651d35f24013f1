// What CPUID says, and with that which instructions and control bits exist. One description, asked
// by the CPUID instruction, by the decoder's #UD decisions and by the checks of CR4, EFER, XCR0.
#pragma once

#include <array>
#include <bitset>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "mmu/expected.hpp"

namespace strata::cpu {

/// Processor features that change what an engine does. Names follow SDM 2A, CPUID.
enum class Feature : std::uint8_t {
  // CPUID.1:EDX
  fpu,
  vme,
  de,
  pse,
  tsc,
  msr,
  pae,
  mce,
  cx8,
  apic,
  sysenter,
  mtrr,
  pge,
  mca,
  cmov,
  pat,
  pse36,
  clflush,
  mmx,
  fxsr,
  sse,
  sse2,
  self_snoop,
  htt,
  // CPUID.1:ECX
  sse3,
  pclmulqdq,
  monitor,
  ssse3,
  fma,
  cx16,
  pcid,
  sse4_1,
  sse4_2,
  x2apic,
  movbe,
  popcnt,
  tsc_deadline,
  aes,
  xsave,
  avx,
  f16c,
  rdrand,
  hypervisor,
  // CPUID.6:EAX
  arat,
  // CPUID.7.0:EBX, ECX, EDX
  fsgsbase,
  tsc_adjust,
  bmi1,
  avx2,
  smep,
  bmi2,
  erms,
  invpcid,
  rdseed,
  adx,
  smap,
  clflushopt,
  clwb,
  sha,
  umip,
  pku,
  rdpid,
  fsrm,
  serialize,
  md_clear,
  spec_ctrl,
  arch_capabilities,
  // CPUID.D.1:EAX
  xsaveopt,
  xsavec,
  xgetbv1,
  // CPUID.80000001h:ECX, EDX
  lahf,
  lzcnt,
  prefetchw,
  syscall,
  nx,
  page_1g,
  rdtscp,
  lm,
  // CPUID.80000007h:EDX
  invariant_tsc,
};
inline constexpr std::size_t kFeatureCount = static_cast<std::size_t>(Feature::invariant_tsc) + 1;

/// The name model files use, e.g. "sse4_2".
[[nodiscard]] std::string_view name_of(Feature feature) noexcept;

struct CpuidResult {
  std::uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
  friend bool operator==(const CpuidResult&, const CpuidResult&) = default;
};

/// What CPUID's answer depends on besides the model.
struct DynamicState {
  bool osxsave = false;  ///< CR4.OSXSAVE
  bool pke = false;      ///< CR4.PKE
  bool apic = true;      ///< IA32_APIC_BASE.EN
  bool nx = true;        ///< not IA32_MISC_ENABLE[34]
  std::uint64_t xcr0 = 1;
  std::uint32_t apic_id = 0;
  unsigned cpus = 1;  ///< vCPUs of the VM: cores of one package, one thread each
};

/// The processor underneath. Tests inject their own. Thread-safe.
class HostCpu {
 public:
  HostCpu() = default;
  HostCpu(const HostCpu&) = delete;
  HostCpu& operator=(const HostCpu&) = delete;
  virtual ~HostCpu() = default;
  [[nodiscard]] virtual CpuidResult cpuid(std::uint32_t leaf, std::uint32_t subleaf) const = 0;
  /// XGETBV(0), or 1 when the host's operating system has not enabled XSAVE.
  [[nodiscard]] virtual std::uint64_t xcr0() const = 0;
};

/// The processor this program runs on.
[[nodiscard]] const HostCpu& host_cpu() noexcept;

/// Why a model could not be made: one line.
struct ModelError {
  std::string message;
};

struct ModelOptions {
  /// Guest TSC frequency; 0 leaves the frequency leaves (15h, 16h, 40000010h) empty.
  std::uint32_t tsc_khz = 0;
  /// Frequency that the local APIC timer counts at, before its divider.
  std::uint32_t apic_khz = 1'000'000;
  /// Where to look for extensions that engines execute with the host's own; null: host_cpu().
  const HostCpu* host = nullptr;
};

/// Extended-state components this model can have, by XCR0 bit (SDM 1 13.1).
namespace xstate {
inline constexpr std::uint64_t kX87 = 1ULL << 0, kSse = 1ULL << 1, kAvx = 1ULL << 2,
                               kPkru = 1ULL << 9;
}
struct XstateComponent {
  std::uint32_t offset = 0;  ///< in the standard format, from the start of the area
  std::uint32_t bytes = 0;   ///< 0: the component does not exist
};

/// A processor model, after the host's limits were applied. Immutable; any thread.
class CpuModel {
 public:
  /// A model's name, and changes to it: "default", "default,-pcid,+rdpid,vendor=AuthenticAMD".
  /// A feature taken away takes along what needs it; "+vmware_backdoor" is one more switch. Error:
  /// no such model, feature or key.
  [[nodiscard]] static Expected<CpuModel, ModelError> by_name(std::string_view name,
                                                              const ModelOptions& options = {});
  /// A model file's text, in the form of models/default.json. Error: what is wrong with it.
  [[nodiscard]] static Expected<CpuModel, ModelError> from_json(std::string_view text,
                                                                const ModelOptions& options = {});
  /// As from_json(), with `changes` as by_name() has them, without the name: "+rdpid,-pcid".
  [[nodiscard]] static Expected<CpuModel, ModelError> from_json(std::string_view text,
                                                                std::string_view changes,
                                                                const ModelOptions& options);
  /// Names that by_name() knows.
  [[nodiscard]] static std::vector<std::string_view> names();

  /// The answer of CPUID. Leaves beyond the maximum answer as the highest basic leaf, as Intel's
  /// processors do (SDM 2A, CPUID).
  [[nodiscard]] CpuidResult cpuid(std::uint32_t leaf, std::uint32_t subleaf,
                                  const DynamicState& state) const noexcept;

  [[nodiscard]] bool has(Feature feature) const noexcept {
    return features_[static_cast<std::size_t>(feature)];
  }
  /// MAXPHYADDR: physical-address bits, 36 to 52.
  [[nodiscard]] unsigned maxphyaddr() const noexcept { return physical_bits_; }
  /// Bits that CR4, EFER and XCR0 may have set; others are reserved (#GP).
  [[nodiscard]] std::uint64_t cr4_mask() const noexcept;
  [[nodiscard]] std::uint64_t efer_mask() const noexcept;
  [[nodiscard]] std::uint64_t xcr0_mask() const noexcept;
  /// Layout of extended-state component `index` (an XCR0 bit number).
  [[nodiscard]] XstateComponent xstate_component(unsigned index) const noexcept;
  /// Bytes of an XSAVE area in standard format that holds the components of `mask`.
  [[nodiscard]] std::uint32_t xsave_bytes(std::uint64_t mask) const noexcept;
  /// The same in compacted format (XSAVEC).
  [[nodiscard]] std::uint32_t xsavec_bytes(std::uint64_t mask) const noexcept;

  [[nodiscard]] const std::string& name() const noexcept { return name_; }
  [[nodiscard]] unsigned family() const noexcept { return family_; }
  [[nodiscard]] unsigned model() const noexcept { return model_; }
  [[nodiscard]] unsigned stepping() const noexcept { return stepping_; }
  [[nodiscard]] std::uint32_t tsc_khz() const noexcept { return tsc_khz_; }
  [[nodiscard]] std::uint32_t apic_khz() const noexcept { return apic_khz_; }
  [[nodiscard]] bool is_amd() const noexcept { return vendor_ == "AuthenticAMD"; }
  /// Answers VMware's backdoor: port 5658h and the pseudo-counters of RDPMC, at every CPL.
  [[nodiscard]] bool vmware_backdoor() const noexcept { return vmware_backdoor_; }
  /// IA32_UCODE_REV (MSR 8Bh) as read: the revision is in the upper half.
  [[nodiscard]] std::uint64_t microcode_revision() const noexcept { return microcode_; }
  /// Features the model file asks for that this host can not give.
  [[nodiscard]] const std::vector<Feature>& masked() const noexcept { return masked_; }

 private:
  friend struct ModelBuilder;
  struct Cache {
    unsigned level = 1;
    unsigned type = 1;  ///< CPUID.4:EAX[4:0]: 1 data, 2 instruction, 3 unified
    std::uint32_t ways = 1, line = 64, sets = 1;
    bool shared = false;  ///< by all vCPUs
  };
  CpuModel() = default;
  [[nodiscard]] CpuidResult basic(std::uint32_t leaf, std::uint32_t subleaf,
                                  const DynamicState& state) const noexcept;
  [[nodiscard]] CpuidResult leaf1(const DynamicState& state) const noexcept;
  [[nodiscard]] CpuidResult leaf4(std::uint32_t subleaf, unsigned cpus) const noexcept;
  [[nodiscard]] CpuidResult leaf7(std::uint32_t subleaf, const DynamicState& s) const noexcept;
  [[nodiscard]] CpuidResult topology(std::uint32_t subleaf, const DynamicState& s) const noexcept;
  [[nodiscard]] CpuidResult leaf_d(std::uint32_t subleaf, const DynamicState& s) const noexcept;
  [[nodiscard]] CpuidResult frequency(std::uint32_t leaf) const noexcept;
  [[nodiscard]] CpuidResult paravirtual(std::uint32_t leaf) const noexcept;
  [[nodiscard]] CpuidResult extended(std::uint32_t leaf, const DynamicState& s) const noexcept;
  /// The bits of the features that live in one CPUID register.
  [[nodiscard]] std::uint32_t feature_bits(std::uint32_t leaf, std::uint32_t subleaf,
                                           unsigned reg) const noexcept;

  std::string name_;
  std::string vendor_;  ///< 12 characters
  std::string brand_;   ///< at most 47 characters
  unsigned family_ = 6, model_ = 0, stepping_ = 0;
  unsigned physical_bits_ = 40;
  std::uint32_t tsc_khz_ = 0, apic_khz_ = 0;
  std::uint64_t microcode_ = 0;
  std::uint32_t kvm_features_ = 0;
  bool vmware_backdoor_ = false;
  std::uint32_t pkru_offset_ = 2688;
  std::bitset<kFeatureCount> features_;
  std::vector<Feature> masked_;
  std::vector<Cache> caches_;
};

}  // namespace strata::cpu
