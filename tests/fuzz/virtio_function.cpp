// Random drivers of a virtio function: registers, configuration space and queues hold anything, and
// nothing of it may crash or hang the VMM, or do more than leave the device in need of a reset.
// Every case follows from its seed; `--seed N --cases 1` repeats it.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <array>
#include <chrono>
#include <cstdlib>

#include "devices/virtio/block.hpp"
#include "random.hpp"
#include "virtio/memory_disk.hpp"
#include "virtio/pci_driver.hpp"

namespace strata::fuzz {
namespace {

using devices::virtio::test::DiskKind;
using devices::virtio::test::MemoryDisk;
using devices::virtio::test::PciDriver;
using devices::virtio::test::PciMachine;

constexpr std::uint64_t kRings = 0x1000, kData = 0x8000, kRam = 8ULL << 20;
constexpr std::size_t kDiskBytes = 64 * 1024;

/// One machine, and a driver that mostly does what makes progress.
class Case {
 public:
  explicit Case(std::uint64_t seed)
      : random_{seed},
        disk_{new MemoryDisk{kDiskBytes,
                             {.read_only = random_.chance(10), .deferred = random_.chance(50)}}},
        machine_{std::make_unique<devices::virtio::Block>(std::unique_ptr<storage::Disk>{disk_},
                                                          "fuzz")},
        driver_{machine_} {}

  void run(unsigned steps) {
    start();
    for (unsigned i = 0; i < steps; ++i) step();
    check_it_resets();
  }

 private:
  void start() {
    using namespace devices::virtio;
    std::uint64_t features = kVersion1;
    if (random_.chance(50)) features |= kRingIndirectDesc;
    if (random_.chance(50)) features |= kRingEventIdx;
    if (random_.chance(50)) features |= driver_.offered();
    (void)driver_.negotiate(features);
    driver_.enable_queue(0, PA{kRings}, static_cast<std::uint16_t>(8U >> random_.below(3)));
    driver_.set_status(15);
    index_ = 0;
    machine_.memory.store<std::uint64_t>(PA{kRings + 0x100}, 0);
  }

  std::uint64_t address() {
    switch (random_.below(8)) {
      case 0:
        return random_.edge();
      case 1:
        return kRam - random_.below(4096);
      case 2:
        return kRings + random_.below(0x300);
      default:
        return kData + random_.below(0x4000);
    }
  }

  void write_descriptor(std::uint64_t at) {
    auto& memory = machine_.memory;
    const std::uint64_t length = random_.chance(20) ? random_.edge() : random_.below(5) * 512;
    memory.store<std::uint64_t>(PA{at}, address());
    memory.store(PA{at + 8},
                 static_cast<std::uint32_t>(random_.chance(30) ? random_.below(33) : length));
    const auto flags = random_.chance(5) ? random_() : random_.below(8);
    memory.store(PA{at + 12}, static_cast<std::uint16_t>(flags));
    memory.store(PA{at + 14},
                 static_cast<std::uint16_t>(random_.chance(5) ? random_() : random_.below(8)));
  }

  /// A chain that is a request, but for what is changed of it.
  void write_request() {
    auto& memory = machine_.memory;
    constexpr std::array<std::uint32_t, 7> kTypes{0, 1, 4, 8, 11, 13, 2};
    memory.store<std::uint32_t>(PA{kData}, random_.pick(kTypes));
    memory.store(PA{kData + 8}, random_.chance(10) ? random_.edge() : random_.below(128));
    const bool in = random_.chance(50);
    const auto put = [&](unsigned i, std::uint64_t pa, std::uint64_t length, unsigned flags) {
      memory.store(PA{kRings + 16 * i}, pa);
      memory.store(PA{kRings + 16 * i + 8}, static_cast<std::uint32_t>(length));
      memory.store(PA{kRings + 16 * i + 12}, flags | (i + 1) << 16);
    };
    put(0, kData, 16, 1);
    put(1, address(), random_.below(4) * 512, in ? 3 : 1);
    put(2, kData + 0x100, 1, 2);
    if (random_.chance(20)) write_descriptor(kRings + 16 * random_.below(3));
  }

  void offer() {
    auto& memory = machine_.memory;
    const auto head = random_.chance(5) ? random_() : random_.chance(80) ? 0 : random_.below(8);
    for (unsigned slot = 0; slot < 8; ++slot) {
      memory.store(PA{kRings + 0x104 + 2 * slot}, static_cast<std::uint16_t>(head));
    }
    index_ = static_cast<std::uint16_t>(index_ + (random_.chance(3) ? random_() : 1));
    memory.store(PA{kRings + 0x102}, index_);
    if (random_.chance(20)) {
      memory.store(PA{kRings + 0x100 + 2 * random_.below(12)},
                   static_cast<std::uint16_t>(random_.below(4)));
    }
    driver_.notify(0);
  }

  void touch_registers() {
    constexpr std::array<unsigned, 4> kSizes{1, 2, 4, 8};
    const unsigned size = random_.pick(kSizes);
    switch (random_.below(4)) {
      case 0:
        machine_.mmio.write(PciMachine::kBase + random_.below(0x5000), size, random_.edge());
        break;
      case 1:
        (void)machine_.mmio.read(PciMachine::kBase + random_.below(0x5000), size);
        break;
      case 2:
        driver_.write(static_cast<unsigned>(random_.below(0x38)) & ~(size - 1), size,
                      random_.chance(50) ? random_.below(16) : random_.edge());
        break;
      default:
        (void)driver_.isr();
    }
  }

  void touch_configuration() {
    const auto offset = static_cast<unsigned>(random_.below(64)) * 4;
    if (random_.chance(50)) (void)machine_.config(offset);
    // The BARs stay where they are, so that what follows reaches something.
    if (offset < 0x10 || offset > 0x24) {
      machine_.set_config(offset, static_cast<std::uint32_t>(random_.edge()) | 2);
    }
  }

  void step() {
    switch (random_.below(16)) {
      case 0:
        return touch_registers();
      case 1:
        return touch_configuration();
      case 2:
        return start();
      case 3:
        return disk_->complete();
      case 4:
        return reload();
      case 5:
      case 6:
        write_descriptor(random_.chance(50) ? kRings + 16 * random_.below(8)
                                            : kData + 16 * random_.below(64));
        return offer();
      default:
        write_request();
        return offer();
    }
  }

  /// A state that was saved can be loaded, whatever the driver did before.
  void reload() {
    machine_.function->quiesce();
    const nlohmann::json state = machine_.function->save();
    PciMachine other{std::make_unique<devices::virtio::Block>(
        std::make_unique<MemoryDisk>(kDiskBytes, DiskKind{.read_only = disk_->read_only()}),
        "fuzz")};
    other.function->unmap();
    if (const auto done = other.function->load(state); !done) {
      fmt::print(stderr, "a saved state does not load: {}\n", done.error().message);
      std::abort();
    }
  }

  /// However it stands: after a reset it reads a sector.
  void check_it_resets() {
    using devices::virtio::kVersion1;
    machine_.set_config(0x10, PciMachine::kBase);
    machine_.set_config(4, 2, 2);
    driver_.start(kVersion1, PA{kRings});
    auto& memory = machine_.memory;
    for (unsigned i = 0; i < 0x300; i += 8) memory.store<std::uint64_t>(PA{kRings + i}, 0);
    devices::virtio::test::DriverQueue queue{memory, PA{kRings}};
    memory.store<std::uint64_t>(PA{kData}, 0);
    memory.store<std::uint64_t>(PA{kData + 8}, 1);
    memory.store<std::uint8_t>(PA{kData + 0x100}, 0xEE);
    disk_->content[512] = std::byte{0x77};
    queue.add(
        {{PA{kData}, 16, false}, {PA{kData + 0x1000}, 512, true}, {PA{kData + 0x100}, 1, true}});
    driver_.notify(0);
    disk_->complete();
    if (memory.load<std::uint8_t>(PA{kData + 0x100}) == 0 &&
        memory.load<std::uint8_t>(PA{kData + 0x1000}) == 0x77) {
      return;
    }
    fmt::print(stderr, "the device does not work after a reset\n");
    std::abort();
  }

  Random random_;
  MemoryDisk* disk_;
  PciMachine machine_;
  PciDriver driver_;
  std::uint16_t index_ = 0;
};

int run(std::uint64_t seed, std::uint64_t cases, unsigned steps, double seconds) {
  const auto start = std::chrono::steady_clock::now();
  for (std::uint64_t i = 0; i < cases || seconds > 0; ++i) {
    const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - start;
    if (seconds > 0 && passed.count() > seconds) break;
    // Before, not after: a crash leaves the last line.
    fmt::print("virtio_function: --cases 1 --seed {}\r", seed + i);
    std::fflush(stdout);
    Case{seed + i}.run(steps);
  }
  fmt::print("\nno finding\n");
  return 0;
}

}  // namespace
}  // namespace strata::fuzz

int main(int argc, char** argv) {
  CLI::App app{"Random drivers of a virtio block function"};
  std::uint64_t seed = 1, cases = 100;
  unsigned steps = 300;
  double seconds = 0;
  app.add_option("--seed", seed, "First seed [1]");
  app.add_option("--cases", cases, "Number of cases [100]");
  app.add_option("--steps", steps, "Steps of each [300]");
  app.add_option("--seconds", seconds, "Run for so long instead of --cases");
  CLI11_PARSE(app, argc, argv);
  return strata::fuzz::run(seed, cases, steps, seconds);
}
