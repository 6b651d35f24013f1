#include "devices/system_ports.hpp"

namespace strata::devices {

namespace {

constexpr std::uint8_t kNoController = 0xFD;  // output buffer full, input buffer empty
constexpr std::uint8_t kPulseReset = 0xFE;    // 8042: pulse output bit 0, the reset line
constexpr std::uint8_t kA20 = 1U << 1, kFastReset = 1U << 0;

}  // namespace

SystemPorts::SystemPorts(const Config& config, MachineControl& control)
    : config_{config},
      control_{control},
      kbd_data_{"kbd", [](std::uint64_t) { return std::uint8_t{0xFF}; },
                [](std::uint64_t, std::uint8_t) {}},
      kbd_command_{"kbd", [](std::uint64_t) { return kNoController; },
                   [this](std::uint64_t, std::uint8_t v) {
                     if (v == kPulseReset) control_.reset();
                   }},
      port_92_{"port92", [](std::uint64_t) { return kA20; },
               [this](std::uint64_t, std::uint8_t v) {
                 if ((v & kFastReset) != 0) control_.reset();
               }},
      post_port_{"post", [this](std::uint64_t) { return post_.load(); },
                 [this](std::uint64_t, std::uint8_t v) { post_ = v; }},
      debug_exit_{control} {}

Expected<void, BusError> SystemPorts::attach(Bus& ports) {
  if (config_.keyboard_controller) {
    if (auto r = ports.add(0x60, 1, kbd_data_); !r) return r;
    if (auto r = ports.add(0x64, 1, kbd_command_); !r) return r;
  }
  if (auto r = ports.add(0x92, 1, port_92_); !r) return r;
  if (auto r = ports.add(0x80, 1, post_port_); !r) return r;
  if (!config_.debug_exit_port) return {};
  return ports.add(*config_.debug_exit_port, 4, debug_exit_);
}

std::uint64_t SystemPorts::DebugExit::read(std::uint64_t, unsigned) { return 0; }

void SystemPorts::DebugExit::write(std::uint64_t offset, unsigned, std::uint64_t value) {
  if (offset == 0) control_.debug_exit(static_cast<std::uint32_t>(value));
}

}  // namespace strata::devices
