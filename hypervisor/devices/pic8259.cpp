#include "devices/pic8259.hpp"

#include <bit>

namespace strata::devices {

namespace {

constexpr unsigned kCascade = 2;
constexpr unsigned kNoInput = 8;
/// Inputs that chipsets keep edge-triggered: timer, keyboard, cascade; RTC and FPU on the slave.
constexpr std::uint8_t kMasterElcr = 0xF8, kSlaveElcr = 0xDE;

constexpr std::uint8_t bit(unsigned n) noexcept { return static_cast<std::uint8_t>(1U << n); }
constexpr std::uint8_t without(std::uint8_t set, std::uint8_t gone) noexcept {
  return static_cast<std::uint8_t>(set & ~gone);
}

}  // namespace

/// Edge: a rising edge latches the request, a falling one takes it back (8259A data sheet, "edge
/// and level triggered modes": the input must stay high until the acknowledge).
void Pic8259Chip::set_line(unsigned input, bool level) noexcept {
  const std::uint8_t b = bit(input);
  const bool rising = level && (lines_ & b) == 0;
  lines_ = level ? lines_ | b : without(lines_, b);
  if (!level) {
    irr_ = without(irr_, b);
  } else if (rising || (level_triggered_ & b) != 0) {
    irr_ |= b;
  }
}

void Pic8259Chip::set_level_mask(std::uint8_t mask) noexcept {
  const std::uint8_t became_level = without(mask, level_triggered_);
  level_triggered_ = mask;
  irr_ |= static_cast<std::uint8_t>(became_level & lines_);
}

/// The input of highest priority in `set`, in rotation order; kNoInput: empty.
unsigned Pic8259Chip::highest(std::uint8_t set) const noexcept {
  if (set == 0) return kNoInput;
  const int first = (lowest_ + 1) & 7;
  const auto rotated = static_cast<std::uint8_t>(std::rotr(set, first));
  return (static_cast<unsigned>(std::countr_zero(rotated)) + static_cast<unsigned>(first)) & 7;
}

/// The input that INTR stands for. Fully nested: only above what is in service. Special mask mode
/// leaves masked inputs out of what is in service; special fully nested mode lets the cascade
/// through while its own input is in service.
unsigned Pic8259Chip::request() const noexcept {
  const unsigned wanted = highest(without(irr_, imr_));
  if (wanted == kNoInput) return kNoInput;
  std::uint8_t in_service = special_mask_ ? without(isr_, imr_) : isr_;
  if (special_fully_nested_ && master_) in_service = without(in_service, bit(kCascade));
  const unsigned serving = highest(in_service);
  if (serving == kNoInput) return wanted;
  const unsigned wanted_rank = (wanted - lowest_ - 1) & 7;
  const unsigned serving_rank = (serving - lowest_ - 1) & 7;
  return wanted_rank < serving_rank ? wanted : kNoInput;
}

bool Pic8259Chip::output() const noexcept { return next_icw_ == 0 && request() != kNoInput; }

unsigned Pic8259Chip::acknowledge() noexcept {
  const unsigned input = next_icw_ == 0 ? request() : kNoInput;
  if (input == kNoInput) return kNoInput;
  if ((level_triggered_ & bit(input)) == 0) irr_ = without(irr_, bit(input));
  if (auto_eoi_) {
    if (rotate_on_auto_eoi_) lowest_ = static_cast<std::uint8_t>(input);
  } else {
    isr_ |= bit(input);
  }
  return input;
}

std::uint8_t Pic8259Chip::read(unsigned port) noexcept {
  if (poll_) {
    poll_ = false;
    return poll();
  }
  if (port == 1) return imr_;
  return read_isr_ ? isr_ : irr_;
}

/// A poll is an acknowledge cycle whose answer is the input's number, bit 7 set if there is one.
std::uint8_t Pic8259Chip::poll() noexcept {
  const unsigned input = acknowledge();
  return input == kNoInput ? 0 : static_cast<std::uint8_t>(0x80U | input);
}

void Pic8259Chip::write(unsigned port, std::uint8_t value) noexcept {
  if (port == 1) {
    write_data(value);
  } else if ((value & 0x10) != 0) {
    write_icw1(value);
  } else if ((value & 0x08) != 0) {
    write_ocw3(value);
  } else {
    write_ocw2(value);
  }
}

/// ICW1 clears the edge sense circuit, the mask and the modes; a line that is already high needs
/// a new edge (8259A data sheet, "initialization command words").
void Pic8259Chip::write_icw1(std::uint8_t value) noexcept {
  irr_ = lines_ & level_triggered_;
  imr_ = isr_ = 0;
  lowest_ = 7;
  special_mask_ = read_isr_ = poll_ = false;
  auto_eoi_ = rotate_on_auto_eoi_ = special_fully_nested_ = false;
  expects_icw4_ = (value & 1) != 0;
  single_ = (value & 2) != 0;
  next_icw_ = 2;
}

void Pic8259Chip::write_data(std::uint8_t value) noexcept {
  switch (next_icw_) {
    case 0:
      imr_ = value;
      break;
    case 2:
      vector_base_ = value & 0xF8;
      next_icw_ = single_ ? (expects_icw4_ ? 4 : 0) : 3;
      break;
    case 3:  // the cascade is wired; nothing to learn
      next_icw_ = expects_icw4_ ? 4 : 0;
      break;
    default:
      auto_eoi_ = (value & 0x02) != 0;
      special_fully_nested_ = (value & 0x10) != 0;
      next_icw_ = 0;
      break;
  }
}

/// OCW2: bits 7:5 rotate, specific, EOI.
void Pic8259Chip::write_ocw2(std::uint8_t value) noexcept {
  const bool rotate = (value & 0x80) != 0;
  const bool specific = (value & 0x40) != 0;
  const bool eoi = (value & 0x20) != 0;
  const std::uint8_t level = value & 7;
  if (eoi) {
    const std::uint8_t in_service = special_mask_ ? without(isr_, imr_) : isr_;
    const unsigned input = specific ? level : highest(in_service);
    if (input == kNoInput) return;
    isr_ = without(isr_, bit(input));
    if (rotate) lowest_ = static_cast<std::uint8_t>(input);
  } else if (specific) {
    if (rotate) lowest_ = level;  // 110: set priority; 010: no operation
  } else {
    rotate_on_auto_eoi_ = rotate;
  }
}

void Pic8259Chip::write_ocw3(std::uint8_t value) noexcept {
  if ((value & 0x04) != 0) poll_ = true;
  if ((value & 0x02) != 0) read_isr_ = (value & 0x01) != 0;
  if ((value & 0x40) != 0) special_mask_ = (value & 0x20) != 0;
}

Pic8259::Pic8259(IrqLine& intr)
    : intr_{intr},
      master_ports_{"pic", [this](std::uint64_t o) { return read(0, o & 1); },
                    [this](std::uint64_t o, std::uint8_t v) { write(0, o & 1, v); }},
      slave_ports_{"pic", [this](std::uint64_t o) { return read(1, o & 1); },
                   [this](std::uint64_t o, std::uint8_t v) { write(1, o & 1, v); }},
      elcr_ports_{"pic", [this](std::uint64_t o) { return read_elcr(o & 1); },
                  [this](std::uint64_t o, std::uint8_t v) { write_elcr(o & 1, v); }} {}

Expected<void, BusError> Pic8259::attach(Bus& ports) {
  if (auto r = ports.add(0x20, 2, master_ports_); !r) return r;
  if (auto r = ports.add(0xA0, 2, slave_ports_); !r) return r;
  return ports.add(0x4D0, 2, elcr_ports_);
}

void Pic8259::set_irq(unsigned irq, bool level) {
  if (irq > 15 || irq == kCascade) return;
  const std::lock_guard lock{mutex_};
  (irq < 8 ? master_ : slave_).set_line(irq & 7, level);
  update();
}

/// The slave's output is the master's input 2, level for level.
void Pic8259::update() {
  master_.set_line(kCascade, slave_.output());
  const bool level = master_.output();
  if (level == intr_level_) return;
  intr_level_ = level;
  intr_.set(level);
}

/// A request that has gone away is answered with input 7 of whoever was asked, and without its
/// in-service bit (8259A data sheet, "interrupt sequence"). Both acknowledges are one step here,
/// so a slave's request that goes away takes the cascade with it and the master answers.
std::uint8_t Pic8259::acknowledge_ext_int() {
  const std::lock_guard lock{mutex_};
  const unsigned input = master_.acknowledge();
  std::uint8_t vector = master_.vector(input == kNoInput ? 7 : input);
  if (input == kCascade) {
    const unsigned slave_input = slave_.acknowledge();
    vector = slave_.vector(slave_input == kNoInput ? 7 : slave_input);
    // INTA drops the slave's output: a further request of its is a new edge.
    master_.set_line(kCascade, false);
  }
  update();
  return vector;
}

std::uint8_t Pic8259::read(unsigned chip, unsigned port) {
  const std::lock_guard lock{mutex_};
  const std::uint8_t value = (chip == 0 ? master_ : slave_).read(port);
  update();  // a poll acknowledges
  return value;
}

void Pic8259::write(unsigned chip, unsigned port, std::uint8_t value) {
  const std::lock_guard lock{mutex_};
  (chip == 0 ? master_ : slave_).write(port, value);
  update();
}

std::uint8_t Pic8259::read_elcr(unsigned chip) {
  const std::lock_guard lock{mutex_};
  return (chip == 0 ? master_ : slave_).level_mask();
}

void Pic8259::write_elcr(unsigned chip, std::uint8_t value) {
  const std::lock_guard lock{mutex_};
  const std::uint8_t allowed = chip == 0 ? kMasterElcr : kSlaveElcr;
  (chip == 0 ? master_ : slave_).set_level_mask(value & allowed);
  update();
}

}  // namespace strata::devices
