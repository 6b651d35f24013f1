// Every permission outcome of the guest walk against a model written from the manual's sentences,
// not from formats.hpp: bits are numbers here, rules are the cases of SDM 3A 4.6.1 one by one.
#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "machine/test_support.hpp"

namespace strata::machine {
namespace {

using test::TestMachine;

constexpr std::uint64_t bit(unsigned n) { return 1ULL << n; }
constexpr bool has(std::uint64_t e, unsigned n) { return (e >> n & 1) != 0; }

/// What the manual says about one access.
struct Verdict {
  bool allowed = false;
  std::uint32_t code = 0;
  std::size_t used = 0;  ///< entries read, from the top
};

/// Entries from the top table down, as many as the deepest walk could read.
using Path = std::vector<std::uint64_t>;

/// The level of `path[i]`, 1 being a page table.
unsigned level_at(const Path& path, std::size_t i) {
  return static_cast<unsigned>(path.size() - i);
}

/// SDM 3A tables 4-4, 4-16, 4-17, 4-10: whether PS at this level means a page.
bool maps_page(const PagingContext& c, unsigned level, std::uint64_t e) {
  if (level == 1) return true;
  if (!has(e, 7)) return false;
  switch (c.mode) {
    case PagingMode::i386:
      return c.pse;  // PS is ignored while CR4.PSE = 0
    case PagingMode::pae:
      return true;
    default:
      return level == 2 || (level == 3 && c.huge_pages);
  }
}

/// SDM 3A 4.3, 4.4.2, 4.5.4: the lists of reserved bits.
bool breaks_reserved(const PagingContext& c, unsigned level, std::uint64_t e) {
  const bool page = maps_page(c, level, e);
  if (c.mode == PagingMode::i386) {
    if (!page || level == 1) return false;
    const unsigned m = c.maxphyaddr < 40U ? c.maxphyaddr : 40U;
    for (unsigned n = m - 19; n <= 21; ++n) {  // bits 21:(M-19)
      if (has(e, n)) return true;
    }
    return false;
  }
  const unsigned top = c.mode == PagingMode::pae ? 62 : 51;
  for (unsigned n = c.maxphyaddr; n <= top; ++n) {
    if (has(e, n)) return true;
  }
  if (!c.nxe && has(e, 63)) return true;
  if (c.mode == PagingMode::long4) {
    if (level == 4 && has(e, 7)) return true;
    if (level == 3 && has(e, 7) && !c.huge_pages) return true;
  }
  if (!page || level == 1) return false;
  const unsigned last = level == 3 ? 29 : 20;
  for (unsigned n = 13; n <= last; ++n) {
    if (has(e, n)) return true;
  }
  return false;
}

/// SDM 3A 4.6.1, sentence by sentence. `user_page`: U/S is 1 in every entry.
bool access_right(const PagingContext& c, Access a, bool user_page, bool every_rw, bool any_xd) {
  const bool xd = any_xd && c.nxe;
  if (a.user) {
    if (!user_page) return false;
    switch (a.kind) {
      case AccessKind::read:
        return true;
      case AccessKind::write:
        return every_rw;
      case AccessKind::execute:
        return !xd;
    }
  }
  if (!user_page) {
    switch (a.kind) {
      case AccessKind::read:
        return true;
      case AccessKind::write:
        if (!c.wp) return true;
        return every_rw;
      case AccessKind::execute:
        return !xd;
    }
  }
  switch (a.kind) {
    case AccessKind::read:
      if (!c.smap) return true;
      return a.ac;
    case AccessKind::write:
      if (!c.wp && !c.smap) return true;
      if (!c.wp && c.smap) return a.ac;
      if (c.wp && !c.smap) return every_rw;
      return a.ac && every_rw;
    case AccessKind::execute:
      if (c.smep) return false;
      return !xd;
  }
  return false;
}

/// SDM 3A 4.6.2.
bool key_forbids(const PagingContext& c, Access a, bool user_page, std::uint64_t leaf) {
  if (c.mode != PagingMode::long4 || !c.pke) return false;
  if (a.kind == AccessKind::execute || !user_page) return false;
  const unsigned key = static_cast<unsigned>(has(leaf, 59)) + 2U * has(leaf, 60) +
                       4U * has(leaf, 61) + 8U * has(leaf, 62);
  const bool ad = has(c.pkru, 2 * key);
  const bool wd = has(c.pkru, 2 * key + 1);
  if (ad) return true;
  if (a.kind != AccessKind::write || !wd) return false;
  return a.user || c.wp;
}

/// SDM 3A 4.7, figure 4-12.
std::uint32_t code_for(const PagingContext& c, Access a, bool present, bool reserved, bool key) {
  std::uint32_t code = 0;
  if (present) code += 1;
  if (a.kind == AccessKind::write) code += 2;
  if (a.user) code += 4;
  if (reserved) code += 8;
  const bool nx_mode = c.nxe && c.mode != PagingMode::i386;
  if (a.kind == AccessKind::execute && (c.smep || nx_mode)) code += 16;
  if (key) code += 32;
  return code;
}

Verdict predict(const PagingContext& c, Access a, const Path& path) {
  bool user_page = true;
  bool every_rw = true;
  bool any_xd = false;
  for (std::size_t i = 0; i < path.size(); ++i) {
    const std::uint64_t e = path[i];
    if (!has(e, 0)) return {false, code_for(c, a, false, false, false), i + 1};
    if (breaks_reserved(c, level_at(path, i), e)) {
      return {false, code_for(c, a, true, true, false), i + 1};
    }
    user_page = user_page && has(e, 2);
    every_rw = every_rw && has(e, 1);
    any_xd = any_xd || (c.mode != PagingMode::i386 && has(e, 63));
    if (!maps_page(c, level_at(path, i), e)) continue;
    const bool key = key_forbids(c, a, user_page, e);
    const bool right = access_right(c, a, user_page, every_rw, any_xd);
    if (right && !key) return {true, 0, i + 1};
    return {false, code_for(c, a, true, false, key), i + 1};
  }
  return {};
}

/// One path of guest tables that a test rewrites entry by entry.
class PathFixture : public ::testing::Test {
 protected:
  static constexpr std::uint64_t kVa = 0x40000000ULL + (3ULL << 22) + (1ULL << 21) + (7ULL << 12);

  void use(PagingMode mode) {
    context_ = PagingContext{};
    context_.mode = mode;
    const bool wide = mode != PagingMode::i386;
    levels_ = mode == PagingMode::long4 ? 4 : 2;
    words_.clear();
    base_.clear();
    PA table = m_.new_table();
    context_.root = table;
    context_.pdpte[1] = table.value() | 1;
    for (unsigned level = levels_; level >= 1; --level) {
      const unsigned shift = wide ? 12 + 9 * (level - 1) : 12 + 10 * (level - 1);
      const std::uint64_t index = kVa >> shift & (wide ? 511 : 1023);
      const PA entry = table + index * (wide ? 8 : 4);
      words_.push_back(m_.window().host(address_of(m_.p2m.home_of(page_of(entry)))) +
                       entry.page_offset());
      table = level > 1 ? m_.new_table() : PA{0x0123'4000};
      base_.push_back(table.value());
    }
  }
  void put(std::size_t i, std::uint64_t e) {
    if (context_.mode == PagingMode::i386) {
      const auto narrow = static_cast<std::uint32_t>(e);
      std::memcpy(words_[i], &narrow, sizeof narrow);
    } else {
      std::memcpy(words_[i], &e, sizeof e);
    }
  }
  std::uint64_t get(std::size_t i) const {
    std::uint64_t e = 0;
    std::memcpy(&e, words_[i], context_.mode == PagingMode::i386 ? 4 : 8);
    return e;
  }
  /// Where a page of `level` with entry `e` puts the byte kVa (SDM 3A figures 4-2 to 4-11).
  std::uint64_t address(unsigned level, std::uint64_t e) const {
    if (level == 1) return (e & (bit(52) - bit(12))) | (kVa & 0xFFF);
    if (context_.mode == PagingMode::i386) {
      std::uint64_t pa = e & 0xFFC00000U;
      for (unsigned n = 13; n <= 20; ++n) pa |= has(e, n) ? bit(n + 19) : 0;
      return pa | (kVa & 0x3FFFFF);
    }
    const unsigned shift = level == 2 ? 21 : 30;
    return (e & (bit(52) - bit(shift))) | (kVa & (bit(shift) - 1));
  }
  std::string describe(Access a, const Path& path) const {
    std::string s = "mode " + std::to_string(static_cast<int>(context_.mode)) + " kind " +
                    std::to_string(static_cast<int>(a.kind)) + " user " + std::to_string(a.user) +
                    " ac " + std::to_string(a.ac) + " wp " + std::to_string(context_.wp) +
                    " smep " + std::to_string(context_.smep) + " smap " +
                    std::to_string(context_.smap) + " nxe " + std::to_string(context_.nxe) +
                    " pke " + std::to_string(context_.pke) + " mp " +
                    std::to_string(context_.maxphyaddr);
    for (const std::uint64_t e : path) s += " " + testing::PrintToString(e);
    return s;
  }
  /// Walks and compares; stops the test at the first difference.
  void check(Access a, const Path& path) {
    for (std::size_t i = 0; i < path.size(); ++i) put(i, path[i]);
    const Verdict v = predict(context_, a, path);
    GuestWalkCounters counters;
    const auto r = guest_walk(context_, VA{kVa}, a, m_.p2m, m_.window(), counters);
    ++checked_;
    ASSERT_EQ(r.has_value(), v.allowed) << describe(a, path);
    ASSERT_EQ(counters.references, v.used) << describe(a, path);
    if (!r) {
      ASSERT_EQ(r.error().stage, Stage::guest_table);
      ASSERT_EQ(r.error().error_code, v.code) << describe(a, path);
      ASSERT_EQ(r.error().va, VA{kVa});
    } else {
      check_success(a, path, v, *r);
    }
    check_entries(a, path, v);
  }
  void check_success(Access a, const Path& path, const Verdict& v, const GuestWalk& r) {
    const std::size_t last = v.used - 1;
    const unsigned level = level_at(path, last);
    ASSERT_EQ(r.pa.value(), address(level, path[last])) << describe(a, path);
    const unsigned large = context_.mode == PagingMode::i386 ? 22 : 21;
    ASSERT_EQ(r.page_shift, level == 1 ? 12U : level == 2 ? large : 30U);
    ASSERT_EQ(r.dirty, a.kind == AccessKind::write || has(path[last], 6));
    ASSERT_EQ(r.global, context_.pge && has(path[last], 8));
  }
  /// SDM 3A 4.8: A in every entry used, D in the leaf of a write; nothing else ever changes.
  void check_entries(Access a, const Path& path, const Verdict& v) {
    for (std::size_t i = 0; i < path.size(); ++i) {
      std::uint64_t expected = path[i];
      if (v.allowed && i < v.used) expected |= bit(5);
      if (v.allowed && i + 1 == v.used && a.kind == AccessKind::write) expected |= bit(6);
      ASSERT_EQ(get(i), expected) << "entry " << i << " " << describe(a, path);
    }
  }
  void check_every_access(const Path& path) {
    for (const auto kind : {AccessKind::read, AccessKind::write, AccessKind::execute}) {
      for (const bool user : {false, true}) {
        for (const bool ac : {false, true}) check({kind, user, ac}, path);
      }
    }
  }
  /// All combinations of WP, SMEP, SMAP and NXE.
  template <class Body>
  void for_every_control(Body&& body) {
    for (unsigned n = 0; n < 16 && !HasFatalFailure(); ++n) {
      context_.wp = has(n, 0);
      context_.smep = has(n, 1);
      context_.smap = has(n, 2);
      context_.nxe = has(n, 3);
      body();
    }
  }
  /// All combinations of R/W, U/S and XD at `count` levels; the last is the leaf.
  template <class Body>
  void for_every_rights(std::size_t count, unsigned flags, Body&& body) {
    const std::uint64_t combinations = bit(static_cast<unsigned>(count) * flags);
    for (std::uint64_t n = 0; n < combinations && !HasFatalFailure(); ++n) {
      Path path;
      for (std::size_t i = 0; i < levels_; ++i) {
        const std::uint64_t f = i < count ? n >> (i * flags) : 0;
        std::uint64_t e = base_[i] | 1;
        if (has(f, 0)) e |= bit(1);
        if (has(f, 1)) e |= bit(2);
        if (flags == 3 && has(f, 2)) e |= bit(63);
        path.push_back(e);
      }
      body(path);
    }
  }
  /// Makes entry `i` of the path a page: PS, and an address aligned for it.
  void make_large(Path& path, std::size_t i) const {
    const unsigned level = level_at(path, i);
    const unsigned shift = context_.mode == PagingMode::i386 ? 22 : level == 2 ? 21 : 30;
    path[i] = (path[i] & (bit(63) | 0xFFF)) | bit(7) | bit(shift);
  }

  TestMachine m_{16};
  PagingContext context_;
  unsigned levels_ = 0;
  std::vector<std::byte*> words_;    ///< where the entries lie, from the top
  std::vector<std::uint64_t> base_;  ///< the address each leads to
  std::uint64_t checked_ = 0;
};

class GuestWalkModel : public PathFixture {};

TEST_F(GuestWalkModel, long_mode_rights_at_every_level) {
  use(PagingMode::long4);
  for_every_control(
      [&] { for_every_rights(4, 3, [&](const Path& path) { check_every_access(path); }); });
  EXPECT_EQ(checked_, 16U * 4096 * 12);
}

TEST_F(GuestWalkModel, long_mode_large_pages) {
  use(PagingMode::long4);
  for (const std::size_t leaf : {std::size_t{1}, std::size_t{2}}) {
    for_every_control([&] {
      for_every_rights(leaf + 1, 3, [&](Path path) {
        make_large(path, leaf);
        check_every_access(path);
      });
    });
  }
  EXPECT_EQ(checked_, 16U * (64 + 512) * 12);
}

TEST_F(GuestWalkModel, pae_rights_at_every_level) {
  use(PagingMode::pae);
  for (const bool pke : {false, true}) {
    context_.pke = pke;  // keys are for long mode only
    context_.pkru = ~0U;
    for_every_control([&] {
      for_every_rights(2, 3, [&](const Path& path) { check_every_access(path); });
      for_every_rights(1, 3, [&](Path path) {
        make_large(path, 0);
        check_every_access(path);
      });
    });
  }
  EXPECT_EQ(checked_, 2U * 16 * (64 + 8) * 12);
}

TEST_F(GuestWalkModel, i386_rights_at_every_level) {
  use(PagingMode::i386);
  for (const bool pse : {false, true}) {
    context_.pse = pse;
    for_every_control([&] {
      for_every_rights(2, 2, [&](const Path& path) { check_every_access(path); });
      // PS with a table behind it: a page or a table, as CR4.PSE says.
      for_every_rights(2, 2, [&](Path path) {
        path[0] |= bit(7);
        path[0] &= ~(bit(22) - bit(13)) | (pse ? 0 : ~0ULL);
        check_every_access(path);
      });
    });
  }
  EXPECT_EQ(checked_, 2U * 16 * 32 * 12);
}

TEST_F(GuestWalkModel, protection_keys) {
  use(PagingMode::long4);
  context_.pke = true;
  for (std::uint64_t key = 0; key < 16; ++key) {
    for (std::uint32_t rights = 0; rights < 4; ++rights) {
      // Every other key says the opposite, so that the wrong one shows.
      context_.pkru = 0;
      for (unsigned k = 0; k < 16; ++k) {
        context_.pkru |= (k == key ? rights : ~rights & 3) << (2 * k);
      }
      for_every_control([&] {
        for_every_rights(2, 2, [&](Path path) {
          for (std::size_t i = 2; i < 4; ++i) path[i] = base_[i] | 7;
          Path large = path;
          path[3] |= key << 59;
          check_every_access(path);
          make_large(large, 2);
          large[2] |= key << 59;
          check_every_access(large);
        });
      });
      if (HasFatalFailure()) return;
    }
  }
  context_.pke = false;
  context_.pkru = ~0U;
  check_every_access({base_[0] | 7, base_[1] | 7, base_[2] | 7, base_[3] | 7});
}

/// Each single bit that is no part of the address, on its own, at each level.
class GuestWalkReserved : public PathFixture {
 protected:
  void each_bit(std::size_t leaf, bool large) {
    Path good;
    for (std::size_t i = 0; i < levels_; ++i) good.push_back(base_[i] | 7);
    if (large) make_large(good, leaf);
    for (std::size_t i = 0; i <= leaf; ++i) {
      for (unsigned n = 0; n < (context_.mode == PagingMode::i386 ? 32 : 64); ++n) {
        const bool page = i == leaf;
        // Bits of a table's address would lead elsewhere; a page's may be anything.
        if (!page && n >= 12 && n < context_.maxphyaddr) continue;
        // PS turns a table into a page and back: random_paths, a_pml4_entry_has_no_ps.
        if (n == 7 && level_at(good, i) > 1) continue;
        Path path = good;
        path[i] ^= bit(n);
        check_every_access(path);
        if (HasFatalFailure()) return;
      }
    }
  }
};

TEST_F(GuestWalkReserved, each_bit_of_each_entry) {
  for (const auto mode : {PagingMode::long4, PagingMode::pae, PagingMode::i386}) {
    use(mode);
    for (const unsigned width : {32U, 36U, 39U, 40U, 46U, 52U}) {
      for (unsigned n = 0; n < 8; ++n) {
        context_.maxphyaddr = static_cast<std::uint8_t>(width);
        context_.nxe = has(n, 0);
        context_.huge_pages = has(n, 1);
        context_.pse = context_.pge = has(n, 2);
        each_bit(levels_ - 1, false);
        // Without PSE a PDE's PS is ignored, and a page's address would be taken for a table's.
        if (mode != PagingMode::i386 || context_.pse) each_bit(levels_ - 2, true);
        if (mode == PagingMode::long4) each_bit(1, true);
        if (HasFatalFailure()) return;
      }
    }
  }
  RecordProperty("checked", static_cast<int>(checked_));
}

TEST_F(GuestWalkReserved, a_pml4_entry_has_no_ps) {
  use(PagingMode::long4);
  check_every_access({base_[0] | 7 | bit(7), base_[1] | 7, base_[2] | 7, base_[3] | 7});
}

TEST_F(GuestWalkReserved, random_paths) {
  std::uint64_t random = 0x1234567;
  const auto chance = [&](unsigned percent) {
    random = random * 6364136223846793005ULL + 1442695040888963407ULL;
    return (random >> 33) % 100 < percent;
  };
  for (int round = 0; round < 60000; ++round) {
    if (round % 20000 == 0) {
      use(std::array{PagingMode::long4, PagingMode::pae, PagingMode::i386}.at(
          static_cast<std::size_t>(round / 20000)));
    }
    const auto toss = [&](bool& flag) { flag = chance(50); };
    for (bool* flag : {&context_.wp, &context_.smep, &context_.smap, &context_.nxe, &context_.pke,
                       &context_.pse, &context_.pge, &context_.huge_pages}) {
      toss(*flag);
    }
    context_.maxphyaddr = chance(50) ? 36 : 45;
    context_.pkru = static_cast<std::uint32_t>(random >> 13);
    Path path;
    for (std::size_t i = 0; i < levels_; ++i) {
      std::uint64_t e = base_[i];
      for (const unsigned n : {0U, 1U, 2U}) e |= chance(90) ? bit(n) : 0;
      for (const unsigned n : {5U, 6U, 8U, 9U, 59U, 62U}) e |= chance(30) ? bit(n) : 0;
      for (const unsigned n : {47U, 51U, 55U, 63U}) e |= chance(3) ? bit(n) : 0;
      path.push_back(e);
    }
    for (std::size_t i = 0; i + 1 < levels_; ++i) {
      if (chance(15)) make_large(path, i);
    }
    for (std::size_t i = 0; i < path.size(); ++i) {
      if (context_.mode == PagingMode::i386) path[i] &= 0xFFFF'FFFFU;
    }
    // A PS that means a table there would lead to the page's address: only where it is a page.
    bool odd = false;
    for (std::size_t i = 0; i + 1 < levels_; ++i) {
      odd = odd || (has(path[i], 7) && has(path[i], 0) &&
                    !maps_page(context_, level_at(path, i), path[i]) &&
                    !breaks_reserved(context_, level_at(path, i), path[i]));
    }
    if (odd) continue;
    check_every_access(path);
    if (HasFatalFailure()) return;
  }
  EXPECT_GT(checked_, 400000U);
}

}  // namespace
}  // namespace strata::machine
