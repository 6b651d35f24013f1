// An engine on a real backend over real machine memory, with a guest of a few hand-assembled bytes:
// what the conformance tests and the engine benchmarks run.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <mutex>
#include <optional>
#include <string_view>
#include <vector>

#include "backends.hpp"
#include "cpu/cpu_model.hpp"
#include "engines.hpp"
#include "engines/interp/core.hpp"
#include "machine/test_support.hpp"

namespace strata::conformance {

class NoInterrupts final : public engine::InterruptSource {
 public:
  bool pending() override { return false; }
  std::optional<std::uint8_t> acknowledge() override { return std::nullopt; }
  bool take_nmi() override { return false; }
  std::uint64_t cr8() override { return 0; }
  void set_cr8(std::uint64_t) override {}
};

class CountingTsc final : public engine::TscSource {
 public:
  std::uint64_t tsc() noexcept override { return now_ += 100; }

 private:
  std::uint64_t now_ = 0;
};

/// 64 MiB of RAM, identity-mapped by 2 MiB pages in long mode at CPL 0, WP set; a window of 4 KiB
/// pages at kWindow onto RAM from kWindowPa. A #PF runs the handler that on_page_fault() gave.
class SmallVm {
 public:
  static constexpr std::uint64_t kCode = 0x10000, kHandler = 0x12000, kIdt = 0x5000, kGdt = 0x6000,
                                 kStack = 0x80000;
  static constexpr std::uint64_t kWindow = 0x4000'0000, kWindowPa = 0x100'0000;
  using Format = machine::Long4Format;

  /// `engine` and `backend` have to be in this build.
  explicit SmallVm(std::string_view backend, bool caches = true, std::uint64_t window_pages = 16,
                   std::string_view engine = "interp")
      : machine{64},
        frames{machine.frames},
        mmu{make_backend(backend, machine.p2m, frames, machine.domain, caches)},
        model{*cpu::CpuModel::by_name("default")},
        listener{*this} {
    interp::CoreEnvironment e;
    e.mmu = mmu.get();
    e.window = machine.window();
    e.flush_domain = &machine.domain;
    e.interrupts = &interrupts;
    e.tsc = &tsc;
    e.model = &model;
    core = make_engine(engine, e);
    machine.guest.add_listener(listener);
    build_tables(window_pages);
    build_descriptors();
  }
  ~SmallVm() { machine.guest.remove_listener(listener); }
  SmallVm(const SmallVm&) = delete;
  SmallVm& operator=(const SmallVm&) = delete;

  void write(std::uint64_t pa, std::initializer_list<std::uint8_t> bytes) {
    const std::vector<std::uint8_t> copy{bytes};
    machine::test::must(
        machine.guest.write(machine::kIdentitySpace, PA{pa}, std::as_bytes(std::span{copy})));
  }
  /// The #PF handler's code.
  void on_page_fault(std::initializer_list<std::uint8_t> code) { write(kHandler, code); }

  /// Runs `code` (which ends in HLT) from `state`.
  engine::Exit run(std::initializer_list<std::uint8_t> code, const cpu::VcpuState& state) {
    write(kCode, code);
    core->set_state(state);
    return core->run();
  }
  [[nodiscard]] cpu::VcpuState start_state() const {
    cpu::VcpuState s = cpu::flat_protected_mode(kCode);
    s.segment[cpu::CS].attributes = 0xA09B;
    s.cr0 |= cpu::cr0::PG | cpu::cr0::WP;
    s.cr4 = cpu::cr4::PAE | cpu::cr4::OSFXSR | cpu::cr4::PGE;
    s.efer = cpu::efer::LME | cpu::efer::LMA | cpu::efer::NXE;
    s.cr3 = root.value();
    s.gpr[cpu::RSP] = kStack;
    s.gdtr = {kGdt, 23};
    s.idtr = {kIdt, 4095};
    return s;
  }
  [[nodiscard]] std::uint64_t gpr(cpu::Gpr which) const { return core->state().gpr.at(which); }
  /// The guest's own leaf entry for page `n` of the window.
  [[nodiscard]] PA window_entry(std::uint64_t n) {
    return machine.entry_address<Format>(root, VA{kWindow + n * kPageSize}, 1);
  }

  machine::test::TestMachine machine;
  RecordingFrames frames;
  std::unique_ptr<Mmu> mmu;
  NoInterrupts interrupts;
  CountingTsc tsc;
  cpu::CpuModel model;
  std::unique_ptr<interp::Core> core;
  PA root{};

 private:
  class Listener final : public machine::WriteListener {
   public:
    explicit Listener(SmallVm& vm) : vm_{vm} {}
    void memory_written(PA pa, std::uint64_t length) override {
      vm_.mmu->guest_wrote(pa, length);
      vm_.core->memory_written(pa, length);
    }

   private:
    SmallVm& vm_;
  };

  void build_tables(std::uint64_t window_pages) {
    root = machine.new_table();
    for (std::uint64_t at = 0; at < 64ULL << 20; at += kLargePageSize) {
      machine.map<Format>(root, VA{at}, PA{at}, {}, 2);
    }
    for (std::uint64_t n = 0; n < window_pages; ++n) {
      machine.map<Format>(root, VA{kWindow + n * kPageSize}, PA{kWindowPa + n * kPageSize});
    }
  }
  void build_descriptors() {
    machine.store<std::uint64_t>(PA{kGdt + 8}, 0x00AF'9B00'0000'FFFF);   // 64-bit code
    machine.store<std::uint64_t>(PA{kGdt + 16}, 0x00CF'9300'0000'FFFF);  // data
    // A 64-bit interrupt gate, DPL 0 (SDM 3A figure 6-8).
    machine.store<std::uint64_t>(
        PA{kIdt + 14 * 16}, 0x0000'8E00'0008'0000 | (kHandler & 0xFFFF) | (kHandler >> 16) << 48);
  }

  Listener listener;
};

}  // namespace strata::conformance
