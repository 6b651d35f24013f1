#include "engines/kvm/host_kvm.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/ioctl.h>

#include <array>
#include <cerrno>
#include <cstring>

namespace strata::kvm {

namespace {

struct Need {
  unsigned capability;
  std::string_view name;
};

/// What there is no way around.
constexpr std::array kNeeds{
    Need{KVM_CAP_USER_MEMORY, "KVM_CAP_USER_MEMORY"},
    Need{KVM_CAP_SYNC_MMU, "KVM_CAP_SYNC_MMU"},
    Need{KVM_CAP_READONLY_MEM, "KVM_CAP_READONLY_MEM"},
    Need{KVM_CAP_IMMEDIATE_EXIT, "KVM_CAP_IMMEDIATE_EXIT"},
    Need{KVM_CAP_USER_NMI, "KVM_CAP_USER_NMI"},
    Need{KVM_CAP_XSAVE, "KVM_CAP_XSAVE"},
    Need{KVM_CAP_XCRS, "KVM_CAP_XCRS"},
    Need{KVM_CAP_DEBUGREGS, "KVM_CAP_DEBUGREGS"},
    Need{KVM_CAP_VCPU_EVENTS, "KVM_CAP_VCPU_EVENTS"},
    Need{KVM_CAP_EXT_CPUID, "KVM_CAP_EXT_CPUID"},
    Need{KVM_CAP_X86_USER_SPACE_MSR, "KVM_CAP_X86_USER_SPACE_MSR"},
    Need{KVM_CAP_X86_MSR_FILTER, "KVM_CAP_X86_MSR_FILTER"},
};

/// Where Intel's processors need three pages and one page of guest-physical address space for real
/// mode (KVM API 4.35, 4.36): below the BIOS, where nothing else is.
constexpr std::uint64_t kIdentityMap = 0xFFFB'C000;
constexpr std::uint64_t kTss = 0xFFFB'D000;

/// MSRs that KVM would answer itself although the VMM owns them: APIC base, TSC deadline, both
/// generations of the paravirtual clock. x2APIC's cannot be filtered, and need not: without an
/// APIC in the kernel they are invalid to KVM, and those exit too.
struct MsrRange {
  std::uint32_t first, count;
};
constexpr std::array kVmmMsrs{MsrRange{0x1B, 1}, MsrRange{0x6E0, 1}, MsrRange{0x11, 2},
                              MsrRange{0x4B56'4D00, 8}};

}  // namespace

KvmError host_error(std::string_view what) {
  return {fmt::format("{}: {}", what, std::strerror(errno))};
}

Expected<Device, KvmError> Device::open(const std::string& path) {
  Device device;
  device.fd_ = machine::FileDescriptor{::open(path.c_str(), O_RDWR | O_CLOEXEC)};
  if (!device.fd_.valid()) return Unexpected{host_error(path)};
  const int version = ::ioctl(device.fd(), KVM_GET_API_VERSION, 0);
  if (version != KVM_API_VERSION) {
    return Unexpected{KvmError{fmt::format("{}: not KVM of API version 12", path)}};
  }
  for (const Need& need : kNeeds) {
    if (device.check(need.capability) <= 0) {
      return Unexpected{KvmError{fmt::format("{} has no {}", path, need.name)}};
    }
  }
  const int run_bytes = ::ioctl(device.fd(), KVM_GET_VCPU_MMAP_SIZE, 0);
  if (run_bytes < static_cast<int>(sizeof(kvm_run)))
    return Unexpected{host_error("KVM_GET_VCPU_MMAP_SIZE")};
  device.run_bytes_ = static_cast<std::uint64_t>(run_bytes);
  if (const auto done = device.read_cpuid(); !done) return Unexpected{done.error()};
  return device;
}

int Device::check(unsigned capability) const noexcept {
  return ::ioctl(fd(), KVM_CHECK_EXTENSION, capability);
}

Expected<void, KvmError> Device::read_cpuid() {
  for (std::uint32_t count = 128; count <= 4096; count *= 2) {
    List<kvm_cpuid_entry2> list{count};
    if (::ioctl(fd(), kGetSupportedCpuid, list.header()) == 0) {
      supported_.assign(list.entries(), list.entries() + list.header()->count);
      return {};
    }
    if (errno != E2BIG) break;
  }
  return Unexpected{host_error("KVM_GET_SUPPORTED_CPUID")};
}

Expected<VmFile, KvmError> VmFile::create(const Device& device) {
  VmFile vm;
  vm.fd_ = machine::FileDescriptor{::ioctl(device.fd(), KVM_CREATE_VM, 0)};
  if (!vm.fd_.valid()) return Unexpected{host_error("KVM_CREATE_VM")};
  const std::uint64_t identity = kIdentityMap;
  if (::ioctl(vm.fd_.get(), KVM_SET_IDENTITY_MAP_ADDR, &identity) != 0) {
    return Unexpected{host_error("KVM_SET_IDENTITY_MAP_ADDR")};
  }
  if (::ioctl(vm.fd_.get(), KVM_SET_TSS_ADDR, kTss) != 0)
    return Unexpected{host_error("KVM_SET_TSS_ADDR")};
  if (const auto done = vm.route_msrs(); !done) return Unexpected{done.error()};
  return vm;
}

Expected<void, KvmError> VmFile::route_msrs() {
  kvm_enable_cap cap{};
  cap.cap = KVM_CAP_X86_USER_SPACE_MSR;
  cap.args[0] =
      KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_FILTER;
  if (::ioctl(fd_.get(), KVM_ENABLE_CAP, &cap) != 0) {
    return Unexpected{host_error("KVM_CAP_X86_USER_SPACE_MSR")};
  }
  std::uint8_t deny = 0;  // a clear bit denies, and what is denied exits
  kvm_msr_filter filter{};
  filter.flags = KVM_MSR_FILTER_DEFAULT_ALLOW;
  for (std::size_t i = 0; i < kVmmMsrs.size(); ++i) {
    filter.ranges[i].flags = KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE;
    filter.ranges[i].base = kVmmMsrs[i].first;
    filter.ranges[i].nmsrs = kVmmMsrs[i].count;
    filter.ranges[i].bitmap = &deny;
  }
  if (::ioctl(fd_.get(), KVM_X86_SET_MSR_FILTER, &filter) != 0) {
    return Unexpected{host_error("KVM_X86_SET_MSR_FILTER")};
  }
  return {};
}

Expected<void, KvmError> VmFile::add_slot(PA pa, std::byte* host, std::uint64_t bytes,
                                          bool read_only) {
  kvm_userspace_memory_region region{};
  region.slot = slots_;
  region.flags = read_only ? KVM_MEM_READONLY : 0U;
  region.guest_phys_addr = pa.value();
  region.memory_size = bytes;
  region.userspace_addr = reinterpret_cast<std::uintptr_t>(host);
  if (::ioctl(fd_.get(), KVM_SET_USER_MEMORY_REGION, &region) != 0) {
    return Unexpected{host_error("KVM_SET_USER_MEMORY_REGION")};
  }
  ++slots_;
  return {};
}

Expected<machine::FileDescriptor, KvmError> VmFile::add_vcpu(unsigned id) const {
  machine::FileDescriptor vcpu{::ioctl(fd_.get(), KVM_CREATE_VCPU, id)};
  if (!vcpu.valid()) return Unexpected{host_error("KVM_CREATE_VCPU")};
  return vcpu;
}

}  // namespace strata::kvm
