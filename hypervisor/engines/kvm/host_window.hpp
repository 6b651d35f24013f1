// Guest-physical memory as KVM's memslots see it: one range of host addresses, a byte for a byte,
// behind which a P2M edit changes what lies there. The slots themselves never change.
//
// Normally a slot is one linear mapping of the VM's segment: a private page lies at its home
// offset, so there is nothing to keep up to date. Two things are not so, and go through the pager,
// a thread that serves faults of the window (userfaultfd):
//  - a hole of the segment: untouched memory. The first touch asks P2m::resolve(), so the P2M's
//    states, its limit and its accounting stay true. (A first read through KVM counts as a write:
//    KVM has no way to look at a shared zero frame here and hear of the write later.)
//  - a page the P2M moves or takes permission from. p2m_changed() puts nothing in its place; the
//    next touch finds out from the P2M what is there now.
//
// Why that keeps the Flush protocol: the host kernel's KVM is the holder of these translations. It
// registers MMU notifiers on this address space, so mmap() over a page returns only when the page
// is out of every table and TLB that KVM keeps. p2m_changed() therefore ends the old translation
// before it returns, earlier than the protocol asks for, and no vCPU has anything left to pass:
// frames can be freed as soon as the Flush is committed.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <thread>
#include <vector>

#include "engines/kvm/host_kvm.hpp"
#include "machine/p2m.hpp"
#include "mmu/fault.hpp"
#include "mmu/frames.hpp"
#include "mmu/p2m.hpp"

namespace strata::kvm {

/// Memory that gets a memslot. `read_only`: ROM; the guest's stores exit.
struct Slot {
  PpnRange range;
  bool read_only = false;
};

struct WindowStats {
  std::uint64_t served = 0;      ///< touches the pager answered
  std::uint64_t vacated = 0;     ///< pages taken out by P2M edits
  std::uint64_t downgrades = 0;  ///< pages mapped for reading only
  std::uint64_t retries = 0;     ///< failed entries of KVM_RUN that were tried again
};

/// One per VM. Thread-safe. Must go before the P2M and the machine memory.
class HostWindow final : public P2mObserver {
 public:
  /// Slots lie within the VM's segment and do not overlap. No vCPU runs yet. Errors: no address
  /// space, no userfaultfd for this user.
  [[nodiscard]] static Expected<std::unique_ptr<HostWindow>, KvmError> create(
      machine::P2mTable& p2m, MachineWindow machine, std::vector<Slot> slots);
  ~HostWindow() override;
  /// Starts the pager's thread; until then whoever touches a page that is not there waits. Once.
  /// Throws std::system_error if the host has no thread left.
  void start();

  /// Requests of ioctl() that are made once created.
  [[nodiscard]] static std::span<const unsigned long> ioctls() noexcept;

  [[nodiscard]] const std::vector<Slot>& slots() const noexcept { return slots_; }
  /// Where guest-physical `pa` of a slot lies.
  [[nodiscard]] std::byte* host(PA pa) const noexcept { return mapping_.base() + pa.value(); }

  void p2m_changed(PpnRange range, Flush& flush) override;

  /// KVM_RUN failed with EFAULT: the guest touched a page in a way its mapping does not allow.
  /// Nothing: run again, the cause is gone. A fault: the guest waits for a page that the P2M cannot
  /// give; the next touch asks it again.
  [[nodiscard]] std::optional<Fault> after_fault();

  [[nodiscard]] WindowStats stats() const noexcept;

 private:
  HostWindow(machine::P2mTable& p2m, MachineWindow machine, std::vector<Slot> slots) noexcept
      : p2m_{p2m}, machine_{machine}, slots_{std::move(slots)} {}
  Expected<void, KvmError> reserve();
  Expected<void, KvmError> watch_slots();

  void page();
  void serve(PPN ppn, bool write);
  bool attach(PPN ppn, P2mEntry entry);
  bool attach_home(PpnRange range, int protection);
  [[nodiscard]] PpnRange slot_of(PPN ppn) const noexcept;
  void vacate(PpnRange range);
  bool place_hole(PpnRange range);
  void close(PPN ppn, const Fault& fault);
  void wake(PPN ppn);
  [[nodiscard]] bool detached(PPN ppn) const noexcept;
  void set_detached(PpnRange range, bool on) noexcept;

  machine::P2mTable& p2m_;
  const MachineWindow machine_;
  const std::vector<Slot> slots_;
  machine::HostMapping mapping_;
  machine::FileDescriptor faults_;  ///< userfaultfd
  machine::FileDescriptor stop_;    ///< eventfd: ends the pager

  /// Guards what is mapped where, and everything below. P2m::lookup() is called under it, nothing
  /// else that locks.
  std::mutex lock_;
  machine::HostMapping detached_;  ///< a bit a page: not its home, mapped for everything
  std::set<PPN> read_only_;        ///< mapped, but stores fail with EFAULT
  std::vector<Fault> closed_;      ///< what the P2M could not give
  bool observing_ = false;         ///< constant once built

  std::atomic<std::uint64_t> served_{0}, vacated_{0}, downgrades_{0}, retries_{0};
  std::thread pager_;
};

}  // namespace strata::kvm
