// Which accesses of a region one TLB check can stand for. Half of all accesses are to the stack
// frame, and most of the others follow one pointer.
#include <algorithm>
#include <array>

#include "engines/bt/region.hpp"
#include "engines/interp/vector.hpp"

namespace strata::bt {
namespace {

/// Spans beyond this cross a page's end too often.
constexpr std::int32_t kLongestSpan = 512;
constexpr std::size_t kMostGroups = 24;
constexpr unsigned kStackPointer = 4, kFramePointer = 5;
/// Stands for the page that executes, as the base of RIP-relative accesses.
constexpr unsigned kPage = 16, kBases = 17;

unsigned number_of(ZydisRegister reg) {
  return static_cast<unsigned>(ZydisRegisterGetId(reg)) & 15U;
}

/// An access to [base + distance].
struct Access {
  unsigned base = 0;
  std::int32_t distance = 0;
  unsigned size = 0;
  bool write = false;
};

/// The access of an instruction that has exactly one of this form.
std::optional<Access> access_of(const Insn& i, const CodeView& code) {
  const bool windowed = code.windowed;
  const bool immediate_or_register = i.ops[0].type != ZYDIS_OPERAND_TYPE_MEMORY;
  switch (i.kind) {
    case Kind::push:
      if (!immediate_or_register) return {};
      return Access{kStackPointer, -8, 8, true};
    case Kind::call:
      return Access{kStackPointer, -8, 8, true};
    case Kind::pop:
    case Kind::ret:
      return Access{kStackPointer, 0, 8, false};
    case Kind::leave:
      return Access{kFramePointer, 0, 8, false};
    case Kind::verbatim:
      break;
    default:
      return {};
  }
  const ZydisDecodedOperand* m = memory_operand(i);
  if (m == nullptr || i.insn.address_width != 64) return {};
  if (m->mem.base == ZYDIS_REGISTER_NONE || (m->mem.base == ZYDIS_REGISTER_RIP && !windowed) ||
      (m->mem.index != ZYDIS_REGISTER_NONE && m->mem.scale != 0) ||
      m->mem.segment == ZYDIS_REGISTER_FS || m->mem.segment == ZYDIS_REGISTER_GS) {
    return {};
  }
  const bool vector = i.opcode.cls == isa::OpcodeClass::vector;
  // The host checks alignment where it checks the access.
  const bool aligned = (vector && interp::required_alignment(i.insn, *m) > 1) ||
                       i.insn.mnemonic == ZYDIS_MNEMONIC_CMPXCHG16B;
  if (aligned && !windowed) {
    return {};
  }
  auto distance = m->mem.disp.has_displacement ? m->mem.disp.value : 0;
  const bool page = m->mem.base == ZYDIS_REGISTER_RIP;
  if (page) distance += static_cast<std::int64_t>(code.page_offset) + i.offset + i.insn.length;
  // Within the guard zone of a slice.
  const std::int64_t reach = windowed ? 1 << 30 : 0x10000;
  if (distance < -reach || distance > reach) return {};
  return Access{page ? kPage : number_of(m->mem.base), static_cast<std::int32_t>(distance),
                m->size / 8U, (m->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) != 0};
}

/// A register that has become itself and a number.
struct Change {
  unsigned base = 0;
  std::int32_t by = 0;
};

bool is_whole_register(const ZydisDecodedOperand& o) {
  return o.type == ZYDIS_OPERAND_TYPE_REGISTER &&
         ZydisRegisterGetClass(o.reg.value) == ZYDIS_REGCLASS_GPR64;
}

/// What an instruction adds to a whole register, if it is a small number.
std::optional<Change> change_of(const Insn& i) {
  constexpr std::int64_t kFarthest = 0x10000;
  const auto small = [&i](std::int64_t by) -> std::optional<Change> {
    if (by < -kFarthest || by > kFarthest) return {};
    return Change{number_of(i.ops[0].reg.value), static_cast<std::int32_t>(by)};
  };
  if (i.kind == Kind::push) return Change{kStackPointer, -8};
  if (i.kind == Kind::pop) {
    if (i.ops[0].reg.value == ZYDIS_REGISTER_RSP) return {};
    return Change{kStackPointer, 8};
  }
  if ((i.kind != Kind::verbatim && i.kind != Kind::lea) || !is_whole_register(i.ops[0])) return {};
  const ZydisDecodedOperand& source = i.ops[1];
  const bool immediate = source.type == ZYDIS_OPERAND_TYPE_IMMEDIATE;
  switch (i.insn.mnemonic) {
    case ZYDIS_MNEMONIC_INC:
      return small(1);
    case ZYDIS_MNEMONIC_DEC:
      return small(-1);
    case ZYDIS_MNEMONIC_ADD:
      return immediate ? small(source.imm.value.s) : std::nullopt;
    case ZYDIS_MNEMONIC_SUB:
      return immediate ? small(-source.imm.value.s) : std::nullopt;
    case ZYDIS_MNEMONIC_LEA:
      if (source.mem.base != i.ops[0].reg.value || source.mem.index != ZYDIS_REGISTER_NONE) {
        return {};
      }
      return small(source.mem.disp.has_displacement ? source.mem.disp.value : 0);
    default:
      return {};
  }
}

class Grouping {
 public:
  Grouping(const CodeView& code, Region& region)
      : code_{code}, region_{region}, windowed_{code.windowed} {
    region_.groups.clear();
    open_.fill(GroupedAccess::kNone);
  }

  void run() {
    for (Insn& i : region_.insns()) {
      i.access = {};
      const auto at = static_cast<std::uint16_t>(code_.page_offset + i.offset);
      const bool checked = windowed_ && !code_.goes_through_window(at);
      if (const auto a = access_of(i, code_); a && !checked) add(i, *a);
      forget_changed(i);
    }
    // A group of one is an access like any other.
    for (Insn& i : region_.insns()) {
      if (i.access.is_grouped() &&
          region_.groups[static_cast<std::size_t>(i.access.group)].count == 1) {
        i.access = {};
      }
    }
  }

 private:
  void add(Insn& i, const Access& a) {
    const std::int32_t at = a.distance + moved_[a.base];
    const auto end = at + static_cast<std::int32_t>(a.size);
    std::int8_t& open = open_[a.base];
    if (open != GroupedAccess::kNone) {
      AccessGroup& g = region_.groups[static_cast<std::size_t>(open)];
      const std::int32_t from = std::min(g.from, at);
      const std::int32_t to = std::max(g.to, end);
      if (windowed_ || to - from <= kLongestSpan) {
        g = {from, to, static_cast<std::uint16_t>(g.count + 1), g.write || a.write};
        i.access = {open, false,         static_cast<std::uint8_t>(a.size), a.write, windowed_,
                    at,   moved_[a.base]};
        return;
      }
    }
    if (region_.groups.size() == kMostGroups) {
      open = GroupedAccess::kNone;
      return;
    }
    open = static_cast<std::int8_t>(region_.groups.size());
    region_.groups.push_back({at, end, 1, a.write});
    i.access = {open, true, static_cast<std::uint8_t>(a.size), a.write, true, at, moved_[a.base]};
  }

  void forget_changed(const Insn& i) {
    if (i.kind == Kind::steps) {
      open_.fill(GroupedAccess::kNone);
      return;
    }
    const auto known = change_of(i);
    if (known) moved_[known->base] += known->by;
    for (unsigned n = 0; n < i.insn.operand_count; ++n) {
      const ZydisDecodedOperand& o = i.ops[n];
      if (o.type != ZYDIS_OPERAND_TYPE_REGISTER ||
          (o.actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) == 0) {
        continue;
      }
      const ZydisRegister whole =
          ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, o.reg.value);
      if (ZydisRegisterGetClass(whole) != ZYDIS_REGCLASS_GPR64) continue;
      const unsigned base = number_of(whole);
      if (known && base == known->base) continue;
      open_[base] = GroupedAccess::kNone;
      moved_[base] = 0;
    }
  }

  const CodeView& code_;
  Region& region_;
  /// Accesses are checked each by itself, by the host: only the slice is in common.
  bool windowed_;
  std::array<std::int8_t, kBases> open_{};    ///< by base register
  std::array<std::int32_t, kBases> moved_{};  ///< since its group began
};

}  // namespace

void group_accesses(const CodeView& code, Region& region) { Grouping{code, region}.run(); }

}  // namespace strata::bt
