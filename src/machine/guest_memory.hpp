// The one way devices and loaders reach guest memory (design rule 10).
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <shared_mutex>
#include <span>
#include <vector>

#include "machine/p2m.hpp"
#include "mmu/expected.hpp"
#include "mmu/fault.hpp"
#include "mmu/frames.hpp"

namespace strata::machine {

/// Whose addresses an access uses. An IOMMU will give devices spaces of their own; until then there
/// is one, in which an address is a PA.
struct AddressSpaceId {
  std::uint32_t value = 0;
  friend bool operator==(AddressSpaceId, AddressSpaceId) = default;
};
inline constexpr AddressSpaceId kIdentitySpace{};

/// Hears of stores that devices and loaders made: backends that shadow guest tables, engines that
/// cache translated code.
class WriteListener {
 public:
  WriteListener() = default;
  WriteListener(const WriteListener&) = delete;
  WriteListener& operator=(const WriteListener&) = delete;
  virtual ~WriteListener() = default;
  /// `length` bytes at `pa` have been stored. Called after the store, on the storing thread, with
  /// no lock of GuestMemory's callers; must not write guest memory itself.
  virtual void memory_written(PA pa, std::uint64_t length) = 0;
};

class GuestMemory;

/// Guest memory held in place: host bytes that stay valid, and the guest's, until the Pin goes.
/// Movable. Pins are for the time of one transfer: a page read-pinned while untouched stays the
/// zero page in this Pin even if the guest writes to it meanwhile. For a write pin, the dirty log
/// and the listeners hear of the store when the Pin is released. Must not outlive its GuestMemory.
class Pin {
 public:
  Pin() noexcept = default;
  Pin(Pin&& other) noexcept;
  Pin& operator=(Pin&& other) noexcept;
  Pin(const Pin&) = delete;
  Pin& operator=(const Pin&) = delete;
  ~Pin() { release(); }

  /// The bytes in order, as few contiguous chunks as there are. Of a read or execute pin they must
  /// not be written.
  [[nodiscard]] std::span<const std::span<std::byte>> chunks() const noexcept { return chunks_; }
  [[nodiscard]] std::uint64_t length() const noexcept { return length_; }
  /// Copies bytes [offset, offset + out.size()) out; false when outside the pin.
  [[nodiscard]] bool copy_out(std::uint64_t offset, std::span<std::byte> out) const noexcept;
  /// Copies bytes into the pin at `offset`; false when outside it or not a write pin.
  bool copy_in(std::uint64_t offset, std::span<const std::byte> in) noexcept;
  void release() noexcept;

 private:
  friend class GuestMemory;
  GuestMemory* memory_ = nullptr;
  AccessKind kind_ = AccessKind::read;
  PA pa_{};
  std::uint64_t length_ = 0;
  std::vector<std::span<std::byte>> chunks_;
  std::vector<PPN> counted_;  ///< pages whose P2M entry counts this pin
};

/// Reads, writes and pins guest memory. Thread-safe.
///
/// Faults of every operation: stage p2m as P2m::resolve, with `pa` the first byte that could not be
/// reached; retry also when a page has too many pins. A range that wraps around or leaves the
/// 52-bit physical address space gives mmio at its first byte outside, an unknown space stage
/// engine. Operations stop at the fault; bytes before it have been transferred.
class GuestMemory {
 public:
  /// Longest range one Pin holds; a longer one faults with stage engine, kind out_of_memory.
  static constexpr std::uint64_t kMaxPinBytes = 64ULL << 20;

  GuestMemory(P2mTable& p2m, MachineWindow window) noexcept : p2m_{&p2m}, window_{window} {}
  GuestMemory(const GuestMemory&) = delete;
  GuestMemory& operator=(const GuestMemory&) = delete;

  /// Holds `length` bytes at `pa` in place for `kind`. A read never gives an untouched page memory.
  Expected<Pin, Fault> pin(AddressSpaceId space, PA pa, std::uint64_t length, AccessKind kind);
  Expected<void, Fault> read(AddressSpaceId space, PA pa, std::span<std::byte> out);
  Expected<void, Fault> write(AddressSpaceId space, PA pa, std::span<const std::byte> in);
  /// Stores `value` into `length` bytes. Zeroes onto untouched pages are not written: they read so.
  Expected<void, Fault> fill(AddressSpaceId space, PA pa, std::uint64_t length, std::byte value);

  /// An aligned 16-bit word, in one access that what follows stays behind: what a vCPU stored
  /// before it stored this word is seen. For indices of rings that vCPUs change meanwhile.
  Expected<std::uint16_t, Fault> load_acquire(AddressSpaceId space, PA pa);
  /// ... and the other way around: who sees `value` sees what was stored before.
  Expected<void, Fault> store_release(AddressSpaceId space, PA pa, std::uint16_t value);

  void add_listener(WriteListener& listener);
  void remove_listener(WriteListener& listener);
  [[nodiscard]] P2mTable& p2m() const noexcept { return *p2m_; }
  [[nodiscard]] MachineWindow window() const noexcept { return window_; }

 private:
  friend class Pin;
  void announce(PA pa, std::uint64_t length);
  template <class Step>
  Expected<void, Fault> each_page(AddressSpaceId space, PA pa, std::uint64_t length, Step&& step);
  template <class Store>
  Expected<void, Fault> store_piece(PA at, std::uint64_t bytes, Store&& store);

  P2mTable* p2m_;
  MachineWindow window_;
  /// Guards listeners_. Held shared while they are called; a leaf but for the listeners' own locks.
  std::shared_mutex listeners_lock_;
  std::vector<WriteListener*> listeners_;
};

}  // namespace strata::machine
