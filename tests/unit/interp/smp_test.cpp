// Several Cores on one memory, each on a thread of its own: locked accesses, cross-modifying code,
// translations that change under running vCPUs. The counts of rounds make a broken mechanism show
// within one run; nothing depends on time.
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "test_support.hpp"

namespace strata::interp::test {
namespace {

/// Identity translation that any thread may ask; one page's frame can be exchanged.
class SharedMmu final : public Mmu {
 public:
  static constexpr std::uint64_t kMoving = 0x200000;

  explicit SharedMmu(std::byte* base, std::size_t bytes) : base_{base}, bytes_{bytes} {}
  std::string_view name() const noexcept override { return "shared"; }
  void set_context(VcpuId, const PagingContext&) override {}
  Expected<Translation, Fault> translate(VcpuId, VA va, Access) override {
    if (va.value() >= bytes_) {
      return Unexpected{Fault{Stage::guest_table, FaultKind::page_fault, 0, va, {}}};
    }
    Translation t;
    const bool moving = va.page_base().value() == kMoving;
    t.page = MA{moving ? frame.load() : va.page_base().value()};
    t.pa = PA{va.page_base().value()};
    t.readable = t.writable = t.executable = true;
    return t;
  }
  void invalidate_page(VcpuId, VA) override {}
  void invalidate(VcpuId, FlushScope, std::uint16_t, VA) override {}
  void guest_wrote(PA, std::uint64_t) override {}
  MmuStats stats() const noexcept override { return {}; }
  void p2m_changed(PpnRange, Flush&) override {}
  [[nodiscard]] MachineWindow window() const noexcept { return MachineWindow{base_}; }

  std::atomic<std::uint64_t> frame{kMoving};

 private:
  std::byte* base_;
  std::size_t bytes_;
};

std::vector<std::uint8_t> code(const std::string& hex) {
  std::istringstream in{hex};
  std::vector<std::uint8_t> bytes;
  for (unsigned b = 0; in >> std::hex >> b;) bytes.push_back(static_cast<std::uint8_t>(b));
  return bytes;
}

class SmpTest : public ::testing::Test {
 protected:
  static constexpr std::size_t kBytes = 4U << 20;
  static constexpr std::uint64_t kCode = 0x10000, kData = 0x100000, kStack = 0x80000;
  static constexpr unsigned kCores = 3;

  void SetUp() override {
    for (VcpuId id = 0; id < kCores; ++id) {
      CoreEnvironment e;
      e.id = id;
      e.mmu = &mmu_;
      e.window = mmu_.window();
      e.flush_domain = &domain_;
      e.interrupts = &interrupts_.at(id);
      e.tsc = &tsc_.at(id);
      e.model = &model_;
      e.vcpus = kCores;
      e.group = &group_;
      e.block_cache_bytes = 1U << 20;
      cores_.at(id) = make_test_core(e);
    }
  }

  [[nodiscard]] std::byte* at(std::uint64_t pa) const { return mmu_.window().host(MA{pa}); }
  template <class T>
  [[nodiscard]] T read(std::uint64_t pa) const {
    T v;
    std::memcpy(&v, at(pa), sizeof v);
    return v;
  }
  template <class T>
  void poke(std::uint64_t pa, T v) {
    std::memcpy(at(pa), &v, sizeof v);
  }

  /// vCPU `id` will run `hex` with these registers, up to its HLT.
  cpu::VcpuState& prepare(VcpuId id, const std::string& hex) {
    const std::vector<std::uint8_t> bytes = code(hex);
    const std::uint64_t where = kCode + id * 0x1000;
    std::memcpy(at(where), bytes.data(), bytes.size());
    cpu::VcpuState& s = states_.at(id);
    s = Machine::long_mode_state();
    s.rip = where;
    s.gpr[cpu::RSP] = kStack + id * 0x1000;
    return s;
  }
  std::thread start(VcpuId id) {
    cores_.at(id)->set_state(states_.at(id));
    return std::thread{[this, id] { exits_.at(id) = cores_.at(id)->run(); }};
  }
  void run(std::initializer_list<VcpuId> ids) {
    std::vector<std::thread> threads;
    for (const VcpuId id : ids) threads.push_back(start(id));
    for (std::thread& t : threads) t.join();
    for (const VcpuId id : ids) {
      EXPECT_EQ(exits_.at(id).kind, engine::ExitKind::halt) << "vCPU " << id;
    }
  }
  [[nodiscard]] std::uint64_t gpr(VcpuId id, cpu::Gpr which) const {
    return cores_.at(id)->state().gpr.at(which);
  }

  std::vector<std::byte> memory_{kBytes + kPageSize};
  SharedMmu mmu_{
      memory_.data() +
          (kPageSize - reinterpret_cast<std::uintptr_t>(memory_.data()) % kPageSize) % kPageSize,
      kBytes};
  FlushDomain domain_;
  VcpuGroup group_{kBytes / kPageSize};
  cpu::CpuModel model_{*cpu::CpuModel::by_name("default")};
  std::array<FakeInterrupts, kCores> interrupts_;
  std::array<FakeTsc, kCores> tsc_;
  std::array<std::unique_ptr<Core>, kCores> cores_;
  std::array<cpu::VcpuState, kCores> states_;
  std::array<engine::Exit, kCores> exits_;
};

// lock inc qword [rbx]; dec ecx; jnz; hlt
const char* const kLockInc = "F0 48 FF 03 FF C9 75 F8 F4";

TEST_F(SmpTest, LockedIncrementsAreNeverLost) {
  constexpr std::uint64_t kRounds = 200'000;
  for (VcpuId id = 0; id < kCores; ++id) {
    cpu::VcpuState& s = prepare(id, kLockInc);
    s.gpr[cpu::RBX] = kData;
    s.gpr[cpu::RCX] = kRounds;
  }
  run({0, 1, 2});
  EXPECT_EQ(read<std::uint64_t>(kData), kCores * kRounds);
}

/// Operands across a cache line, and across a page.
class SplitLock : public SmpTest, public ::testing::WithParamInterface<std::uint64_t> {};

TEST_P(SplitLock, IsOneStepToTheOthersLocksAndPlainStores) {
  constexpr std::uint64_t kRounds = 20'000, kGo = kData + 0x10000, kDone = kData + 0x11000;
  const std::uint64_t operand = GetParam();
  for (const VcpuId id : {0U, 1U}) {
    // w: pause; cmp dword [rdx], 0; je w; l: lock add qword [rbx], 1; dec ecx; jnz l;
    // lock inc dword [rdi]; hlt
    cpu::VcpuState& s = prepare(id, "F3 90 83 3A 00 74 F9 F0 48 83 03 01 FF C9 75 F7 F0 FF 07 F4");
    s.gpr[cpu::RBX] = operand;
    s.gpr[cpu::RCX] = kRounds;
    s.gpr[cpu::RDX] = kGo;
    s.gpr[cpu::RDI] = kDone;
  }
  // Until both are done, plain stores to the operand's last byte, which must never be undone by the
  // others' locked additions. Past the store buffer, and a while later, they must still be there:
  // mov dword [rdx], 1; l: inc al; mov [rbx+7], al; mfence; mov ecx, 20; d: dec ecx; jnz d;
  // cmp [rbx+7], al; jne bad; cmp dword [rdi], 2; jne l; hlt; bad: mov r15d, 1; hlt
  cpu::VcpuState& s = prepare(2,
                              "C7 02 01 00 00 00 FE C0 88 43 07 0F AE F0 B9 14 00 00 00 FF C9 75 "
                              "FC 38 43 07 75 06 83 3F 02 75 E5 F4 41 BF 01 00 00 00 F4");
  s.gpr[cpu::RBX] = operand;
  s.gpr[cpu::RDX] = kGo;
  s.gpr[cpu::RDI] = kDone;
  run({0, 1, 2});
  EXPECT_EQ(gpr(2, cpu::R15), 0U) << "a plain store was lost";
  EXPECT_EQ(read<std::uint64_t>(operand) & 0x00FF'FFFF'FFFF'FFFF, 2 * kRounds);
}
INSTANTIATE_TEST_SUITE_P(Operands, SplitLock,
                         ::testing::Values(0x100000 + 60, 0x100000 + 4092, 0x100000 + 4095));

TEST_F(SmpTest, Cmpxchg16bChangesBothHalvesTogether) {
  constexpr std::uint64_t kRounds = 50'000;
  for (VcpuId id = 0; id < kCores; ++id) {
    // mov rdi, rbx; next: mov rax, [rdi]; mov rdx, [rdi+8]; again: rbx:rcx = rax + 1, rdx + 1;
    // lock cmpxchg16b [rdi]; jnz again; dec r8d; jnz next; hlt
    cpu::VcpuState& s = prepare(id,
                                "48 89 DF 48 8B 07 48 8B 57 08 48 89 C3 48 89 D1 48 FF C3 48 FF C1 "
                                "F0 48 0F C7 0F 75 ED 41 FF C8 75 E1 F4");
    s.gpr[cpu::RBX] = kData;
    s.gpr[cpu::R8] = kRounds;
  }
  run({0, 1, 2});
  EXPECT_EQ(read<std::uint64_t>(kData), kCores * kRounds);
  EXPECT_EQ(read<std::uint64_t>(kData + 8), kCores * kRounds);
}

TEST_F(SmpTest, XaddHandsOutEveryTicketOnce) {
  constexpr std::uint64_t kRounds = 100'000;
  for (VcpuId id = 0; id < kCores; ++id) {
    // l: mov eax, 1; lock xadd [rbx], eax; add r14, rax; dec ecx; jnz l; hlt
    cpu::VcpuState& s = prepare(id, "B8 01 00 00 00 F0 0F C1 03 49 01 C6 FF C9 75 F0 F4");
    s.gpr[cpu::RBX] = kData;
    s.gpr[cpu::RCX] = kRounds;
  }
  run({0, 1, 2});
  constexpr std::uint64_t kTickets = kCores * kRounds;
  EXPECT_EQ(gpr(0, cpu::R14) + gpr(1, cpu::R14) + gpr(2, cpu::R14), kTickets * (kTickets - 1) / 2);
}

/// SDM 3A 8.1.3: one vCPU changes the immediate of `mov eax, imm32; ret` and sets a flag; two
/// others see the flag, serialize with CPUID, call the function and answer.
class CrossModifying : public SmpTest, public ::testing::WithParamInterface<std::uint64_t> {};

TEST_P(CrossModifying, NobodyRunsTheOldCode) {
  constexpr std::uint64_t kRounds = 100, kFlag = kData, kAck = kData + 0x1000;
  const std::uint64_t function = GetParam();
  const auto body = code("B8 00 00 00 00 C3");
  std::memcpy(at(function), body.data(), body.size());
  // mov eax, 1; l: mov [rdi], eax; mov [rsi], eax; w: pause; cmp [rdx], eax; jne w;
  // v: pause; cmp [rdx+64], eax; jne v; inc eax; cmp eax, ecx; jbe l; hlt
  cpu::VcpuState& writer = prepare(0,
                                   "B8 01 00 00 00 89 07 89 06 F3 90 39 02 75 FA F3 90 39 42 40 75 "
                                   "F9 FF C0 39 C8 76 E9 F4");
  writer.gpr[cpu::RDI] = function + 1;
  writer.gpr[cpu::RSI] = kFlag;
  writer.gpr[cpu::RDX] = kAck;
  writer.gpr[cpu::RCX] = kRounds;
  for (const VcpuId id : {1U, 2U}) {
    // mov r9, rdx; mov r8d, ecx; mov r10d, 1; l: pause; cmp [rsi], r10d; jne l; xor eax, eax;
    // cpuid; call rdi; cmp eax, r10d; jne bad; mov [r9], r10d; inc r10d; cmp r10d, r8d; jbe l; hlt
    // bad: mov r15d, 1; and on as above
    cpu::VcpuState& s =
        prepare(id,
                "49 89 D1 41 89 C8 41 BA 01 00 00 00 F3 90 44 39 16 75 F9 31 C0 0F A2 FF D7 44 39 "
                "D0 75 0C 45 89 11 41 FF C2 45 39 C2 76 E3 F4 41 BF 01 00 00 00 45 89 11 41 FF C2 "
                "45 39 C2 76 D1 F4");
    s.gpr[cpu::RDI] = function;
    s.gpr[cpu::RSI] = kFlag;
    s.gpr[cpu::RDX] = kAck + (id - 1) * 64;
    s.gpr[cpu::RCX] = kRounds;
  }
  run({0, 1, 2});
  EXPECT_EQ(gpr(1, cpu::R15), 0U);
  EXPECT_EQ(gpr(2, cpu::R15), 0U);
  EXPECT_EQ(read<std::uint32_t>(kAck), kRounds);
}
// In one page; with the function beside data that the writer stores to; across two pages.
INSTANTIATE_TEST_SUITE_P(Places, CrossModifying,
                         ::testing::Values(0x150000, 0x100000 + 0x800, 0x152000 - 3));

TEST_F(SmpTest, ATranslationThatWentIsNotUsedOnceTheWaitIsOver) {
  constexpr std::uint64_t kPoison = 0xDEADDEADDEADDEAD, kStop = kData;
  constexpr std::array<std::uint64_t, 2> kFrames{SharedMmu::kMoving, SharedMmu::kMoving + 0x1000};
  for (VcpuId id = 0; id < kCores; ++id) {
    // l: mov rax, [rdi]; cmp rax, r12; je bad; cmp dword [rsi], 0; je l; hlt; bad: mov r15d, 1; hlt
    cpu::VcpuState& s =
        prepare(id, "48 8B 07 4C 39 E0 74 06 83 3E 00 74 F3 F4 41 BF 01 00 00 00 F4");
    s.gpr[cpu::RDI] = SharedMmu::kMoving;
    s.gpr[cpu::RSI] = kStop;
    s.gpr[cpu::R12] = kPoison;
  }
  std::vector<std::thread> threads;
  for (VcpuId id = 0; id < kCores; ++id) threads.push_back(start(id));
  const auto word = [this](std::uint64_t pa) {
    return std::atomic_ref{*reinterpret_cast<std::uint64_t*>(at(pa))};
  };
  for (std::uint64_t round = 0; round < 50; ++round) {
    const std::uint64_t from = kFrames.at(round % 2);
    const std::uint64_t to = kFrames.at(1 - round % 2);
    word(to).store(round);
    mmu_.frame.store(to);
    const Epoch epoch =
        domain_.publish({.all = false, .ranges = {{page_of(PA{SharedMmu::kMoving}), 1}}}, {});
    domain_.wait(epoch);
    word(from).store(kPoison);
  }
  std::atomic_ref{*reinterpret_cast<std::uint32_t*>(at(kStop))}.store(1);
  for (std::thread& t : threads) t.join();
  for (VcpuId id = 0; id < kCores; ++id) EXPECT_EQ(gpr(id, cpu::R15), 0U) << "vCPU " << id;
}

// A translator may leave flags that the code behind a jump does not read; once that code does read
// them, the jump's block must know.
TEST_F(SmpTest, PatchedCodeFindsTheFlagsOfCodeBeforeIt) {
  (void)prepare(1, "31 C0 EB 00 31 C9 90 F4");  // xor eax, eax; jmp $+2; xor ecx, ecx; nop; hlt
  run({1});
  EXPECT_EQ(gpr(1, cpu::RCX), 0U);
  const std::array<std::uint8_t, 3> sete_cl{0x0F, 0x94, 0xC1};
  for (unsigned n = 0; n < 3; ++n) poke<std::uint8_t>(kCode + 0x1004 + n, sete_cl[n]);
  cores_[1]->memory_written(PA{kCode + 0x1004}, 3);
  run({1});
  EXPECT_EQ(gpr(1, cpu::RCX) & 0xFF, 1U);
}

TEST_F(SmpTest, ASleepingVcpusMailboxStaysSmallAndForgetsNothing) {
  (void)prepare(1, "B8 01 00 00 00 F4");  // mov eax, 1; hlt
  run({1});
  EXPECT_EQ(gpr(1, cpu::RAX), 1U);
  // More notices than a mailbox lists, the one that matters last.
  for (std::uint64_t i = 0; i < 1000; ++i) cores_[1]->memory_written(PA{kData + i}, 1);
  poke<std::uint8_t>(kCode + 0x1001, 2);
  cores_[1]->memory_written(PA{kCode + 0x1001}, 1);
  for (std::uint64_t i = 0; i < 1000; ++i) (void)cores_[1]->post_revocation(PPN{i});
  run({1});
  EXPECT_EQ(gpr(1, cpu::RAX), 2U);
}

TEST_F(SmpTest, AStoreToAPageThatAnotherVcpuHasCodeOfIsAnnounced) {
  // vCPU 0 caches a writable translation of the page before vCPU 1 decodes from it.
  const std::uint64_t other_code = kCode + 0x1000;
  // mov byte [rdi], 7; hlt
  cpu::VcpuState& s = prepare(0, "C6 07 07 F4");
  s.gpr[cpu::RDI] = other_code + 0x800;
  run({0});
  (void)prepare(1, "B8 01 00 00 00 F4");  // mov eax, 1; hlt
  run({1});
  states_[0].gpr[cpu::RDI] = other_code + 1;  // its immediate
  run({0});
  run({1});
  EXPECT_EQ(gpr(1, cpu::RAX), 7U);
}

TEST_F(SmpTest, PauseInAFullLoopLetsOthersRun) {
  // l: pause; dec ecx; jnz l; hlt: every PAUSE retires exactly once, rests included.
  cpu::VcpuState& s = prepare(0, "F3 90 FF C9 75 FA F4");
  s.gpr[cpu::RCX] = 1000;
  const std::uint64_t before = cores_[0]->stats().instructions;
  run({0});
  EXPECT_EQ(cores_[0]->stats().instructions - before, 3 * 1000 + 1U);
}

TEST(CodePages, AWriterAndACoderNeverBothHaveThePage) {
  CodePages pages{16};
  EXPECT_TRUE(pages.claim_write(PPN{3}, 0));
  EXPECT_TRUE(pages.claim_write(PPN{3}, 2));
  EXPECT_EQ(pages.claim_code(PPN{3}, 1), 0b101);  // both have to let go
  EXPECT_FALSE(pages.claim_write(PPN{3}, 0));
  pages.release_write(PPN{3}, 0);
  EXPECT_EQ(pages.claim_code(PPN{3}, 4), 0b100);
  EXPECT_EQ(pages.coders(PPN{3}), 0b10010);
  pages.release_code(PPN{3}, 1);
  EXPECT_FALSE(pages.claim_write(PPN{3}, 0));
  pages.release_code(PPN{3}, 4);
  EXPECT_TRUE(pages.claim_write(PPN{3}, 0));
  EXPECT_EQ(pages.coders(PPN{4}), 0);
}

TEST(CodePages, PagesBeyondTheEndAreOnlySlower) {
  CodePages pages{16};
  EXPECT_TRUE(pages.claim_write(PPN{100}, 0));
  EXPECT_EQ(pages.claim_code(PPN{1ULL << 40}, 1), 0b1);
  EXPECT_FALSE(pages.claim_write(PPN{100}, 0));
  pages.release_code(PPN{1ULL << 40}, 1);
  EXPECT_FALSE(pages.claim_write(PPN{100}, 0));
  EXPECT_EQ(pages.coders(PPN{99}), 0b10);
}

}  // namespace
}  // namespace strata::interp::test
