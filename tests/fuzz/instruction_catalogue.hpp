// Every instruction that the opcode table (isa/opcodes.hpp) says an engine has, as encodings found
// by asking the decoder about the whole opcode space: nothing is left out because somebody forgot
// it in a list.
#pragma once

#include <Zydis/Zydis.h>

#include <cstdint>
#include <vector>

#include "cpu/cpu_model.hpp"
#include "isa/opcodes.hpp"
#include "random.hpp"

namespace strata::fuzz {

/// One place in the opcode space.
struct OpcodePoint {
  std::uint8_t map = 0;  ///< 0: one byte, 1: 0F, 2: 0F 38, 3: 0F 3A
  std::uint8_t opcode = 0;
  std::uint8_t prefix = 0;  ///< mandatory prefix: 0, 66, F3, F2
  std::uint8_t reg = 0;     ///< ModRM.reg, part of the opcode for groups
  bool vex = false;
  bool w = false;       ///< VEX.W or REX.W
  bool l = false;       ///< VEX.L
  bool modrm = false;   ///< there is a ModRM byte
  bool memory = false;  ///< ModRM.mod != 3
  bool vsib = false;    ///< the address has a vector index: SIB needed
};

/// A mnemonic and all its encodings.
struct CatalogueEntry {
  ZydisMnemonic mnemonic = ZYDIS_MNEMONIC_INVALID;
  isa::OpcodeClass cls = isa::OpcodeClass::unknown;
  std::vector<OpcodePoint> points;
};

/// Chooses what an instruction's displacements and immediates hold.
class ConstantSource {
 public:
  ConstantSource() = default;
  ConstantSource(const ConstantSource&) = delete;
  ConstantSource& operator=(const ConstantSource&) = delete;
  virtual ~ConstantSource() = default;
  virtual std::uint64_t displacement(Random& rng, unsigned bytes) = 0;
  virtual std::uint64_t immediate(Random& rng, unsigned bytes) = 0;
  /// From the end of a near branch to its target.
  virtual std::int64_t branch_distance(Random& rng) = 0;
};

/// Instructions of code of one width for a processor model. Immutable.
class Catalogue {
 public:
  /// `bits`: 16, 32 or 64.
  Catalogue(unsigned bits, const cpu::CpuModel& model);

  [[nodiscard]] unsigned bits() const noexcept { return bits_; }
  [[nodiscard]] const std::vector<CatalogueEntry>& entries() const noexcept { return entries_; }
  /// Numbers of the entries of a class.
  [[nodiscard]] const std::vector<std::uint32_t>& of_class(isa::OpcodeClass cls) const noexcept {
    return classes_[static_cast<std::size_t>(cls)];
  }
  /// An entry of `cls`, each mnemonic as likely as the others.
  [[nodiscard]] const CatalogueEntry& pick(Random& rng, isa::OpcodeClass cls) const {
    return entries_[rng.pick(of_class(cls))];
  }
  /// Appends an instruction at `point`: registers, address form and further prefixes random,
  /// displacements and immediates from `constants`. False: the further prefixes made something
  /// undefined of it, which is there all the same.
  bool append(Random& rng, const OpcodePoint& point, ConstantSource& constants,
              std::vector<std::uint8_t>& out) const;

 private:
  void ask(OpcodePoint point, const cpu::CpuModel& model);

  unsigned bits_;
  ZydisDecoder decoder_;
  std::vector<CatalogueEntry> entries_;
  std::vector<std::vector<std::uint32_t>> classes_;
};

}  // namespace strata::fuzz
