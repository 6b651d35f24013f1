#include "devices/serial8250.hpp"

#include <algorithm>
#include <utility>

namespace strata::devices {

namespace {

// Register offsets with DLAB clear (PC16550D table II).
constexpr unsigned kData = 0, kIer = 1, kIirFcr = 2, kLcr = 3, kMcr = 4, kLsr = 5, kMsr = 6,
                   kScr = 7;

constexpr std::uint8_t kIerReceive = 1, kIerTransmit = 2, kIerLine = 4, kIerModem = 8;
constexpr std::uint8_t kIirNone = 1, kIirModem = 0, kIirTransmit = 2, kIirReceive = 4, kIirLine = 6,
                       kIirTimeout = 0xC, kIirFifo = 0xC0;
constexpr std::uint8_t kFcrEnable = 1, kFcrClearReceive = 2, kFcrClearTransmit = 4;
constexpr std::uint8_t kLcrDlab = 0x80;
constexpr std::uint8_t kMcrDtr = 1, kMcrRts = 2, kMcrOut1 = 4, kMcrOut2 = 8, kMcrLoop = 0x10;
constexpr std::uint8_t kLsrReady = 1, kLsrOverrun = 2, kLsrThrEmpty = 0x20, kLsrIdle = 0x40;
constexpr std::uint8_t kMsrCts = 0x10, kMsrDsr = 0x20, kMsrRi = 0x40, kMsrDcd = 0x80;
constexpr std::size_t kFifoSize = 16;

}  // namespace

Serial8250::Serial8250(CharSink& sink, IrqLine& irq, std::string name)
    : name_{std::move(name)}, sink_{sink}, irq_{irq}, msr_{kMsrCts | kMsrDsr | kMsrDcd} {}

Expected<void, BusError> Serial8250::attach(Bus& ports, std::uint16_t base) {
  return ports.add(base, kPorts, *this);
}

std::size_t Serial8250::receive(std::span<const std::uint8_t> bytes) {
  const std::lock_guard lock{mutex_};
  const std::size_t taken = std::min(bytes.size(), kInputQueue - input_.size());
  const auto end = bytes.begin() + static_cast<std::ptrdiff_t>(taken);
  input_.insert(input_.end(), bytes.begin(), end);
  refused_ = taken < bytes.size();
  fill_fifo();
  update_irq();
  return taken;
}

void Serial8250::on_room(std::function<void()> room) {
  const std::lock_guard lock{mutex_};
  room_ = std::move(room);
}

std::uint64_t Serial8250::read(std::uint64_t offset, unsigned size) {
  std::uint64_t value = 0;
  bool notice = false;
  {
    const std::lock_guard lock{mutex_};
    for (unsigned i = 0; i < size && i < 8; ++i) {
      value |= std::uint64_t{read_register(static_cast<unsigned>(offset + i))} << (8 * i);
    }
    notice = take_room_notice();
  }
  if (notice && room_) room_();
  return value;
}

void Serial8250::write(std::uint64_t offset, unsigned size, std::uint64_t value) {
  bool notice = false;
  {
    const std::lock_guard lock{mutex_};
    for (unsigned i = 0; i < size && i < 8; ++i) {
      write_register(static_cast<unsigned>(offset + i),
                     static_cast<std::uint8_t>(value >> (8 * i)));
    }
    notice = take_room_notice();
  }
  if (notice && room_) room_();
}

/// Room is worth a call once half the queue is free: not one call per byte.
bool Serial8250::take_room_notice() {
  if (!refused_ || input_.size() > kInputQueue / 2) return false;
  refused_ = false;
  return true;
}

std::uint8_t Serial8250::read_register(unsigned offset) {
  const bool dlab = (lcr_ & kLcrDlab) != 0;
  switch (offset) {
    case kData:
      return dlab ? static_cast<std::uint8_t>(divisor_) : read_rbr();
    case kIer:
      return dlab ? static_cast<std::uint8_t>(divisor_ >> 8) : ier_;
    case kIirFcr:
      return read_iir();
    case kLcr:
      return lcr_;
    case kMcr:
      return mcr_;
    case kLsr:
      return read_lsr();
    case kMsr:
      return read_msr();
    case kScr:
      return scr_;
    default:
      return 0xFF;
  }
}

void Serial8250::write_register(unsigned offset, std::uint8_t value) {
  const bool dlab = (lcr_ & kLcrDlab) != 0;
  switch (offset) {
    case kData:
      if (dlab) {
        divisor_ = static_cast<std::uint16_t>((divisor_ & 0xFF00) | value);
      } else {
        write_thr(value);
      }
      break;
    case kIer:
      if (dlab) {
        divisor_ = static_cast<std::uint16_t>((divisor_ & 0x00FF) | value << 8);
      } else {
        write_ier(value);
      }
      break;
    case kIirFcr:
      write_fcr(value);
      break;
    case kLcr:
      lcr_ = value;
      break;
    case kMcr:
      write_mcr(value);
      break;
    case kScr:
      scr_ = value;
      break;
    default:
      break;  // LSR and MSR: writes are for factory tests
  }
}

std::size_t Serial8250::fifo_capacity() const noexcept { return fifo_on_ ? kFifoSize : 1; }

/// Host input moves up while the guest's FIFO has room, so it can never overrun. In loopback the
/// receiver is cut off from the pin.
void Serial8250::fill_fifo() {
  if ((mcr_ & kMcrLoop) != 0) return;
  while (!input_.empty() && fifo_.size() < fifo_capacity()) {
    fifo_.push_back(input_.front());
    input_.pop_front();
  }
}

/// A byte that loopback sends: this one can overrun (PC16550D 8.6.3: the FIFO keeps the old
/// bytes; without FIFO the holding register is overwritten).
void Serial8250::push_fifo(std::uint8_t byte) {
  if (fifo_.size() < fifo_capacity()) {
    fifo_.push_back(byte);
    return;
  }
  line_errors_ |= kLsrOverrun;
  if (!fifo_on_) fifo_.back() = byte;
}

std::uint8_t Serial8250::read_rbr() {
  if (fifo_.empty()) return 0;
  const std::uint8_t byte = fifo_.front();
  fifo_.pop_front();
  fill_fifo();
  update_irq();
  return byte;
}

void Serial8250::write_thr(std::uint8_t value) {
  if ((mcr_ & kMcrLoop) != 0) {
    push_fifo(value);
  } else {
    sink_.put({&value, 1});
  }
  // Writing clears the interrupt, and the register is empty again at once.
  thre_pending_ = true;
  update_irq();
}

/// Enabling the THRE interrupt while the register is empty raises it, but only at the change: a
/// driver that writes IER again with the bit still set must not be interrupted for nothing.
void Serial8250::write_ier(std::uint8_t value) {
  const std::uint8_t enabled = static_cast<std::uint8_t>(value & ~ier_);
  ier_ = value & 0x0F;
  if ((enabled & kIerTransmit) != 0) thre_pending_ = true;
  update_irq();
}

void Serial8250::write_fcr(std::uint8_t value) {
  static constexpr std::array<std::uint8_t, 4> kTriggers{1, 4, 8, 14};
  const bool on = (value & kFcrEnable) != 0;
  // Changing bit 0 clears both FIFOs; the other bits only count while it is written as 1.
  if (on != fifo_on_ || (on && (value & kFcrClearReceive) != 0)) fifo_.clear();
  if (on != fifo_on_ || (on && (value & kFcrClearTransmit) != 0)) thre_pending_ = true;
  fifo_on_ = on;
  trigger_ = on ? kTriggers[value >> 6] : 1;
  fill_fifo();
  update_irq();
}

void Serial8250::write_mcr(std::uint8_t value) {
  mcr_ = value & 0x1F;
  update_modem();
  fill_fifo();
  update_irq();
}

/// Loopback wires DTR to DSR, RTS to CTS, OUT1 to RI and OUT2 to DCD (PC16550D 8.7).
std::uint8_t Serial8250::modem_lines() const noexcept {
  if ((mcr_ & kMcrLoop) == 0) return kMsrCts | kMsrDsr | kMsrDcd;
  std::uint8_t lines = 0;
  if ((mcr_ & kMcrDtr) != 0) lines |= kMsrDsr;
  if ((mcr_ & kMcrRts) != 0) lines |= kMsrCts;
  if ((mcr_ & kMcrOut1) != 0) lines |= kMsrRi;
  if ((mcr_ & kMcrOut2) != 0) lines |= kMsrDcd;
  return lines;
}

/// Delta bits sit four below their lines; RI's is set at its trailing edge only.
void Serial8250::update_modem() {
  const std::uint8_t lines = modem_lines();
  const std::uint8_t before = msr_ & 0xF0;
  std::uint8_t changed = static_cast<std::uint8_t>(lines ^ before);
  if ((lines & kMsrRi) != 0) changed &= static_cast<std::uint8_t>(~kMsrRi);
  msr_ = static_cast<std::uint8_t>(lines | (msr_ & 0x0F) | changed >> 4);
}

std::uint8_t Serial8250::read_lsr() {
  std::uint8_t value = kLsrThrEmpty | kLsrIdle | line_errors_;
  if (!fifo_.empty()) value |= kLsrReady;
  line_errors_ = 0;
  update_irq();
  return value;
}

std::uint8_t Serial8250::read_msr() {
  const std::uint8_t value = msr_;
  msr_ &= 0xF0;
  update_irq();
  return value;
}

/// The pending interrupt of highest priority (PC16550D table IV). Bytes below the FIFO's trigger
/// level count as timed out: there is no line whose silence could be waited for.
std::uint8_t Serial8250::interrupt_id() const {
  if ((ier_ & kIerLine) != 0 && line_errors_ != 0) return kIirLine;
  if ((ier_ & kIerReceive) != 0 && !fifo_.empty()) {
    return fifo_.size() >= trigger_ ? kIirReceive : kIirTimeout;
  }
  if ((ier_ & kIerTransmit) != 0 && thre_pending_) return kIirTransmit;
  if ((ier_ & kIerModem) != 0 && (msr_ & 0x0F) != 0) return kIirModem;
  return kIirNone;
}

/// Reading IIR clears the THRE interrupt if that is the one it reports.
std::uint8_t Serial8250::read_iir() {
  const std::uint8_t id = interrupt_id();
  if (id == kIirTransmit) {
    thre_pending_ = false;
    update_irq();
  }
  return static_cast<std::uint8_t>(id | (fifo_on_ ? kIirFifo : 0));
}

/// A PC gates the interrupt pin with OUT2, which loopback forces inactive.
void Serial8250::update_irq() {
  const bool let_out = (mcr_ & (kMcrOut2 | kMcrLoop)) == kMcrOut2;
  const bool level = let_out && interrupt_id() != kIirNone;
  if (level == irq_level_) return;
  irq_level_ = level;
  irq_.set(level);
}

}  // namespace strata::devices
