// What a recording holds: everything that reached a vCPU from outside, in order, each at the
// position of the vCPU it reached.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engines/engine.hpp"
#include "mmu/mmu.hpp"
#include "vmm/replay/chunk_file.hpp"

namespace strata::replay {

/// The first group answers a request of the guest's code and needs no stop: replay comes by.
/// The second happens between two instructions, where only its position says.
enum class EventKind : std::uint8_t {
  tsc,         ///< value
  random,      ///< size, flag: seed, failed: none was ready, value
  cr8,         ///< value read
  apic,        ///< value: CPUID shows a local APIC
  port_read,   ///< address, size, value
  port_write,  ///< address, size, value
  mmio_read,   ///< address, size, value
  mmio_write,  ///< address, size, value
  msr_read,    ///< address, failed, value
  msr_write,   ///< address, failed, value
  hypercall,   ///< value
  memory,      ///< address, bytes: a device wrote guest memory while it answered
  interrupt,   ///< value: vector
  nmi,
  dma,      ///< address, bytes: a device wrote guest memory by itself
  init,     ///< INIT reached the vCPU
  startup,  ///< value: SIPI's vector
  turn,     ///< value: the vCPU that runs from here on
  end       ///< the recording's last event
};
inline constexpr std::uint8_t kEventKinds = 19;
[[nodiscard]] std::string_view name_of(EventKind kind) noexcept;
/// It happens at a position and not at a request.
[[nodiscard]] constexpr bool between_instructions(EventKind kind) noexcept {
  return kind >= EventKind::interrupt;
}

struct Event {
  EventKind kind = EventKind::end;
  VcpuId vcpu = 0;  ///< whose turn it is
  engine::VcpuPosition position{};
  std::uint8_t size = 0;
  bool flag = false;
  bool failed = false;
  std::uint64_t address = 0;
  std::uint64_t value = 0;
  std::vector<std::byte> bytes{};
  friend bool operator==(const Event&, const Event&) = default;
};

/// One line: position, kind, request and answer.
[[nodiscard]] std::string describe(const Event& event);

/// Where a recorder's events go: a file, or a queue (event_queue.hpp). One thread.
class EventSink {
 public:
  EventSink() = default;
  EventSink(const EventSink&) = delete;
  EventSink& operator=(const EventSink&) = delete;
  virtual ~EventSink() = default;
  virtual void write(const Event& event) = 0;
  /// Passes on what is buffered.
  virtual void flush() {}
};

/// Where a player's events come from. One thread.
class EventSource {
 public:
  EventSource() = default;
  EventSource(const EventSource&) = delete;
  EventSource& operator=(const EventSource&) = delete;
  virtual ~EventSource() = default;
  /// The next event, still to come after pop(); null: none yet. Errors: the file is cut off or
  /// damaged.
  [[nodiscard]] virtual Result<const Event*> front() = 0;
  /// Where the next event lies that is between instructions; it may be front().
  [[nodiscard]] virtual Result<engine::VcpuPosition> next_stop() = 0;
  virtual void pop() = 0;
  /// Popped so far.
  [[nodiscard]] virtual std::uint64_t events() const noexcept = 0;
};

/// Encodes events into chunks. Positions and TSC values are differences to the ones before. One
/// thread.
class EventWriter final : public EventSink {
 public:
  EventWriter(ChunkWriter& file, unsigned vcpus);
  void write(const Event& event) override;
  void flush() override;

 private:
  ChunkWriter& file_;
  std::vector<std::byte> buffer_;
  std::vector<std::uint64_t> instructions_;  ///< of each vCPU's last event
  std::uint64_t tsc_ = 0;
};

/// Decodes them. One thread.
class EventReader final : public EventSource {
 public:
  /// Starts in the file after the chunks of the initial state.
  EventReader(ChunkReader& file, unsigned vcpus);
  [[nodiscard]] Result<const Event*> front() override;
  [[nodiscard]] Result<engine::VcpuPosition> next_stop() override;
  void pop() override;
  /// The content of the `end` chunk that follows the last event.
  [[nodiscard]] Result<nlohmann::json> end();
  [[nodiscard]] std::uint64_t events() const noexcept override { return popped_; }

 private:
  [[nodiscard]] Result<void> decode_one();
  [[nodiscard]] Result<void> fill();
  std::optional<std::uint64_t> number();
  std::optional<std::uint64_t> byte();

  ChunkReader& file_;
  std::vector<std::byte> buffer_;
  std::size_t at_ = 0;
  std::deque<Event> queue_;
  std::vector<std::uint64_t> instructions_;
  VcpuId vcpu_ = 0;
  std::uint64_t tsc_ = 0;
  std::uint64_t popped_ = 0;
  std::deque<engine::VcpuPosition> stops_;  ///< of those in queue_ between instructions
  bool ended_ = false;                      ///< the end event was decoded
};

}  // namespace strata::replay
