// A backend over real machine memory, without an engine: one path of guest tables that a test
// rewrites, and every access compared with the model.
#pragma once

#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <memory>
#include <ostream>
#include <sstream>
#include <string>
#include <string_view>

#include "backends.hpp"
#include "machine/test_support.hpp"
#include "paging_model.hpp"

namespace strata::conformance {

/// Which tables, and at which level the page is.
struct Layout {
  std::string_view name;
  PagingMode mode = PagingMode::long4;
  unsigned leaf = 1;  ///< 1: 4 KiB; 2: 2 or 4 MiB; 3: 1 GiB
  bool pse = false;
  [[nodiscard]] bool wide() const { return mode == PagingMode::pae || mode == PagingMode::long4; }
  [[nodiscard]] unsigned top() const { return mode == PagingMode::long4 ? 4 : 2; }
  [[nodiscard]] unsigned bytes() const { return wide() ? 8 : 4; }
};
inline std::ostream& operator<<(std::ostream& out, const Layout& l) { return out << l.name; }

inline constexpr std::array kLayouts{
    Layout{"i386_4k", PagingMode::i386, 1, false},
    Layout{"i386_pse_4k", PagingMode::i386, 1, true},
    Layout{"i386_4m", PagingMode::i386, 2, true},
    Layout{"pae_4k", PagingMode::pae, 1, false},
    Layout{"pae_2m", PagingMode::pae, 2, false},
    Layout{"long4_4k", PagingMode::long4, 1, false},
    Layout{"long4_2m", PagingMode::long4, 2, false},
    Layout{"long4_1g", PagingMode::long4, 3, false},
};

/// Bits of guest entries by their numbers in SDM 3A 4.5.4.
inline constexpr std::uint64_t kP = 1, kW = 2, kU = 4, kA = 0x20, kD = 0x40, kPs = 0x80, kG = 0x100,
                               kNx = 1ULL << 63;
constexpr std::uint64_t key_bits(unsigned key) { return std::uint64_t{key} << 59; }

/// All combinations of kind and privilege that an engine can ask for.
inline constexpr std::array kAccesses{
    Access{AccessKind::read, true, false},    Access{AccessKind::read, false, false},
    Access{AccessKind::read, false, true},    Access{AccessKind::write, true, false},
    Access{AccessKind::write, false, false},  Access{AccessKind::write, false, true},
    Access{AccessKind::execute, true, false}, Access{AccessKind::execute, false, false},
    Access{AccessKind::execute, false, true},
};

class MmuWorld {
 public:
  /// The byte that is accessed. Its page lies at kPage whatever the page's size.
  static constexpr std::uint64_t kPage = 0x0153'4000, kOffset = 0x678;
  static constexpr std::uint64_t kTables = 0x10'0000;

  explicit MmuWorld(std::string_view backend, bool caches = true)
      : machine{64},
        mmu{make_backend(backend, machine.p2m, machine.frames, machine.domain, caches)},
        name{backend},
        listener{*mmu} {
    machine.guest.add_listener(listener);
    machine.store<std::uint8_t>(PA{kPage}, 1);  // private memory, so that stores may be direct
  }
  ~MmuWorld() { machine.guest.remove_listener(listener); }
  MmuWorld(const MmuWorld&) = delete;
  MmuWorld& operator=(const MmuWorld&) = delete;

  /// Uses the tables of `l`, with every right on the way and the page writable for all.
  void use(const Layout& l) {
    layout = l;
    const std::uint64_t page_bytes = std::uint64_t{1} << leaf_shift();
    // Indices of several bits each; the page keeps its offset within a large page.
    va =
        VA{(l.mode == PagingMode::long4 ? 0x0000'5A40'C000'0000U : 0x8000'0000U) + kPage + kOffset};
    for (unsigned level = l.top(); level >= l.leaf; --level) {
      const std::uint64_t table = kTables + level * kPageSize;
      const unsigned shift = l.wide() ? 12 + 9 * (level - 1) : 12 + 10 * (level - 1);
      const std::uint64_t index = va.value() >> shift & (l.wide() ? 511 : 1023);
      address.at(level) = PA{table + index * l.bytes()};
      open.at(level) = level == l.leaf
                           ? (kPage & ~(page_bytes - 1)) | kP | kW | kU | (level > 1 ? kPs : 0)
                           : (table - kPageSize) | kP | kW | kU;
      put(level, open.at(level));
    }
    context = {};
    context.mode = l.mode;
    context.pse = l.pse;
    context.root = PA{kTables + l.top() * kPageSize};
    if (l.mode == PagingMode::pae) context.pdpte.at(2) = context.root.value() | kP;
  }
  [[nodiscard]] unsigned leaf_shift() const {
    return layout.wide() ? 12 + 9 * (layout.leaf - 1) : 12 + 10 * (layout.leaf - 1);
  }

  /// Stores an entry, announced as the store of a vCPU or device would be.
  void put(unsigned level, std::uint64_t entry) {
    if (layout.wide()) {
      machine.store(address.at(level), entry);
    } else {
      machine.store(address.at(level), static_cast<std::uint32_t>(entry));
    }
  }
  [[nodiscard]] std::uint64_t entry(PA at, unsigned bytes) {
    return bytes == 8 ? machine.load<std::uint64_t>(at) : machine.load<std::uint32_t>(at);
  }
  void set(const PagingContext& c) {
    context = c;
    mmu->set_context(0, c);
  }
  void flush() { mmu->invalidate(0, FlushScope::all, 0, VA{}); }

  [[nodiscard]] Prediction prediction(Access access) {
    return predict(context, va, access, [this](PA at, unsigned bytes) { return entry(at, bytes); });
  }

  /// Makes `access` and compares all that can be seen of it. Returns what is wrong, or nothing.
  [[nodiscard]] std::string judge(Access access) {
    const Prediction expected = prediction(access);
    const auto got = mmu->translate(0, va, access);
    std::string wrong =
        got ? judge_success(expected, *got, access) : judge_fault(expected, got.error());
    for (unsigned i = 0; i < expected.entries; ++i) {
      const EntryUse& u = expected.used.at(i);
      const std::uint64_t now = entry(u.address, u.bytes);
      if (now != u.after) wrong += " entry " + hex(now) + " instead of " + hex(u.after);
    }
    if (!wrong.empty()) wrong += describe(access);
    return wrong;
  }

  machine::test::TestMachine machine;
  std::unique_ptr<Mmu> mmu;
  std::string_view name;
  Layout layout;
  VA va{};
  PagingContext context;
  std::array<PA, 5> address{};          ///< of the entry at each level
  std::array<std::uint64_t, 5> open{};  ///< entries that allow everything

  static std::string hex(std::uint64_t value) {
    std::ostringstream out;
    out << std::hex << "0x" << value;
    return out.str();
  }

 private:
  class Listener final : public machine::WriteListener {
   public:
    explicit Listener(Mmu& mmu) : mmu_{mmu} {}
    void memory_written(PA pa, std::uint64_t length) override { mmu_.guest_wrote(pa, length); }

   private:
    Mmu& mmu_;
  };

  std::string judge_fault(const Prediction& expected, const Fault& f) const {
    if (expected.allowed) {
      // The page may be no memory: then the fault is the P2M's, and says where.
      const bool memory =
          machine.p2m.lookup(page_of(expected.pa)).entry.state() != PageState::absent;
      if (f.stage == Stage::p2m && f.kind == FaultKind::mmio && !memory && f.pa == expected.pa) {
        return {};
      }
      return " faulted with " + hex(f.error_code) + " but is allowed";
    }
    if (f.stage != Stage::guest_table || f.kind != FaultKind::page_fault) return " wrong stage";
    if (f.va != va) return " CR2 " + hex(f.va.value());
    if (f.error_code != expected.code) {
      return " error code " + hex(f.error_code) + " instead of " + hex(expected.code);
    }
    return {};
  }

  /// What the engine may keep must hold for later accesses that nobody sees.
  std::string judge_success(const Prediction& expected, const Translation& t, Access access) {
    if (!expected.allowed) return " allowed instead of error code " + hex(expected.code);
    std::string wrong;
    if (t.pa != expected.pa.page_base()) wrong += " pa " + hex(t.pa.value());
    const P2mEntry behind = machine.p2m.lookup(page_of(expected.pa)).entry;
    const MPN page = behind.state() == PageState::zero ? machine.p2m.zero_frame() : behind.mpn();
    if (t.page != address_of(page)) wrong += " machine page";
    if (t.writable && behind.state() != PageState::private_page) wrong += " stores to no memory";
    if (t.page_shift != expected.page_shift) wrong += " page size";
    if (t.global != expected.global) wrong += " global";
    for (const AccessKind kind : {AccessKind::read, AccessKind::write, AccessKind::execute}) {
      const bool claimed = kind == AccessKind::read    ? t.readable
                           : kind == AccessKind::write ? t.writable
                                                       : t.executable;
      if (kind == access.kind && !claimed) wrong += " asked for and not granted";
      if (!claimed) continue;
      const Prediction other = prediction({kind, access.user, access.ac});
      if (!other.allowed) wrong += " grants what the tables forbid";
      if (other.allowed && kind == AccessKind::write &&
          (other.used.at(other.entries - 1).before & kD) == 0) {
        wrong += " grants stores to a clean page";
      }
    }
    return wrong;
  }

  std::string describe(Access a) {
    std::string s = " | " + std::string{name} + " " + std::string{layout.name} +
                    (a.user ? " user"
                     : a.ac ? " supervisor+AC"
                            : " supervisor") +
                    (a.kind == AccessKind::read    ? " read"
                     : a.kind == AccessKind::write ? " write"
                                                   : " fetch");
    s += " wp=" + std::to_string(context.wp) + " smep=" + std::to_string(context.smep) +
         " smap=" + std::to_string(context.smap) + " nxe=" + std::to_string(context.nxe) +
         " pke=" + std::to_string(context.pke) + " pkru=" + hex(context.pkru) +
         " maxphyaddr=" + std::to_string(context.maxphyaddr);
    for (unsigned level = layout.top(); level >= layout.leaf; --level) {
      s += " L" + std::to_string(level) + "=" + hex(entry(address.at(level), layout.bytes()));
    }
    return s;
  }

  Listener listener;
};

}  // namespace strata::conformance
