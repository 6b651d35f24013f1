// The interpreter running the cases of the differential fuzzer at CPL 3, with the executor's memory
// around it and every exception ending the case.
#pragma once

#include <span>

#include "case.hpp"
#include "interp/test_support.hpp"

namespace strata::differential {

class InterpSide {
 public:
  explicit InterpSide(std::span<const std::uint8_t> pattern);
  void run(const Case& c, Result& out);
  /// Whether the interpreter has the host execute this case's instruction: asked of the steps that
  /// it makes of it.
  [[nodiscard]] static bool runs_on_host(const Case& c, const cpu::CpuModel& model);

 private:
  void build_gates();
  [[nodiscard]] cpu::VcpuState state_before(const Case& c) const;

  std::vector<std::uint8_t> pattern_;
  interp::test::Machine machine_;
  cpu::VcpuState base_;
};

}  // namespace strata::differential
