#include "devices/virtio/net.hpp"

#include <utility>

#include "devices/device_state.hpp"

namespace strata::devices::virtio {

namespace {

// Feature bits (5.1.3).
constexpr std::uint64_t kMac = 1U << 5, kStatus = 1U << 16;

/// struct virtio_net_hdr (5.1.6), as VERSION_1 has it: with num_buffers.
struct Header {
  std::uint8_t flags = 0;
  std::uint8_t gso_type = 0;
  std::uint16_t header_length = 0;
  std::uint16_t gso_size = 0;
  std::uint16_t checksum_start = 0;
  std::uint16_t checksum_offset = 0;
  std::uint16_t buffers = 0;
};
static_assert(sizeof(Header) == 12);

/// struct virtio_net_config (5.1.4), as far as features that are offered give it fields.
struct Config {
  std::array<std::uint8_t, 6> mac{};
  std::uint16_t status = 1;  ///< VIRTIO_NET_S_LINK_UP
};
static_assert(sizeof(Config) == 8);

}  // namespace

Net::Net(std::unique_ptr<network::Link> link, const network::MacAddress& mac, bool keep_mac)
    : mac_{mac}, keep_mac_{keep_mac}, link_{std::move(link)} {}

Net::~Net() = default;

std::uint64_t Net::features() const noexcept { return kMac | kStatus; }

void Net::read_config(unsigned offset, std::span<std::byte> out) {
  const Config config{.mac = mac_.bytes};
  const auto bytes = std::as_bytes(std::span{&config, 1});
  for (std::size_t i = 0; i < out.size(); ++i) {
    out[i] = offset + i < bytes.size() ? bytes[offset + i] : std::byte{0};
  }
}

// ---- the device's life --------------------------------------------------------------------------

void Net::activate(Transport& transport, std::uint64_t /*features*/,
                   std::span<Queue* const> queues) {
  for (auto [direction, index] : {std::pair{&receive_, kReceive}, {&transmit_, kTransmit}}) {
    const std::lock_guard lock{direction->mutex};
    direction->transport = &transport;
    direction->queue = queues[index];
  }
}

void Net::reset() {
  for (Direction* direction : {&receive_, &transmit_}) {
    const std::lock_guard lock{direction->mutex};
    direction->transport = nullptr;
    direction->queue = nullptr;
  }
  link_->resume();  // frames that waited for room have nowhere to go
}

void Net::quiesce() {
  const std::lock_guard lock{receive_.mutex};
  quiet_ = true;
}

void Net::resume() {
  {
    const std::lock_guard lock{receive_.mutex};
    quiet_ = false;
  }
  link_->resume();
}

nlohmann::json Net::save() {
  StateWriter writer;
  writer("mac", mac_.bytes);
  return std::move(writer).take();
}

StateResult Net::load(const nlohmann::json& state) {
  network::MacAddress saved;
  StateReader reader{state, "virtio-net"};
  reader("mac", saved.bytes);
  reader.require("mac", network::MacAddress::parse(saved.text()).has_value());
  if (reader.ok() && !keep_mac_) mac_ = saved;
  return reader.result();
}

// ---- frames -------------------------------------------------------------------------------------

void Net::notify(unsigned index) {
  if (index == kTransmit) {
    transmit();
  } else {
    link_->resume();
  }
}

/// Everything the driver has queued, at most a queue at once: others wait for this vCPU's lock.
void Net::transmit() {
  Direction& d = transmit_;
  const std::lock_guard lock{d.mutex};
  if (d.queue == nullptr) return;
  Queue::Popped popped = d.queue->pop(d.chain);
  for (; popped == Queue::Popped::chain; popped = d.queue->pop(d.chain)) {
    send(d.chain, d.queue->memory());
    d.queue->push(d.chain.head(), 0);
  }
  if (popped == Queue::Popped::broken) {
    d.queue = nullptr;
    d.transport->failed();
  } else if (d.queue->wants_interrupt()) {
    d.transport->used(kTransmit);
  }
}

/// What is no frame, or asks for an offload that was not negotiated, goes nowhere.
void Net::send(const Chain& chain, machine::GuestMemory& memory) {
  Header header;
  const std::uint64_t bytes = chain.readable_bytes();
  if (bytes < sizeof header + network::kMinFrameBytes ||
      bytes > sizeof header + network::kMaxFrameBytes ||
      !chain.read(memory, 0, std::as_writable_bytes(std::span{&header, 1})) || header.flags != 0 ||
      header.gso_type != 0) {
    return;
  }
  // A copy: the link makes one anyway, and frames are shorter than what a pin would pay for.
  std::array<std::byte, network::kMaxFrameBytes> frame;
  const std::size_t length = bytes - sizeof header;
  if (!chain.read(memory, sizeof header, std::span{frame}.first(length))) return;
  const iovec whole{frame.data(), length};
  link_->send({&whole, 1});
}

bool Net::receive(std::span<const std::byte> frame) noexcept {
  Direction& d = receive_;
  const std::lock_guard lock{d.mutex};
  if (quiet_) return false;
  if (d.queue == nullptr) return true;  // a card without a driver
  const Queue::Popped popped = d.queue->pop(d.chain);
  if (popped == Queue::Popped::empty) return false;
  if (popped == Queue::Popped::broken) {
    d.queue = nullptr;
    d.transport->failed();
    return true;
  }
  d.queue->push(d.chain.head(), fill(d.chain, d.queue->memory(), frame));
  if (d.queue->wants_interrupt()) d.transport->used(kReceive);
  return true;
}

/// Bytes written; none where the buffer is too short (5.1.6.3.1 asks for one that never is) or no
/// memory: that frame is lost.
std::uint32_t Net::fill(const Chain& chain, machine::GuestMemory& memory,
                        std::span<const std::byte> frame) {
  const Header header{.buffers = 1};
  const std::size_t length = sizeof header + frame.size();
  if (chain.writable_bytes() < length ||
      !chain.write(memory, 0, std::as_bytes(std::span{&header, 1})) ||
      !chain.write(memory, sizeof header, frame)) {
    return 0;
  }
  return static_cast<std::uint32_t>(length);
}

}  // namespace strata::devices::virtio
