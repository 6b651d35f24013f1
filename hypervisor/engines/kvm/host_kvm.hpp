// The host's /dev/kvm: the descriptors, and the ioctls on them as functions that say what failed.
#pragma once

#include <linux/kvm.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "machine/machine_memory.hpp"
#include "mmu/address.hpp"
#include "mmu/expected.hpp"

namespace strata::kvm {

/// What the host refused: one line.
struct KvmError {
  std::string message;
};

/// "`what`: `strerror(errno)`", for the call that has just failed.
[[nodiscard]] KvmError host_error(std::string_view what);

/// The header of KVM's structures that end in an array. <linux/kvm.h> has them too, but in C++ with
/// sizes that are not C's (an empty structure takes a byte), and the size is part of the number of
/// an ioctl.
struct ListHeader {
  std::uint32_t count = 0;
  std::uint32_t padding = 0;
};
inline constexpr unsigned long kGetSupportedCpuid = _IOWR(KVMIO, 0x05, ListHeader);
inline constexpr unsigned long kSetCpuid2 = _IOW(KVMIO, 0x90, ListHeader);
inline constexpr unsigned long kGetMsrs = _IOWR(KVMIO, 0x88, ListHeader);
inline constexpr unsigned long kSetMsrs = _IOW(KVMIO, 0x89, ListHeader);

/// A ListHeader and its entries, in one piece of memory.
template <class Entry>
class List {
 public:
  explicit List(std::size_t count)
      : storage_((sizeof(ListHeader) + count * sizeof(Entry) + 7) / 8, 0) {
    header()->count = static_cast<std::uint32_t>(count);
  }
  [[nodiscard]] ListHeader* header() noexcept {
    return reinterpret_cast<ListHeader*>(storage_.data());
  }
  [[nodiscard]] Entry* entries() noexcept { return reinterpret_cast<Entry*>(header() + 1); }

 private:
  std::vector<std::uint64_t> storage_;
};

/// /dev/kvm, opened. Immutable; any thread.
class Device {
 public:
  /// Opens `path` and checks that it offers what this engine is built on. Error: which part it
  /// does not, or why it does not open.
  [[nodiscard]] static Expected<Device, KvmError> open(const std::string& path = "/dev/kvm");

  [[nodiscard]] int fd() const noexcept { return fd_.get(); }
  /// KVM_CHECK_EXTENSION: 0 is no.
  [[nodiscard]] int check(unsigned capability) const noexcept;
  /// KVM_GET_SUPPORTED_CPUID: what guests can be told to have.
  [[nodiscard]] const std::vector<kvm_cpuid_entry2>& supported_cpuid() const noexcept {
    return supported_;
  }
  /// Bytes of a vCPU's kvm_run mapping.
  [[nodiscard]] std::uint64_t run_bytes() const noexcept { return run_bytes_; }

 private:
  Device() = default;
  Expected<void, KvmError> read_cpuid();

  machine::FileDescriptor fd_;
  std::uint64_t run_bytes_ = 0;
  std::vector<kvm_cpuid_entry2> supported_;
};

/// One VM of the host's KVM: memslots and vCPU descriptors. No interrupt controller in the kernel:
/// the VMM has its own.
class VmFile {
 public:
  /// Which MSRs exit to the VMM is set up here: those it answers, and those KVM does not know.
  [[nodiscard]] static Expected<VmFile, KvmError> create(const Device& device);

  /// Puts `bytes` of this process's memory at `host` behind guest-physical `pa`, for good.
  Expected<void, KvmError> add_slot(PA pa, std::byte* host, std::uint64_t bytes, bool read_only);
  /// A vCPU's descriptor.
  [[nodiscard]] Expected<machine::FileDescriptor, KvmError> add_vcpu(unsigned id) const;

 private:
  VmFile() = default;
  Expected<void, KvmError> route_msrs();

  machine::FileDescriptor fd_;
  std::uint32_t slots_ = 0;
};

}  // namespace strata::kvm
