#include "devices/ioapic.hpp"

namespace strata::devices {

namespace {

// MMIO offsets: index, window, EOI (82093AA data sheet 3.1; the last of version 20h).
constexpr std::uint64_t kSelect = 0x00, kWindow = 0x10, kEoi = 0x40;
constexpr std::uint8_t kRegId = 0, kRegVersion = 1, kRegArbitration = 2, kRegEntries = 0x10;
constexpr std::uint32_t kVersion = 0x20 | (IoApic::kPins - 1) << 16;
// Redirection entries (82093AA data sheet 3.2.4).
constexpr std::uint64_t kStatus = 1U << 12, kRemoteIrr = 1U << 14, kLevel = 1U << 15,
                        kMasked = 1U << 16;
constexpr std::uint64_t kLowWritable = 0x1AFFF;
constexpr std::uint64_t kHighWritable = 0xFF000000;

}  // namespace

IoApic::IoApic(ApicBus& bus, std::uint8_t id) : bus_{bus}, id_{id} {
  entries_.fill(kMasked);
  bus_.add(static_cast<EoiListener&>(*this));
}

IoApic::~IoApic() { bus_.remove(static_cast<EoiListener&>(*this)); }

Expected<void, BusError> IoApic::attach(Bus& mmio, std::uint64_t base) {
  return mmio.add(base, kLength, *this);
}

/// Edges at a masked pin are lost, as the data sheet says; levels are looked at again when the
/// mask is lifted.
void IoApic::set_pin(unsigned pin, bool level) {
  if (pin >= kPins) return;
  const std::lock_guard lock{mutex_};
  const std::uint32_t bit = 1U << pin;
  const bool rising = level && (levels_ & bit) == 0;
  levels_ = level ? levels_ | bit : levels_ & ~bit;
  if (rising) deliver(pin);
}

/// Sends the pin's interrupt unless it is masked, or a level that waits for its EOI.
void IoApic::deliver(unsigned pin) {
  std::uint64_t& entry = entries_[pin];
  const bool level = (entry & kLevel) != 0;
  if ((entry & kMasked) != 0 || (level && (entry & kRemoteIrr) != 0)) return;
  ApicMessage message;
  message.destination = static_cast<std::uint32_t>(entry >> 56);
  message.logical = (entry & 1U << 11) != 0;
  message.mode = static_cast<DeliveryMode>(entry >> 8 & 7);
  message.vector = static_cast<std::uint8_t>(entry);
  message.level = level;
  const bool ends =
      message.mode == DeliveryMode::fixed || message.mode == DeliveryMode::lowest_priority;
  // Only what a local APIC will end may wait for its end.
  if (bus_.deliver(message) != 0 && level && ends) entry |= kRemoteIrr;
}

void IoApic::end_of_interrupt(std::uint8_t vector) {
  const std::lock_guard lock{mutex_};
  for (unsigned pin = 0; pin < kPins; ++pin) {
    const std::uint64_t entry = entries_[pin];
    if (static_cast<std::uint8_t>(entry) != vector || (entry & kRemoteIrr) == 0) continue;
    entries_[pin] &= ~kRemoteIrr;
    if ((levels_ & 1U << pin) != 0) deliver(pin);
  }
}

/// Status and remote IRR are read-only; remote IRR means nothing for an edge and goes away (old
/// kernels clear it by switching a pin to edge and back).
void IoApic::write_entry(unsigned pin, bool high, std::uint32_t value) {
  std::uint64_t& entry = entries_[pin];
  if (high) {
    entry = (entry & 0xFFFFFFFF) | (value & kHighWritable) << 32;
    return;
  }
  entry = (entry & ~kLowWritable) | (value & kLowWritable);
  if ((entry & kLevel) == 0) {
    entry &= ~(kRemoteIrr | kStatus);
  } else if ((levels_ & 1U << pin) != 0) {
    deliver(pin);
  }
}

std::uint32_t IoApic::read_register(std::uint8_t index) const {
  if (index == kRegId || index == kRegArbitration) return std::uint32_t{id_} << 24;
  if (index == kRegVersion) return kVersion;
  const unsigned half = index - unsigned{kRegEntries};
  if (index < kRegEntries || half / 2 >= kPins) return 0xFFFFFFFF;
  return static_cast<std::uint32_t>(half % 2 == 0 ? entries_[half / 2] : entries_[half / 2] >> 32);
}

void IoApic::write_register(std::uint8_t index, std::uint32_t value) {
  if (index == kRegId) id_ = static_cast<std::uint8_t>(value >> 24 & 0xF);  // 82093AA 3.2.1
  const unsigned half = index - unsigned{kRegEntries};
  if (index >= kRegEntries && half / 2 < kPins) write_entry(half / 2, half % 2 != 0, value);
}

std::uint64_t IoApic::read(std::uint64_t offset, unsigned) {
  const std::lock_guard lock{mutex_};
  const std::uint64_t within = offset & 0xF;
  if (within >= 4) return 0;
  const std::uint64_t at = offset & ~0xFULL;
  const std::uint32_t value = at == kSelect ? index_ : at == kWindow ? read_register(index_) : 0;
  return value >> (8 * within);
}

void IoApic::write(std::uint64_t offset, unsigned size, std::uint64_t value) {
  if (offset == kSelect) {
    const std::lock_guard lock{mutex_};
    index_ = static_cast<std::uint8_t>(value);
  } else if (offset == kWindow && size >= 4) {  // registers are written whole
    const std::lock_guard lock{mutex_};
    write_register(index_, static_cast<std::uint32_t>(value));
  } else if (offset == kEoi) {
    end_of_interrupt(static_cast<std::uint8_t>(value));
  }
}

class IrqRouter::Line final : public IrqLine {
 public:
  Line(Pic8259* pic, unsigned irq, IoApic& ioapic, unsigned pin) noexcept
      : pic_{pic}, ioapic_{ioapic}, irq_{irq}, pin_{pin} {}
  void set(bool level) override {
    if (pic_ != nullptr) pic_->set_irq(irq_, level);
    ioapic_.set_pin(pin_, level);
  }

 private:
  Pic8259* const pic_;
  IoApic& ioapic_;
  const unsigned irq_;
  const unsigned pin_;
};

class IrqRouter::Unconnected final : public IrqLine {
 public:
  void set(bool) override {}
};

IrqRouter::IrqRouter(Pic8259& pic, IoApic& ioapic) {
  for (unsigned irq = 0; irq < 16; ++irq) {
    if (irq == 2) {
      isa_.push_back(std::make_unique<Unconnected>());
    } else {
      isa_.push_back(std::make_unique<Line>(&pic, irq, ioapic, irq == 0 ? 2 : irq));
    }
  }
  for (unsigned pin = 0; pin < IoApic::kPins; ++pin) {
    gsi_.push_back(std::make_unique<Line>(nullptr, 0, ioapic, pin));
  }
  nowhere_ = std::make_unique<Unconnected>();
}

IrqLine& IrqRouter::isa(unsigned irq) noexcept {
  return irq < isa_.size() ? *isa_[irq] : *nowhere_;
}

IrqLine& IrqRouter::gsi(unsigned gsi) noexcept {
  return gsi < gsi_.size() ? *gsi_[gsi] : *nowhere_;
}

}  // namespace strata::devices
