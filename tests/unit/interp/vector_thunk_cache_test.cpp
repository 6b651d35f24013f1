// The store of thunks: bounded, shared, and still right when it is full.
#include <gtest/gtest.h>

#include <set>

#include "engines/interp/host_thunk.hpp"
#include "vector_generator.hpp"
#include "vector_guest.hpp"

namespace strata::interp::test {
namespace {

/// The form of one instruction for a model with everything.
std::optional<ThunkForm> form_of(const std::vector<std::uint8_t>& bytes,
                                 const cpu::CpuModel& model) {
  Decoded d;
  Instruction i;
  if (!decode(bytes, i)) return std::nullopt;
  d.insn = i.insn;
  d.operands = i.ops;
  std::copy(i.bytes.begin(), i.bytes.end(), d.bytes.begin());
  std::vector<Uop> out;
  const Lowering l{d, DecodeMode{}, model, 0, out};
  return normal_form(l);
}

class ThunkCacheTest : public ::testing::Test {
 protected:
  cpu::CpuModel model = model_with(all_vector_features());

  ThunkForm form(const std::vector<std::uint8_t>& bytes) {
    const auto f = form_of(bytes, model);
    EXPECT_TRUE(f.has_value());
    return f.value_or(ThunkForm{});
  }
};

TEST_F(ThunkCacheTest, RegistersAndAddressesShareThunks) {
  ThunkCache cache{1U << 16, 0};
  const HostThunk* a = cache.find(form({0x66, 0x0F, 0x38, 0x00, 0xC1}));  // pshufb xmm0, xmm1
  ASSERT_NE(a, nullptr);
  EXPECT_EQ(cache.find(form({0x66, 0x45, 0x0F, 0x38, 0x00, 0xF7})), a);   // xmm14, xmm15
  EXPECT_EQ(cache.find(form({0x66, 0x0F, 0x38, 0x00, 0xC0})), a);         // xmm0, xmm0
  const HostThunk* m = cache.find(form({0x66, 0x0F, 0x38, 0x00, 0x03}));  // xmm0, [rbx]
  EXPECT_NE(m, a);
  EXPECT_EQ(cache.find(form({0x66, 0x41, 0x0F, 0x38, 0x00, 0x4C, 0xF5, 0x10})), m);
  const HostThunk* one = cache.find(form({0x66, 0x0F, 0x70, 0xC1, 0x1B}));  // pshufd, 1Bh
  const HostThunk* two = cache.find(form({0x66, 0x0F, 0x70, 0xC1, 0x1C}));
  EXPECT_NE(one, two);
}

TEST_F(ThunkCacheTest, FullCachePatchesImmediates) {
  ThunkCache cache{4096, 4096};  // nothing but reserve
  std::set<const HostThunk*> seen;
  for (unsigned imm = 0; imm < 256; ++imm) {
    const ThunkForm f = form({0x66, 0x0F, 0x70, 0xC1, static_cast<std::uint8_t>(imm)});
    const HostThunk* t = cache.find(f);
    ASSERT_NE(t, nullptr);
    ASSERT_NE(t->immediate_at, 0);
    seen.insert(t);
    alignas(32) std::array<std::uint32_t, 8> dst{}, src{10, 11, 12, 13, 0, 0, 0, 0};
    ThunkFrame frame;
    cache.run_patched(*t, static_cast<std::uint8_t>(imm),
                      {dst.data(), src.data(), nullptr, nullptr}, &frame, nullptr);
    for (unsigned i = 0; i < 4; ++i) EXPECT_EQ(dst[i], src[imm >> (2 * i) & 3]);
  }
  EXPECT_EQ(seen.size(), 1U);
}

TEST_F(ThunkCacheTest, GuestCodeCanNotFillTheReserve) {
  // Every form without an immediate, and one for each opcode with one, in the reserve alone.
  ThunkCache cache{ThunkCache::kReserveBytes, ThunkCache::kReserveBytes};
  Generator g{5};
  unsigned forms = 0;
  for (const OpcodePoint& p : vector_points(model)) {
    for (unsigned n = 0; n < 24; ++n) {
      const auto f = form_of(g.bytes_at(p, n % 2 == 0), model);
      if (!f) continue;
      ASSERT_NE(cache.find(*f), nullptr);
      ++forms;
    }
  }
  for (unsigned opcode = 0xD8; opcode <= 0xDF; ++opcode) {
    for (unsigned modrm = 0; modrm < 256; ++modrm) {
      ThunkForm f;
      f.kind = ThunkKind::x87;
      f.size = 2;
      f.bytes = {static_cast<std::uint8_t>(opcode), static_cast<std::uint8_t>(modrm)};
      f.flags_written = true;
      ASSERT_NE(cache.find(f), nullptr);
    }
  }
  EXPECT_GT(forms, 10000U);
  RecordProperty("bytes", static_cast<int>(cache.bytes()));
  EXPECT_LT(cache.bytes(), ThunkCache::kReserveBytes);
}

TEST_F(ThunkCacheTest, NoMemoryIsNoThunk) {
  ThunkCache cache{0, 0};
  EXPECT_EQ(cache.find(form({0x66, 0x0F, 0x38, 0x00, 0xC1})), nullptr);
}

}  // namespace
}  // namespace strata::interp::test
