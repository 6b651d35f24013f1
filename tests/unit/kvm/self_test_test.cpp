#include "engines/kvm/self_test.hpp"

#include <gtest/gtest.h>

#include <algorithm>

namespace strata::kvm {
namespace {

TEST(KvmSelfTest, AMissingRequiredPartIsAnErrorThatNamesIt) {
  const auto answer = verdict({{"real mode", true, ""}, {"interrupts", true, "nothing came"}});
  ASSERT_FALSE(answer);
  EXPECT_NE(answer.error().message.find("interrupts (nothing came)"), std::string::npos);
  EXPECT_EQ(answer.error().message.find("real mode"), std::string::npos);
}

TEST(KvmSelfTest, WhatGuestsCanDoWithoutIsARemark) {
  const auto answer = verdict({{"real mode", true, ""}, {"vectors", false, "no such instruction"}});
  ASSERT_TRUE(answer);
  EXPECT_NE(answer->find("vectors (no such instruction)"), std::string::npos);
  EXPECT_EQ(*verdict({{"real mode", true, ""}}), "");
}

TEST(KvmSelfTest, TriesEveryPartOnThisHost) {
  const auto parts = self_test();
  if (!parts) GTEST_SKIP() << parts.error().message;
  EXPECT_GE(parts->size(), 6U);
  for (const SelfTestPart& part : *parts) {
    if (!part.failure.empty()) RecordProperty(std::string{part.name}, part.failure);
  }
  const bool whole = std::all_of(parts->begin(), parts->end(),
                                 [](const SelfTestPart& part) { return part.failure.empty(); });
  EXPECT_EQ(first_lack().empty(), whole) << first_lack();
  const auto answer = verdict(*parts);
  if (!answer) GTEST_SKIP() << answer.error().message;
}

}  // namespace
}  // namespace strata::kvm
