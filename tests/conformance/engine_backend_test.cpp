// The same guest programs under every engine on every backend: what a guest may see does not depend
// on which they are.
#include <gtest/gtest.h>

#include "small_vm.hpp"

namespace strata::conformance {
namespace {

using cpu::RAX;
using cpu::RBX;
using cpu::RCX;
using cpu::RDI;
using cpu::RDX;
using engine::ExitKind;

class EngineBackend : public testing::TestWithParam<Subject> {
 protected:
  SmallVm vm{GetParam().backend, false, 16, GetParam().engine};
  cpu::VcpuState state = vm.start_state();
};

TEST_P(EngineBackend, LoadsAndStoresReachGuestMemory) {
  state.gpr[RBX] = SmallVm::kWindow + 0x10;
  state.gpr[RAX] = 0x1122334455667788;
  // mov [rbx], rax; mov rcx, [rbx]; hlt
  EXPECT_EQ(vm.run({0x48, 0x89, 0x03, 0x48, 0x8B, 0x0B, 0xF4}, state).kind, ExitKind::halt);
  EXPECT_EQ(vm.gpr(RCX), 0x1122334455667788U);
  EXPECT_EQ(vm.machine.load<std::uint64_t>(PA{SmallVm::kWindowPa + 0x10}), 0x1122334455667788U);
}

TEST_P(EngineBackend, AccessedAndDirtyBitsAppearInTheGuestsTables) {
  state.gpr[RBX] = SmallVm::kWindow;
  state.gpr[RDX] = SmallVm::kWindow + kPageSize;
  // mov rax, [rbx]; mov [rdx], rax; hlt
  ASSERT_EQ(vm.run({0x48, 0x8B, 0x03, 0x48, 0x89, 0x02, 0xF4}, state).kind, ExitKind::halt);
  const auto read_entry = vm.machine.load<std::uint64_t>(vm.window_entry(0));
  const auto written_entry = vm.machine.load<std::uint64_t>(vm.window_entry(1));
  EXPECT_EQ(read_entry & 0x60, 0x20U) << "read: accessed, not dirty";
  EXPECT_EQ(written_entry & 0x60, 0x60U) << "written: accessed and dirty";
  EXPECT_EQ(vm.machine.load<std::uint64_t>(vm.window_entry(2)) & 0x60, 0U) << "untouched";
}

TEST_P(EngineBackend, APageFaultCarriesItsAddressAndCode) {
  // Handler: mov rdi, cr2; pop rdx; hlt
  vm.on_page_fault({0x0F, 0x20, 0xD7, 0x5A, 0xF4});
  vm.machine.store<std::uint64_t>(vm.window_entry(3), 0);
  state.gpr[RBX] = SmallVm::kWindow + 3 * kPageSize + 0x123;
  // mov byte [rbx], 5; hlt
  ASSERT_EQ(vm.run({0xC6, 0x03, 0x05, 0xF4}, state).kind, ExitKind::halt);
  EXPECT_EQ(vm.gpr(RDI), SmallVm::kWindow + 3 * kPageSize + 0x123);
  EXPECT_EQ(vm.gpr(RDX), pf::kWrite);
}

TEST_P(EngineBackend, AReadOnlyPageFaultsOnWritesOnly) {
  vm.on_page_fault({0x5A, 0xF4});  // pop rdx; hlt
  const PA entry = vm.window_entry(4);
  vm.machine.store(entry, vm.machine.load<std::uint64_t>(entry) & ~2ULL);
  state.gpr[RBX] = SmallVm::kWindow + 4 * kPageSize;
  state.gpr[RDX] = 0xFFFF;
  // mov rax, [rbx]; mov rcx, 7; mov [rbx], rax; hlt
  ASSERT_EQ(
      vm.run({0x48, 0x8B, 0x03, 0x48, 0xC7, 0xC1, 7, 0, 0, 0, 0x48, 0x89, 0x03, 0xF4}, state).kind,
      ExitKind::halt);
  EXPECT_EQ(vm.gpr(RCX), 7U) << "the read passed";
  EXPECT_EQ(vm.gpr(RDX), pf::kWrite | pf::kPresent);
}

TEST_P(EngineBackend, ARemappedPageIsSeenAfterInvlpg) {
  vm.machine.store<std::uint64_t>(PA{SmallVm::kWindowPa + 5 * kPageSize}, 0xAAAA);
  vm.machine.store<std::uint64_t>(PA{SmallVm::kWindowPa + 6 * kPageSize}, 0xBBBB);
  state.gpr[RBX] = SmallVm::kWindow + 5 * kPageSize;
  state.gpr[RDX] = vm.window_entry(5).value();  // identity-mapped
  state.gpr[RDI] = vm.machine.load<std::uint64_t>(vm.window_entry(6));
  // mov rax, [rbx]; mov [rdx], rdi; invlpg [rbx]; mov rcx, [rbx]; hlt
  ASSERT_EQ(
      vm.run({0x48, 0x8B, 0x03, 0x48, 0x89, 0x3A, 0x0F, 0x01, 0x3B, 0x48, 0x8B, 0x0B, 0xF4}, state)
          .kind,
      ExitKind::halt);
  EXPECT_EQ(vm.gpr(RAX), 0xAAAAU);
  EXPECT_EQ(vm.gpr(RCX), 0xBBBBU);
}

TEST_P(EngineBackend, CodeThatRewritesItselfIsHonoured) {
  state.gpr[RBX] = SmallVm::kCode + 7;  // the immediate of the mov below
  // mov dword [rbx], 9 ; (7: inside) mov eax, 1 ; hlt
  ASSERT_EQ(vm.run({0xC7, 0x03, 9, 0, 0, 0, 0xB8, 1, 0, 0, 0, 0xF4}, state).kind, ExitKind::halt);
  EXPECT_EQ(vm.gpr(RAX), 9U);
}

TEST_P(EngineBackend, CodeWrittenByADeviceIsHonoured) {
  ASSERT_EQ(vm.run({0xB8, 1, 0, 0, 0, 0xF4}, state).kind, ExitKind::halt);
  ASSERT_EQ(vm.gpr(RAX), 1U);
  ASSERT_EQ(vm.run({0xB8, 2, 0, 0, 0, 0xF4}, state).kind, ExitKind::halt);
  EXPECT_EQ(vm.gpr(RAX), 2U);
}

TEST_P(EngineBackend, AnUntouchedPageReadsZeroAndCostsNothing) {
  const std::uint64_t before = vm.machine.p2m.private_pages();
  state.gpr[RBX] = SmallVm::kWindow + 7 * kPageSize;
  state.gpr[RAX] = ~0ULL;
  ASSERT_EQ(vm.run({0x48, 0x8B, 0x03, 0xF4}, state).kind, ExitKind::halt);
  EXPECT_EQ(vm.gpr(RAX), 0U);
  // Only the code page got memory.
  EXPECT_LE(vm.machine.p2m.private_pages(), before + 1);
  EXPECT_EQ(vm.machine.p2m.lookup(page_of(PA{SmallVm::kWindowPa + 7 * kPageSize})).entry.state(),
            PageState::zero);
}

TEST_P(EngineBackend, ADiscardedPageIsForgottenByTlbAndTables) {
  state.gpr[RBX] = SmallVm::kWindow + 8 * kPageSize;
  state.gpr[RAX] = 0x77;
  ASSERT_EQ(vm.run({0x48, 0x89, 0x03, 0xF4}, state).kind, ExitKind::halt);
  Flush flush{vm.machine.domain};
  const PPN ppn = page_of(PA{SmallVm::kWindowPa + 8 * kPageSize});
  ASSERT_TRUE(vm.machine.p2m.discard({ppn, 1}, flush));
  flush.commit();
  // mov rcx, [rbx]; hlt
  ASSERT_EQ(vm.run({0x48, 0x8B, 0x0B, 0xF4}, state).kind, ExitKind::halt);
  EXPECT_EQ(vm.gpr(RCX), 0U);
}

TEST_P(EngineBackend, ACorruptedTableEntryChangesWhatTheGuestSees) {
  if (GetParam().backend == kTableless) GTEST_SKIP() << "it has no tables";
  vm.machine.store<std::uint64_t>(PA{SmallVm::kWindowPa + 9 * kPageSize}, 0x1111);
  vm.machine.store<std::uint64_t>(PA{SmallVm::kWindowPa + 10 * kPageSize}, 0x2222);
  state.gpr[RBX] = SmallVm::kWindow + 9 * kPageSize;
  ASSERT_EQ(vm.run({0x48, 0x8B, 0x03, 0xF4}, state).kind, ExitKind::halt);
  ASSERT_EQ(vm.gpr(RAX), 0x1111U);
  // Point whatever entries lead to the page at its neighbour.
  constexpr std::uint64_t kAddress = 0x000F'FFFF'FFFF'F000;
  const PPN ppn = page_of(PA{SmallVm::kWindowPa + 9 * kPageSize});
  const std::uint64_t from = address_of(vm.machine.p2m.home_of(ppn)).value();
  unsigned corrupted = 0;
  for (const MPN table : vm.frames.tables) {
    std::uint64_t* words = vm.machine.window().words(table);
    for (unsigned i = 0; i < 512; ++i) {
      if ((words[i] & 1) != 0 && (words[i] & kAddress) == from) {
        words[i] += kPageSize;
        ++corrupted;
      }
    }
  }
  ASSERT_GE(corrupted, 1U);
  Flush flush{vm.machine.domain};
  flush.add_all();
  flush.commit();  // the engine's TLB; the backend's own caches are off
  ASSERT_EQ(vm.run({0x48, 0x8B, 0x03, 0xF4}, state).kind, ExitKind::halt);
  EXPECT_EQ(vm.gpr(RAX), 0x2222U);
}

INSTANTIATE_TEST_SUITE_P(Subjects, EngineBackend, testing::ValuesIn(subjects(backends())),
                         [](const auto& instance) { return name_of(instance.param); });

}  // namespace
}  // namespace strata::conformance
