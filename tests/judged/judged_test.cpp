// Tables that the backends made, judged by a processor that we did not write: every access of a
// list is made by QEMU's TCG through the dumped tables and by our walkers through their twin, and
// compared page by page: translations, faults, error codes, accessed and dirty flags.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <ostream>
#include <set>

#include "judged_guest.hpp"
#include "paging_model.hpp"

namespace strata::judged {
namespace {

std::string text_of(const Case& c) {
  std::ostringstream out;
  out << std::hex << " va " << c.va.value() << (c.access.user ? " user" : " supervisor")
      << (c.access.ac ? "+AC" : "")
      << (c.access.kind == AccessKind::read    ? " read"
          : c.access.kind == AccessKind::write ? " write"
                                               : " fetch")
      << " wp=" << c.context.wp << " smep=" << c.context.smep << " smap=" << c.context.smap
      << " pke=" << c.context.pke << " pkru=" << c.context.pkru;
  return out.str();
}

std::vector<PagingContext> contexts_of(const PagingContext& base, bool with_wp_clear) {
  std::vector<PagingContext> all;
  all.push_back(base);
  PagingContext c = base;
  c.smep = c.smap = true;
  all.push_back(c);
  if (base.mode == PagingMode::long4) {
    c = base;
    c.pke = true;
    c.pkru = 0x400;  // key 5: no access
    all.push_back(c);
    c.pkru = 0x800;  // key 5: no stores
    all.push_back(c);
  }
  if (with_wp_clear) {
    c = base;
    c.wp = false;
    all.push_back(c);
  }
  return all;
}

/// QEMU 7.2 reports a reserved bit without P, which both manuals have set (SDM 3A 4.7).
std::uint64_t fault_code(std::uint64_t code) {
  return (code & pf::kReserved) != 0 ? code | pf::kPresent : code;
}

class Judged : public testing::TestWithParam<PagingMode> {
 protected:
  void SetUp() override {
    if (find_judge("qemu-system-x86_64").empty()) GTEST_SKIP() << "no qemu-system-x86_64 in PATH";
  }
  JudgeMemory memory;
};

#ifdef STRATA_HAS_NESTED

/// Our walker's answer to one access, in the words of #VMEXIT.
struct Expectation {
  std::uint64_t exit = kExitVmmcall, info1 = 0, info2 = 0;
  std::uint32_t value = 0;
};

/// AMD's processors read PDPTEs at every walk, as accesses to guest tables, where ours keeps the
/// registers that CR3 loads fill (SDM 3A 4.4.1; APM 2 5.2.2, 15.25.10).
void touch_directory_pointers(JudgedGuest& guest) {
  if (guest.context().mode != PagingMode::pae) return;
  guest.mmu->set_context(0, {});
  EXPECT_TRUE(guest.mmu->translate(0, VA{guest.cr3()}, {AccessKind::write, false, false}));
}

Expectation expect(JudgedGuest& guest, const Case& c, std::uint32_t value) {
  Expectation e;
  EXPECT_TRUE(guest.mmu->translate(0, guest.stub(c.access),
                                   {AccessKind::execute, c.access.user, c.access.ac}));
  const auto t = guest.mmu->translate(0, c.va, c.access);
  if (!t) {
    EXPECT_EQ(t.error().stage, Stage::guest_table) << text_of(c);
    return {kExitPageFault, t.error().error_code, c.va.value(), 0};
  }
  std::byte* at = guest.machine.window().host(t->page + c.va.page_offset());
  if (c.access.kind == AccessKind::read) std::memcpy(&e.value, at, sizeof e.value);
  if (c.access.kind == AccessKind::write) std::memcpy(at, &value, sizeof value);
  return e;
}

/// Takes the flags `marks` off every entry of the nested table, so that both twins set them anew.
void clear_marks(JudgedGuest& guest, MPN table, unsigned level, std::uint64_t marks) {
  std::uint64_t* words = guest.machine.window().words(table);
  for (unsigned i = 0; i < 512; ++i) {
    if ((words[i] & 1) == 0) continue;
    words[i] &= ~marks;
    if (level > 1 && (words[i] & 0x80) == 0) {
      clear_marks(guest, page_of(MA{words[i] & 0xF'FFFF'FFFF'F000}), level - 1, marks);
    }
  }
}

/// The twins: a guest with every nested violation taken and nothing else changed, dumped into
/// `memory`; then what our walker says about each access, in the machine's own memory.
struct Twins {
  std::vector<Case> cases;
  std::vector<Probe> probes;
  std::vector<Expectation> expected;
};
Twins make_twins(JudgedGuest& guest, JudgeMemory& memory, std::uint64_t marks,
                 std::uint64_t root_bits, bool bochs) {
  auto& nested = dynamic_cast<nested::NestedMmu&>(*guest.mmu);
  const bool touch_pointers = !bochs;
  Twins out{guest.cases(contexts_of(guest.context(), true)), {}, {}};
  if (bochs) {
    // Bochs 2.7 lets supervisor accesses pass whatever PKRU says; SDM 3A 4.6.2 and QEMU do not.
    std::erase_if(out.cases, [](const Case& c) { return c.context.pke && !c.access.user; });
  }
  std::vector<std::pair<MPN, std::vector<std::byte>>> before;
  for (const MPN frame : guest.reachable()) {
    const std::byte* at = guest.machine.window().host(address_of(frame));
    before.emplace_back(frame, std::vector<std::byte>{at, at + kPageSize});
  }
  if (touch_pointers) touch_directory_pointers(guest);
  for (const Case& c : out.cases) {
    guest.mmu->set_context(0, c.context);
    (void)expect(guest, c, 0);
  }
  const std::set<MPN> tables{guest.frames.tables.begin(), guest.frames.tables.end()};
  for (const auto& [frame, bytes] : before) {
    if (tables.count(frame) != 0) continue;
    std::memcpy(guest.machine.window().host(address_of(frame)), bytes.data(), kPageSize);
  }
  clear_marks(guest, page_of(nested.root()), 4, marks);
  guest.dump(memory);

  const std::uint64_t violations = guest.mmu->stats().backend_misses;
  if (touch_pointers) touch_directory_pointers(guest);
  for (const Case& c : out.cases) {
    const auto value = static_cast<std::uint32_t>(0x5000'0000U + out.probes.size());
    guest.mmu->set_context(0, c.context);
    out.probes.push_back(guest.probe(c, value));
    out.probes.back().nested_root = nested.root().value() | root_bits;
    out.expected.push_back(expect(guest, c, value));
  }
  EXPECT_EQ(guest.mmu->stats().backend_misses, violations) << "the twins' tables differ";
  return out;
}

/// `page_fault`, `call`: what the judge calls a #PF and the end of a stub.
void compare(const Twins& twins, std::uint64_t page_fault, std::uint64_t call) {
  for (std::size_t i = 0; i < twins.probes.size(); ++i) {
    const Probe& p = twins.probes[i];
    const Expectation& e = twins.expected[i];
    const std::string text = text_of(twins.cases[i]);
    ASSERT_EQ(p.exit_code, e.exit == kExitPageFault ? page_fault : call)
        << text << std::hex << " " << p.exit_code << " " << p.exit_info1;
    if (e.exit == kExitPageFault) {
      EXPECT_EQ(fault_code(p.exit_info1), e.info1) << text;
      EXPECT_EQ(p.exit_info2, e.info2) << text;
    } else if (twins.cases[i].access.kind == AccessKind::read) {
      EXPECT_EQ(p.rax, e.value) << text;
    }
  }
}

TEST_P(Judged, NestedTablesOfNptUnderSvm) {
  JudgedGuest guest{"npt", GetParam()};
  Twins twins = make_twins(guest, memory, 0x60, 0, false);
  ASSERT_NO_FATAL_FAILURE(judge_by_qemu(memory, twins.probes));
  ASSERT_NO_FATAL_FAILURE(compare(twins, kExitPageFault, kExitVmmcall));
  const MPN pointers = guest.machine.p2m.home_of(page_of(PA{guest.cr3()}));
  for (const MPN frame : guest.reachable()) {
    // PDPTEs have no accessed flag (SDM 3A table 4-8); QEMU sets bit 5 in them.
    if (guest.context().mode == PagingMode::pae && frame == pointers) continue;
    EXPECT_EQ(memory.difference(guest.machine.window(), frame), "");
  }
}

class JudgedByBochs : public testing::TestWithParam<PagingMode> {
 protected:
  void SetUp() override {
    if (find_judge("bochs").empty()) GTEST_SKIP() << "no bochs in PATH";
  }
  JudgeMemory memory;
};

TEST_P(JudgedByBochs, NestedTablesOfEptUnderVmx) {
  JudgedGuest guest{"ept", GetParam()};
  // EPTP: write-back, a walk of four, accessed and dirty flags (SDM 3C 24.6.11).
  Twins twins = make_twins(guest, memory, 0x300, 6 | 3 << 3 | 1 << 6, true);
  const auto frames = guest.reachable();
  ASSERT_NO_FATAL_FAILURE(judge_by_bochs(memory, twins.probes, frames));
  ASSERT_NO_FATAL_FAILURE(compare(twins, kExitException | 14 << 8, kExitVmcall));
  for (const MPN frame : frames) {
    EXPECT_EQ(memory.difference(guest.machine.window(), frame), "");
  }
}

/// What is not in the nested table, or not writable there, is a violation with the right address.
TEST_P(Judged, NestedViolationsUnderSvm) {
  JudgedGuest guest{"npt", GetParam()};
  auto& nested = dynamic_cast<nested::NestedMmu&>(*guest.mmu);
  // Never touched; read but not written: the zero frame, read-only.
  const PA untouched{0x1A0'0000};
  const PA zero{0x1B0'0000};
  touch_directory_pointers(guest);
  guest.mmu->set_context(0, guest.context());
  std::vector<Case> cases;
  for (const PA pa : {untouched, zero}) {
    const VA va = guest.map_page(pa, 0x67);
    Flush flush{guest.machine.domain};
    ASSERT_TRUE(guest.machine.p2m.discard({page_of(pa), 1}, flush));
    flush.commit();
    if (pa == zero) {
      ASSERT_TRUE(guest.mmu->translate(0, va, {AccessKind::read, true, false}));
    }
    for (const AccessKind kind : {AccessKind::read, AccessKind::write}) {
      const Case c{va, {kind, true, false}, guest.context()};
      ASSERT_TRUE(
          guest.mmu->translate(0, guest.stub(c.access), {AccessKind::execute, true, false}));
      cases.push_back(c);
    }
  }
  guest.dump(memory);
  std::vector<Probe> probes;
  for (const Case& c : cases) {
    probes.push_back(guest.probe(c, 1));
    probes.back().nested_root = nested.root().value();
  }
  ASSERT_NO_FATAL_FAILURE(judge_by_qemu(memory, probes));
  // APM 2 15.25.6: bit 32 for the guest's final address, then P, R/W and U/S as of #PF.
  EXPECT_EQ(probes[0].exit_code, kExitNestedFault);
  EXPECT_EQ(probes[0].exit_info1, 0x1'0000'0004U);
  EXPECT_EQ(probes[0].exit_info2, untouched.value());
  EXPECT_EQ(probes[1].exit_info1, 0x1'0000'0006U);
  EXPECT_EQ(probes[2].exit_code, kExitVmmcall);
  EXPECT_EQ(probes[2].rax, 0U);
  EXPECT_EQ(probes[3].exit_code, kExitNestedFault);
  EXPECT_EQ(probes[3].exit_info1, 0x1'0000'0007U);
  EXPECT_EQ(probes[3].exit_info2, zero.value());
}

#endif

#ifdef STRATA_HAS_SHADOW

/// The table that no other table points to.
MPN root_of(JudgedGuest& guest) {
  std::set<MPN> roots{guest.frames.tables.begin(), guest.frames.tables.end()};
  for (const MPN table : guest.frames.tables) {
    for (unsigned i = 0; i < 512; ++i) {
      const std::uint64_t e = guest.machine.window().words(table)[i];
      if ((e & 1) != 0) roots.erase(page_of(MA{e & 0xF'FFFF'FFFF'F000}));
    }
  }
  EXPECT_EQ(roots.size(), 1U);
  return *roots.begin();
}

TEST_P(Judged, ShadowTablesInCr3) {
  JudgedGuest guest{"shadow", GetParam()};
  const auto cases = guest.cases(contexts_of(guest.context(), false));
  // Twice, so that what the second round finds is in the tables.
  std::vector<Expected<Translation, Fault>> answers;
  for (const bool last : {false, true}) {
    for (const Case& c : cases) {
      guest.mmu->set_context(0, c.context);
      ASSERT_TRUE(guest.mmu->translate(0, guest.stub(c.access),
                                       {AccessKind::execute, c.access.user, c.access.ac}));
      const auto t = guest.mmu->translate(0, c.va, c.access);
      if (last) answers.push_back(t);
    }
  }
  guest.dump(memory);
  const MPN root = root_of(guest);
  std::vector<Probe> probes;
  for (const Case& c : cases) {
    // The shadow of any mode is a long-mode table, walked with WP and NXE.
    Probe p = guest.probe(c, 0x5000'0000U);
    p.cr3 = address_of(root).value();
    p.cr0 |= 1U << 16;
    p.cr4 |= 0x20U;
    p.efer |= 0xD00U;
    p.long_mode = 1;
    probes.push_back(p);
  }
  ASSERT_NO_FATAL_FAILURE(judge_by_qemu(memory, probes));
  for (std::size_t i = 0; i < probes.size(); ++i) {
    const Probe& p = probes[i];
    const Case& c = cases[i];
    // First the backend's answer: what it allowed is in the table, and nothing else is.
    const bool allowed = answers[i].has_value() && !answers[i]->traced;
    ASSERT_EQ(p.exit_code, allowed ? kExitVmmcall : kExitPageFault) << text_of(c);
    if (allowed && c.access.kind == AccessKind::read) {
      EXPECT_EQ(p.rax, JudgedGuest::tag_of(answers[i]->pa)) << text_of(c);
    }
    // Then the table by itself, by the model of the manual.
    PagingContext shadow = c.context;
    shadow.mode = PagingMode::long4;
    shadow.root = PA{address_of(root).value()};
    shadow.nxe = shadow.wp = true;
    const auto predicted = conformance::predict(shadow, c.va, c.access, [&](PA at, unsigned) {
      std::uint64_t e = 0;
      std::memcpy(&e, guest.machine.window().host(MA{at.value()}), sizeof e);
      return e;
    });
    ASSERT_EQ(p.exit_code == kExitVmmcall, predicted.allowed) << text_of(c);
    if (!predicted.allowed) {
      EXPECT_EQ(fault_code(p.exit_info1), predicted.code) << text_of(c);
      EXPECT_EQ(p.exit_info2, c.va.value()) << text_of(c);
    }
  }
  // Accessed and dirty flags of shadow tables are all set beforehand: walks change nothing.
  for (const MPN table : guest.frames.tables) {
    EXPECT_EQ(memory.difference(guest.machine.window(), table), "");
  }
}

#endif

constexpr std::array kModes{PagingMode::i386, PagingMode::pae, PagingMode::long4};
std::string mode_name(const testing::TestParamInfo<PagingMode>& mode) {
  constexpr std::array kNames{"off", "i386", "pae", "long4"};
  return kNames.at(static_cast<unsigned>(mode.param));
}
INSTANTIATE_TEST_SUITE_P(Modes, Judged, testing::ValuesIn(kModes), mode_name);
#ifdef STRATA_HAS_NESTED
INSTANTIATE_TEST_SUITE_P(Modes, JudgedByBochs, testing::ValuesIn(kModes), mode_name);
#endif

}  // namespace
}  // namespace strata::judged
