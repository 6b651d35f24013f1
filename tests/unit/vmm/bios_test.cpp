// Real mode after a Multiboot entry: the timer, the interrupt controllers and the handlers that a
// PC's BIOS leaves, seen by a guest.
#include "boot/bios.hpp"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "boot/images.hpp"
#include "vmm/capabilities.hpp"
#include "vmm/vm.hpp"

extern "C" {
extern const char bios_guest_begin[], bios_guest_end[];  // bios_guest.S
}

namespace strata::vmm {
namespace {

class NoSink final : public devices::CharSink {
 public:
  void put(std::span<const std::uint8_t>) override {}
};

class BiosTest : public ::testing::TestWithParam<std::string> {
 protected:
  BiosTest() {
    boot::test::ElfSpec spec;
    spec.is64 = spec.pvh = false;
    spec.multiboot = true;
    spec.entry = 0x8000;
    spec.segments = {{0x8000, {bios_guest_begin, bios_guest_end}, 0x1000}};
    const boot::test::File image = boot::test::make_elf(spec);
    std::ofstream file{kernel, std::ios::binary};
    file.write(reinterpret_cast<const char*>(image.data()),
               static_cast<std::streamsize>(image.size()));
  }
  ~BiosTest() override { std::filesystem::remove(kernel); }

  const std::string kernel = ::testing::TempDir() + "strata-bios-" + GetParam() + ".elf";
};

TEST_P(BiosTest, RealModeAfterMultiboot) {
  VmConfig config;
  config.kernel = kernel;
  config.memory_bytes = 16ULL << 20;
  config.engine = "interp";
  config.mmu = GetParam();
  config.debug_exit_port = 0xF4;
  config.clock = "instructions";  // HLT skips the wait for the tick
  config.timeout_seconds = 20;
  NoSink sink;
  auto vm = Vm::create(config, sink);
  ASSERT_TRUE(vm) << vm.error().message;
  const Outcome outcome = (*vm)->run();
  EXPECT_EQ(outcome.ending, Ending::debug_exit) << (*vm)->vcpu_state();
  EXPECT_EQ(outcome.debug_value, 0x2AU) << "or the number of the check in bios_guest.S";
}

/// What this build has for the interpreter.
std::vector<std::string> backends() {
  std::vector<std::string> names;
  for (const Combination& c : combinations()) {
    if (c.engine == "interp") names.emplace_back(c.mmu);
  }
  return names;
}

INSTANTIATE_TEST_SUITE_P(Backends, BiosTest, ::testing::ValuesIn(backends()),
                         [](const auto& param) { return param.param; });

}  // namespace
}  // namespace strata::vmm
