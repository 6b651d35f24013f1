// When instructions may not run: control registers, model features, alignment. And that the host's
// own floating-point environment survives.
#include <gtest/gtest.h>

#include "engines/interp/host_thunk.hpp"
#include "engines/interp/vector_thunk.hpp"
#include "vector_guest.hpp"

namespace strata::interp::test {
namespace {

using Bytes = std::vector<std::uint8_t>;
namespace cr0 = cpu::cr0;
namespace cr4 = cpu::cr4;

class VectorConditions : public ::testing::Test {
 protected:
  /// The vector that `code` raises with these control bits changed.
  int trap(const Bytes& code, std::uint64_t set0, std::uint64_t clear4 = 0,
           std::uint64_t clear_xcr0 = 0) {
    const cpu::VcpuState good = guest.base;
    guest.base.cr0 |= set0;
    guest.base.cr4 &= ~clear4;
    guest.base.vector.xcr0 &= ~clear_xcr0;
    const int result = guest.run(code, in).trap;
    guest.base = good;
    return result;
  }

  GuestCpu guest;
  UnitState in;
};

// One of each way of execution: direct, lane operation, thunk, floating-point thunk.
const std::array kSse{Bytes{0x0F, 0x28, 0xC1},
                      Bytes{0x66, 0x0F, 0xEF, 0xC1},
                      Bytes{0x66, 0x0F, 0x70, 0xC1, 0x1B},
                      Bytes{0xF2, 0x0F, 0x58, 0xC1},
                      Bytes{0x66, 0x0F, 0xD7, 0xC1},
                      Bytes{0xF3, 0x0F, 0x7E, 0xC1}};
const std::array kAvx{Bytes{0xC5, 0xF8, 0x28, 0xC1},
                      Bytes{0xC5, 0xF1, 0xEF, 0xC1},
                      Bytes{0xC5, 0xF9, 0x70, 0xC1, 0x1B},
                      Bytes{0xC5, 0xF3, 0x58, 0xC1},
                      Bytes{0xC5, 0xF8, 0x77},
                      Bytes{0xC5, 0xFC, 0x28, 0xC1},
                      Bytes{0xC5, 0xF9, 0xF7, 0xC1}};
const std::array kMmx{Bytes{0x0F, 0xFC, 0xC1}, Bytes{0x0F, 0x77}};
const std::array kX87{Bytes{0xD9, 0xE8}, Bytes{0xDB, 0xE3}, Bytes{0xDF, 0xE0}};

TEST_F(VectorConditions, ControlRegisterMatrix) {
  for (const Bytes& code : kSse) {
    EXPECT_EQ(trap(code, 0), -1);
    EXPECT_EQ(trap(code, cr0::TS), cpu::NM);
    EXPECT_EQ(trap(code, cr0::EM), cpu::UD);
    EXPECT_EQ(trap(code, cr0::EM | cr0::TS), cpu::UD);
    EXPECT_EQ(trap(code, 0, cr4::OSFXSR), cpu::UD);
    EXPECT_EQ(trap(code, cr0::TS, cr4::OSFXSR), cpu::UD);
    EXPECT_EQ(trap(code, 0, cr4::OSXSAVE, 6), -1);
  }
  for (const Bytes& code : kAvx) {
    in.gpr[cpu::RDI] = 0x100000;
    EXPECT_EQ(trap(code, 0), -1);
    EXPECT_EQ(trap(code, cr0::TS), cpu::NM);
    EXPECT_EQ(trap(code, cr0::EM), -1);
    EXPECT_EQ(trap(code, 0, cr4::OSFXSR), -1);
    EXPECT_EQ(trap(code, 0, cr4::OSXSAVE), cpu::UD);
    EXPECT_EQ(trap(code, 0, 0, 4), cpu::UD);
    EXPECT_EQ(trap(code, 0, 0, 6), cpu::UD);
    EXPECT_EQ(trap(code, cr0::TS, 0, 4), cpu::UD);
  }
  for (const Bytes& code : kMmx) {
    EXPECT_EQ(trap(code, 0), -1);
    EXPECT_EQ(trap(code, cr0::TS), cpu::NM);
    EXPECT_EQ(trap(code, cr0::EM), cpu::UD);
    EXPECT_EQ(trap(code, cr0::EM | cr0::TS), cpu::UD);
    EXPECT_EQ(trap(code, 0, cr4::OSFXSR), -1);
  }
  for (const Bytes& code : kX87) {
    EXPECT_EQ(trap(code, 0), -1);
    EXPECT_EQ(trap(code, cr0::TS), cpu::NM);
    EXPECT_EQ(trap(code, cr0::EM), cpu::NM);
  }
}

TEST_F(VectorConditions, WaitMindsTaskSwitchedWithMonitorOnly) {
  guest.base.cr0 &= ~cr0::MP;
  const Bytes fwait{0x9B};
  EXPECT_EQ(trap(fwait, 0), -1);
  EXPECT_EQ(trap(fwait, cr0::TS), -1);
  EXPECT_EQ(trap(fwait, cr0::MP), -1);
  EXPECT_EQ(trap(fwait, cr0::MP | cr0::TS), cpu::NM);
  EXPECT_EQ(trap(fwait, cr0::EM), -1);
}

TEST_F(VectorConditions, PendingExceptionStopsWaitingInstructionsOnly) {
  in.fx[0] = 0x7E;  // invalid operation unmasked
  in.fx[2] = 0x81;
  in.fx[3] = 0x80;
  for (const Bytes& code : {Bytes{0x9B}, Bytes{0xD9, 0xE8}, Bytes{0xD9, 0x2B}, Bytes{0x0F, 0x77},
                            Bytes{0x0F, 0xFC, 0xC1}, Bytes{0xD9, 0x23}, Bytes{0xDD, 0x23}}) {
    in.gpr[cpu::RBX] = 0x100000;
    EXPECT_EQ(trap(code, 0), cpu::MF);
  }
  for (const Bytes& code :
       {Bytes{0xDB, 0xE3}, Bytes{0xDB, 0xE2}, Bytes{0xDF, 0xE0}, Bytes{0xD9, 0x3B},
        Bytes{0xDD, 0x3B}, Bytes{0xD9, 0x33}, Bytes{0xDD, 0x33}, Bytes{0x0F, 0xAE, 0x03}}) {
    EXPECT_EQ(trap(code, 0), -1);
  }
}

TEST_F(VectorConditions, UnmaskedExceptionWithoutSystemSupportIsUndefined) {
  const Bytes divide{0xF2, 0x0F, 0x5E, 0xC1};
  in.mxcsr = 0x1F80 & ~0x200U;
  in.ymm[0] = {0x3FF0000000000000, 0, 0, 0};
  EXPECT_EQ(trap(divide, 0), cpu::XM);
  EXPECT_EQ(trap(divide, 0, cr4::OSXMMEXCPT), cpu::UD);
  in.mxcsr = 0x1F80;
  EXPECT_EQ(trap(divide, 0, cr4::OSXMMEXCPT), -1);
}

TEST_F(VectorConditions, LoadMxcsrRefusesReservedBits) {
  const Bytes ldmxcsr{0x0F, 0xAE, 0x13}, vldmxcsr{0xC5, 0xF8, 0xAE, 0x13};
  in.gpr[cpu::RBX] = 0x100000;
  for (const std::uint32_t good : {0U, 0x1F80U, 0xFFFFU}) {
    guest.machine.poke(0x100000, good);
    EXPECT_EQ(guest.run(ldmxcsr, in).mxcsr, good);
    EXPECT_EQ(guest.run(vldmxcsr, in).mxcsr, good);
  }
  for (const std::uint32_t bad : {0x10000U, 0x20000U, 0x80001F80U}) {
    guest.machine.poke(0x100000, bad);
    for (const Bytes& code : {ldmxcsr, vldmxcsr}) {
      const UnitState out = guest.run(code, in);
      EXPECT_EQ(out.trap, cpu::GP);
      EXPECT_EQ(out.mxcsr, in.mxcsr);
      EXPECT_EQ(guest.error_code, 0U);
    }
  }
}

TEST_F(VectorConditions, NoVexInRealMode) {
  cpu::VcpuState s;
  s.cr0 = cr0::ET | cr0::NE;
  s.cr4 = cr4::OSFXSR | cr4::OSXSAVE;
  s.vector.xcr0 = 7;
  s.segment[cpu::CS] = {0, 0xFFFF, 0, 0x9B};
  s.segment[cpu::SS] = s.segment[cpu::DS] = {0, 0xFFFF, 0, 0x93};
  s.rip = 0x9000;
  s.gpr[cpu::RSP] = 0x7000;
  auto& m = guest.machine;
  s.idtr = {0x1000, 0x3FF};
  m.poke<std::uint32_t>(0x1000 + 4 * 6, 0x6000);  // #UD to 0000:6000
  m.poke<std::uint8_t>(0x6000, 0xF4);
  // LES and LDS with a register operand, which VEX prefixes would be.
  m.write(0x9000, Bytes{0xC5, 0xF1, 0xEF, 0xC1, 0xF4});
  m.core->set_state(s);
  ASSERT_EQ(m.core->run().kind, engine::ExitKind::halt);
  EXPECT_EQ(m.core->state().rip, 0x6001U);
}

TEST_F(VectorConditions, NeverWhatNoModelHas) {
  for (const Bytes& code :
       {Bytes{0x62, 0xF1, 0x7C, 0x48, 0x58, 0xC1},  // EVEX vaddps zmm0, zmm0, zmm1
        Bytes{0xC4, 0xE2, 0x7D, 0xDC, 0xC1},        // vaesenc ymm
        Bytes{0x66, 0x0F, 0x38, 0xCF, 0xC1},        // gf2p8mulb
        Bytes{0x66, 0x0F, 0x78, 0xC0, 0x01, 0x02},  // extrq, SSE4A
        Bytes{0x0F, 0x0F, 0xC1, 0x9E},              // pfadd, 3DNow!
        Bytes{0x48, 0x0F, 0xC7, 0x2B},              // xsaves64 [rbx]
        Bytes{0x48, 0x0F, 0xC7, 0x1B}}) {           // xrstors64 [rbx]
    in.gpr[cpu::RBX] = 0x100000;
    EXPECT_EQ(trap(code, 0), cpu::UD);
  }
}

/// Rounding and masks of the host, its x87 control word and stack are what they were.
TEST_F(VectorConditions, HostEnvironmentIsUntouched) {
  in.mxcsr = 0x7F80 | 0x8040;
  in.fx[1] = 0x0C;
  const Bytes code{0xF2, 0x0F, 0x5E, 0xC1, 0xD9, 0xEB, 0xD9, 0xE8,
                   0xDE, 0xF9, 0x0F, 0xFC, 0xC1, 0x0F, 0x2A, 0xC1};
  const std::uint32_t before = host_mxcsr();
  std::uint16_t fcw_before = 0;
  asm volatile("fnstcw %0" : "=m"(fcw_before));
  EXPECT_EQ(guest.run(code, in).trap, -1);
  std::uint16_t fcw_after = 0;
  asm volatile("fnstcw %0" : "=m"(fcw_after));
  std::array<std::uint16_t, 14> environment{};
  asm volatile("fnstenv %0; fldenv %0" : "+m"(environment));
  EXPECT_EQ(fcw_after, fcw_before);
  EXPECT_EQ(environment[4], 0xFFFF);  // every register empty
  EXPECT_EQ((host_mxcsr() ^ before) & ~0x3FU, 0U);
}

/// The model without `feature` and without what depends on it.
cpu::CpuModel model_without(std::vector<std::string> names, std::string feature) {
  for (;;) {
    std::erase(names, feature);
    try {
      return model_with(names);
    } catch (const std::runtime_error& e) {
      // feature "dependent" needs "feature"
      const std::string message = e.what();
      const std::size_t open = message.find('"');
      feature = message.substr(open + 1, message.find('"', open + 1) - open - 1);
    }
  }
}

TEST_F(VectorConditions, ShaOperandsAreAligned) {
  guest.use_model(model_with(all_vector_features()));
  const Bytes sha1nexte{0x0F, 0x38, 0xC8, 0x0B};
  in.gpr[cpu::RBX] = 0x100010;
  EXPECT_EQ(trap(sha1nexte, 0), -1);
  in.gpr[cpu::RBX] = 0x100018;
  EXPECT_EQ(trap(sha1nexte, 0), cpu::GP);
}

/// An instruction exists where the model has its feature, and is undefined where it does not.
TEST_F(VectorConditions, ModelDecides) {
  const std::vector<std::pair<std::string, Bytes>> features{
      {"mmx", {0x0F, 0xFC, 0xC1}},
      {"sse3", {0x66, 0x0F, 0x7C, 0xC1}},
      {"ssse3", {0x66, 0x0F, 0x38, 0x00, 0xC1}},
      {"sse4_1", {0x66, 0x0F, 0x38, 0x10, 0xC1}},
      {"sse4_2", {0x66, 0x0F, 0x38, 0x37, 0xC1}},
      {"pclmulqdq", {0x66, 0x0F, 0x3A, 0x44, 0xC1, 0x00}},
      {"aes", {0x66, 0x0F, 0x38, 0xDC, 0xC1}},
      {"sha", {0x0F, 0x38, 0xC8, 0xC1}},
      {"avx", {0xC5, 0xF8, 0x58, 0xC1}},
      {"avx2", {0xC5, 0xFD, 0xFC, 0xC1}},
      {"fma", {0xC4, 0xE2, 0x71, 0x98, 0xC2}},
      {"f16c", {0xC4, 0xE2, 0x79, 0x13, 0xC1}},
      {"aes", {0xC4, 0xE2, 0x71, 0xDC, 0xC2}},
      {"pclmulqdq", {0xC4, 0xE3, 0x71, 0x44, 0xC2, 0x00}},
      {"xsavec", {0x0F, 0xC7, 0x23}},
      {"xsaveopt", {0x0F, 0xAE, 0x33}}};
  in.gpr[cpu::RBX] = 0x100000;
  for (const auto& [feature, code] : features) {
    auto names = all_vector_features();
    const cpu::CpuModel with = model_with(names);
    if (!with.masked().empty()) GTEST_SKIP() << "the host lacks a feature";
    guest.use_model(with);
    EXPECT_EQ(trap(code, 0), -1) << feature;
    guest.use_model(model_without(names, feature));
    EXPECT_EQ(trap(code, 0), cpu::UD) << feature;
  }
}

}  // namespace
}  // namespace strata::interp::test
