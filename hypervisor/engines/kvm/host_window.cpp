#include "engines/kvm/host_window.hpp"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstdlib>

namespace strata::kvm {

namespace {

/// userfaultfd(2) for faults of kernel code too: KVM's are. Needs CAP_SYS_PTRACE, the sysctl
/// vm.unprivileged_userfaultfd, or access to /dev/userfaultfd.
machine::FileDescriptor open_userfaultfd() noexcept {
  constexpr int kFlags = O_CLOEXEC | O_NONBLOCK;
  machine::FileDescriptor fd{static_cast<int>(::syscall(SYS_userfaultfd, kFlags))};
  if (fd.valid()) return fd;
  const machine::FileDescriptor device{::open("/dev/userfaultfd", O_RDWR | O_CLOEXEC)};
  if (!device.valid()) return fd;
  return machine::FileDescriptor{::ioctl(device.get(), USERFAULTFD_IOC_NEW, kFlags)};
}

bool watch(int faults, std::byte* base, std::uint64_t bytes) noexcept {
  uffdio_register reg{};
  reg.range.start = reinterpret_cast<std::uintptr_t>(base);
  reg.range.len = bytes;
  reg.mode = UFFDIO_REGISTER_MODE_MISSING;
  return ::ioctl(faults, UFFDIO_REGISTER, &reg) == 0;
}

std::uint64_t bytes_of(PpnRange range) noexcept { return range.count << kPageShift; }

}  // namespace

Expected<std::unique_ptr<HostWindow>, KvmError> HostWindow::create(machine::P2mTable& p2m,
                                                                   MachineWindow machine,
                                                                   std::vector<Slot> slots) {
  std::unique_ptr<HostWindow> window{new HostWindow{p2m, machine, std::move(slots)}};
  if (const auto done = window->reserve(); !done) return Unexpected{done.error()};
  if (const auto done = window->watch_slots(); !done) return Unexpected{done.error()};
  p2m.add_observer(*window);
  window->observing_ = true;
  return window;
}

HostWindow::~HostWindow() {
  if (observing_) p2m_.remove_observer(*this);
  if (!pager_.joinable()) return;
  const std::uint64_t one = 1;
  if (::write(stop_.get(), &one, sizeof one) != sizeof one) std::abort();
  pager_.join();
}

Expected<void, KvmError> HostWindow::reserve() {
  std::uint64_t bytes = 0;
  for (const Slot& s : slots_) {
    bytes = std::max(bytes, (s.range.first.value() + s.range.count) << kPageShift);
  }
  void* base =
      ::mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) return Unexpected{host_error("address space for guest memory")};
  mapping_ = machine::HostMapping{static_cast<std::byte*>(base), bytes};
  auto bits = machine::HostMapping::anonymous((bytes >> kPageShift) / 8 + sizeof(std::uint64_t));
  if (!bits) return Unexpected{host_error("address space for guest memory")};
  detached_ = std::move(*bits);
  return {};
}

Expected<void, KvmError> HostWindow::watch_slots() {
  faults_ = open_userfaultfd();
  if (!faults_.valid()) return Unexpected{host_error("userfaultfd")};
  uffdio_api api{};
  api.api = UFFD_API;
  api.features = UFFD_FEATURE_MISSING_SHMEM;
  if (::ioctl(faults_.get(), UFFDIO_API, &api) != 0) return Unexpected{host_error("userfaultfd")};
  for (const Slot& slot : slots_) {
    if (!attach_home(slot.range, PROT_READ | PROT_WRITE)) {
      return Unexpected{host_error("userfaultfd on guest memory")};
    }
  }
  stop_ = machine::FileDescriptor{::eventfd(0, EFD_CLOEXEC)};
  if (!stop_.valid()) return Unexpected{host_error("eventfd")};
  return {};
}

std::span<const unsigned long> HostWindow::ioctls() noexcept {
  static constexpr std::array<unsigned long, 2> kRequests{UFFDIO_REGISTER, UFFDIO_WAKE};
  return kRequests;
}

void HostWindow::start() {
  pager_ = std::thread{[this] { page(); }};
}

// ---- the P2M's edits --------------------------------------------------------------------------

void HostWindow::p2m_changed(PpnRange range, Flush& /*flush*/) {
  // Nothing to defer: when this returns, no translation through the window is left (see above).
  if (std::this_thread::get_id() == pager_.get_id() &&
      p2m_.lookup(range.first).entry.state() == PageState::zero) {
    // The pager gives an untouched page its home. There was a hole of the segment, which nothing
    // can have mapped, and the page that fills it is the right one already.
    return;
  }
  const std::uint64_t end = range.first.value() + range.count;
  const std::lock_guard guard{lock_};
  for (const Slot& slot : slots_) {
    const std::uint64_t from = std::max(slot.range.first.value(), range.first.value());
    const std::uint64_t to = std::min(slot.range.first.value() + slot.range.count, end);
    if (from < to) vacate({PPN{from}, to - from});
  }
}

PpnRange HostWindow::slot_of(PPN ppn) const noexcept {
  const auto slot = std::find_if(slots_.begin(), slots_.end(),
                                 [&](const Slot& s) { return s.range.contains(ppn); });
  if (slot == slots_.end()) std::abort();  // only slots are watched
  return slot->range;
}

/// Takes `range` out of the window: the next touch goes to the pager.
void HostWindow::vacate(PpnRange range) {
  vacated_.fetch_add(range.count, std::memory_order_relaxed);
  if (!place_hole(range)) {
    // The host's limit of mappings (vm.max_map_count). A slot as one hole is fewer mappings, and
    // what is still there comes back at its next touch.
    range = slot_of(range.first);
    if (!place_hole(range)) std::abort();  // the old translation would stay
  }
  set_detached(range, true);
  const PPN end = range.first + range.count;
  read_only_.erase(read_only_.lower_bound(range.first), read_only_.lower_bound(end));
  std::erase_if(closed_, [&](const Fault& f) { return range.contains(page_of(f.pa)); });
}

/// Anonymous memory that the pager watches. Closed while it is not watched yet, lest a touch finds
/// a page of zeroes there; such a touch fails with EFAULT and is tried again (after_fault()).
bool HostWindow::place_hole(PpnRange range) {
  std::byte* at = host(address_of(range.first));
  const std::uint64_t bytes = bytes_of(range);
  constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
  return ::mmap(at, bytes, PROT_NONE, kFlags, -1, 0) != MAP_FAILED &&
         watch(faults_.get(), at, bytes) && ::mprotect(at, bytes, PROT_READ | PROT_WRITE) == 0;
}

bool HostWindow::detached(PPN ppn) const noexcept {
  const std::uint64_t n = ppn.value();
  return (std::to_integer<unsigned>(detached_.base()[n / 8]) >> n % 8 & 1U) != 0;
}

void HostWindow::set_detached(PpnRange range, bool on) noexcept {
  for (std::uint64_t n = range.first.value(); n < range.first.value() + range.count; ++n) {
    const auto bit = std::byte{1} << (n % 8);
    std::byte& bits = detached_.base()[n / 8];
    bits = on ? bits | bit : bits & ~bit;
  }
}

// ---- the pager --------------------------------------------------------------------------------

void HostWindow::page() {
  std::array<pollfd, 2> wait{pollfd{faults_.get(), POLLIN, 0}, pollfd{stop_.get(), POLLIN, 0}};
  for (;;) {
    if (::poll(wait.data(), wait.size(), -1) < 0 && errno != EINTR) std::abort();
    if ((wait[1].revents & POLLIN) != 0) return;
    uffd_msg message{};
    if (::read(faults_.get(), &message, sizeof message) != sizeof message) continue;
    if (message.event != UFFD_EVENT_PAGEFAULT) continue;
    const auto* at = reinterpret_cast<const std::byte*>(message.arg.pagefault.address);
    const PA pa{static_cast<std::uint64_t>(at - mapping_.base())};
    serve(page_of(pa), (message.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WRITE) != 0);
  }
}

void HostWindow::serve(PPN ppn, bool write) {
  served_.fetch_add(1, std::memory_order_relaxed);
  for (;;) {
    const bool untouched = p2m_.lookup(ppn).entry.state() == PageState::zero;
    const auto found = p2m_.resolve(ppn, write || untouched ? AccessKind::write : AccessKind::read);
    if (!found && found.error().kind == FaultKind::retry) {
      // Somebody moves the page, or a device holds what it must leave: neither takes long.
      std::this_thread::sleep_for(std::chrono::microseconds{20});
      continue;
    }
    {
      const std::lock_guard guard{lock_};
      if (!found && found.error().kind != FaultKind::rom_write) {
        close(ppn, found.error());
      } else {
        // A change marks the entry before it calls p2m_changed(), which waits for the lock: an
        // entry that is the same now is either still true, or vacated again right after.
        const P2mEntry entry = p2m_.lookup(ppn).entry;
        if (entry.busy() || (found && entry != found->entry)) continue;
        if (entry.state() == PageState::zero) continue;
        if (!attach(ppn, entry)) {
          vacate(slot_of(ppn));  // too many mappings; see there
          continue;
        }
      }
    }
    wake(ppn);
    return;
  }
}

/// Maps the page where the P2M has it. False: the host has no mapping left for it.
bool HostWindow::attach(PPN ppn, P2mEntry entry) {
  const P2mTarget target = target_of(entry, p2m_.zero_frame());
  const bool at_home = target.mpn == p2m_.home_of(ppn);
  if (at_home && (target.writable || entry.state() == PageState::rom)) {
    if (detached(ppn) && !attach_home({ppn, 1}, PROT_READ | PROT_WRITE)) return false;
    set_detached({ppn, 1}, false);
    read_only_.erase(ppn);
    return true;
  }
  downgrades_.fetch_add(1, std::memory_order_relaxed);
  set_detached({ppn, 1}, true);
  read_only_.insert(ppn);
  if (at_home) return attach_home({ppn, 1}, PROT_READ);
  // The same machine page once more: mremap() of nothing copies a shared mapping (mremap(2)).
  std::byte* at = host(address_of(ppn));
  std::byte* frame = machine_.host(address_of(target.mpn));
  return ::mremap(frame, 0, kPageSize, MREMAP_MAYMOVE | MREMAP_FIXED, at) != MAP_FAILED &&
         ::mprotect(at, kPageSize, PROT_READ) == 0;
}

bool HostWindow::attach_home(PpnRange range, int protection) {
  std::byte* at = host(address_of(range.first));
  const std::uint64_t bytes = bytes_of(range);
  const auto offset = static_cast<off_t>(address_of(range.first).value());
  constexpr int kFlags = MAP_SHARED | MAP_FIXED;
  // Watched like its neighbours, so that the host joins the mappings again.
  return ::mmap(at, bytes, protection, kFlags, p2m_.home()->fd(), offset) != MAP_FAILED &&
         watch(faults_.get(), at, bytes);
}

/// Nothing can be there now: the waiting touch fails with EFAULT, and after_fault() says why.
void HostWindow::close(PPN ppn, const Fault& fault) {
  constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
  if (::mmap(host(address_of(ppn)), kPageSize, PROT_NONE, kFlags, -1, 0) == MAP_FAILED) {
    vacate(slot_of(ppn));  // too many mappings; the touch comes again
    return;
  }
  set_detached({ppn, 1}, true);
  read_only_.erase(ppn);
  closed_.push_back(fault);
}

void HostWindow::wake(PPN ppn) {
  uffdio_range range{};
  range.start = reinterpret_cast<std::uintptr_t>(host(address_of(ppn)));
  range.len = kPageSize;
  (void)::ioctl(faults_.get(), UFFDIO_WAKE, &range);
}

std::optional<Fault> HostWindow::after_fault() {
  retries_.fetch_add(1, std::memory_order_relaxed);
  const std::lock_guard guard{lock_};
  if (!closed_.empty()) {
    const std::vector<Fault> closed = std::exchange(closed_, {});
    for (const Fault& f : closed) vacate({page_of(f.pa), 1});
    return closed.front();
  }
  // A store to a page mapped for reading; KVM does not say to which. All of them become holes, and
  // the store's next try comes to the pager as one.
  for (const PPN ppn : std::exchange(read_only_, {})) vacate({ppn, 1});
  return std::nullopt;
}

WindowStats HostWindow::stats() const noexcept {
  return {served_.load(std::memory_order_relaxed), vacated_.load(std::memory_order_relaxed),
          downgrades_.load(std::memory_order_relaxed), retries_.load(std::memory_order_relaxed)};
}

}  // namespace strata::kvm
