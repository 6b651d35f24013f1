// A Core on a fake Mmu: VA = PA = offset into one buffer, with rights a page that tests can change.
#pragma once

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "cpu/cpu_model.hpp"
#include "engines/interp/core.hpp"
#ifdef STRATA_TEST_TRANSLATOR
#include "engines/bt/translator.hpp"
#endif

namespace strata::interp::test {

/// Identity translation over `bytes` of memory from VA 0, in every paging mode.
class FlatMmu final : public Mmu {
 public:
  struct Page {
    bool present = true, writable = true, executable = true, user = true;
    bool mmio = false, traced = false, rom = false;
    std::optional<FaultKind> p2m_fault{};  ///< retry, paused, poisoned, out_of_memory
  };

  explicit FlatMmu(std::size_t bytes) : memory_(bytes + kPageSize), pages_(bytes / kPageSize) {
    const auto at = reinterpret_cast<std::uintptr_t>(memory_.data());
    base_ = memory_.data() + (kPageSize - at % kPageSize) % kPageSize;
  }

  [[nodiscard]] std::byte* base() const { return base_; }
  [[nodiscard]] std::size_t size() const { return pages_.size() * kPageSize; }
  Page& page(std::uint64_t va) { return pages_.at(va / kPageSize); }
  [[nodiscard]] MachineWindow window() const { return MachineWindow{base_}; }

  std::string_view name() const noexcept override { return "flat"; }
  void set_context(VcpuId, const PagingContext& c) override { context = c; }
  Expected<Translation, Fault> translate(VcpuId, VA va, Access access) override {
    ++translations;
    if (on_translate) on_translate(va);
    std::uint32_t code = (access.kind == AccessKind::write ? pf::kWrite : 0) |
                         (access.user ? pf::kUser : 0) |
                         (access.kind == AccessKind::execute ? pf::kFetch : 0);
    const std::uint64_t number = va.value() / kPageSize;
    if (number >= pages_.size() || !pages_[number].present) {
      return Unexpected{Fault{Stage::guest_table, FaultKind::page_fault, code, va, {}}};
    }
    const Page& p = pages_[number];
    const PA pa{va.value()};
    if (p.p2m_fault) return Unexpected{Fault{Stage::p2m, *p.p2m_fault, 0, va, pa}};
    if (p.mmio) return Unexpected{Fault{Stage::p2m, FaultKind::mmio, 0, va, pa}};
    const bool allowed = (p.user || !access.user) &&
                         (access.kind != AccessKind::write || p.writable) &&
                         (access.kind != AccessKind::execute || p.executable);
    if (!allowed) {
      return Unexpected{
          Fault{Stage::guest_table, FaultKind::page_fault, code | pf::kPresent, va, {}}};
    }
    if (p.rom && access.kind == AccessKind::write) {
      return Unexpected{Fault{Stage::p2m, FaultKind::rom_write, 0, va, pa}};
    }
    Translation t;
    t.page = MA{va.page_base().value()};
    t.pa = pa.page_base();
    t.readable = true;
    t.writable = p.writable && !p.traced && !p.rom;
    t.executable = p.executable;
    t.traced = p.traced && access.kind == AccessKind::write;
    return t;
  }
  void invalidate_page(VcpuId, VA va) override { invalidated_pages.push_back(va); }
  void invalidate(VcpuId, FlushScope scope, std::uint16_t pcid, VA va) override {
    flushes.push_back({scope, pcid, va});
  }
  void guest_wrote(PA pa, std::uint64_t length) override { written.emplace_back(pa, length); }
  MmuStats stats() const noexcept override { return {}; }
  void p2m_changed(PpnRange, Flush&) override {}

  struct FlushCall {
    FlushScope scope;
    std::uint16_t pcid;
    VA va;
  };
  PagingContext context{};
  std::function<void(VA)> on_translate;  ///< hears of every TLB miss before it is answered
  std::uint64_t translations = 0;
  std::vector<VA> invalidated_pages;
  std::vector<FlushCall> flushes;
  std::vector<std::pair<PA, std::uint64_t>> written;

 private:
  std::vector<std::byte> memory_;
  std::byte* base_ = nullptr;
  std::vector<Page> pages_;
};

/// Interrupts that a test raises by hand.
class FakeInterrupts final : public engine::InterruptSource {
 public:
  bool pending() override { return vector.has_value(); }
  std::optional<std::uint8_t> acknowledge() override { return std::exchange(vector, {}); }
  bool take_nmi() override { return std::exchange(nmi, false); }
  std::uint64_t cr8() override { return tpr; }
  void set_cr8(std::uint64_t value) override { tpr = value; }
  bool present() override { return apic; }
  bool apic = true;
  std::optional<std::uint8_t> vector;
  bool nmi = false;
  std::uint64_t tpr = 0;
};

class FakeTsc final : public engine::TscSource {
 public:
  std::uint64_t tsc() noexcept override { return now += 10; }
  std::uint64_t now = 1000;
};

/// The suite runs on the interpreter, and on it with the translator plugged in: with as much room
/// for code as ever, and with little.
inline std::unique_ptr<Core> make_test_core(const CoreEnvironment& e) {
#ifdef STRATA_TEST_TRANSLATOR
  CoreEnvironment environment = e;
  if (const char* bytes = std::getenv("STRATA_TEST_CODE_CACHE"); bytes != nullptr) {
    environment.code_cache_bytes = std::strtoull(bytes, nullptr, 10);
  }
  return bt::make_core(environment);
#else
  return std::make_unique<Core>(e);
#endif
}

/// A Core with 4 MiB of flat memory, in 64-bit mode at CPL 0 unless told otherwise. Code runs from
/// kCode; HLT (F4) makes run() return.
class Machine {
 public:
  static constexpr std::uint64_t kCode = 0x10000;
  static constexpr std::uint64_t kData = 0x100000;
  static constexpr std::uint64_t kStack = 0x80000;

  explicit Machine(std::size_t bytes = 4U << 20, std::string_view model_name = "default",
                   std::size_t code_cache_bytes = 8U << 20)
      : mmu{bytes}, model{*cpu::CpuModel::by_name(model_name)} {
    CoreEnvironment e;
    e.mmu = &mmu;
    e.window = mmu.window();
    e.flush_domain = &domain;
    e.interrupts = &interrupts;
    e.tsc = &tsc;
    e.model = &model;
    e.block_cache_bytes = 1U << 20;
    e.code_cache_bytes = code_cache_bytes;
    core = make_test_core(e);
    core->set_state(long_mode_state());
  }

  /// CPL 0, 64-bit, paging on, interrupts off, SSE and AVX enabled.
  [[nodiscard]] static cpu::VcpuState long_mode_state() {
    cpu::VcpuState s = cpu::flat_protected_mode(kCode);
    s.segment[cpu::CS].attributes = 0xA09B;
    s.cr0 |= cpu::cr0::PG | cpu::cr0::WP | cpu::cr0::MP;
    s.cr4 = cpu::cr4::PAE | cpu::cr4::OSFXSR | cpu::cr4::OSXMMEXCPT | cpu::cr4::OSXSAVE;
    s.efer = cpu::efer::LME | cpu::efer::LMA | cpu::efer::NXE | cpu::efer::SCE;
    s.vector.xcr0 = 7;
    s.gpr[cpu::RSP] = kStack;
    return s;
  }

  void write(std::uint64_t va, std::span<const std::uint8_t> bytes) {
    std::memcpy(mmu.base() + va, bytes.data(), bytes.size());
    core->memory_written(PA{va}, bytes.size());
  }
  template <class T>
  [[nodiscard]] T read(std::uint64_t va) const {
    T v;
    std::memcpy(&v, mmu.base() + va, sizeof v);
    return v;
  }
  template <class T>
  void poke(std::uint64_t va, T v) {
    std::memcpy(mmu.base() + va, &v, sizeof v);
  }
  /// Puts `code` and a HLT at kCode and runs it from `state`; returns the exit.
  engine::Exit run(std::initializer_list<std::uint8_t> code, const cpu::VcpuState& state) {
    std::vector<std::uint8_t> bytes{code};
    bytes.push_back(0xF4);
    write(kCode, bytes);
    core->set_state(state);
    return core->run();
  }

  FlatMmu mmu;
  FlushDomain domain;
  FakeInterrupts interrupts;
  FakeTsc tsc;
  cpu::CpuModel model;
  std::unique_ptr<Core> core;
};

}  // namespace strata::interp::test
