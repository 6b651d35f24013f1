#include "devices/test_device.hpp"

namespace strata::devices {

TestDevice::TestDevice(IrqRouter& irqs, FlushPage flush_page)
    : irqs_{irqs},
      storage_port_{"test-port", [this](std::uint64_t at) { return storage_[at & 3].load(); },
                    [this](std::uint64_t at, std::uint8_t v) { storage_[at & 3] = v; }},
      byte_port_{"test-port", [this](std::uint64_t at) { return storage_[at & 3].load(); },
                 [this](std::uint64_t at, std::uint8_t v) { storage_[at & 3] = v; }},
      lines_port_{"test-lines", [](std::uint64_t) { return std::uint8_t{0}; },
                  [this](std::uint64_t line, std::uint8_t v) { set_line(line, v != 0); }},
      memory_window_{"test-memory",
                     [this](std::uint64_t at) { return memory_[at % kMemoryBytes].load(); },
                     [this](std::uint64_t at, std::uint8_t v) { memory_[at % kMemoryBytes] = v; }},
      flush_port_{std::move(flush_page)} {}

Expected<void, BusError> TestDevice::attach(Bus& ports, Bus& mmio) {
  if (auto r = ports.add(kStoragePort, 4, storage_port_); !r) return r;
  if (auto r = ports.add(kFlushPort, 4, flush_port_); !r) return r;
  if (auto r = ports.add(kBytePort, 4, byte_port_); !r) return r;
  if (auto r = ports.add(kLinesPort, kLines, lines_port_); !r) return r;
  return mmio.add(kMemoryBase, kMemoryBytes, memory_window_);
}

void TestDevice::set_line(std::uint64_t line, bool level) {
  const auto number = static_cast<unsigned>(line);
  (number < 16 ? irqs_.isa(number) : irqs_.gsi(number)).set(level);
}

void TestDevice::FlushPort::write(std::uint64_t offset, unsigned size, std::uint64_t value) {
  if (offset == 0 && size == 4 && flush_) flush_(PA{value});
}

}  // namespace strata::devices
