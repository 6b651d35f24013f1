// FXSAVE, the XSAVE family, XCR0 and PKRU: layout against the host's own instructions, checks
// against the manual.
#include <gtest/gtest.h>

#include "vector_compare.hpp"

namespace strata::interp::test {
namespace {

using Bytes = std::vector<std::uint8_t>;

class XsaveTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (__builtin_cpu_supports("avx2") == 0) GTEST_SKIP() << "the oracle needs AVX2";
  }

  static std::uint8_t u8(std::uint64_t v) { return static_cast<std::uint8_t>(v); }

  /// Registers of which some components are in their initial configuration.
  UnitState registers() {
    UnitState s = g.state(false);
    if (g.chance(30)) s.mxcsr = 0x1F80;
    const std::uint64_t used = g.random();
    for (auto& y : s.ymm) {
      if ((used & 1) == 0) y[0] = y[1] = 0;
      if ((used & 2) == 0) y[2] = y[3] = 0;
    }
    if ((used & 4) != 0) {
      s.fx[2] = 0;
      s.fx[3] = u8(g.below(8) << 3);
      s.fx[4] = u8(g.random());
      for (unsigned at = 32; at < 160; ++at) {
        if (at % 16 < 10) s.fx[at] = u8(g.random());
      }
    }
    s.gpr[cpu::RBX] = NativeCpu::kData + 4096;
    s.gpr[cpu::RAX] = g.random() & 7;
    s.gpr[cpu::RDX] = 0;
    return s;
  }

  void fill(std::uint64_t va, std::size_t bytes) {
    for (auto& b : c.native.data().subspan(va - NativeCpu::kData, bytes)) b = u8(g.random());
  }
  template <class T>
  void poke(std::uint64_t va, T v) {
    std::memcpy(c.native.data().data() + (va - NativeCpu::kData), &v, sizeof v);
  }
  template <class T>
  T peek(std::uint64_t va) {
    T v;
    std::memcpy(&v, c.guest.data().data() + (va - NativeCpu::kData), sizeof v);
    return v;
  }
  /// The pointers in a stored image are each side's own.
  void forget_pointers(std::uint64_t va) {
    for (const auto data : {c.native.data(), c.guest.data()}) {
      std::memset(data.data() + (va - NativeCpu::kData) + 6, 0, 18);
    }
  }

  int trap(const Bytes& code, const UnitState& in) { return c.guest.run(code, in).trap; }

  Comparison c;
  Generator g{1313};
  static constexpr std::uint64_t kArea = NativeCpu::kData + 4096;
};

const Bytes kFxsave{0x0F, 0xAE, 0x03}, kFxsave64{0x48, 0x0F, 0xAE, 0x03};
const Bytes kFxrstor{0x0F, 0xAE, 0x0B}, kFxrstor64{0x48, 0x0F, 0xAE, 0x0B};
const Bytes kXsave{0x0F, 0xAE, 0x23}, kXsave64{0x48, 0x0F, 0xAE, 0x23};
const Bytes kXsaveopt{0x0F, 0xAE, 0x33}, kXsavec64{0x48, 0x0F, 0xC7, 0x23};
const Bytes kXrstor{0x0F, 0xAE, 0x2B}, kXrstor64{0x48, 0x0F, 0xAE, 0x2B};

TEST_F(XsaveTest, FxsaveStoresTheHostsLayout) {
  for (unsigned n = 0; n < 400; ++n) {
    const UnitState in = registers();
    fill(kArea, 512);
    static_cast<void>(c.run(n % 2 == 0 ? kFxsave : kFxsave64, in));
    forget_pointers(kArea);
    // What the host's MXCSR_MASK says beyond bit 15 is not the guest's.
    const std::uint32_t mask = 0xFFFF;
    EXPECT_EQ(peek<std::uint32_t>(kArea + 28), mask);
    poke(kArea + 28, mask);
    EXPECT_EQ(c.differences(), "");
  }
}

TEST_F(XsaveTest, FxrstorLoadsWhateverTheHostLoads) {
  for (unsigned n = 0; n < 600; ++n) {
    const UnitState in = registers();
    fill(kArea, 512);
    if (g.chance(90)) poke(kArea + 24, std::uint32_t{in.mxcsr & 0xFFBF});
    const bool refused = c.run(n % 2 == 0 ? kFxrstor : kFxrstor64, in) != "";
    EXPECT_FALSE(refused) << c.differences();
  }
}

TEST_F(XsaveTest, XsaveFamilyStoresTheHostsLayout) {
  std::array<unsigned, 4> compared{};
  for (unsigned n = 0; n < 1500; ++n) {
    const UnitState in = registers();
    fill(kArea, 1024);
    // A header as software makes it: zero, or a legal earlier one.
    for (unsigned at = 0; at < 64; at += 8) poke<std::uint64_t>(kArea + 512 + at, 0);
    poke<std::uint64_t>(kArea + 512, g.below(8));
    const std::array codes{&kXsave, &kXsave64, &kXsaveopt, &kXsavec64};
    const Bytes& code = *codes[n % 4];
    static_cast<void>(c.run(code, in));
    forget_pointers(kArea);
    // A processor may count a component as used that is in its initial configuration
    // (SDM 1 13.6), never the other way round.
    std::uint8_t& host_bv = c.native.data()[4096 + 512];
    const std::uint8_t guest_bv = c.guest.data()[4096 + 512];
    EXPECT_EQ(guest_bv & ~host_bv, 0);
    // XSAVEC counts MXCSR as SSE state (SDM 1 13.10).
    if (n % 4 == 3 && in.mxcsr != 0x1F80) {
      EXPECT_EQ(guest_bv & 2U, in.gpr[cpu::RAX] & 2);
    }
    // The forms that leave such components out store something else then.
    if (n % 4 >= 2 && host_bv != guest_bv) continue;
    host_bv = guest_bv;
    if (peek<std::uint32_t>(kArea + 28) == 0xFFFF) poke<std::uint32_t>(kArea + 28, 0xFFFF);
    EXPECT_EQ(c.differences(), "") << "code " << n % 4 << " rfbm " << in.gpr[cpu::RAX];
    compared[n % 4] += 1;
    if (HasFailure()) break;
  }
  for (const unsigned count : compared) EXPECT_GT(count, 100U);
}

TEST_F(XsaveTest, XrstorLoadsWhateverTheHostLoads) {
  unsigned refused = 0;
  for (unsigned n = 0; n < 3000; ++n) {
    const UnitState in = registers();
    fill(kArea, 1024);
    if (g.chance(90)) poke(kArea + 24, std::uint32_t{in.mxcsr & 0xFFBF});
    for (unsigned at = 0; at < 64; at += 8) poke<std::uint64_t>(kArea + 512 + at, 0);
    poke<std::uint64_t>(kArea + 512, g.below(8));
    if (g.chance(40)) {  // compacted
      const std::uint64_t format = g.below(8);
      poke<std::uint64_t>(kArea + 520, format | 1ULL << 63);
      poke<std::uint64_t>(kArea + 512, g.chance(80) ? format & g.below(8) : g.below(8));
    }
    if (g.chance(10)) {
      // Not the components of AVX-512, which the host may have enabled.
      const std::uint64_t at = g.below(64);
      poke(kArea + 512 + at, u8(g.random() & (at == 0 || at == 8 ? 0x1F : 0xFF)));
    }
    const std::string difference = c.run(n % 2 == 0 ? kXrstor : kXrstor64, in);
    EXPECT_EQ(difference, "") << "rfbm " << in.gpr[cpu::RAX];
    refused += c.out_native.trap == cpu::GP ? 1U : 0U;
    if (HasFailure()) break;
  }
  EXPECT_GT(refused, 100U);
}

TEST_F(XsaveTest, FaultsLeaveNoTrace) {
  unsigned faults = 0;
  for (unsigned n = 0; n < 600; ++n) {
    UnitState in = registers();
    const std::uint64_t edge = NativeCpu::kData + 8192;
    in.gpr[cpu::RBX] = edge - 64 * (1 + g.below(14));
    in.gpr[cpu::RAX] = 7;
    fill(kArea, 8192);
    for (unsigned at = 0; at < 64; at += 8) poke<std::uint64_t>(in.gpr[cpu::RBX] + 512 + at, 0);
    poke<std::uint32_t>(in.gpr[cpu::RBX] + 24, 0x1F80);
    poke<std::uint8_t>(in.gpr[cpu::RBX] + 512, 7);
    const std::array codes{&kXsave64, &kXrstor64, &kFxsave64, &kFxrstor64};
    const Bytes before(c.native.data().begin(), c.native.data().end());
    static_cast<void>(c.run_protected(*codes[n % 4], in, edge, g.chance(50)));
    EXPECT_EQ(c.out_native.trap, c.out_guest.trap);
    if (c.out_guest.trap < 0) continue;
    ++faults;
    EXPECT_EQ(c.out_guest.ymm, in.ymm);
    EXPECT_EQ(c.out_guest.mxcsr, in.mxcsr);
    EXPECT_EQ(c.out_guest.fx, in.fx);
    // The host may have stored part of it; we store all or nothing.
    EXPECT_EQ(0, std::memcmp(before.data(), c.guest.data().data(), before.size()));
  }
  EXPECT_GT(faults, 200U);
}

TEST_F(XsaveTest, CompatibilityModeLeavesTheUpperRegisters) {
  c.guest.use_32_bit();
  UnitState in = registers();
  for (auto& y : in.ymm) y = {1, 2, 3, 4};
  in.gpr[cpu::RAX] = 7;
  fill(kArea, 1024);
  for (unsigned at = 0; at < 64; at += 8) poke<std::uint64_t>(kArea + 512 + at, 0);
  std::memcpy(c.guest.data().data(), c.native.data().data(), NativeCpu::kDataBytes);
  UnitState out = c.guest.run(kXsave, in);
  ASSERT_EQ(out.trap, -1);
  const auto differs = [&](unsigned from, unsigned to) {
    return std::memcmp(c.guest.data().data() + 4096 + from, c.native.data().data() + 4096 + from,
                       to - from) != 0;
  };
  EXPECT_TRUE(differs(160, 288));
  EXPECT_FALSE(differs(288, 512));
  EXPECT_TRUE(differs(576, 704));
  EXPECT_FALSE(differs(704, 1024));
  // And back: init of everything touches eight registers only.
  poke<std::uint64_t>(kArea, 0);
  std::memset(c.guest.data().data() + 4096 + 512, 0, 64);
  out = c.guest.run(kXrstor, in);
  ASSERT_EQ(out.trap, -1);
  EXPECT_EQ(out.ymm[7], (std::array<std::uint64_t, 4>{}));
  EXPECT_EQ(out.ymm[8], (std::array<std::uint64_t, 4>{1, 2, 3, 4}));
}

TEST_F(XsaveTest, PkruTravelsWithItsComponent) {
  const cpu::XstateComponent pkru = c.guest.machine.model.xstate_component(9);
  if (pkru.bytes == 0) GTEST_SKIP() << "the model has no PKRU";
  c.guest.base.vector.xcr0 = 0x207;
  c.guest.base.cr4 |= cpu::cr4::PKE;
  c.guest.base.pkru = 0x55555554;
  UnitState in = registers();
  in.gpr[cpu::RAX] = 0x200;
  std::memset(c.guest.data().data() + 4096, 0, 4096);
  // xsave64; wrpkru(0); xrstor64; rdpkru
  const Bytes code{0x48, 0x0F, 0xAE, 0x23,                                // xsave64 [rbx]
                   0x31, 0xC0, 0x31, 0xC9, 0x31, 0xD2,                    // eax = ecx = edx = 0
                   0x0F, 0x01, 0xEF,                                      // wrpkru
                   0x0F, 0x01, 0xEE, 0x89, 0xC6,                          // rdpkru; mov esi, eax
                   0xB8, 0x00, 0x02, 0x00, 0x00, 0x48, 0x0F, 0xAE, 0x2B,  // xrstor64 [rbx]
                   0x0F, 0x01, 0xEE};                                     // rdpkru
  const UnitState out = c.guest.run(code, in);
  ASSERT_EQ(out.trap, -1);
  EXPECT_EQ(peek<std::uint64_t>(kArea + 512), 0x200U);
  EXPECT_EQ(peek<std::uint64_t>(kArea + pkru.offset), 0x55555554U);
  EXPECT_EQ(out.gpr[cpu::RSI], 0U);
  EXPECT_EQ(out.gpr[cpu::RAX], 0x55555554U);
  EXPECT_EQ(out.gpr[cpu::RDX], 0U);
  EXPECT_EQ(c.guest.pkru, 0x55555554U);
  EXPECT_EQ(c.guest.machine.mmu.context.pkru, 0x55555554U);
  // Initialised where XSTATE_BV does not name it.
  std::memset(c.guest.data().data() + 4096 + 512, 0, 8);
  static_cast<void>(c.guest.run(kXrstor64, in));
  EXPECT_EQ(c.guest.pkru, 0U);
}

TEST_F(XsaveTest, PkruChecks) {
  UnitState in;
  const Bytes rdpkru{0x0F, 0x01, 0xEE}, wrpkru{0x0F, 0x01, 0xEF};
  if (!c.guest.machine.model.has(cpu::Feature::pku)) {
    EXPECT_EQ(trap(rdpkru, in), cpu::UD);
    return;
  }
  EXPECT_EQ(trap(rdpkru, in), cpu::UD);
  EXPECT_EQ(trap(wrpkru, in), cpu::UD);
  c.guest.base.cr4 |= cpu::cr4::PKE;
  EXPECT_EQ(trap(rdpkru, in), -1);
  EXPECT_EQ(trap(wrpkru, in), -1);
  in.gpr[cpu::RDX] = 1;
  EXPECT_EQ(trap(rdpkru, in), -1);
  EXPECT_EQ(trap(wrpkru, in), cpu::GP);
  in.gpr[cpu::RDX] = 0;
  in.gpr[cpu::RCX] = 1;
  EXPECT_EQ(trap(rdpkru, in), cpu::GP);
  EXPECT_EQ(trap(wrpkru, in), cpu::GP);
}

TEST_F(XsaveTest, Xcr0Checks) {
  const Bytes xsetbv{0x0F, 0x01, 0xD1}, xgetbv{0x0F, 0x01, 0xD0};
  UnitState in;
  const auto set = [&](std::uint64_t v) {
    in.gpr[cpu::RAX] = v & 0xFFFFFFFF;
    in.gpr[cpu::RDX] = v >> 32;
    const int t = trap(xsetbv, in);
    if (t < 0) {
      EXPECT_EQ(c.guest.xcr0, v);
    }
    return t;
  };
  for (const std::uint64_t good : {1ULL, 3ULL, 7ULL}) EXPECT_EQ(set(good), -1) << good;
  for (const std::uint64_t bad :
       {0ULL, 2ULL, 5ULL, 6ULL, 0xFULL, 0x27ULL, 0xE7ULL, 1ULL | 1ULL << 63, 7ULL | 1ULL << 32}) {
    EXPECT_EQ(set(bad), cpu::GP) << bad;
  }
  in.gpr[cpu::RCX] = 1;
  EXPECT_EQ(set(7), cpu::GP);
  in.gpr[cpu::RCX] = 2;
  EXPECT_EQ(trap(xgetbv, in), cpu::GP);
  in.gpr[cpu::RCX] = 0;
  UnitState out = c.guest.run(xgetbv, in);
  EXPECT_EQ(out.gpr[cpu::RAX], 7U);
  EXPECT_EQ(out.gpr[cpu::RDX], 0U);
  // XINUSE: nothing but the upper halves is in use here.
  in.gpr[cpu::RCX] = 1;
  in.ymm[3][2] = 1;
  out = c.guest.run(xgetbv, in);
  EXPECT_EQ(out.gpr[cpu::RAX], 4U);
  // CPL 3: XGETBV may, XSETBV may not.
  in.gpr[cpu::RCX] = 0;
  c.guest.base.segment[cpu::SS].attributes |= 3U << 5;
  c.guest.base.segment[cpu::CS].attributes |= 3U << 5;
  EXPECT_EQ(set(7), cpu::GP);
  EXPECT_EQ(c.guest.fault_rip, Machine::kCode);
  EXPECT_EQ(trap(xgetbv, in), cpu::GP);  // by the HLT behind it
  EXPECT_EQ(c.guest.fault_rip, Machine::kCode + 3);
  c.guest.base.cr4 &= ~cpu::cr4::OSXSAVE;
  EXPECT_EQ(trap(xgetbv, in), cpu::UD);
  EXPECT_EQ(set(7), cpu::UD);
}

TEST_F(XsaveTest, ConditionsBeforeAnything) {
  UnitState in = registers();
  std::memset(c.guest.data().data() + 4096, 0, 1024);
  for (const Bytes* code : {&kXsave, &kXsave64, &kXsaveopt, &kXsavec64, &kXrstor, &kXrstor64}) {
    in.gpr[cpu::RBX] = kArea;
    const cpu::VcpuState good = c.guest.base;
    EXPECT_EQ(trap(*code, in), -1);
    in.gpr[cpu::RBX] = kArea + 32;
    EXPECT_EQ(trap(*code, in), cpu::GP);
    c.guest.base.cr0 |= cpu::cr0::TS;
    EXPECT_EQ(trap(*code, in), cpu::NM);
    c.guest.base.cr4 &= ~cpu::cr4::OSXSAVE;
    EXPECT_EQ(trap(*code, in), cpu::UD);
    c.guest.base = good;
  }
  for (const Bytes* code : {&kFxsave, &kFxsave64, &kFxrstor, &kFxrstor64}) {
    in.gpr[cpu::RBX] = kArea;
    const cpu::VcpuState good = c.guest.base;
    EXPECT_EQ(trap(*code, in), -1);
    in.gpr[cpu::RBX] = kArea + 8;
    EXPECT_EQ(trap(*code, in), cpu::GP);
    c.guest.base.cr0 |= cpu::cr0::TS;
    EXPECT_EQ(trap(*code, in), cpu::NM);
    c.guest.base = good;
    c.guest.base.cr0 |= cpu::cr0::EM;
    EXPECT_EQ(trap(*code, in), cpu::NM);
    c.guest.base = good;
  }
}

}  // namespace
}  // namespace strata::interp::test
