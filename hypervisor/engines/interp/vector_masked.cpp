// Moves that touch only some elements, and gathers: emulated element by element, because only the
// enabled ones may fault (SDM 2: MASKMOVDQU, VMASKMOV, VPMASKMOV, VPGATHERDD).
#include <algorithm>

#include "engines/interp/vector.hpp"

namespace strata::interp {
namespace {

inline constexpr std::size_t kVectorBytes = 32;
using VectorBytes = std::array<std::uint8_t, kVectorBytes>;

VectorBytes bytes_of(const VectorRegister& r) noexcept {
  VectorBytes b;
  std::memcpy(b.data(), r.data(), sizeof b);
  return b;
}

/// Whether the element of `size` bytes at byte `at` is enabled: its most significant bit.
bool enabled(const VectorBytes& mask, unsigned at, unsigned size) noexcept {
  return (mask[at + size - 1] & 0x80U) != 0;
}

/// Calls f(first, bytes) for every run of enabled elements until it says no.
template <class F>
bool for_runs(const VectorBytes& mask, unsigned total, unsigned element, F&& f) {
  for (unsigned at = 0; at < total;) {
    unsigned end = at;
    while (end < total && enabled(mask, end, element)) end += element;
    if (end > at && !f(at, end - at)) return false;
    at = end + element;
  }
  return true;
}

/// All enabled elements or none.
bool masked_store(Core& core, std::uint64_t va, const std::uint8_t* data, const VectorBytes& mask,
                  unsigned total, unsigned element) {
  const auto check = [&](unsigned at, unsigned n) { return core.check_store(va + at, n); };
  const auto store = [&](unsigned at, unsigned n) {
    return core.store_bytes(va + at, data + at, n);
  };
  return for_runs(mask, total, element, check) && for_runs(mask, total, element, store);
}

/// VMASKMOVPS/PD and VPMASKMOVD/Q. aux: mask register, aux2: bytes of the vector; imm: of an
/// element.
const Uop* masked_move_load(Core& core, const Uop* u) {
  if (const auto why = refusal<Unit::avx>(core); why != 0) return core.fault(u, why);
  const std::uint64_t va = core.ea(u);
  const VectorBytes mask = bytes_of(vector_register(core, u->aux));
  VectorBytes result{};
  const bool done = for_runs(
      mask, u->aux2, static_cast<unsigned>(u->imm),
      [&](unsigned at, unsigned n) { return core.load_bytes(va + at, result.data() + at, n); });
  if (!done) return refuse(core, u);
  std::memcpy(vector_register(core, u->dst).data(), result.data(), sizeof result);
  return u + 1;
}

const Uop* masked_move_store(Core& core, const Uop* u) {
  if (const auto why = refusal<Unit::avx>(core); why != 0) return core.fault(u, why);
  const VectorBytes mask = bytes_of(vector_register(core, u->aux));
  const VectorBytes data = bytes_of(vector_register(core, u->src));
  if (!masked_store(core, core.ea(u), data.data(), mask, u->aux2, static_cast<unsigned>(u->imm))) {
    return refuse(core, u);
  }
  return u + 1;
}

/// MASKMOVDQU and VMASKMOVDQU to DS:rDI.
template <Unit Which>
const Uop* maskmovdqu(Core& core, const Uop* u) {
  if (const auto why = refusal<Which>(core); why != 0) return core.fault(u, why);
  const VectorBytes mask = bytes_of(vector_register(core, u->src));
  const VectorBytes data = bytes_of(vector_register(core, u->dst));
  if (!masked_store(core, core.ea(u), data.data(), mask, 16, 1)) return refuse(core, u);
  return u + 1;
}

/// Shape of a gather, packed into Uop::aux2.
struct GatherShape {
  unsigned index_bytes, data_bytes, count;

  [[nodiscard]] static std::uint8_t pack(bool wide_index, bool wide_data, bool ymm) noexcept {
    return static_cast<std::uint8_t>((wide_index ? 1U : 0U) | (wide_data ? 2U : 0U) |
                                     (ymm ? 4U : 0U));
  }
  explicit GatherShape(std::uint8_t packed) noexcept
      : index_bytes{(packed & 1) != 0 ? 8U : 4U},
        data_bytes{(packed & 2) != 0 ? 8U : 4U},
        count{((packed & 4) != 0 ? 32U : 16U) / std::max(index_bytes, data_bytes)} {}
};

std::uint64_t element_address(const Core& core, const Uop* u, const VectorBytes& index,
                              const GatherShape& shape, unsigned i) noexcept {
  std::int64_t value = 0;
  if (shape.index_bytes == 8) {
    std::memcpy(&value, index.data() + 8 * i, 8);
  } else {
    std::int32_t narrow = 0;
    std::memcpy(&narrow, index.data() + 4 * i, 4);
    value = narrow;
  }
  // u->index is the zero slot, so offset_of() gives base and displacement; sums wrap at the
  // address size.
  std::uint64_t offset = core.offset_of(u) + (static_cast<std::uint64_t>(value) << u->scale);
  if ((u->address_form & 0x7FU) == 2) offset = static_cast<std::uint32_t>(offset);
  return core.linear(u, offset);
}

/// Elements in order; one that is done is cleared in the mask, so that a fault in the middle leaves
/// a state from which the instruction goes on (SDM 2, VGATHERDPS). Elements behind that, and what
/// lies above the vector, change at the end only.
const Uop* gather(Core& core, const Uop* u) {
  if (const auto why = refusal<Unit::avx>(core); why != 0) return core.fault(u, why);
  const GatherShape shape{u->aux2};
  const VectorBytes index = bytes_of(vector_register(core, u->src));
  VectorBytes mask = bytes_of(vector_register(core, u->aux));
  VectorBytes data = bytes_of(vector_register(core, u->dst));
  const unsigned size = shape.data_bytes;
  for (unsigned i = 0; i < shape.count; ++i) {
    const unsigned at = i * size;
    const bool wanted = enabled(mask, at, size);
    if (wanted &&
        !core.load_bytes(element_address(core, u, index, shape, i), data.data() + at, size)) {
      // An exit to the VMM replays the accesses of the instruction from its start.
      if (core.exception.valid) {
        std::memcpy(vector_register(core, u->dst).data(), data.data(), sizeof data);
        std::memcpy(vector_register(core, u->aux).data(), mask.data(), sizeof mask);
      }
      return refuse(core, u);
    }
    std::fill_n(mask.begin() + at, size, std::uint8_t{0});
  }
  std::fill(data.begin() + shape.count * size, data.end(), std::uint8_t{0});
  std::memcpy(vector_register(core, u->dst).data(), data.data(), sizeof data);
  vector_register(core, u->aux) = {};
  return u + 1;
}

bool lower_masked_move(Lowering& l, std::uint64_t element) {
  const bool store = l.ops[0].type == ZYDIS_OPERAND_TYPE_MEMORY;
  Uop u = l.step(store ? masked_move_store : masked_move_load);
  if (store) {
    u.src = Lowering::reg_number(l.ops[2].reg.value);
  } else {
    u.dst = Lowering::reg_number(l.ops[0].reg.value);
  }
  u.aux = Lowering::reg_number(l.ops[1].reg.value);
  u.aux2 = static_cast<std::uint8_t>(l.insn.avx.vector_length / 8);
  u.imm = element;
  l.emit(u);
  return true;
}

bool lower_maskmovdqu(Lowering& l) {
  return lower_maskmov(l, is_vex(l) ? maskmovdqu<Unit::avx> : maskmovdqu<Unit::sse>);
}

bool lower_gather(Lowering& l, bool wide_index, bool wide_data) {
  Uop u = l.step(gather);
  u.dst = Lowering::reg_number(l.ops[0].reg.value);
  u.src = Lowering::reg_number(l.ops[1].mem.index);
  u.aux = Lowering::reg_number(l.ops[2].reg.value);
  u.aux2 = GatherShape::pack(wide_index, wide_data, l.insn.avx.vector_length == 256);
  // #UD unless the three registers are distinct.
  if (u.dst == u.src || u.dst == u.aux || u.src == u.aux) return false;
  l.emit(u);
  return true;
}

}  // namespace

bool lower_vector_masked(Lowering& l) {
  switch (l.insn.mnemonic) {
    case ZYDIS_MNEMONIC_VMASKMOVPS:
    case ZYDIS_MNEMONIC_VPMASKMOVD:
      return lower_masked_move(l, 4);
    case ZYDIS_MNEMONIC_VMASKMOVPD:
    case ZYDIS_MNEMONIC_VPMASKMOVQ:
      return lower_masked_move(l, 8);
    case ZYDIS_MNEMONIC_MASKMOVQ:
      return lower_maskmovq(l);
    case ZYDIS_MNEMONIC_MASKMOVDQU:
    case ZYDIS_MNEMONIC_VMASKMOVDQU:
      return lower_maskmovdqu(l);
    case ZYDIS_MNEMONIC_VPGATHERDD:
    case ZYDIS_MNEMONIC_VGATHERDPS:
      return lower_gather(l, false, false);
    case ZYDIS_MNEMONIC_VPGATHERDQ:
    case ZYDIS_MNEMONIC_VGATHERDPD:
      return lower_gather(l, false, true);
    case ZYDIS_MNEMONIC_VPGATHERQD:
    case ZYDIS_MNEMONIC_VGATHERQPS:
      return lower_gather(l, true, false);
    case ZYDIS_MNEMONIC_VPGATHERQQ:
    case ZYDIS_MNEMONIC_VGATHERQPD:
      return lower_gather(l, true, true);
    default:
      return false;
  }
}

bool lower_maskmov(Lowering& l, Handler fn) {
  Uop u = l.step(fn);
  u.dst = Lowering::reg_number(l.ops[0].reg.value);
  u.src = Lowering::reg_number(l.ops[1].reg.value);
  for (unsigned i = 2; i < l.insn.operand_count; ++i) {
    if (l.ops[i].type == ZYDIS_OPERAND_TYPE_MEMORY) l.memory(u, l.ops[i]);
  }
  l.emit(u);
  return true;
}

}  // namespace strata::interp
