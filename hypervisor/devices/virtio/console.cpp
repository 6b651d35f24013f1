#include "devices/virtio/console.hpp"

#include <algorithm>
#include <utility>
#include <vector>

#include "devices/device_state.hpp"

namespace strata::devices::virtio {

namespace {

constexpr std::uint64_t kFeatureSize = 1 << 0;  // VIRTIO_CONSOLE_F_SIZE (5.3.3)

/// The part of the configuration space that exists without further ports (5.3.4).
struct Configuration {
  std::uint16_t columns = 0;
  std::uint16_t rows = 0;
};

}  // namespace

std::uint64_t Console::features() const noexcept { return kFeatureSize; }

void Console::read_config(unsigned offset, std::span<std::byte> out) {
  const Configuration configuration{size_.columns, size_.rows};
  const auto bytes = std::as_bytes(std::span{&configuration, 1});
  for (std::size_t i = 0; i < out.size(); ++i) {
    out[i] = offset + i < bytes.size() ? bytes[offset + i] : std::byte{0};
  }
}

void Console::activate(Transport& transport, std::uint64_t /*features*/,
                       std::span<Queue* const> queues) {
  const std::lock_guard lock{mutex_};
  transport_ = &transport;
  queues_ = {queues[kReceive], queues[kTransmit]};
}

void Console::reset() {
  const std::lock_guard lock{mutex_};
  transport_ = nullptr;
  queues_ = {};
}

void Console::notify(unsigned index) {
  bool notice = false;
  {
    const std::lock_guard lock{mutex_};
    if (index == kTransmit) {
      transmit();
    } else {
      deliver();
    }
    notice = take_room_notice();
  }
  if (notice && room_) room_();
}

void Console::quiesce() {
  const std::lock_guard lock{mutex_};
  quiet_ = true;
}

void Console::resume() {
  bool notice = false;
  {
    const std::lock_guard lock{mutex_};
    quiet_ = false;
    deliver();
    notice = take_room_notice();
  }
  if (notice && room_) room_();
}

std::size_t Console::receive(std::span<const std::uint8_t> bytes) {
  const std::lock_guard lock{mutex_};
  std::size_t taken = 0;
  // Buffers that wait make room at once; nobody would say so later.
  while (taken < bytes.size() && input_.size() < kInputQueue) {
    const auto part =
        bytes.subspan(taken, std::min(bytes.size() - taken, kInputQueue - input_.size()));
    input_.insert(input_.end(), part.begin(), part.end());
    taken += part.size();
    deliver();
  }
  refused_ = taken < bytes.size();
  return taken;
}

void Console::on_room(std::function<void()> room) {
  const std::lock_guard lock{mutex_};
  room_ = std::move(room);
}

/// As of a UART: worth a call once half the queue is free.
bool Console::take_room_notice() {
  if (!refused_ || input_.size() > kInputQueue / 2) return false;
  refused_ = false;
  return true;
}

/// What the driver has sent goes out in the order of the queue.
void Console::transmit() {
  Queue* const queue = queues_[kTransmit];
  if (queue == nullptr) return;
  Queue::Popped popped = queue->pop(chain_);
  for (; popped == Queue::Popped::chain; popped = queue->pop(chain_)) {
    put_out(chain_, queue->memory());
    queue->push(chain_.head(), 0);
  }
  settle(*queue, kTransmit, popped);
}

/// Up to where there is no memory.
void Console::put_out(const Chain& chain, machine::GuestMemory& memory) {
  std::array<std::uint8_t, 4096> bytes;
  const std::uint64_t end = std::min(chain.readable_bytes(), kMostOutput);
  for (std::uint64_t at = 0; at < end;) {
    const std::span part = std::span{bytes}.first(std::min<std::uint64_t>(bytes.size(), end - at));
    if (!chain.read(memory, at, std::as_writable_bytes(part))) return;
    sink_.put(part);
    at += part.size();
  }
}

/// Input into the buffers that the driver has made available for it.
void Console::deliver() {
  Queue* const queue = queues_[kReceive];
  if (queue == nullptr || quiet_ || input_.empty()) return;
  Queue::Popped popped = Queue::Popped::empty;
  while (!input_.empty()) {
    popped = queue->pop(chain_);
    if (popped != Queue::Popped::chain) break;
    queue->push(chain_.head(), fill(chain_, queue->memory()));
  }
  settle(*queue, kReceive, popped);
}

/// How many bytes the chain took. Input for a buffer that is no memory is lost.
std::uint32_t Console::fill(const Chain& chain, machine::GuestMemory& memory) {
  const auto count = std::min<std::uint64_t>(chain.writable_bytes(), input_.size());
  const auto end = input_.begin() + static_cast<std::ptrdiff_t>(count);
  const std::vector<std::uint8_t> bytes{input_.begin(), end};
  input_.erase(input_.begin(), end);
  const bool written = chain.write(memory, 0, std::as_bytes(std::span{bytes}));
  return written ? static_cast<std::uint32_t>(count) : 0;
}

/// After the last pop() of a visit to `queue`. Broken ones are left alone until reset().
void Console::settle(Queue& queue, unsigned index, Queue::Popped last) {
  if (last == Queue::Popped::broken) {
    queues_ = {};
    transport_->failed();
  } else if (queue.wants_interrupt()) {
    transport_->used(index);
  }
}

template <class Archive>
void Console::fields(Archive& a) {
  a("input", input_, kInputQueue);
}

nlohmann::json Console::save() {
  const std::lock_guard lock{mutex_};
  StateWriter writer;
  fields(writer);
  return std::move(writer).take();
}

StateResult Console::load(const nlohmann::json& state) {
  const std::lock_guard lock{mutex_};
  StateReader reader{state, "virtio-console"};
  fields(reader);
  return reader.result();
}

}  // namespace strata::devices::virtio
