// A random guest before its first instruction: descriptor tables, page tables, vectors, code and
// data that mostly make sense, with some bits wrong, and the registers to start with.
#pragma once

#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "guest_layout.hpp"
#include "instruction_catalogue.hpp"

namespace strata::fuzz {

/// The instruction catalogues of 16-, 32- and 64-bit code. Immutable; made once.
class Catalogues {
 public:
  explicit Catalogues(const cpu::CpuModel& model)
      : code16_{16, model}, code32_{32, model}, code64_{64, model} {}
  [[nodiscard]] const Catalogue& of(unsigned bits) const noexcept {
    return bits == 64 ? code64_ : bits == 32 ? code32_ : code16_;
  }

 private:
  Catalogue code16_, code32_, code64_;
};

/// A random plan; every mode is as likely as the others.
[[nodiscard]] GuestPlan make_plan(Random& rng);

class GuestImage {
 public:
  GuestImage(Random& rng, const GuestPlan& plan, const cpu::CpuModel& model,
             const Catalogues& catalogues);

  /// Guest memory from address 0.
  [[nodiscard]] std::span<const std::byte> bytes() const noexcept { return bytes_; }
  /// Registers to start with; each call gives others.
  [[nodiscard]] cpu::VcpuState make_state(Random& rng) const;

 private:
  template <class T>
  void put(std::uint64_t at, T value) {
    if (at + sizeof value <= bytes_.size()) std::memcpy(bytes_.data() + at, &value, sizeof value);
  }
  void build_descriptors(Random& rng);
  void build_vectors(Random& rng);
  void build_gates(Random& rng);
  void build_tasks(Random& rng);
  void build_page_tables(Random& rng);
  void build_i386_tables(Random& rng);
  void build_wide_tables(Random& rng);
  void map_alias();
  [[nodiscard]] std::uint64_t leaf(Random& rng, std::uint64_t pa) const;
  void flip_bits(Random& rng, std::uint64_t from, std::uint64_t to, unsigned count);
  [[nodiscard]] cpu::Segment segment(Random& rng, unsigned descriptor, unsigned rpl) const;
  void set_segments(Random& rng, cpu::VcpuState& s) const;
  void set_controls(Random& rng, cpu::VcpuState& s) const;
  void set_registers(Random& rng, cpu::VcpuState& s) const;
  void set_units(Random& rng, cpu::VcpuState& s) const;

  GuestPlan plan_;
  const cpu::CpuModel& model_;
  std::vector<std::byte> bytes_;
};

/// An address that a guest may find interesting: tables, code, device memory, edges.
[[nodiscard]] std::uint64_t interesting_address(Random& rng, bool wide);
/// A selector of the tables above, of any kind and RPL.
[[nodiscard]] std::uint16_t interesting_selector(Random& rng);
/// A page-table entry that leads somewhere, or nearly.
[[nodiscard]] std::uint64_t interesting_entry(Random& rng);

}  // namespace strata::fuzz
