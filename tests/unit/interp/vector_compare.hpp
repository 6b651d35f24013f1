// Runs one instruction on both sides from the same state and tells what differs.
#pragma once

#include <sstream>
#include <string>

#include "vector_generator.hpp"
#include "vector_guest.hpp"
#include "vector_native.hpp"

namespace strata::interp::test {

inline constexpr std::uint64_t kArithmeticFlags = 0x8D5;

class Comparison {
 public:
  Comparison() { guest.use_model(model_with(all_vector_features())); }

  /// Differences between the two sides as text; empty if there are none. `in.fx` and the operand
  /// memory are the same for both at the start.
  std::string run(std::span<const std::uint8_t> code, const UnitState& in) {
    std::memcpy(guest.data().data(), native.data().data(), NativeCpu::kDataBytes);
    out_native = native.run(code, in);
    out_guest = guest.run(code, in);
    return differences();
  }

  /// As run(), with pages that refuse access on both sides: `va` loses read or write access.
  std::string run_protected(std::span<const std::uint8_t> code, const UnitState& in,
                            std::uint64_t va, bool readable) {
    std::memcpy(guest.data().data(), native.data().data(), NativeCpu::kDataBytes);
    FlatMmu::Page& page = guest.machine.mmu.page(va);
    page.present = readable;
    page.writable = false;
    native.protect(va, readable, false);
    out_native = native.run(code, in);
    native.protect(va, true, true);
    out_guest = guest.run(code, in);
    page = FlatMmu::Page{};
    return differences();
  }

  NativeCpu native;
  GuestCpu guest;
  UnitState out_native;
  UnitState out_guest;

  /// Between the two results and memories as they are now.
  [[nodiscard]] std::string differences() const {
    std::ostringstream s;
    s << std::hex;
    const UnitState& n = out_native;
    const UnitState& g = out_guest;
    if (n.trap != g.trap) s << " trap " << n.trap << " / " << g.trap;
    for (unsigned i = 0; i < 16; ++i) {
      if (n.gpr[i] != g.gpr[i]) s << " r" << i << ' ' << n.gpr[i] << " / " << g.gpr[i];
      for (unsigned w = 0; w < 4; ++w) {
        if (n.ymm[i][w] != g.ymm[i][w]) {
          s << " ymm" << i << '[' << w << "] " << n.ymm[i][w] << " / " << g.ymm[i][w];
        }
      }
    }
    if (((n.flags ^ g.flags) & kArithmeticFlags) != 0) {
      s << " flags " << (n.flags & kArithmeticFlags) << " / " << (g.flags & kArithmeticFlags);
    }
    if (n.mxcsr != g.mxcsr) s << " mxcsr " << n.mxcsr << " / " << g.mxcsr;
    x87_differences(s);
    const auto a = native.data();
    const auto b = guest.data();
    if (std::memcmp(a.data(), b.data(), a.size()) != 0) {
      std::size_t at = 0;
      while (a[at] == b[at]) ++at;
      s << " memory[" << at << "] " << unsigned{a[at]} << " / " << unsigned{b[at]};
    }
    return s.str();
  }

 private:
  void x87_differences(std::ostringstream& s) const {
    // Control, status and tag words; the pointers are the guest's own.
    for (unsigned i = 0; i < 5; ++i) {
      if (out_native.fx[i] != out_guest.fx[i]) {
        s << " fx[" << i << "] " << unsigned{out_native.fx[i]} << " / "
          << unsigned{out_guest.fx[i]};
      }
    }
    for (unsigned r = 0; r < 8; ++r) {
      const auto at = 32 + 16 * r;
      if (std::memcmp(&out_native.fx[at], &out_guest.fx[at], 10) != 0) s << " st" << r;
    }
  }
};

}  // namespace strata::interp::test
