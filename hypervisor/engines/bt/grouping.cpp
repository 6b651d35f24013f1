// Which accesses of a region one TLB check or look-up of a slice can stand for. Half of all
// accesses are to the stack frame, and most of the others follow one pointer.
#include <algorithm>
#include <array>
#include <cstdlib>

#include "engines/bt/native_state.hpp"
#include "engines/bt/region.hpp"
#include "engines/bt/register_ranges.hpp"
#include "engines/bt/slice_pool.hpp"
#include "engines/interp/vector.hpp"

namespace strata::bt {
namespace {

/// Spans beyond this cross a page's end too often.
constexpr std::int32_t kLongestSpan = 512;
/// Through a window only the slice is in common, and its guard zones are wide.
constexpr std::int64_t kReach = 1 << 30;
/// ... from where a group's pointer was when it began.
constexpr std::int64_t kFarthestMember = kReach + kReach / 2;
constexpr std::size_t kMostGroups = 24;
constexpr std::uint8_t kStackPointer = 4, kFramePointer = 5;

std::uint8_t number_of(ZydisRegister reg) {
  return static_cast<std::uint8_t>(ZydisRegisterGetId(reg) & 15);
}

/// An access to [pointer + distance].
struct Access {
  Pointer pointer{};
  std::int32_t distance = 0;
  unsigned size = 0;
  bool write = false;
};

/// The access of an instruction that has exactly one of this form.
std::optional<Access> access_of(const Insn& i, const CodeView& code) {
  const bool immediate_or_register = i.ops[0].type != ZYDIS_OPERAND_TYPE_MEMORY;
  switch (i.kind) {
    case Kind::push:
      if (!immediate_or_register) return {};
      return Access{{.base = kStackPointer}, -8, 8, true};
    case Kind::call:
      return Access{{.base = kStackPointer}, -8, 8, true};
    case Kind::pop:
    case Kind::ret:
      return Access{{.base = kStackPointer}, 0, 8, false};
    case Kind::leave:
      return Access{{.base = kFramePointer}, 0, 8, false};
    case Kind::verbatim:
      break;
    default:
      return {};
  }
  const ZydisDecodedOperand* m = memory_operand(i);
  if (m == nullptr || i.insn.address_width != 64 || m->mem.segment == ZYDIS_REGISTER_FS ||
      m->mem.segment == ZYDIS_REGISTER_GS) {
    return {};
  }
  const bool page = m->mem.base == ZYDIS_REGISTER_RIP;
  const bool indexed = m->mem.index != ZYDIS_REGISTER_NONE && m->mem.scale != 0;
  const bool vector = i.opcode.cls == isa::OpcodeClass::vector;
  const bool aligned = (vector && interp::required_alignment(i.insn, *m) > 1) ||
                       i.insn.mnemonic == ZYDIS_MNEMONIC_CMPXCHG16B;
  // Through a window the host checks each access, and its alignment.
  const bool plain = m->mem.base != ZYDIS_REGISTER_NONE && !page && !indexed && !aligned;
  if (!plain && (!code.windowed || (m->mem.base == ZYDIS_REGISTER_NONE && !indexed))) return {};
  auto distance = m->mem.disp.has_displacement ? m->mem.disp.value : 0;
  if (page) distance += static_cast<std::int64_t>(code.page_offset) + i.offset + i.insn.length;
  const std::int64_t reach = code.windowed ? kReach : 0x10000;
  if (distance < -reach || distance > reach) return {};
  Pointer p{.base = page                                 ? Pointer::kPage
                    : m->mem.base == ZYDIS_REGISTER_NONE ? Pointer::kNothing
                                                         : number_of(m->mem.base)};
  if (indexed) {
    p.index = number_of(m->mem.index);
    p.scale = m->mem.scale;
  }
  return Access{p, static_cast<std::int32_t>(distance), m->size / 8U,
                (m->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) != 0};
}

/// A register's value: an unknown one that others may be made of too, and a number.
struct Value {
  unsigned origin = 0;
  std::int32_t moved = 0;
};

bool is_whole_register(const ZydisDecodedOperand& o) {
  return o.type == ZYDIS_OPERAND_TYPE_REGISTER &&
         ZydisRegisterGetClass(o.reg.value) == ZYDIS_REGCLASS_GPR64;
}

/// What registers of 64-bit code are made of, followed through a region.
class Values {
 public:
  Values() {
    for (Value& v : of_) v = unknown();
  }
  [[nodiscard]] const Value& of(std::uint8_t pointer) const { return of_[pointer]; }

  /// Behind instruction `i`, which lies `page_offset` from its page's beginning.
  void execute(const Insn& i, std::uint64_t page_offset) {
    if (i.kind == Kind::steps) {
      for (std::size_t n = 0; n < Pointer::kPage; ++n) of_[n] = unknown();
      return;
    }
    const auto [reg, value] = result(i, page_offset);
    for (unsigned n = 0; n < i.insn.operand_count; ++n) {
      const ZydisDecodedOperand& o = i.ops[n];
      if (o.type != ZYDIS_OPERAND_TYPE_REGISTER ||
          (o.actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) == 0) {
        continue;
      }
      const ZydisRegister whole =
          ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, o.reg.value);
      if (ZydisRegisterGetClass(whole) == ZYDIS_REGCLASS_GPR64) of_[number_of(whole)] = unknown();
    }
    if (value) of_[reg] = *value;
  }

 private:
  struct Result {
    std::uint8_t reg = 0;
    std::optional<Value> value;
  };

  [[nodiscard]] Value unknown() noexcept { return {.origin = next_++}; }
  [[nodiscard]] Result moved(std::uint8_t to, std::uint8_t from, std::int64_t by) const {
    const std::int64_t all = of_[from].moved + by;
    if (all < -kReach || all > kReach) return {};
    return {to, Value{of_[from].origin, static_cast<std::int32_t>(all)}};
  }

  [[nodiscard]] Result result(const Insn& i, std::uint64_t page_offset) const {
    if (i.kind == Kind::push) return moved(kStackPointer, kStackPointer, -8);
    if (i.kind == Kind::leave) return moved(kStackPointer, kFramePointer, 8);
    if (i.kind == Kind::pop) {
      if (i.ops[0].reg.value == ZYDIS_REGISTER_RSP) return {};
      return moved(kStackPointer, kStackPointer, 8);
    }
    const bool plain = i.kind == Kind::verbatim || i.kind == Kind::lea;
    if (!plain || !is_whole_register(i.ops[0])) return {};
    const std::uint8_t to = number_of(i.ops[0].reg.value);
    const ZydisDecodedOperand& source = i.ops[1];
    const bool immediate = source.type == ZYDIS_OPERAND_TYPE_IMMEDIATE;
    switch (i.insn.mnemonic) {
      case ZYDIS_MNEMONIC_INC:
        return moved(to, to, 1);
      case ZYDIS_MNEMONIC_DEC:
        return moved(to, to, -1);
      case ZYDIS_MNEMONIC_ADD:
        return immediate ? moved(to, to, source.imm.value.s) : Result{};
      case ZYDIS_MNEMONIC_SUB:
        return immediate ? moved(to, to, -source.imm.value.s) : Result{};
      case ZYDIS_MNEMONIC_MOV:
        return is_whole_register(source) ? moved(to, number_of(source.reg.value), 0) : Result{};
      case ZYDIS_MNEMONIC_LEA:
        return address(to, i, page_offset);
      default:
        return {};
    }
  }

  [[nodiscard]] Result address(std::uint8_t to, const Insn& i, std::uint64_t page_offset) const {
    const auto& m = i.ops[1].mem;
    if (i.insn.address_width != 64 || m.base == ZYDIS_REGISTER_NONE ||
        m.index != ZYDIS_REGISTER_NONE) {
      return {};
    }
    const std::int64_t by = m.disp.has_displacement ? m.disp.value : 0;
    if (m.base != ZYDIS_REGISTER_RIP) return moved(to, number_of(m.base), by);
    return moved(to, Pointer::kPage, by + static_cast<std::int64_t>(page_offset) + i.insn.length);
  }

  unsigned next_ = 0;
  std::array<Value, Pointer::kNothing + 1> of_{};
};

class Grouping {
 public:
  Grouping(const CodeView& code, Region& region)
      : code_{code}, region_{region}, windowed_{code.windowed} {
    region_.groups.clear();
  }

  void run() {
    for (Insn& i : region_.insns()) {
      i.access = {};
      const auto at = static_cast<std::uint16_t>(code_.page_offset + i.offset);
      const bool checked = windowed_ && !code_.goes_through_window(at);
      if (auto a = access_of(i, code_); a && !checked) {
        // An index that can not lead out of the guard zones is no part of the pointer.
        const bool near = is_near(*a);
        if (near) a->pointer = {.base = a->pointer.base};
        if (a->pointer != Pointer{}) add(i, *a);
        i.access.near_index = near;
        if (near && i.access.is_grouped()) group_of(i).anchored = true;
      }
      values_.execute(i, at);
      ranges_.execute(i);
    }
    // A group of one is an access like any other.
    for (Insn& i : region_.insns()) {
      if (i.access.is_grouped() && group_of(i).count == 1) {
        i.access = {.near_index = i.access.near_index};
      }
    }
  }

 private:
  /// What the pointers of a group are made of, and the last such group.
  struct Open {
    unsigned base = 0, index = 0;
    std::uint8_t scale = 1;
    std::int8_t group = GroupedAccess::kNone;
  };

  [[nodiscard]] bool is_near(const Access& a) const {
    if (a.pointer.index == Pointer::kNothing) return false;
    const auto& index = ranges_.of(a.pointer.index);
    const std::int64_t farthest = kFarthestAccess - kReach;
    return index && index->low * a.pointer.scale >= -farthest &&
           index->high * a.pointer.scale <= farthest;
  }

  void add(Insn& i, const Access& a) {
    const Value& base = values_.of(a.pointer.base);
    const Value& index = values_.of(a.pointer.index);
    const std::int64_t moved = base.moved + std::int64_t{index.moved} * a.pointer.scale;
    const std::int64_t distance = a.distance + moved;
    if (std::max(std::abs(distance), std::abs(moved)) > kFarthestMember) return;
    auto open = std::find_if(open_.begin(), open_.end(), [&](const Open& o) {
      return o.base == base.origin && o.index == index.origin && o.scale == a.pointer.scale;
    });
    if (open == open_.end()) {
      open = open_.insert(open, Open{base.origin, index.origin, a.pointer.scale});
    }
    const auto at = static_cast<std::int32_t>(distance);
    const auto end = at + static_cast<std::int32_t>(a.size);
    i.access = {.group = open->group,
                .size = static_cast<std::uint8_t>(a.size),
                .write = a.write,
                .may_fault = windowed_,
                .at = at,
                .moved = static_cast<std::int32_t>(moved)};
    if (open->group != GroupedAccess::kNone) {
      AccessGroup& g = group_of(i);
      const std::int32_t from = std::min(g.from, at);
      const std::int32_t to = std::max(g.to, end);
      if (windowed_ || to - from <= kLongestSpan) {
        g.from = from;
        g.to = to;
        ++g.count;
        g.write = g.write || a.write;
        return;
      }
    }
    const bool room = region_.groups.size() < kMostGroups;
    open->group = room ? static_cast<std::int8_t>(region_.groups.size()) : GroupedAccess::kNone;
    i.access.group = open->group;
    i.access.first = i.access.may_fault = true;
    if (!room) return;
    const bool anchored = a.pointer.index != Pointer::kNothing ||
                          a.pointer.base == Pointer::kPage || is_homed(a.pointer.base);
    region_.groups.push_back({a.pointer, at, end, 1, a.write, anchored});
  }

  [[nodiscard]] AccessGroup& group_of(const Insn& i) const {
    return region_.groups[static_cast<std::size_t>(i.access.group)];
  }

  const CodeView& code_;
  Region& region_;
  /// Accesses are checked each by itself, by the host: only the slice is in common.
  bool windowed_;
  std::vector<Open> open_;
  Values values_;
  RegisterRanges ranges_;
};

}  // namespace

void group_accesses(const CodeView& code, Region& region) { Grouping{code, region}.run(); }

}  // namespace strata::bt
