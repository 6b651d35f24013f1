// Which engine a run gets that names none: every way the build, the run and the host can rule one
// out.
#include "vmm/engine_choice.hpp"

#include <gtest/gtest.h>

#include <array>

namespace strata::vmm {
namespace {

constexpr std::array kEverything{
    Combination{"interp", "ept", "nested"}, Combination{"interp", "shadow", "shadow"},
    Combination{"bt", "ept", "nested"}, Combination{"bt", "shadow", "shadow"},
    Combination{"kvm", "host", "the host kernel's"}};
constexpr std::span<const Combination> kOnlyInterp = std::span{kEverything}.first(2);
constexpr std::span<const Combination> kNoHost = std::span{kEverything}.first(4);

std::string has_all(std::string_view /*engine*/) { return {}; }
std::string has_no_kvm(std::string_view engine) { return engine == "kvm" ? "no such file" : ""; }
std::string has_neither(std::string_view engine) { return engine == "interp" ? "" : "refused"; }

EngineWish on(std::string_view mmu) { return {mmu, {}}; }
EngineWish exact_for(std::string_view option) { return {"auto", option}; }

std::string engine_of(std::span<const Combination> built, const EngineWish& wish,
                      const HostLack& lacks) {
  const auto choice = choose_engine(built, wish, lacks);
  return choice ? choice->engine : "none: " + choice.error();
}

TEST(EngineChoice, TakesTheFastestThatTheHostCanRun) {
  EXPECT_EQ(engine_of(kEverything, {}, has_all), "kvm");
  EXPECT_EQ(engine_of(kEverything, {}, has_no_kvm), "bt");
  EXPECT_EQ(engine_of(kEverything, {}, has_neither), "interp");
}

TEST(EngineChoice, TakesWhatTheBuildHas) {
  EXPECT_EQ(engine_of(kNoHost, {}, has_all), "bt");
  EXPECT_EQ(engine_of(kOnlyInterp, {}, has_all), "interp");
}

TEST(EngineChoice, TakesAnEngineThatHasTheBackend) {
  EXPECT_EQ(engine_of(kEverything, on("host"), has_all), "kvm");
  EXPECT_EQ(engine_of(kEverything, on("ept"), has_all), "bt");
  EXPECT_EQ(engine_of(kEverything, on("shadow,no-unsync,limit=8M"), has_all), "bt");
  EXPECT_EQ(engine_of(kOnlyInterp, on("shadow"), has_all), "interp");
}

TEST(EngineChoice, CountsExactlyWhereTheRunNeedsIt) {
  EXPECT_EQ(engine_of(kEverything, exact_for("--record"), has_all), "bt");
  EXPECT_EQ(engine_of(kEverything, exact_for("--record"), has_neither), "interp");
}

TEST(EngineChoice, SaysWhyNotAFasterOne) {
  const auto all = choose_engine(kEverything, {}, has_all);
  ASSERT_TRUE(all);
  EXPECT_EQ(all->reason, "the fastest, and this host can");
  const auto none = choose_engine(kEverything, {}, has_neither);
  ASSERT_TRUE(none);
  EXPECT_EQ(none->reason, "kvm: refused; bt: refused");
  const auto exact = choose_engine(kEverything, exact_for("--save"), has_neither);
  ASSERT_TRUE(exact);
  EXPECT_EQ(exact->reason, "kvm: --save needs exact instruction counts; bt: refused");
  const auto small = choose_engine(kOnlyInterp, on("ept"), has_all);
  ASSERT_TRUE(small);
  EXPECT_EQ(small->reason, "kvm: not in this build; bt: not in this build");
}

TEST(EngineChoice, IsAnErrorWhereOnlyTheHostHasTheBackend) {
  const auto choice = choose_engine(kEverything, on("host"), has_no_kvm);
  ASSERT_FALSE(choice);
  EXPECT_NE(choice.error().find("kvm: no such file"), std::string::npos) << choice.error();
  EXPECT_NE(choice.error().find("bt: has no --mmu host"), std::string::npos) << choice.error();
}

TEST(EngineChoice, AsksTheHostNothingThatIsDecidedAlready) {
  std::string asked;
  const HostLack lacks = [&](std::string_view engine) {
    asked += engine;
    return std::string{};
  };
  EXPECT_EQ(engine_of(kEverything, exact_for("--check"), lacks), "bt");
  EXPECT_EQ(asked, "bt");
}

std::string settled(const VmConfig& config) {
  const auto done = settle_engine(config);
  return done ? done->engine : "none: " + done.error().message;
}

TEST(EngineChoice, LeavesANamedEngine) {
  VmConfig config;
  config.engine = "interp";
  const auto done = settle_engine(config);
  ASSERT_TRUE(done);
  EXPECT_EQ(done->engine, "interp");
  EXPECT_EQ(done->engine_reason, "named by --engine");
}

TEST(EngineChoice, IsExactForEveryOptionThatNeedsIt) {
  VmConfig plain;
  EXPECT_EQ(exact_option(plain), "");
  VmConfig clock, record, save, load, check;
  clock.clock = "instructions";
  record.record = save.save = load.load = "file";
  check.check.target = "interp";
  for (const VmConfig& config : {clock, record, save, load, check}) {
    EXPECT_NE(settled(config), "kvm");
    EXPECT_FALSE(settled(config).starts_with("none"));
  }
  const auto replay = settle_engine(plain, "a replay");
  ASSERT_TRUE(replay);
  EXPECT_NE(replay->engine, "kvm");
}

}  // namespace
}  // namespace strata::vmm
