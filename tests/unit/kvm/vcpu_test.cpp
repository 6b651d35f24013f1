// Small guests on the host's KVM, through the engine interface.
#include "engines/kvm/vcpu.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <deque>
#include <thread>

#include "machine/test_support.hpp"

namespace strata::kvm {
namespace {

using engine::Exit;
using engine::ExitKind;
using machine::test::must;

/// Interrupts from a queue; CR8 as set.
class QueuedInterrupts final : public engine::InterruptSource {
 public:
  bool pending() override {
    const std::lock_guard guard{lock_};
    return !vectors_.empty();
  }
  std::optional<std::uint8_t> acknowledge() override {
    const std::lock_guard guard{lock_};
    if (vectors_.empty()) return std::nullopt;
    const std::uint8_t vector = vectors_.front();
    vectors_.pop_front();
    return vector;
  }
  bool take_nmi() override { return nmi_.exchange(false); }
  std::uint64_t cr8() override { return cr8_; }
  void set_cr8(std::uint64_t value) override { cr8_ = value; }

  void post(std::uint8_t vector) {
    const std::lock_guard guard{lock_};
    vectors_.push_back(vector);
  }
  void post_nmi() { nmi_ = true; }

 private:
  std::mutex lock_;
  std::deque<std::uint8_t> vectors_;
  std::atomic<bool> nmi_{false};
  std::atomic<std::uint64_t> cr8_{0};
};

class SteadyTsc final : public engine::TscSource {
 public:
  std::uint64_t tsc() noexcept override { return __builtin_ia32_rdtsc() - base_; }

 private:
  const std::uint64_t base_ = __builtin_ia32_rdtsc();
};

/// 16 MiB of RAM and ROM at 16 MiB; everything above is a device's.
class KvmVcpuTest : public testing::Test {
 protected:
  static constexpr std::uint64_t kCode = 0x1000, kStack = 0x8000, kIdt = 0x2000, kGdt = 0x3000,
                                 kRom = 16U << 20;

  void SetUp() override {
    const std::vector<std::byte> image(kPageSize, std::byte{0x5A});
    must(m.p2m.add_rom({PPN{kRom >> kPageShift}, 1}, image));
    auto made = Machine::create({.memory = &m.guest, .model = &model, .tsc = &tsc},
                                {{{PPN{0}, 16 << 8}}, {{PPN{kRom >> kPageShift}, 1}, true}});
    if (!made) GTEST_SKIP() << made.error().message;
    vm = std::move(*made);
    vm->start();
    auto added = vm->add_vcpu(0, interrupts);
    if (!added) GTEST_SKIP() << added.error().message;
    vcpu = std::move(*added);
  }
  void TearDown() override {
    vcpu.reset();
    vm.reset();
  }

  void write(std::uint64_t pa, std::initializer_list<std::uint8_t> bytes) {
    const std::vector<std::uint8_t> copy{bytes};
    must(m.guest.write(machine::kIdentitySpace, PA{pa}, std::as_bytes(std::span{copy})));
  }
  void start(const cpu::VcpuState& state, std::initializer_list<std::uint8_t> code) {
    write(kCode, code);
    vcpu->set_state(state);
  }
  /// Runs until an exit that is not `interrupted`.
  Exit run() { return vcpu->run(); }

  static cpu::VcpuState real_mode() {
    cpu::VcpuState s;
    s.segment.fill({0, 0xFFFF, 0, 0x93});
    s.segment[cpu::CS] = {0, 0xFFFF, 0, 0x9B};
    s.ldtr = {0, 0xFFFF, 0, 0x82};
    s.tr = {0, 0xFFFF, 0, 0x8B};
    s.idtr = {0, 0x3FF};
    s.cr0 = cpu::cr0::ET;
    s.rip = kCode;
    s.gpr[cpu::RSP] = kStack;
    cpu::reset_x87(s.vector);
    return s;
  }
  /// Long mode, the first 32 MiB mapped to themselves; vector 32's and 2's handlers at 0x1800.
  cpu::VcpuState long_mode() {
    const PA root = m.new_table();
    for (std::uint64_t at = 0; at < 32U << 20; at += kLargePageSize) {
      m.map<machine::Long4Format>(root, VA{at}, PA{at}, {}, 2);
    }
    m.store<std::uint64_t>(PA{kGdt + 8}, 0x00AF'9B00'0000'FFFF);
    m.store<std::uint64_t>(PA{kGdt + 16}, 0x00CF'9300'0000'FFFF);
    for (const std::uint64_t vector : {2, 32}) {
      m.store<std::uint64_t>(PA{kIdt + vector * 16}, 0x0000'8E00'0008'1800);
      m.store<std::uint64_t>(PA{kIdt + vector * 16 + 8}, 0);
    }
    write(0x1800, {0xE6, 0x77, 0x48, 0xCF});  // out 77h, al; iretq
    cpu::VcpuState s = cpu::flat_protected_mode(kCode);
    s.segment[cpu::CS].attributes = 0xA09B;
    s.cr0 |= cpu::cr0::PG | cpu::cr0::WP;
    s.cr4 = cpu::cr4::PAE | cpu::cr4::OSFXSR;
    s.efer = cpu::efer::LME | cpu::efer::LMA;
    s.cr3 = root.value();
    s.gpr[cpu::RSP] = kStack;
    s.gdtr = {kGdt, 23};
    s.idtr = {kIdt, 4095};
    return s;
  }

  machine::test::TestMachine m{16, 32};
  const cpu::CpuModel model = *cpu::CpuModel::by_name("default");
  SteadyTsc tsc;
  QueuedInterrupts interrupts;
  std::unique_ptr<Machine> vm;
  std::unique_ptr<engine::Vcpu> vcpu;
};

TEST_F(KvmVcpuTest, RealModePortsAndHalt) {
  // mov al, 'H'; out 10h, al; in al, 11h; mov [2000h], al; hlt
  start(real_mode(), {0xB0, 'H', 0xE6, 0x10, 0xE4, 0x11, 0xA2, 0x00, 0x20, 0xF4});
  Exit exit = run();
  ASSERT_EQ(exit.kind, ExitKind::port_write) << exit.reason;
  EXPECT_EQ(exit.port, 0x10);
  EXPECT_EQ(exit.size, 1);
  EXPECT_EQ(exit.data, 'H');
  exit = run();
  ASSERT_EQ(exit.kind, ExitKind::port_read) << exit.reason;
  EXPECT_EQ(exit.port, 0x11);
  vcpu->complete(0x99);
  exit = run();
  ASSERT_EQ(exit.kind, ExitKind::halt) << exit.reason;
  EXPECT_TRUE(vcpu->state().halted);
  EXPECT_EQ(vcpu->state().rip, kCode + 10);
  EXPECT_EQ(m.load<std::uint8_t>(PA{0x2000}), 0x99);
  EXPECT_EQ(run().kind, ExitKind::halt) << "still asleep";
}

TEST_F(KvmVcpuTest, StringPortInstructionsAreOneExitAnElement) {
  write(0x2000, {1, 2, 3});
  cpu::VcpuState s = real_mode();
  s.gpr[cpu::RSI] = 0x2000;
  s.gpr[cpu::RDI] = 0x2100;
  s.gpr[cpu::RCX] = 3;
  s.gpr[cpu::RDX] = 0x55;
  // rep outsb; mov cx, 3; rep insb; hlt
  start(s, {0xF3, 0x6E, 0xB9, 0x03, 0x00, 0xF3, 0x6C, 0xF4});
  for (std::uint64_t i = 1; i <= 3; ++i) {
    const Exit exit = run();
    ASSERT_EQ(exit.kind, ExitKind::port_write) << exit.reason;
    EXPECT_EQ(exit.data, i);
  }
  for (std::uint64_t i = 7; i <= 9; ++i) {
    ASSERT_EQ(run().kind, ExitKind::port_read);
    vcpu->complete(i);
  }
  ASSERT_EQ(run().kind, ExitKind::halt);
  EXPECT_EQ(m.load<std::uint8_t>(PA{0x2100}), 7);
  EXPECT_EQ(m.load<std::uint8_t>(PA{0x2102}), 9);
}

TEST_F(KvmVcpuTest, StateAfterAnAnsweredReadIsThatOfAnInstructionBoundary) {
  start(real_mode(), {0xE4, 0x11, 0xF4});  // in al, 11h; hlt
  ASSERT_EQ(run().kind, ExitKind::port_read);
  EXPECT_EQ(vcpu->state().rip, kCode) << "not answered, not executed";
  vcpu->complete(0x42);
  const cpu::VcpuState between = vcpu->state();
  EXPECT_EQ(between.rip, kCode + 2);
  EXPECT_EQ(between.gpr[cpu::RAX] & 0xFF, 0x42U);
  EXPECT_EQ(run().kind, ExitKind::halt);
}

TEST_F(KvmVcpuTest, NewStateForgetsAReadThatNobodyAnswered) {
  start(real_mode(), {0xE4, 0x11, 0xF4});
  ASSERT_EQ(run().kind, ExitKind::port_read);
  cpu::VcpuState s = real_mode();
  s.gpr[cpu::RAX] = 0x1234;
  start(s, {0xE6, 0x12, 0xF4});
  const Exit exit = run();
  ASSERT_EQ(exit.kind, ExitKind::port_write);
  EXPECT_EQ(exit.data, 0x34U);
}

TEST_F(KvmVcpuTest, LongModeDevicesInMemory) {
  // mov eax, [17 MiB]; add eax, 1; mov [17 MiB + 8], rax; hlt
  start(long_mode(), {0x8B, 0x04, 0x25, 0x00, 0x00, 0x10, 0x01, 0x83, 0xC0, 0x01, 0x48, 0x89, 0x04,
                      0x25, 0x08, 0x00, 0x10, 0x01, 0xF4});
  Exit exit = run();
  ASSERT_EQ(exit.kind, ExitKind::mmio_read) << exit.reason;
  EXPECT_EQ(exit.pa, PA{0x110'0000});
  EXPECT_EQ(exit.size, 4);
  vcpu->complete(41);
  exit = run();
  ASSERT_EQ(exit.kind, ExitKind::mmio_write) << exit.reason;
  EXPECT_EQ(exit.pa, PA{0x110'0008});
  EXPECT_EQ(exit.size, 8);
  EXPECT_EQ(exit.data, 42U);
  EXPECT_EQ(run().kind, ExitKind::halt);
}

TEST_F(KvmVcpuTest, RomIsReadAndStoresToItAreDropped) {
  // mov al, [16 MiB]; mov byte [16 MiB], 1; mov ah, [16 MiB]; hlt
  start(long_mode(), {0x8A, 0x04, 0x25, 0x00, 0x00, 0x00, 0x01, 0xC6, 0x04, 0x25, 0x00, 0x00,
                      0x00, 0x01, 0x01, 0x8A, 0x24, 0x25, 0x00, 0x00, 0x00, 0x01, 0xF4});
  const Exit exit = run();
  ASSERT_EQ(exit.kind, ExitKind::halt) << exit.reason;
  EXPECT_EQ(vcpu->state().gpr[cpu::RAX] & 0xFFFF, 0x5A5AU);
}

TEST_F(KvmVcpuTest, MsrsOfTheVmmExitAndTheOthersDoNot) {
  cpu::VcpuState s = long_mode();
  s.gpr[cpu::RCX] = 0x1B;
  // rdmsr; mov ecx, 800h + 30h; wrmsr; mov ecx, IA32_PAT; rdmsr; hlt
  start(s, {0x0F, 0x32, 0xB9, 0x30, 0x08, 0x00, 0x00, 0x0F, 0x30, 0xB9, 0x77, 0x02, 0x00, 0x00,
            0x0F, 0x32, 0xF4});
  Exit exit = run();
  ASSERT_EQ(exit.kind, ExitKind::msr_read) << exit.reason;
  EXPECT_EQ(exit.msr, 0x1BU);
  vcpu->complete(0x1'FEE0'0900);
  exit = run();
  ASSERT_EQ(exit.kind, ExitKind::msr_write) << exit.reason;
  EXPECT_EQ(exit.msr, 0x830U);
  EXPECT_EQ(exit.data, 0x1'FEE0'0900U);
  exit = run();
  ASSERT_EQ(exit.kind, ExitKind::halt) << exit.reason;
  EXPECT_EQ(vcpu->state().gpr[cpu::RAX], s.msr.pat & 0xFFFF'FFFF);
}

TEST_F(KvmVcpuTest, AnMsrThatNobodyKnowsIsAGeneralProtectionFault) {
  cpu::VcpuState s = long_mode();
  s.gpr[cpu::RCX] = 0xDEAD;
  m.store<std::uint64_t>(PA{kIdt + 13 * 16}, 0x0000'8E00'0008'1900);
  write(0x1900, {0xE6, 0x13, 0xF4});  // out 13h, al; hlt
  start(s, {0x0F, 0x32, 0xF4});
  const Exit exit = run();
  ASSERT_EQ(exit.kind, ExitKind::msr_read) << exit.reason;
  vcpu->fail();
  const Exit handled = run();
  ASSERT_EQ(handled.kind, ExitKind::port_write) << handled.reason;
  EXPECT_EQ(handled.port, 0x13);
}

TEST_F(KvmVcpuTest, AnInterruptWaitsForInterruptsToBeEnabled) {
  interrupts.post(32);
  cpu::VcpuState s = long_mode();
  write(0x1800, {0xE6, 0x77, 0xFF, 0xC3, 0x48, 0xCF});  // out 77h, al; inc ebx; iretq
  // out 10h, al; sti; again: test ebx, ebx; jz again; cli; out 11h, al; hlt
  start(s, {0xE6, 0x10, 0xFB, 0x85, 0xDB, 0x74, 0xFC, 0xFA, 0xE6, 0x11, 0xF4});
  for (const unsigned port : {0x10U, 0x77U, 0x11U}) {
    const Exit exit = run();
    ASSERT_EQ(exit.kind, ExitKind::port_write) << exit.reason;
    EXPECT_EQ(exit.port, port);
  }
  EXPECT_EQ(run().kind, ExitKind::halt);
  EXPECT_EQ(vcpu->stats().interrupts, 1U);
}

TEST_F(KvmVcpuTest, TwoInstructionsAreEnoughForAnInterrupt) {
  interrupts.post(32);
  // sti; nop; nop; cli; out 11h, al; hlt
  start(long_mode(), {0xFB, 0x90, 0x90, 0xFA, 0xE6, 0x11, 0xF4});
  const Exit exit = run();
  ASSERT_EQ(exit.kind, ExitKind::port_write) << exit.reason;
  if (exit.port == 0x11 && interrupts.pending()) {
    GTEST_SKIP() << "this host's KVM does not stop where the guest enables interrupts";
  }
  EXPECT_EQ(exit.port, 0x77);
  EXPECT_EQ(run().port, 0x11);
}

TEST_F(KvmVcpuTest, AnInterruptEndsHalt) {
  start(long_mode(), {0xFB, 0xF4, 0xE6, 0x11, 0xF4});  // sti; hlt; out 11h, al; hlt
  ASSERT_EQ(run().kind, ExitKind::halt);
  interrupts.post(32);
  vcpu->interrupt();
  EXPECT_EQ(run().port, 0x77);
  EXPECT_EQ(run().port, 0x11);
}

TEST_F(KvmVcpuTest, AnNmiIsDeliveredWithInterruptsOff) {
  start(long_mode(), {0xF4, 0xE6, 0x11, 0xF4});
  ASSERT_EQ(run().kind, ExitKind::halt);
  interrupts.post_nmi();
  const Exit exit = run();
  ASSERT_EQ(exit.kind, ExitKind::port_write) << exit.reason;
  EXPECT_EQ(exit.port, 0x77);
  EXPECT_EQ(run().port, 0x11);
}

TEST_F(KvmVcpuTest, Cr8IsTheInterruptSources) {
  interrupts.set_cr8(3);
  // mov rax, cr8; out 10h, al; mov al, 9; mov cr8, rax; hlt
  start(long_mode(),
        {0x44, 0x0F, 0x20, 0xC0, 0xE6, 0x10, 0xB0, 0x09, 0x44, 0x0F, 0x22, 0xC0, 0xF4});
  EXPECT_EQ(run().data, 3U);
  ASSERT_EQ(run().kind, ExitKind::halt);
  EXPECT_EQ(interrupts.cr8(), 9U);
}

TEST_F(KvmVcpuTest, KickEndsALoopEveryTime) {
  start(long_mode(), {0xEB, 0xFE});  // jmp $
  for (int i = 0; i < 300; ++i) {
    std::thread other{[&] { vcpu->kick(); }};
    EXPECT_EQ(run().kind, ExitKind::interrupted);
    other.join();
  }
}

TEST_F(KvmVcpuTest, InterruptsFromAnotherThreadAreNeverLost) {
  // sti; jmp $
  start(long_mode(), {0xFB, 0xEB, 0xFE});
  for (int i = 0; i < 300; ++i) {
    std::thread other{[&] {
      interrupts.post(32);
      vcpu->interrupt();
    }};
    EXPECT_EQ(run().port, 0x77);
    other.join();
  }
}

TEST_F(KvmVcpuTest, AnEditUnderTheGuestIsSeenAtItsNextAccess) {
  // again: mov eax, [200000h]; out 10h, eax; mov dword [200000h], 7; jmp again
  start(long_mode(), {0x8B, 0x04, 0x25, 0x00, 0x00, 0x20, 0x00, 0xE7, 0x10, 0xC7, 0x04,
                      0x25, 0x00, 0x00, 0x20, 0x00, 0x07, 0x00, 0x00, 0x00, 0xEB, 0xEA});
  EXPECT_EQ(run().data, 0U);
  EXPECT_EQ(run().data, 7U);
  Flush flush{m.domain};
  must(m.p2m.discard({PPN{0x200}, 1}, flush));
  flush.commit();
  EXPECT_EQ(run().data, 7U) << "stored again after the discard";
  const MPN frame = must(m.frames.allocate(FrameKind::shared_page));
  *m.window().words(frame) = 1234;
  const P2mEntry seen = m.p2m.lookup(PPN{0x200}).entry;
  must(m.p2m.replace(PPN{0x200}, seen, P2mEntry::make(PageState::shared, frame.value()), flush));
  flush.commit();
  EXPECT_EQ(run().data, 7U) << "unshared by the store";
  EXPECT_EQ(m.p2m.lookup(PPN{0x200}).entry.state(), PageState::private_page);
  EXPECT_EQ(*m.window().words(frame), 1234U);
  m.frames.release(frame, FrameKind::shared_page);
}

TEST_F(KvmVcpuTest, NoMemoryForAPageIsAnExitAndCanBeTriedAgain) {
  // mov byte [200000h], 7; hlt
  start(long_mode(), {0xC6, 0x04, 0x25, 0x00, 0x00, 0x20, 0x00, 0x07, 0xF4});
  m.p2m.set_private_limit(m.p2m.private_pages());
  const Exit exit = run();
  ASSERT_EQ(exit.kind, ExitKind::out_of_memory) << exit.reason;
  EXPECT_EQ(exit.pa.page_base(), PA{0x20'0000});
  m.p2m.set_private_limit(~0ULL);
  EXPECT_EQ(run().kind, ExitKind::halt);
  EXPECT_EQ(m.load<std::uint8_t>(PA{0x20'0000}), 7);
}

TEST_F(KvmVcpuTest, TheTscIsTheVmms) {
  // rdtsc; shl rdx, 32; or rax, rdx; out 10h, al; hlt
  start(long_mode(), {0x0F, 0x31, 0x48, 0xC1, 0xE2, 0x20, 0x48, 0x09, 0xD0, 0xE6, 0x10, 0xF4});
  const std::uint64_t host_before = __builtin_ia32_rdtsc();
  const std::uint64_t before = tsc.tsc();
  const Exit exit = run();
  ASSERT_EQ(exit.kind, ExitKind::port_write) << exit.reason;
  const std::uint64_t after = tsc.tsc();
  const std::uint64_t guest = vcpu->state().gpr[cpu::RAX];
  if (guest >= host_before && guest <= __builtin_ia32_rdtsc()) {
    GTEST_SKIP() << "this host's KVM takes a TSC offset and does not apply it";
  }
  constexpr std::uint64_t kApart = 10'000;  // cycles that two readings of one moment differ by
  EXPECT_GE(guest + kApart, before);
  EXPECT_LE(guest, after + kApart);
}

TEST_F(KvmVcpuTest, ATripleFaultSaysSo) {
  cpu::VcpuState s = long_mode();
  s.idtr = {0, 0};
  start(s, {0x0F, 0x0B});
  EXPECT_EQ(run().kind, ExitKind::triple_fault);
}

TEST_F(KvmVcpuTest, StateComesBackAsItWasSet) {
  cpu::VcpuState s = long_mode();
  for (std::size_t i = 0; i < s.gpr.size(); ++i) s.gpr.at(i) = 0x1111'0000'0000 + i;
  s.cr2 = 0x1234;
  s.dr[0] = 0x5678;
  s.msr.lstar = 0xFFFF'8000'0000'1000;
  s.msr.kernel_gs_base = 0x42000;
  for (std::size_t i = 0; i < 16; ++i) s.vector.ymm.at(i) = {i, i + 1, 0, 0};
  s.nmi_blocked = true;
  vcpu->set_state(s);
  cpu::VcpuState back = vcpu->state();
  EXPECT_EQ(back.gpr, s.gpr);
  EXPECT_EQ(back.rip, s.rip);
  EXPECT_EQ(back.rflags, s.rflags);
  EXPECT_EQ(back.cr0, s.cr0);
  EXPECT_EQ(back.cr2, s.cr2);
  EXPECT_EQ(back.cr3, s.cr3);
  EXPECT_EQ(back.cr4, s.cr4);
  EXPECT_EQ(back.efer, s.efer);
  EXPECT_EQ(back.dr, s.dr);
  EXPECT_EQ(back.msr, s.msr);
  EXPECT_EQ(back.vector, s.vector);
  EXPECT_EQ(back.gdtr, s.gdtr);
  EXPECT_TRUE(back.nmi_blocked);
  EXPECT_FALSE(back.halted);
}

}  // namespace
}  // namespace strata::kvm
