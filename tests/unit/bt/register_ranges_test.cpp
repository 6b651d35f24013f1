// What is known of registers' values must hold whatever the values were: a range that is too narrow
// takes an access out of a window's guard zones.
#include "engines/bt/register_ranges.hpp"

#include <gtest/gtest.h>

#include <ostream>
#include <string>
#include <vector>

#include "cpu/cpu_model.hpp"

namespace strata::bt {
namespace {

constexpr unsigned kRax = 0, kRcx = 1;
constexpr std::int64_t kWord = 0xFFFF'FFFF;

/// Code, and what it leaves in RAX or RCX.
struct Case {
  std::string name;
  std::vector<std::uint8_t> code;
  unsigned reg = kRax;
  std::optional<Range> wanted;
};
void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

class RegisterRangesTest : public ::testing::TestWithParam<Case> {};

TEST_P(RegisterRangesTest, IsWhatSurelyHolds) {
  const Case& c = GetParam();
  const auto model = cpu::CpuModel::by_name("default", {});
  ASSERT_TRUE(model);
  std::vector<std::uint8_t> code = c.code;
  code.push_back(0xF4);
  Region region;
  decode_region({.bytes = code.data(), .available = code.size(), .model = &*model}, region);
  RegisterRanges ranges;
  for (const Insn& i : region.insns()) {
    if (i.ends) break;
    ranges.execute(i);
  }
  const auto& found = ranges.of(c.reg);
  ASSERT_EQ(found.has_value(), c.wanted.has_value());
  if (!found) return;
  EXPECT_EQ(found->low, c.wanted->low);
  EXPECT_EQ(found->high, c.wanted->high);
}

const std::vector<Case> kCases{
    {"nothing is known at first", {0x90}, kRax, {}},
    {"mov eax, ecx", {0x89, 0xC8}, kRax, Range{0, kWord}},
    {"mov rax, rcx", {0x48, 0x89, 0xC8}, kRax, {}},
    {"mov eax, 0xffffffff", {0xB8, 0xFF, 0xFF, 0xFF, 0xFF}, kRax, Range{0, kWord}},
    {"mov eax, 5; mov rcx, rax", {0xB8, 5, 0, 0, 0, 0x48, 0x89, 0xC1}, kRcx, Range{5, 5}},
    {"mov rax, -1", {0x48, 0xC7, 0xC0, 0xFF, 0xFF, 0xFF, 0xFF}, kRax, Range{-1, -1}},
    {"mov rax, beyond", {0x48, 0xB8, 0, 0, 0, 0, 0, 2, 0, 0}, kRax, {}},
    {"xor eax, eax", {0x31, 0xC0}, kRax, Range{0, 0}},
    {"xor rax, rcx", {0x48, 0x31, 0xC8}, kRax, {}},
    {"movzx eax, cl", {0x0F, 0xB6, 0xC1}, kRax, Range{0, 255}},
    {"movzx eax, cx", {0x0F, 0xB7, 0xC1}, kRax, Range{0, 65535}},
    {"movsx rax, cl", {0x48, 0x0F, 0xBE, 0xC1}, kRax, Range{-128, 127}},
    {"movsx eax, cl", {0x0F, 0xBE, 0xC1}, kRax, Range{0, kWord}},
    {"movsxd rax, ecx", {0x48, 0x63, 0xC1}, kRax, Range{-0x8000'0000LL, 0x7FFF'FFFF}},
    {"cdqe", {0x48, 0x98}, kRax, Range{-0x8000'0000LL, 0x7FFF'FFFF}},
    {"and eax, 15", {0x83, 0xE0, 15}, kRax, Range{0, 15}},
    {"and rax, 15", {0x48, 0x83, 0xE0, 15}, kRax, Range{0, 15}},
    {"and eax, -16", {0x83, 0xE0, 0xF0}, kRax, Range{0, kWord}},
    {"and rax, -16", {0x48, 0x83, 0xE0, 0xF0}, kRax, {}},
    {"and rax, 0xffffffff80000000", {0x48, 0x81, 0xE0, 0, 0, 0, 0x80}, kRax, {}},
    {"shr rax, 24", {0x48, 0xC1, 0xE8, 24}, kRax, {}},
    {"shr rax, 40", {0x48, 0xC1, 0xE8, 40}, kRax, Range{0, 0xFF'FFFF}},
    {"shr eax, 4", {0xC1, 0xE8, 4}, kRax, Range{0, 0xFFF'FFFF}},
    {"shr eax, 0, which may leave it", {0xC1, 0xE8, 0}, kRax, {}},
    {"shr eax, cl", {0xD3, 0xE8}, kRax, {}},
    {"shl of a byte", {0x0F, 0xB6, 0xC1, 0x48, 0xC1, 0xE0, 3}, kRax, Range{0, 255 * 8}},
    {"shl out of 32 bits", {0x89, 0xC8, 0xC1, 0xE0, 3}, kRax, Range{0, kWord}},
    {"shl too far", {0x89, 0xC8, 0x48, 0xC1, 0xE0, 20}, kRax, {}},
    {"add in 32 bits", {0x83, 0xC0, 1}, kRax, Range{0, kWord}},
    {"add rax, 1 to a word", {0x89, 0xC8, 0x48, 0x83, 0xC0, 1}, kRax, Range{1, kWord + 1}},
    {"sub below 0 in 32 bits", {0x31, 0xC0, 0x83, 0xE8, 1}, kRax, Range{0, kWord}},
    {"sub below 0 in 64 bits", {0x31, 0xC0, 0x48, 0x83, 0xE8, 1}, kRax, Range{-1, -1}},
    {"add of two", {0x0F, 0xB6, 0xC0, 0x0F, 0xB6, 0xC9, 0x48, 0x01, 0xC8}, kRax, Range{0, 510}},
    {"sub of two", {0x0F, 0xB6, 0xC0, 0x0F, 0xB6, 0xC9, 0x48, 0x29, 0xC8}, kRax, Range{-255, 255}},
    {"inc rax", {0x31, 0xC0, 0x48, 0xFF, 0xC0}, kRax, Range{1, 1}},
    {"dec eax", {0x31, 0xC0, 0xFF, 0xC8}, kRax, Range{0, kWord}},
    {"lea of a byte", {0x0F, 0xB6, 0xC9, 0x48, 0x8D, 0x04, 0x49}, kRax, Range{0, 765}},
    {"lea of anything", {0x48, 0x8D, 0x04, 0x49}, kRax, {}},
    {"lea eax", {0x8D, 0x04, 0x49}, kRax, Range{0, kWord}},
    {"lea by RIP", {0x48, 0x8D, 0x05, 0, 0, 0, 0}, kRax, {}},
    {"a byte of it", {0x31, 0xC0, 0x88, 0xC8}, kRax, {}},
    {"16 bits of it", {0x31, 0xC0, 0x66, 0x89, 0xC8}, kRax, {}},
    {"cmov eax", {0x31, 0xC0, 0x0F, 0x44, 0xC1}, kRax, {}},
    {"bsf eax, which may leave it", {0x0F, 0xBC, 0xC1}, kRax, {}},
    {"cmpxchg's accumulator", {0x31, 0xC0, 0x0F, 0xB1, 0xD1}, kRax, {}},
    {"xchg", {0x31, 0xC0, 0x48, 0x91}, kRax, {}},
    {"mul's high half", {0x31, 0xD2, 0x48, 0xF7, 0xE1}, 2, {}},
    {"imul eax", {0x0F, 0xAF, 0xC1}, kRax, Range{0, kWord}},
    {"pop", {0x31, 0xC0, 0x58}, kRax, {}},
    {"what the interpreter executes", {0x31, 0xC0, 0x0F, 0xA2}, kRcx, {}},
    {"a word times eight is still known",
     {0x89, 0xC8, 0x48, 0x8D, 0x0C, 0xC5, 0, 0, 0, 0},
     kRcx,
     Range{0, kWord * 8}},
};

INSTANTIATE_TEST_SUITE_P(Code, RegisterRangesTest, ::testing::ValuesIn(kCases));

}  // namespace
}  // namespace strata::bt
