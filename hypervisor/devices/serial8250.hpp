// A 16550A UART (National Semiconductor PC16550D data sheet) as the first serial port of a PC.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <span>
#include <string>

#include "devices/bus.hpp"
#include "devices/char_stream.hpp"
#include "devices/device.hpp"
#include "devices/state_result.hpp"

namespace strata::devices {

/// Ports base+0 .. base+7. Transmission takes no time: THR is empty again at once. Reception has
/// the 16-byte FIFO the guest sees, fed from a bounded queue of the console thread. All functions:
/// any thread.
class Serial8250 final : public Device, public CharInput {
 public:
  static constexpr std::uint16_t kCom1 = 0x3F8, kCom2 = 0x2F8;  // IRQ 4 and 3
  static constexpr std::uint64_t kPorts = 8;
  static constexpr std::size_t kInputQueue = 4096;

  /// `irq` is set while an enabled interrupt is pending and MCR's OUT2 lets it out.
  Serial8250(CharSink& sink, IrqLine& irq, std::string name = "serial");
  Expected<void, BusError> attach(Bus& ports, std::uint16_t base = kCom1);

  std::size_t receive(std::span<const std::uint8_t> bytes) override;
  void on_room(std::function<void()> room) override;

  [[nodiscard]] std::string_view name() const noexcept override { return name_; }
  std::uint64_t read(std::uint64_t offset, unsigned size) override;
  void write(std::uint64_t offset, unsigned size, std::uint64_t value) override;

  /// The device's state for a saved VM, and back. No vCPU runs meanwhile. load() checks what it is
  /// given; after an error the device must not be used.
  [[nodiscard]] nlohmann::json save();
  [[nodiscard]] StateResult load(const nlohmann::json& state);

 private:
  template <class Archive>
  void fields(Archive& a);
  std::uint8_t read_register(unsigned offset);
  void write_register(unsigned offset, std::uint8_t value);
  std::uint8_t read_rbr();
  std::uint8_t read_iir();
  std::uint8_t read_lsr();
  std::uint8_t read_msr();
  void write_thr(std::uint8_t value);
  void write_ier(std::uint8_t value);
  void write_fcr(std::uint8_t value);
  void write_mcr(std::uint8_t value);
  [[nodiscard]] std::uint8_t interrupt_id() const;
  [[nodiscard]] std::size_t fifo_capacity() const noexcept;
  [[nodiscard]] std::uint8_t modem_lines() const noexcept;
  void fill_fifo();
  void push_fifo(std::uint8_t byte);
  void update_modem();
  void update_irq();
  [[nodiscard]] bool take_room_notice();

  const std::string name_;
  CharSink& sink_;
  IrqLine& irq_;
  std::function<void()> room_;

  std::mutex mutex_;  ///< guards the rest; held while irq_ and sink_ are called
  std::deque<std::uint8_t> input_;
  std::deque<std::uint8_t> fifo_;
  std::uint16_t divisor_ = 1;
  std::uint8_t ier_ = 0, lcr_ = 0, mcr_ = 0, scr_ = 0;
  std::uint8_t line_errors_ = 0;  ///< LSR bits 4:1
  std::uint8_t msr_ = 0;
  bool fifo_on_ = false;
  std::uint8_t trigger_ = 1;
  bool thre_pending_ = false;
  bool refused_ = false;
  bool irq_level_ = false;
};

}  // namespace strata::devices
