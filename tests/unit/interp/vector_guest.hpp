// The interpreter's side of a comparison: a Machine whose exceptions all end in a HLT that tells
// the vector.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "test_support.hpp"
#include "vector_native.hpp"

namespace strata::interp::test {

/// A processor model of exactly these features (and what the host can not give left out).
inline cpu::CpuModel model_with(const std::vector<std::string>& features) {
  std::string text = R"({"name": "test", "vendor": "GenuineIntel", "family": 6, "model": 1,
    "stepping": 0, "microcode": 1, "brand": "test", "physical_address_bits": 40, "features": [)";
  for (std::size_t i = 0; i < features.size(); ++i) {
    text += (i == 0 ? "\"" : ", \"") + features[i] + '"';
  }
  text += R"(], "kvm_features": [], "caches": []})";
  auto model = cpu::CpuModel::from_json(text);
  if (!model) throw std::runtime_error(model.error().message);
  return *model;
}

/// Everything that the vector units can do, whether the default model has it or not.
inline std::vector<std::string> all_vector_features() {
  return {"fpu",    "tsc",     "msr",       "pae",    "cx8",    "pge",    "cmov",
          "pat",    "mmx",     "fxsr",      "sse",    "sse2",   "sse3",   "ssse3",
          "fma",    "cx16",    "pclmulqdq", "sse4_1", "sse4_2", "popcnt", "aes",
          "xsave",  "avx",     "f16c",      "avx2",   "sha",    "pku",    "xsaveopt",
          "xsavec", "xgetbv1", "syscall",   "nx",     "lm"};
}

class GuestCpu {
 public:
  static constexpr std::uint64_t kGdt = 0x2000, kIdt = 0x3000, kTss = 0x4000, kHandlers = 0x5000,
                                 kExceptionStack = 0x8000;

  explicit GuestCpu(std::string_view model = "default")
      : machine{4U << 20, model}, base{Machine::long_mode_state()} {
    machine.poke<std::uint64_t>(kGdt + 8, 0x00AF9B000000FFFFULL);   // 64-bit code
    machine.poke<std::uint64_t>(kGdt + 16, 0x00CF93000000FFFFULL);  // data
    machine.poke<std::uint64_t>(kGdt + 24, 0x00CF9B000000FFFFULL);  // 32-bit code
    machine.poke<std::uint64_t>(kTss + 36, kExceptionStack);        // IST1
    for (unsigned v = 0; v < 32; ++v) {
      const std::uint64_t handler = kHandlers + 16 * v;
      // 64-bit interrupt gate on IST1; all addresses are below 64 KiB.
      machine.poke<std::uint64_t>(kIdt + 16 * v, handler | 8ULL << 16 | 0x8E01ULL << 32);
      machine.poke<std::uint64_t>(kIdt + 16 * v + 8, 0);
      machine.poke<std::uint8_t>(handler, 0xF4);
    }
    base.gdtr = {kGdt, 0x1F};
    base.idtr = {kIdt, 32 * 16 - 1};
    base.segment[cpu::CS].selector = 8;
    base.tr = cpu::Segment{kTss, 0x67, 0x18, 0x008B};
    // x87 exceptions are #MF.
    base.cr0 |= cpu::cr0::NE;
  }

  /// Another processor from the next instruction on.
  void use_model(const cpu::CpuModel& model) {
    machine.model = model;
    machine.core->memory_written(PA{0}, machine.mmu.size());
  }

  /// 32-bit code in compatibility mode; exceptions still go to 64-bit handlers.
  void use_32_bit() {
    base.segment[cpu::CS].attributes = 0xC09B;
    base.segment[cpu::CS].selector = 24;
  }

  [[nodiscard]] std::span<std::uint8_t> data() const {
    return {reinterpret_cast<std::uint8_t*>(machine.mmu.base() + NativeCpu::kData),
            NativeCpu::kDataBytes};
  }

  [[nodiscard]] UnitState run(std::span<const std::uint8_t> code, const UnitState& in) {
    std::vector<std::uint8_t> bytes{code.begin(), code.end()};
    bytes.push_back(0xF4);
    machine.write(Machine::kCode, bytes);
    cpu::VcpuState s = base;
    s.gpr = in.gpr;
    s.rflags = in.flags | 2;
    s.vector.ymm = in.ymm;
    s.vector.mxcsr = in.mxcsr;
    std::memcpy(s.vector.legacy.data(), in.fx.data(), 512);
    machine.core->set_state(s);
    last_exit = machine.core->run();
    const cpu::VcpuState after = machine.core->state();
    UnitState out;
    out.gpr = after.gpr;
    out.flags = after.rflags;
    out.ymm = after.vector.ymm;
    out.mxcsr = after.vector.mxcsr;
    std::memcpy(out.fx.data(), after.vector.legacy.data(), 512);
    take_trap(after, out);
    xcr0 = after.vector.xcr0;
    pkru = after.pkru;
    return out;
  }

  Machine machine;
  cpu::VcpuState base;
  engine::Exit last_exit;
  std::uint64_t xcr0 = 0;
  std::uint32_t pkru = 0;
  std::uint64_t error_code = 0;  ///< of the last trap that has one
  std::uint64_t fault_rip = 0;   ///< of the last trap

 private:
  void take_trap(const cpu::VcpuState& after, UnitState& out) {
    if (after.rip < kHandlers || after.rip >= kHandlers + 16 * 32) return;
    out.trap = static_cast<int>((after.rip - kHandlers) / 16);
    // The frame: error code if the vector has one, RIP, CS, RFLAGS, RSP, SS.
    const bool has_error = out.trap == 8 || (out.trap >= 10 && out.trap <= 14) || out.trap == 17;
    std::uint64_t at = after.gpr[cpu::RSP];
    if (has_error) {
      error_code = machine.read<std::uint64_t>(at);
      at += 8;
    }
    fault_rip = machine.read<std::uint64_t>(at);
    out.flags = machine.read<std::uint64_t>(at + 16);
    out.gpr[cpu::RSP] = machine.read<std::uint64_t>(at + 24);
  }
};

}  // namespace strata::interp::test
