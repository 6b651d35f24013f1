#include "machine/machine_memory.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <map>
#include <mutex>
#include <utility>

namespace strata::machine {
namespace {

// Newer than the headers of Debian 12's libc may be.
constexpr int kMadvPopulateWrite = 23;
constexpr int kMadvCollapse = 25;

Unexpected<MachineError> error(MachineErrorKind kind, int host_errno = 0) {
  return Unexpected{MachineError{kind, host_errno}};
}

Unexpected<MachineError> error_of(int host_errno) {
  const bool memory =
      host_errno == ENOMEM || host_errno == ENOSPC || host_errno == EFAULT || host_errno == EDQUOT;
  return error(memory ? MachineErrorKind::no_memory : MachineErrorKind::host, host_errno);
}

constexpr std::uint64_t round_up(std::uint64_t value, std::uint64_t unit) noexcept {
  return (value + unit - 1) / unit * unit;
}

/// madvise and fallocate may be interrupted half way; both can simply be repeated.
template <class Call>
int repeat_on_signal(Call&& call) {
  for (;;) {
    if (call() == 0) return 0;
    if (errno != EINTR && errno != EAGAIN) return errno;
  }
}

}  // namespace

FileDescriptor& FileDescriptor::operator=(FileDescriptor&& other) noexcept {
  FileDescriptor old{std::exchange(fd_, other.release())};
  return *this;
}
FileDescriptor::~FileDescriptor() {
  if (fd_ >= 0) ::close(fd_);
}
int FileDescriptor::release() noexcept { return std::exchange(fd_, -1); }

HostMapping::HostMapping(HostMapping&& other) noexcept
    : base_{std::exchange(other.base_, nullptr)}, bytes_{std::exchange(other.bytes_, 0)} {}
HostMapping& HostMapping::operator=(HostMapping&& other) noexcept {
  std::swap(base_, other.base_);
  std::swap(bytes_, other.bytes_);
  return *this;
}
HostMapping::~HostMapping() {
  if (base_ != nullptr) ::munmap(base_, bytes_);
}
Expected<HostMapping, MachineError> HostMapping::anonymous(std::uint64_t bytes) {
  if (bytes == 0) return error(MachineErrorKind::invalid_size);
  void* base = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) return error_of(errno);
  return HostMapping{static_cast<std::byte*>(base), bytes};
}

/// The reservation, and which parts of it segments occupy.
class WindowSpace {
 public:
  explicit WindowSpace(HostMapping reserved, std::byte* base, std::uint64_t bytes) noexcept
      : reserved_{std::move(reserved)}, base_{base}, bytes_{bytes} {}

  static Expected<std::shared_ptr<WindowSpace>, MachineError> reserve(const HostLayout& layout);

  [[nodiscard]] std::byte* base() const noexcept { return base_; }
  [[nodiscard]] std::uint64_t bytes() const noexcept { return bytes_; }

  /// First fit, at multiples of 1 GiB.
  Expected<MA, MachineError> take(std::uint64_t bytes) {
    if (bytes == 0 || bytes > bytes_) return error(MachineErrorKind::invalid_size);
    const std::lock_guard guard{lock_};
    std::uint64_t at = 0;
    for (const auto& [begin, length] : taken_) {
      if (begin - at >= bytes) break;
      at = round_up(begin + length, kHugePageSize);
    }
    if (at > bytes_ || bytes_ - at < bytes) return error(MachineErrorKind::no_address_space);
    taken_.emplace(at, bytes);
    return MA{at};
  }

  void give_back(MA at) noexcept {
    const std::lock_guard guard{lock_};
    taken_.erase(at.value());
  }

  /// Turns a segment's addresses back into reserved ones.
  void unmap(MA at, std::uint64_t bytes) noexcept {
    // Over a mapping of ours it can not fail for want of address space; were it to, the old one
    // would stay, which is safe.
    (void)::mmap(base_ + at.value(), bytes, PROT_NONE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    give_back(at);
  }

 private:
  HostMapping reserved_;
  std::byte* base_;
  std::uint64_t bytes_;
  /// Guards taken_. A leaf lock.
  std::mutex lock_;
  std::map<std::uint64_t, std::uint64_t> taken_;
};

Expected<std::shared_ptr<WindowSpace>, MachineError> WindowSpace::reserve(
    const HostLayout& layout) {
  // Host huge pages need host and machine addresses to agree modulo 2 MiB; 1 GiB covers both sizes.
  // One gigabyte more than asked for leaves room to align whatever address the host picks.
  constexpr std::uint64_t kAddressSpace = 1ULL << 47;
  const std::uint64_t least =
      round_up(std::min(layout.system_pool_bytes, kAddressSpace), kHugePageSize);
  for (std::uint64_t bytes = std::min(layout.window_bytes, kAddressSpace) & ~(kHugePageSize - 1);
       bytes != 0 && bytes >= least; bytes = bytes / 2 & ~(kHugePageSize - 1)) {
    void* hint = reinterpret_cast<void*>(layout.window_base);
    // Only a hint: sanitizers keep their shadow there, and then any other address will do.
    void* at = ::mmap(hint, bytes + kHugePageSize, PROT_NONE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) continue;
    auto* first = static_cast<std::byte*>(at);
    HostMapping reserved{first, bytes + kHugePageSize};
    const auto address = reinterpret_cast<std::uintptr_t>(at);
    std::byte* base = first + (round_up(address, kHugePageSize) - address);
    return std::make_shared<WindowSpace>(std::move(reserved), base, bytes);
  }
  return error(MachineErrorKind::no_address_space, errno);
}

Segment::Segment(std::shared_ptr<WindowSpace> space, FileDescriptor fd, MA base,
                 std::uint64_t bytes, std::string name) noexcept
    : space_{std::move(space)},
      fd_{std::move(fd)},
      base_{base},
      bytes_{bytes},
      name_{std::move(name)} {}

Segment::~Segment() { space_->unmap(base_, bytes_); }

bool Segment::inside(ByteRange range) const noexcept {
  return range.offset <= bytes_ && range.length <= bytes_ - range.offset;
}

std::byte* Segment::host(std::uint64_t offset) const noexcept {
  return space_->base() + base_.value() + offset;
}

Expected<void, MachineError> Segment::populate(ByteRange range) {
  if (!inside(range)) return error(MachineErrorKind::invalid_size);
  if (range.length == 0) return {};
  const int failed = repeat_on_signal([&] {
    return ::fallocate(fd_.get(), 0, static_cast<off_t>(range.offset),
                       static_cast<off_t>(range.length));
  });
  if (failed != 0) return error_of(failed);
  return {};
}

Expected<void, MachineError> Segment::touch(ByteRange range) {
  if (!inside(range)) return error(MachineErrorKind::invalid_size);
  if (range.length == 0) return {};
  const std::uint64_t first = range.offset & ~kPageMask;
  const std::uint64_t last = round_up(range.offset + range.length, kPageSize);
  const int failed =
      repeat_on_signal([&] { return ::madvise(host(first), last - first, kMadvPopulateWrite); });
  // Before Linux 5.14: without the mapping, but with the same promise about memory.
  if (failed == EINVAL) return populate(range);
  if (failed != 0) return error_of(failed);
  return {};
}

Expected<void, MachineError> Segment::punch(ByteRange range) {
  if (!inside(range)) return error(MachineErrorKind::invalid_size);
  const std::uint64_t first = round_up(range.offset, kPageSize);
  const std::uint64_t last = (range.offset + range.length) & ~kPageMask;
  if (first >= last) return {};
  const int failed = repeat_on_signal([&] {
    return ::fallocate(fd_.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                       static_cast<off_t>(first), static_cast<off_t>(last - first));
  });
  if (failed != 0) return error_of(failed);
  return {};
}

bool Segment::collapse(ByteRange range) noexcept {
  if (!inside(range) || range.length == 0) return false;
  const std::uint64_t first = round_up(range.offset, kLargePageSize);
  const std::uint64_t last = (range.offset + range.length) & ~(kLargePageSize - 1);
  return first < last && ::madvise(host(first), last - first, kMadvCollapse) == 0;
}

std::uint64_t Segment::resident_bytes() const noexcept {
  struct stat status {};
  if (::fstat(fd_.get(), &status) != 0) return 0;
  return static_cast<std::uint64_t>(status.st_blocks) * 512;  // POSIX: st_blocks counts 512 bytes
}

Expected<std::unique_ptr<MachineMemory>, MachineError> MachineMemory::create(
    const HostLayout& layout) {
  auto space = WindowSpace::reserve(layout);
  if (!space) return Unexpected{space.error()};
  std::unique_ptr<MachineMemory> memory{new MachineMemory{std::move(*space)}};
  // The window is empty, so the first segment gets machine address 0.
  auto pool = memory->create_segment(layout.system_pool_bytes, "strata-system");
  if (!pool) return Unexpected{pool.error()};
  memory->system_pool_ = std::move(*pool);
  return memory;
}

Expected<SegmentRef, MachineError> MachineMemory::create_segment(std::uint64_t bytes,
                                                                 std::string_view name) {
  if (bytes == 0 || bytes > space_->bytes()) return error(MachineErrorKind::invalid_size);
  const std::uint64_t rounded = round_up(bytes, kPageSize);
  const std::string owned{name};
  FileDescriptor fd{::memfd_create(owned.c_str(), MFD_CLOEXEC | MFD_ALLOW_SEALING)};
  if (!fd.valid()) return error_of(errno);
  if (::ftruncate(fd.get(), static_cast<off_t>(rounded)) != 0) return error_of(errno);
  if (::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0) return error_of(errno);
  return map_segment(std::move(fd), rounded, name, true);
}

Expected<SegmentRef, MachineError> MachineMemory::adopt_segment(FileDescriptor fd,
                                                                std::uint64_t bytes,
                                                                std::string_view name,
                                                                bool writable) {
  if (bytes == 0 || bytes > space_->bytes() || bytes % kPageSize != 0) {
    return error(MachineErrorKind::invalid_size);
  }
  struct stat status {};
  if (::fstat(fd.get(), &status) != 0) return error_of(errno);
  if (static_cast<std::uint64_t>(status.st_size) < bytes) {
    return error(MachineErrorKind::invalid_size);
  }
  return map_segment(std::move(fd), bytes, name, writable);
}

Expected<SegmentRef, MachineError> MachineMemory::map_segment(FileDescriptor fd,
                                                              std::uint64_t bytes,
                                                              std::string_view name,
                                                              bool writable) {
  const auto base = space_->take(bytes);
  if (!base) return Unexpected{base.error()};
  const int protection = writable ? PROT_READ | PROT_WRITE : PROT_READ;
  void* at = ::mmap(space_->base() + base->value(), bytes, protection, MAP_SHARED | MAP_FIXED,
                    fd.get(), 0);
  if (at == MAP_FAILED) {
    const int failed = errno;
    space_->give_back(*base);
    return error_of(failed);
  }
  return std::make_shared<Segment>(space_, std::move(fd), *base, bytes, std::string{name});
}

MachineWindow MachineMemory::window() const noexcept { return MachineWindow{space_->base()}; }
std::uint64_t MachineMemory::window_bytes() const noexcept { return space_->bytes(); }

}  // namespace strata::machine
