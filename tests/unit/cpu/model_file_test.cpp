// Model files: what each field does, and what each mistake is called.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <string>

#include "cpu/builtin_models.hpp"
#include "cpu/cpu_model.hpp"
#include "cpu/vcpu_state.hpp"
#include "fake_host.hpp"

namespace strata::cpu::test {
namespace {

using ::testing::HasSubstr;

/// A small valid model; `features` and `more` are spliced in.
std::string small(const std::string& features = R"("fpu")", const std::string& more = "") {
  return R"({"name": "m", "vendor": "GenuineIntel", "family": 6, "model": 15, "stepping": 3,
    "brand": "B", "physical_address_bits": 36, "caches": [], "features": [)" +
         features + "]" + more + "}";
}

Expected<CpuModel, ModelError> parse(const std::string& text) {
  static const FakeHost host = FakeHost::everything();
  return CpuModel::from_json(text, {.host = &host});
}

TEST(ModelFile, SmallModelHasOnlyWhatItNames) {
  const auto model = parse(small());
  ASSERT_TRUE(model) << model.error().message;
  EXPECT_TRUE(model->has(Feature::fpu));
  EXPECT_EQ(model->cpuid(1, 0, {}).eax, 0x6F3U);
  EXPECT_EQ(model->cpuid(1, 0, {}).edx, 1U);
  EXPECT_EQ(model->cpuid(1, 0, {}).ebx & 0xFF00, 0U) << "no CLFLUSH, no line size";
  EXPECT_EQ(model->cpuid(0xD, 0, {}), CpuidResult{});
  EXPECT_EQ(model->xcr0_mask(), 0U);
  EXPECT_EQ(model->efer_mask(), 0U);
  EXPECT_EQ(model->cr4_mask(), cr4::MCE | cr4::PCE);
  EXPECT_EQ(model->maxphyaddr(), 36U);
  EXPECT_EQ(model->cpuid(0x80000008, 0, {}).eax, 32U << 8 | 36U);
  EXPECT_EQ(model->microcode_revision(), 0U);
  // Without the hypervisor bit there are no hypervisor leaves.
  EXPECT_EQ(model->cpuid(0x40000000, 0, {}), model->cpuid(0x1F, 0, {}));
}

TEST(ModelFile, ExtendedFamilyAndModel) {
  std::string text = small();
  text.replace(text.find("\"family\": 6"), 11, "\"family\": 25");
  text.replace(text.find("\"model\": 15"), 11, "\"model\": 17");
  text.replace(text.find("\"caches\""), 0, "\"microcode\": 7, ");
  const auto model = parse(text);
  ASSERT_TRUE(model) << model.error().message;
  EXPECT_EQ(model->cpuid(1, 0, {}).eax, 0x00A10F13U);
  EXPECT_EQ(model->microcode_revision(), 7ULL << 32);
}

Expected<CpuModel, ModelError> changed(std::string_view changes) {
  static const FakeHost host = FakeHost::everything();
  return CpuModel::from_json(small(R"("fpu", "fxsr", "sse", "sse2")"), changes, {.host = &host});
}

TEST(ModelFile, ChangesAddAndTakeAway) {
  const auto model = changed("+apic,-sse,vendor=AuthenticAMD");
  ASSERT_TRUE(model) << model.error().message;
  EXPECT_TRUE(model->has(Feature::apic));
  EXPECT_TRUE(model->has(Feature::fxsr));
  EXPECT_FALSE(model->has(Feature::sse));
  EXPECT_FALSE(model->has(Feature::sse2)) << "needs what went";
  EXPECT_EQ(model->cpuid(0, 0, {}).ebx, 0x68747541U);
  EXPECT_TRUE(CpuModel::by_name("default,-pcid"));
  EXPECT_FALSE(model->vmware_backdoor());
  EXPECT_TRUE(changed("+vmware_backdoor")->vmware_backdoor());
}

TEST(ModelFile, MistakesInChanges) {
  for (const char* text : {"+nonesuch", "apic", "+", ",", "vendor=Nobody"}) {
    EXPECT_FALSE(changed(text)) << text;
  }
}

struct Mistake {
  const char* name;
  std::string text;
  const char* message;
};

std::string changed(const std::string& from, const std::string& to) {
  std::string text = small();
  const auto at = text.find(from);
  if (at == std::string::npos) throw std::logic_error{"the test changes nothing"};
  return text.replace(at, from.size(), to);
}

std::vector<Mistake> mistakes() {
  const auto cache = [](const std::string& body) {
    return changed("\"caches\": []", "\"caches\": [" + body + "]");
  };
  return {
      {"NotJson", "{", "not JSON"},
      {"Empty", "", "not JSON"},
      {"Array", "[1]", "must be an object"},
      {"NoName", changed(R"("name": "m",)", ""), "\"name\" must be a string"},
      {"Vendor", changed("GenuineIntel", "Genuine"), "\"vendor\" must be a string of 12"},
      {"Brand", changed(R"("brand": "B")", R"("brand": ")" + std::string(48, 'x') + '"'),
       "\"brand\" must be a string of 0 to 47"},
      {"FamilyType", changed("\"family\": 6", "\"family\": \"6\""), "\"family\" must be a whole"},
      {"FamilyNegative", changed("\"family\": 6", "\"family\": -6"), "\"family\" must be a whole"},
      {"FamilyLarge", changed("\"family\": 6", "\"family\": 271"), "1 to 270"},
      {"FamilyFraction", changed("\"family\": 6", "\"family\": 6.5"), "\"family\""},
      {"Model", changed("\"model\": 15", "\"model\": 256"), "0 to 255"},
      {"ModelInFamily5", changed("\"family\": 6, \"model\": 15", "\"family\": 5, \"model\": 16"),
       "family 6 and from family 15"},
      {"Stepping", changed("\"stepping\": 3", "\"stepping\": 16"), "0 to 15"},
      {"AddressBits", changed(": 36", ": 53"), "36 to 52"},
      {"UnknownKey", small("\"fpu\"", ", \"colour\": 1"), "unknown key \"colour\""},
      {"UnknownFeature", small("\"avx512f\""), "unknown feature \"avx512f\""},
      {"FeatureType", small("1"), "must hold strings"},
      {"FeatureNeeds", small("\"avx\""), "feature \"avx\" needs \"xsave\""},
      {"KvmFeature", small("\"fpu\"", ", \"kvm_features\": [\"steal_time\"]"), "steal_time"},
      {"KvmFeatureType", small("\"fpu\"", ", \"kvm_features\": [3]"), "kvm_features"},
      {"KvmFeatures", small("\"fpu\"", ", \"kvm_features\": 3"), "must be a list"},
      {"NoCaches", changed("\"caches\": [],", ""), "\"caches\" must be a list"},
      {"CacheType", cache("1"), "must hold objects"},
      {"CacheKind", cache(R"({"level":1,"type":"trace","kib":32,"ways":8,"line":64})"), "\"type\""},
      {"CacheLine", cache(R"({"level":1,"type":"data","kib":32,"ways":8,"line":48})"),
       "power of two"},
      {"CacheSize", cache(R"({"level":1,"type":"data","kib":33,"ways":20,"line":64})"),
       "multiple of ways x line"},
      {"CacheShared", cache(R"({"level":1,"type":"data","kib":32,"ways":8,"line":64,"shared":1})"),
       "shared"},
      {"CacheWays", cache(R"({"level":1,"type":"data","kib":32,"ways":0,"line":64})"), "\"ways\""},
      {"CacheKey", cache(R"({"level":1,"type":"data","kib":32,"ways":8,"line":64,"x":1})"),
       "unknown key \"x\""},
  };
}

class BadModel : public ::testing::TestWithParam<Mistake> {};

TEST_P(BadModel, IsRefusedWithItsReason) {
  const auto model = parse(GetParam().text);
  ASSERT_FALSE(model);
  EXPECT_THAT(model.error().message, HasSubstr(GetParam().message));
  EXPECT_THAT(model.error().message, ::testing::StartsWith("CPU model: "));
  EXPECT_THAT(model.error().message, ::testing::Not(HasSubstr("\n")));
}
INSTANTIATE_TEST_SUITE_P(Each, BadModel, ::testing::ValuesIn(mistakes()),
                         [](const auto& m) { return std::string{m.param.name}; });

TEST(ModelFile, UnknownName) {
  const auto model = CpuModel::by_name("pentium");
  ASSERT_FALSE(model);
  EXPECT_THAT(model.error().message, HasSubstr("\"pentium\""));
  EXPECT_THAT(model.error().message, HasSubstr("default, mitigation-free"));
}

/// Damaged files are refused or give a model; they never crash.
TEST(ModelFile, Damaged) {
  const std::string whole{builtin_models().front().json};
  for (std::size_t length = 0; length < whole.find_last_of('}'); length += 7) {
    EXPECT_FALSE(parse(whole.substr(0, length))) << length;
  }
  std::mt19937 random{5};
  unsigned refused = 0;
  for (unsigned round = 0; round < 2000; ++round) {
    std::string text = whole;
    text[random() % text.size()] = static_cast<char>(random() & 0xFF);
    const auto model = parse(text);
    if (!model) {
      ++refused;
    } else {
      for (std::uint32_t leaf = 0; leaf < 0x20; ++leaf) (void)model->cpuid(leaf, 0, {});
    }
  }
  EXPECT_GT(refused, 0U);
}

}  // namespace
}  // namespace strata::cpu::test
