// Every combination of guest rights, control bits, access and P2M state, against a model that is
// written from the manual's prose (SDM 3A 4.6 and 4.7) and shares no code with the backend.
#include <gtest/gtest.h>

#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include "guest_builder.hpp"

namespace strata::nested::test {
namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr unsigned kStride = 101;  // prime to every factor of the product
#else
constexpr unsigned kStride = 1;
#endif

enum class Behind {
  private_clean,  ///< nested dirty bit not set yet
  private_dirty,
  shared,
  zero,
  rom,
  logged,
  mmio,
  absent,
  swapped,
  poisoned
};
constexpr Behind kBehind[] = {Behind::private_clean, Behind::private_dirty, Behind::shared,
                              Behind::zero,          Behind::rom,           Behind::logged,
                              Behind::mmio,          Behind::absent,        Behind::swapped,
                              Behind::poisoned};

struct Shape {
  PagingMode mode;
  unsigned level;  ///< of the leaf
};
constexpr Shape kShapes[] = {{PagingMode::off, 1},   {PagingMode::i386, 1}, {PagingMode::i386, 2},
                             {PagingMode::pae, 1},   {PagingMode::pae, 2},  {PagingMode::long4, 1},
                             {PagingMode::long4, 2}, {PagingMode::long4, 3}};

struct Case {
  Format format;
  bool nested_ad;
  Shape shape;
  Behind behind;
  std::uint64_t upper;  ///< bits of the entry above the leaf
  std::uint64_t leaf;   ///< bits of the leaf
  bool wp, smep, smap, nxe, pke;
  std::uint32_t pkru;
  Access access;

  friend std::ostream& operator<<(std::ostream& out, const Case& c) {
    return out << (c.format == Format::ept ? "ept" : "npt") << " ad=" << c.nested_ad
               << " mode=" << static_cast<int>(c.shape.mode) << " level=" << c.shape.level
               << " behind=" << static_cast<int>(c.behind) << std::hex << " upper=" << c.upper
               << " leaf=" << c.leaf << " wp=" << c.wp << " smep=" << c.smep << " smap=" << c.smap
               << " nxe=" << c.nxe << " pke=" << c.pke << " pkru=" << c.pkru
               << " kind=" << static_cast<int>(c.access.kind) << " user=" << c.access.user
               << " ac=" << c.access.ac;
  }
};

/// What the processor and the VMM make of one access.
struct Outcome {
  std::optional<FaultKind> fault;
  std::uint32_t code = 0;
  bool r = false, w = false, x = false;
  friend bool operator==(const Outcome&, const Outcome&) = default;
  friend std::ostream& operator<<(std::ostream& out, const Outcome& o) {
    if (o.fault) return out << "fault " << static_cast<int>(*o.fault) << " code " << o.code;
    return out << (o.r ? 'r' : '-') << (o.w ? 'w' : '-') << (o.x ? 'x' : '-');
  }
};

constexpr std::uint32_t kCodeP = 1, kCodeW = 2, kCodeU = 4, kCodeR = 8, kCodeI = 16, kCodeK = 32;

class Model {
 public:
  explicit Model(const Case& c) : c_{c} {}

  Outcome predict() {
    if (c_.shape.mode != PagingMode::off) {
      if (const auto code = guest_fault()) return {FaultKind::page_fault, *code};
    }
    if (const auto fault = nested_fault()) return {*fault};
    Outcome o;
    const bool write = c_.access.kind == AccessKind::write;
    const bool guest_dirty = c_.shape.mode == PagingMode::off || write || (c_.leaf & kD) != 0;
    o.r = allowed(AccessKind::read);
    o.w = allowed(AccessKind::write) && guest_dirty && (write || nested_writable());
    o.x = allowed(AccessKind::execute);
    return o;
  }
  /// Whether the guest's entries got their A bits (and D, for a write).
  bool guest_passes() { return c_.shape.mode != PagingMode::off && !guest_fault(); }

 private:
  [[nodiscard]] bool has_upper() const {
    if (c_.shape.mode == PagingMode::long4) return true;
    return c_.shape.level == 1;  // a PAE PDPTE has no rights
  }
  [[nodiscard]] bool nx_exists() const {
    return c_.shape.mode == PagingMode::pae || c_.shape.mode == PagingMode::long4;
  }
  [[nodiscard]] bool both(std::uint64_t bit) const {
    return (c_.leaf & bit) != 0 && (!has_upper() || (c_.upper & bit) != 0);
  }
  [[nodiscard]] bool no_execute() const {
    if (!nx_exists() || !c_.nxe) return false;
    return (c_.leaf & kNX) != 0 || (has_upper() && (c_.upper & kNX) != 0);
  }

  std::optional<std::uint32_t> guest_fault() {
    std::uint32_t code = 0;
    if (c_.access.kind == AccessKind::write) code |= kCodeW;
    if (c_.access.user) code |= kCodeU;
    const bool fetch_known = c_.smep || (nx_exists() && c_.nxe);
    if (c_.access.kind == AccessKind::execute && fetch_known) code |= kCodeI;
    const bool nx_reserved = nx_exists() && !c_.nxe;
    if (has_upper() && nx_reserved && (c_.upper & kNX) != 0) return code | kCodeP | kCodeR;
    if ((c_.leaf & kP) == 0) return code;
    if (nx_reserved && (c_.leaf & kNX) != 0) return code | kCodeP | kCodeR;
    if (key_stops(c_.access.kind)) return code | kCodeP | kCodeK;
    if (!rights_allow(c_.access.kind)) return code | kCodeP;
    return std::nullopt;
  }
  [[nodiscard]] bool key_stops(AccessKind kind) const {
    if (c_.shape.mode != PagingMode::long4 || !c_.pke || !both(kU)) return false;
    if (kind == AccessKind::execute) return false;
    const unsigned key = static_cast<unsigned>(c_.leaf >> 59 & 15);
    const bool ad = (c_.pkru >> (2 * key) & 1) != 0;
    const bool wd = (c_.pkru >> (2 * key + 1) & 1) != 0;
    if (ad) return true;
    return wd && kind == AccessKind::write && (c_.access.user || c_.wp);
  }
  [[nodiscard]] bool rights_allow(AccessKind kind) const {
    const bool user_page = both(kU);
    if (c_.access.user) {
      if (!user_page) return false;
      if (kind == AccessKind::write) return both(kW);
      return kind == AccessKind::read || !no_execute();
    }
    if (kind == AccessKind::execute) return !no_execute() && !(user_page && c_.smep);
    if (user_page && c_.smap && !c_.access.ac) return false;
    return kind == AccessKind::read || both(kW) || !c_.wp;
  }
  [[nodiscard]] bool allowed(AccessKind kind) const {
    if (c_.shape.mode == PagingMode::off) return true;
    return rights_allow(kind) && !key_stops(kind);
  }

  [[nodiscard]] std::optional<FaultKind> nested_fault() const {
    switch (c_.behind) {
      case Behind::mmio:
      case Behind::absent:
        return FaultKind::mmio;
      case Behind::swapped:
        return FaultKind::paused;
      case Behind::poisoned:
        return FaultKind::poisoned;
      case Behind::rom:
        if (c_.access.kind == AccessKind::write) return FaultKind::rom_write;
        return std::nullopt;
      default:
        return std::nullopt;
    }
  }
  /// For accesses that do not write themselves.
  [[nodiscard]] bool nested_writable() const {
    if (c_.behind == Behind::private_dirty) return true;
    return c_.behind == Behind::private_clean && c_.format == Format::ept && !c_.nested_ad;
  }

  Case c_;
};

/// One VM for one shape; puts a page of every kind behind the same guest address.
class Bench {
 public:
  Bench(Format format, bool nested_ad, Shape shape)
      : format_{format}, nested_ad_{nested_ad}, shape_{shape}, vm_{format, options(nested_ad)} {
    vm_.p2m.set(0x40000, 16, PageState::private_page);
    if (shape.mode == PagingMode::i386) {
      vm_.map_i386(kVa, kTarget, kP, shape.level);
      leaf_at_ = shape.level == 1 ? vm_.at<std::uint32_t>(vm_.root + (kVa >> 22) * 4) & ~0xFFFU
                                  : vm_.root + (kVa >> 22) * 4;
      if (shape.level == 1) leaf_at_ += (kVa >> 12 & 1023) * 4;
      upper_at_ = vm_.root + (kVa >> 22) * 4;
    } else if (shape.mode == PagingMode::pae) {
      vm_.map_pae(kVa, kTarget, kP, shape.level);
      const std::uint64_t pd = vm_.pdptes[kVa >> 30] & ~0xFFFULL;
      upper_at_ = Vm::entry_of(pd, kVa, 2);
      leaf_at_ =
          shape.level == 2 ? upper_at_ : Vm::entry_of(vm_.at(upper_at_) & 0xFFFFFFFFFF000, kVa, 1);
    } else if (shape.mode == PagingMode::long4) {
      vm_.map_long4(kVa, kTarget, kP, shape.level);
      leaf_at_ = vm_.slot_long4(kVa, shape.level);
      upper_at_ = vm_.slot_long4(kVa, shape.level + 1);
    }
    upper_base_ = wide() ? vm_.at(upper_at_) & 0xFFFFFFFFFF000 : narrow(upper_at_) & ~0xFFFU;
    leaf_base_ = kTarget | (shape.level > 1 ? kPS : 0);
  }

  void check(Case c) {
    c.format = format_;
    c.nested_ad = nested_ad_;
    c.shape = shape_;
    arrange(c);
    Model model{c};
    const Outcome expected = model.predict();
    const auto got = vm_.mmu->translate(0, VA{va()}, c.access);
    Outcome outcome;
    if (got) {
      outcome = {std::nullopt, 0, got->readable, got->writable, got->executable};
      ASSERT_EQ(got->pa.value(), kTarget) << c;
      ASSERT_EQ(got->page.value(), machine_page(c)) << c;
    } else {
      outcome = {got.error().kind, got.error().error_code};
      ASSERT_EQ(got.error().va.value(), va()) << c;
      const bool guest = got.error().kind == FaultKind::page_fault;
      ASSERT_EQ(got.error().stage, guest ? Stage::guest_table : Stage::p2m) << c;
      if (!guest) {
        ASSERT_EQ(got.error().pa.value(), kTarget + kOffset) << c;
      }
    }
    ASSERT_EQ(outcome, expected) << c;
    check_accessed_dirty(c, model.guest_passes());
    check_log(c, got.has_value());
  }
  [[nodiscard]] const Shape& shape() const { return shape_; }

 private:
  static constexpr std::uint64_t kVa = 0x40000000;
  static constexpr std::uint64_t kTarget = 0x40000000;  // 1 GiB, for leaves of any size
  static constexpr std::uint64_t kOffset = 0x123;
  static constexpr std::uint64_t kSharedMpn = kElsewhere + 1;

  static NestedOptions options(bool nested_ad) {
    NestedOptions o = kNoCaches;
    o.accessed_dirty = nested_ad;
    return o;
  }
  [[nodiscard]] bool wide() const { return shape_.mode != PagingMode::i386; }
  std::uint32_t& narrow(std::uint64_t pa) { return vm_.at<std::uint32_t>(pa); }
  [[nodiscard]] std::uint64_t va() const {
    return (shape_.mode == PagingMode::off ? kTarget : kVa) + kOffset;
  }
  std::uint64_t entry(std::uint64_t pa) { return wide() ? vm_.at(pa) : narrow(pa); }
  void put(std::uint64_t pa, std::uint64_t value) {
    if (wide()) {
      vm_.at(pa) = value;
    } else {
      narrow(pa) = static_cast<std::uint32_t>(value);
    }
  }

  void arrange(const Case& c) {
    if (shape_.mode != PagingMode::off) {
      if (upper_at_ != leaf_at_) put(upper_at_, upper_base_ | c.upper);
      put(leaf_at_, leaf_base_ | c.leaf);
    }
    arrange_p2m(c.behind);
    PagingContext context = vm_.context(shape_.mode);
    context.wp = c.wp;
    context.smep = c.smep;
    context.smap = c.smap;
    context.nxe = c.nxe;
    context.pke = c.pke;
    context.pkru = c.pkru;
    vm_.use(context);
  }
  void arrange_p2m(Behind behind) {
    const PPN ppn{kTarget >> kPageShift};
    const std::uint64_t home = FakeP2m::home(ppn).value();
    P2mEntry e;
    switch (behind) {
      case Behind::private_clean:
      case Behind::private_dirty:
        e = P2mEntry::make(PageState::private_page, home);
        break;
      case Behind::logged:
        e = P2mEntry::make(PageState::private_page, home).with_logged(true);
        break;
      case Behind::shared:
        e = P2mEntry::make(PageState::shared, kSharedMpn);
        break;
      case Behind::zero:
        e = P2mEntry::make(PageState::zero);
        break;
      case Behind::rom:
        e = P2mEntry::make(PageState::rom, home);
        break;
      case Behind::mmio:
        e = P2mEntry::make(PageState::mmio);
        break;
      case Behind::absent:
        break;
      case Behind::swapped:
        e = P2mEntry::make(PageState::swapped, 7);
        break;
      case Behind::poisoned:
        e = P2mEntry::make(PageState::poisoned);
        break;
    }
    Flush flush{vm_.domain};
    vm_.p2m.change(ppn, e, flush);
    flush.commit();
    vm_.p2m.dirty.clear();
    if (behind == Behind::private_dirty) {
      vm_.use(vm_.context(PagingMode::off));
      ASSERT_TRUE(vm_.store(kTarget));
    }
  }
  [[nodiscard]] static std::uint64_t machine_page(const Case& c) {
    const bool write = c.access.kind == AccessKind::write;
    if (c.behind == Behind::zero && !write) return kZeroFrame << kPageShift;
    if (c.behind == Behind::shared && !write) return kSharedMpn << kPageShift;
    return kHomeBase + kTarget;
  }

  void check_accessed_dirty(const Case& c, bool passed) {
    if (shape_.mode == PagingMode::off) return;
    const bool write = c.access.kind == AccessKind::write;
    const std::uint64_t leaf = entry(leaf_at_);
    ASSERT_EQ((leaf & kA) != 0, passed) << c;
    ASSERT_EQ((leaf & kD) != 0, (c.leaf & kD) != 0 || (passed && write)) << c;
    ASSERT_EQ(leaf & ~(kA | kD), (leaf_base_ | c.leaf) & ~kD) << c;
    if (upper_at_ == leaf_at_) return;
    const std::uint64_t upper = entry(upper_at_);
    ASSERT_EQ(upper, (upper_base_ | c.upper) | (passed ? kA : 0)) << c;
  }
  void check_log(const Case& c, bool ok) {
    const bool written = c.behind == Behind::logged && c.access.kind == AccessKind::write && ok;
    ASSERT_EQ(vm_.p2m.dirty.size(), written ? 1U : 0U) << c;
  }

  Format format_;
  bool nested_ad_;
  Shape shape_;
  Vm vm_;
  std::uint64_t leaf_at_ = 0, upper_at_ = 0, leaf_base_ = 0, upper_base_ = 0;
};

std::vector<std::uint64_t> leaf_choices(const Shape& s) {
  std::vector<std::uint64_t> out{0};
  const bool nx = s.mode == PagingMode::pae || s.mode == PagingMode::long4;
  for (unsigned i = 0; i < (nx ? 16U : 8U); ++i) {
    out.push_back(kP | ((i & 1) != 0 ? kW : 0) | ((i & 2) != 0 ? kU : 0) | ((i & 4) != 0 ? kD : 0) |
                  ((i & 8) != 0 ? kNX : 0) |
                  (s.mode == PagingMode::long4 ? 5ULL << 59 : 0));  // protection key 5
  }
  return out;
}
std::vector<std::uint64_t> upper_choices(const Shape& s) {
  if (s.level == 2 && s.mode != PagingMode::long4) return {kP | kW | kU};
  if (s.mode == PagingMode::i386) return {kP | kW | kU, kP | kU, kP | kW};
  return {kP | kW | kU, kP | kU, kP | kW, kP | kW | kU | kNX};
}
std::vector<std::pair<bool, std::uint32_t>> key_choices(const Shape& s) {
  if (s.mode != PagingMode::long4) return {{false, 0}};
  // Key 5 is denied access, denied writes, or everything but key 5 is denied.
  return {{false, ~0U}, {true, 1U << 10}, {true, 2U << 10}, {true, ~(3U << 10)}};
}

void run_shape(Format format, bool nested_ad, Shape shape) {
  Bench bench{format, nested_ad, shape};
  const bool paging = shape.mode != PagingMode::off;
  unsigned turn = 0;
  for (const Behind behind : kBehind) {
    for (const std::uint64_t leaf : paging ? leaf_choices(shape) : std::vector<std::uint64_t>{kP}) {
      for (const std::uint64_t upper : upper_choices(shape)) {
        for (const auto& [pke, pkru] : key_choices(shape)) {
          for (unsigned bits = 0; bits < 16 * 12; ++bits) {
            if (turn++ % kStride != 0) continue;
            Case c{};
            c.behind = behind;
            c.leaf = leaf;
            c.upper = upper;
            c.pke = pke;
            c.pkru = pkru;
            c.wp = (bits & 1) != 0;
            c.smep = (bits & 2) != 0;
            c.smap = (bits & 4) != 0;
            c.nxe = (bits & 8) != 0;
            const unsigned access = bits / 16;
            c.access = {static_cast<AccessKind>(access % 3), access / 3 % 2 != 0, access / 6 != 0};
            bench.check(c);
            if (testing::Test::HasFatalFailure()) return;
          }
        }
      }
    }
  }
}

class Permissions : public testing::TestWithParam<std::tuple<Format, bool, Shape>> {};

TEST_P(Permissions, MatrixAgreesWithTheModel) {
  const auto& [format, ad, shape] = GetParam();
  run_shape(format, ad, shape);
}

std::string matrix_name(const testing::TestParamInfo<std::tuple<Format, bool, Shape>>& p) {
  const auto& [format, ad, shape] = p.param;
  static const char* const modes[] = {"off", "i386", "pae", "long4"};
  return std::string{format == Format::ept ? "ept" : "npt"} + (ad ? "_ad_" : "_no_ad_") +
         modes[static_cast<int>(shape.mode)] + "_level" + std::to_string(shape.level);
}
INSTANTIATE_TEST_SUITE_P(Ept, Permissions,
                         testing::Combine(testing::Values(Format::ept), testing::Bool(),
                                          testing::ValuesIn(kShapes)),
                         matrix_name);
INSTANTIATE_TEST_SUITE_P(Npt, Permissions,
                         testing::Combine(testing::Values(Format::npt), testing::Values(true),
                                          testing::ValuesIn(kShapes)),
                         matrix_name);

}  // namespace
}  // namespace strata::nested::test
