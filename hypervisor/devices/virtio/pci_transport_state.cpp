// What a virtio function keeps in a saved VM.
#include "devices/device_state.hpp"
#include "devices/virtio/pci_transport.hpp"

namespace strata::devices::virtio {

namespace {

StateResult wrong(const char* what) {
  return Unexpected{StateError{std::string{"virtio "} + what}};
}

template <class Archive, class T>
void atomic_field(Archive& a, const char* key, std::atomic<T>& value) {
  T copy = value.load();
  a(key, copy);
  if constexpr (Archive::kReads) value = copy;
}

}  // namespace

template <class Archive>
void PciTransport::QueueRegisters::fields(Archive& a) {
  a("size", size);
  a("enabled", enabled);
  a("descriptors", descriptors);
  a("driver", driver);
  a("device", device);
}

template <class Archive>
void PciTransport::fields(Archive& a) {
  a("status", status_);
  a("device_select", device_select_);
  a("driver_select", driver_select_);
  a("driver_features", driver_features_);
  a("queue_select", queue_select_);
  atomic_field(a, "failed", failed_);
  atomic_field(a, "generation", generation_);
  atomic_field(a, "config_vector", config_vector_);
  a("isr", isr_, 3);
  std::vector<std::uint16_t> vectors;
  for (const auto& vector : vectors_) vectors.push_back(vector);
  a("vectors", vectors);
  for (std::size_t i = 0; i < vectors.size(); ++i) vectors_[i] = vectors[i];
}

void PciTransport::quiesce() {
  const std::unique_lock lock{lock_};
  device_->quiesce();
}

void PciTransport::resume() {
  const std::unique_lock lock{lock_};
  device_->resume();
}

nlohmann::json PciTransport::save() {
  const std::unique_lock lock{lock_};
  StateWriter writer;
  fields(writer);
  nlohmann::json state = std::move(writer).take();
  state["pci"] = save_pci();
  state["type"] = static_cast<unsigned>(device_->type());
  state["queues"] = nlohmann::json::array();
  for (std::size_t i = 0; i < registers_.size(); ++i) {
    StateWriter queue;
    queue.part("registers", registers_[i]);
    const bool active = i < queues_.size() && queues_[i];
    queue.part("position", active ? queues_[i]->position() : QueuePosition{});
    state["queues"].push_back(std::move(queue).take());
  }
  state["device"] = device_->save();
  return state;
}

StateResult PciTransport::load(const nlohmann::json& state) {
  const std::unique_lock lock{lock_};
  StateReader reader{state, "virtio"};
  fields(reader);
  if (!reader.ok()) return reader.result();
  for (const char* part : {"pci", "type", "queues", "device"}) {
    if (!state.contains(part)) return wrong("state is incomplete");
  }
  if (state["type"] != static_cast<unsigned>(device_->type())) {
    return wrong("device is of another type than the one that was saved");
  }
  const nlohmann::json& queues = state["queues"];
  if (!queues.is_array() || queues.size() != registers_.size()) return wrong("has other queues");
  std::vector<QueuePosition> positions(registers_.size());
  for (std::size_t i = 0; i < registers_.size(); ++i) {
    StateReader queue{queues[i], "virtio.queue"};
    queue.part("registers", registers_[i]);
    queue.part("position", positions[i]);
    if (!queue.ok()) return queue.result();
    if (registers_[i].enabled && !queue_config(static_cast<unsigned>(i)).valid()) {
      return wrong("queue has a place where none can be");
    }
    vectors_[i] = checked_vector(vectors_[i]);
  }
  config_vector_ = checked_vector(config_vector_);
  if (auto done = load_pci(state["pci"]); !done) return done;
  if (auto done = device_->load(state["device"]); !done) return done;
  return resume_driver(positions);
}

/// The driver finds the device as it left it: active, if it was.
StateResult PciTransport::resume_driver(std::span<const QueuePosition> positions) {
  if ((status_ & ~kDriverBits) != 0) return wrong("status has bits that it can not have");
  if ((status_ & kFeaturesOk) != 0 && !features_fit()) {
    return wrong("driver uses what the device does not have");
  }
  if ((status_ & kDriverOk) == 0) return {};
  if ((status_ & kFeaturesOk) == 0) return wrong("status is impossible");
  activate(positions);
  return {};
}

}  // namespace strata::devices::virtio
