#include "devices/virtio/entropy.hpp"

#include <algorithm>

namespace strata::devices::virtio {

void Entropy::read_config(unsigned /*offset*/, std::span<std::byte> out) {
  std::fill(out.begin(), out.end(), std::byte{0});
}

void Entropy::activate(Transport& transport, std::uint64_t /*features*/,
                       std::span<Queue* const> queues) {
  const std::lock_guard lock{mutex_};
  transport_ = &transport;
  requests_ = queues[0];
}

void Entropy::reset() {
  const std::lock_guard lock{mutex_};
  transport_ = nullptr;
  requests_ = nullptr;
}

/// Until the queue is empty, since only then the driver is asked to notify again. That another vCPU
/// goes on filling it keeps nobody but the guest from its work.
void Entropy::notify(unsigned /*index*/) {
  const std::lock_guard lock{mutex_};
  if (requests_ == nullptr) return;
  Queue::Popped popped = requests_->pop(chain_);
  for (; popped == Queue::Popped::chain; popped = requests_->pop(chain_)) {
    requests_->push(chain_.head(), answer(chain_, requests_->memory()));
  }
  if (popped == Queue::Popped::broken) {
    requests_ = nullptr;  // left alone until reset()
    transport_->failed();
  } else if (requests_->wants_interrupt()) {
    transport_->used(0);
  }
}

/// How many bytes were given; none where the buffer is no memory.
std::uint32_t Entropy::answer(const Chain& chain, machine::GuestMemory& memory) {
  const auto count = std::min<std::uint64_t>(chain.writable_bytes(), kMostBytes);
  const std::span bytes = std::span{bytes_}.first(count);
  random_.fill(bytes);
  return chain.write(memory, 0, bytes) ? static_cast<std::uint32_t>(count) : 0;
}

nlohmann::json Entropy::save() {
  const std::lock_guard lock{mutex_};
  return {{"random", random_.save()}};
}

StateResult Entropy::load(const nlohmann::json& state) {
  const std::lock_guard lock{mutex_};
  if (!state.is_object() || !state.contains("random")) {
    return Unexpected{StateError{"virtio-rng.random is missing"}};
  }
  return random_.load(state["random"]);
}

}  // namespace strata::devices::virtio
