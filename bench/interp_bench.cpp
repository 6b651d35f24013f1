// How fast the interpreter executes guest instructions: loops of arithmetic, loads and stores,
// calls and returns, mixed code as compilers emit it, and REP MOVSB. Reported as guest instructions
// per second ("MIPS" in items_per_second). Needs: interp, cpu, benchmark::benchmark_main, and the
// include path tests/unit/interp for the fake machine.
#include <benchmark/benchmark.h>

#include <vector>

#include "test_support.hpp"

namespace {

using strata::interp::test::Machine;
namespace cpu = strata::cpu;

/// Runs `code`, which counts RCX down to zero and then halts, and reports instructions per second.
void run_loop(benchmark::State& state, const std::vector<std::uint8_t>& code,
              std::uint64_t iterations) {
  Machine m;
  m.write(Machine::kCode, code);
  cpu::VcpuState s = Machine::long_mode_state();
  s.gpr[cpu::RSI] = Machine::kData;
  s.gpr[cpu::RDI] = Machine::kData + 0x2000;
  std::uint64_t instructions = 0;
  for (auto _ : state) {
    s.gpr[cpu::RCX] = iterations;
    m.core->set_state(s);
    const std::uint64_t before = m.core->stats().instructions;
    if (m.core->run().kind != strata::engine::ExitKind::halt) {
      state.SkipWithError("the guest did not halt");
      return;
    }
    instructions += m.core->stats().instructions - before;
  }
  state.SetItemsProcessed(static_cast<std::int64_t>(instructions));
}

void alu(benchmark::State& state) {
  run_loop(state, {0x48, 0x01, 0xC8,        // add rax, rcx
                   0x48, 0x31, 0xC2,        // xor rdx, rax
                   0x48, 0xC1, 0xE2, 0x03,  // shl rdx, 3
                   0x8D, 0x5C, 0x82, 0x05,  // lea ebx, [rdx + rax*4 + 5]
                   0x48, 0x83, 0xC3, 0x11,  // add rbx, 17
                   0x48, 0x21, 0xD8,        // and rax, rbx
                   0x48, 0xFF, 0xC9,        // dec rcx
                   0x75, 0xE6,              // jnz -26
                   0xF4},
           100'000);
}
BENCHMARK(alu)->Unit(benchmark::kMillisecond);

void load_store(benchmark::State& state) {
  run_loop(state, {0x48, 0x8B, 0x06,        // mov rax, [rsi]
                   0x48, 0x89, 0x46, 0x08,  // mov [rsi + 8], rax
                   0x8B, 0x5E, 0x10,        // mov ebx, [rsi + 16]
                   0x48, 0x01, 0x5E, 0x18,  // add [rsi + 24], rbx
                   0x0F, 0xB6, 0x56, 0x20,  // movzx edx, byte [rsi + 32]
                   0x88, 0x17,              // mov [rdi], dl
                   0x48, 0xFF, 0xC9,        // dec rcx
                   0x75, 0xE7,              // jnz -25
                   0xF4},
           100'000);
}
BENCHMARK(load_store)->Unit(benchmark::kMillisecond);

void call_return(benchmark::State& state) {
  run_loop(state, {0xE8, 0x06, 0x00, 0x00, 0x00,  // call +6
                   0x48, 0xFF, 0xC9,              // dec rcx
                   0x75, 0xF6,                    // jnz -10
                   0xF4,
                   0x55,              // push rbp
                   0x48, 0x89, 0xE5,  // mov rbp, rsp
                   0x8D, 0x47, 0x01,  // lea eax, [rdi + 1]
                   0x5D,              // pop rbp
                   0xC3},             // ret
           100'000);
}
BENCHMARK(call_return)->Unit(benchmark::kMillisecond);

/// A string comparison as compilers emit it: short blocks, two loads, compare and branch.
void compare_and_branch(benchmark::State& state) {
  run_loop(state, {0x31, 0xC0,              // xor eax, eax
                   0x0F, 0xB6, 0x14, 0x06,  // movzx edx, byte [rsi + rax]
                   0x3A, 0x14, 0x07,        // cmp dl, [rdi + rax]
                   0x75, 0x09,              // jne +9
                   0x48, 0xFF, 0xC0,        // inc rax
                   0x48, 0x83, 0xF8, 0x10,  // cmp rax, 16
                   0x75, 0xEE,              // jne -18
                   0x48, 0xFF, 0xC9,        // dec rcx
                   0x75, 0xE7,              // jnz -25
                   0xF4},
           10'000);
}
BENCHMARK(compare_and_branch)->Unit(benchmark::kMillisecond);

/// Bytes per second of REP MOVSB in 4000-byte pieces.
void rep_movs(benchmark::State& state) {
  Machine m;
  const std::vector<std::uint8_t> code = {0xF3, 0xA4, 0xF4};
  m.write(Machine::kCode, code);
  cpu::VcpuState s = Machine::long_mode_state();
  std::int64_t bytes = 0;
  for (auto _ : state) {
    s.gpr[cpu::RSI] = Machine::kData;
    s.gpr[cpu::RDI] = Machine::kData + 0x40000;
    s.gpr[cpu::RCX] = 0x20000;
    m.core->set_state(s);
    if (m.core->run().kind != strata::engine::ExitKind::halt) {
      state.SkipWithError("the guest did not halt");
      return;
    }
    bytes += 0x20000;
  }
  state.SetBytesProcessed(bytes);
}
BENCHMARK(rep_movs);

}  // namespace
