// Guests written to break the VMM, each on every engine and backend: it ends as its row says,
// within a bound, leaves alone what is not its own, and is the same guest whoever executes it.
#include <gtest/gtest.h>

#include "cases.hpp"
#include "invariants.hpp"

namespace strata::hostile {
namespace {

class HostileGuest : public testing::TestWithParam<Case> {};

void expect_same(const Outcome& a, const Outcome& b) {
  EXPECT_EQ(fuzz::difference(a.state, b.state), "");
  EXPECT_EQ(a.position, b.position);
  EXPECT_EQ(a.exits, b.exits);
  EXPECT_EQ(a.memory_hash, b.memory_hash) << "memory";
}

TEST_P(HostileGuest, StopsOnlyItself) {
  const Case& c = GetParam();
  std::optional<Outcome> reference;
  for (const conformance::Subject& subject : conformance::subjects(conformance::backends())) {
    if (!c.example && subject.backend == conformance::kTableless) continue;
    SCOPED_TRACE(conformance::name_of(subject));
    Outcome o = run(c, subject);
    EXPECT_EQ(o.wrong, "");
    EXPECT_EQ(name_of(o.end), name_of(c.end))
        << "rip " << std::hex << o.state.rip << " after " << std::dec << o.position.instructions;
    if (c.floods && subject.engine != "interp") {
      EXPECT_GT(o.stats.code_evictions, 0U);
    }
    if (!reference) {
      reference = std::move(o);
    } else if (c.compared) {
      expect_same(*reference, o);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, HostileGuest, testing::ValuesIn(all_cases()),
                         [](const auto& instance) { return std::string{instance.param.name}; });

}  // namespace
}  // namespace strata::hostile
