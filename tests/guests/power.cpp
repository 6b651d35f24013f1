#include "power.hpp"

#include "boot/machine_layout.hpp"
#include "console.hpp"
#include "cpu.hpp"

namespace guest {

namespace layout = strata::boot::layout;

void power_off() {
  const auto sleep = [](unsigned type) {
    out16(layout::kPm1aControlPort,
          static_cast<std::uint16_t>(type << layout::kSleepTypeShift | layout::kSleepEnable));
  };
  sleep(layout::kSleepTypeS5);
  sleep(0);  // the same port and bit on QEMU, where soft-off has number 0
  // A VMM may take a moment to stop the processor.
  for (unsigned i = 0; i < 1'000'000; ++i) asm volatile("pause");
  print("poweroff: nothing happened\n");
}

}  // namespace guest
