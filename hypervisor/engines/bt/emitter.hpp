// The third pass of translation: host code for one region.
//
// Conventions of translated code
//   guest registers   in the host registers of the same number; R8 to R11 live in Core::r, for the
//                     host's R8 is Core::budget and the others are temporaries. RSP too holds the
//                     guest's: host code that needs a stack loads NativeState::host_rsp first.
//   arithmetic flags  at block boundaries in Core::flags, if anybody may read them. Within a block
//                     in EFLAGS, in Core::flags, or both; see Flags.
//   position          the block's head counts all of its instructions, early exits give back.
//   vector registers  in the host's once NativeState::simd_live says so.
#pragma once

#include <algorithm>
#include <array>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "engines/bt/assembler.hpp"
#include "engines/bt/code_cache.hpp"
#include "engines/bt/native_state.hpp"
#include "engines/bt/region.hpp"
#include "engines/bt/stubs.hpp"
#include "engines/interp/core.hpp"

namespace strata::bt {

/// What code generation depends on besides the guest's code.
struct EmitContext {
  interp::Core* core = nullptr;
  NativeState* state = nullptr;
  CodeCache* cache = nullptr;
  const Stubs* stubs = nullptr;
  interp::TlbEntry* tlb = nullptr;  ///< entries of the data mode
};

/// A guest register without a host register that an instruction names.
struct HomedRegister {
  unsigned number = 0;
  unsigned operands = 0;  ///< that name it
  bool read = false, written = false;
};
/// All of an instruction's.
struct HomedRegisters {
  std::array<HomedRegister, 3> registers{};
  std::size_t count = 0;
  [[nodiscard]] std::span<HomedRegister> list() noexcept { return {registers.data(), count}; }
  void add(const HomedRegister& h) noexcept {
    for (HomedRegister& known : list()) {
      if (known.number != h.number) continue;
      known.operands += h.operands;
      known.read |= h.read;
      known.written |= h.written;
      return;
    }
    registers.at(count++) = h;
  }
  /// False: there is none such.
  template <class Predicate>
  bool remove_if(Predicate&& p) noexcept {
    const auto all = list();
    const auto left = std::remove_if(all.begin(), all.end(), p);
    const bool any = left != all.end();
    count = static_cast<std::size_t>(left - all.begin());
    return any;
  }
};

class Emitter {
 public:
  Emitter(const EmitContext& context, const CodeView& code, const Region& region, Assembler& a);
  /// Emits the whole region. False: something in it has no steps (an internal error).
  bool emit();
  /// A general register's number.
  [[nodiscard]] static unsigned number(ZydisRegister reg) noexcept;
  /// For an instruction in two pages: what code of the first page may jump to. The second page's
  /// mapping decides what the instruction is, so it is looked up by VA each time.
  void emit_detour();

 private:
  /// A host register for each guest register an instruction names.
  using RegisterMap = std::array<Reg, 16>;

  static constexpr unsigned kNotHomed = ~0U;

  // ---- emitter.cpp: blocks, flags, positions
  void head();
  void one(const Insn& i);
  void dispatch(const Insn& i);
  [[nodiscard]] std::uint16_t page_offset(const Insn& i) const noexcept {
    return static_cast<std::uint16_t>(code_.page_offset + i.offset);
  }
  [[nodiscard]] std::int64_t end_of(const Insn& i) const noexcept {
    return static_cast<std::int64_t>(page_offset(i)) + i.insn.length;
  }
  [[nodiscard]] std::uint16_t remaining(const Insn& i) const noexcept {
    return static_cast<std::uint16_t>(total_ - index_of(i));
  }
  [[nodiscard]] std::size_t index_of(const Insn& i) const noexcept {
    return static_cast<std::size_t>(&i - region_.insns().data());
  }
  std::uint32_t add_site(const Insn& i, bool write = false, unsigned size = 0);
  /// Code out of the way, emitted behind the block.
  void cold(std::size_t fixup, std::function<void()> emit);
  void call_stub(std::uint64_t stub, std::uint32_t site);

  // ---- emit_flags.cpp
  /// EFLAGS are about to be used for something else.
  void spill_flags();
  /// The same for what calls the VMM only on a way where flags are derived first, if they can be.
  void free_eflags(const Insn& i);
  void save_flags();
  void store_flags();  ///< EFLAGS to Core::flags; uses kT2
  void load_flags();   ///< and back
  /// EFLAGS hold the guest's flags.
  void need_flags();
  void flags_written(const Insn& i);
  /// It writes flags, and some that are read behind it come from before it.
  [[nodiscard]] static bool keeps_some_flags(const Insn& i);
  [[nodiscard]] bool flags_are_derived() const noexcept {
    return !in_host_ && !in_memory_ && flag_source_.insn != nullptr;
  }
  void derive_flags(const Insn& i);
  /// After the instruction the source will not tell flags any more.
  [[nodiscard]] bool ends_flag_source(const Insn& i) const;
  void give_up_flag_source(const Insn& i);

  // ---- emit_memory.cpp
  /// The VA of a memory operand, in the register returned (kT0 unless it is one already).
  Reg address(const Insn& i, const ZydisDecodedOperand& op);
  /// Checks an access against the TLB; kT1 is what to add to the VA then. kT2 is used.
  void check(const Insn& i, Reg va, unsigned size, bool write, bool aligned = false,
             std::uint64_t stub = 0);
  /// The same for the access of an instruction that is part of a group: kT1 is what to add to the
  /// VA. EFLAGS survive but for the group's first. False: it is in none.
  bool check_grouped(const Insn& i, Reg base);
  void check_limit(const Insn& i, ZydisRegister segment, unsigned size);
  Mem operand(const Insn& i, const ZydisDecodedOperand& op, bool write);
  void load_page_va(Reg to, std::int64_t plus);
  /// Begins an access through the window. `va` emits code for its VA in kT0, from the guest's
  /// registers. accessed() has to follow the host instruction that makes it.
  void begin_access(const Insn& i, unsigned size, bool write, bool aligned,
                    std::function<void()> va);
  /// kT1 becomes what is to be added to VAs in the slice of `va`. EFLAGS survive.
  void load_addend(Reg va);
  /// The operand of an open access of a group, at `disp` from the guest register `base`; kT1 holds
  /// what was looked up for the group. An index is not in it yet.
  Mem grouped_operand(const Insn& i, unsigned base, std::int32_t disp);
  void look_up_group(const Insn& i);
  /// Behind the host instruction of an access, before anything of its effects is written down.
  void accessed();
  void emit_window_exits();
  Mem windowed_operand(const Insn& i, const ZydisDecodedOperand& op, bool write, bool aligned);
  [[nodiscard]] static std::size_t group_of(const Insn& i) noexcept {
    return static_cast<std::uint8_t>(i.access.group);
  }
  [[nodiscard]] Mem group_slot(const Insn& i) const noexcept {
    return absolute(&c_.state->group[group_of(i)]);
  }
  [[nodiscard]] bool windowed(const Insn& i) const {
    return code_.goes_through_window(page_offset(i));
  }

  // ---- emit_verbatim.cpp
  void verbatim(const Insn& i);
  std::optional<Mem> operand_at_home(const Insn& i, HomedRegisters& homed);
  RegisterMap load_homed(HomedRegisters& homed, std::optional<Mem>& mem);
  void encode(const Insn& i, const RegisterMap& map, const Mem* mem);
  void prefixes(const Insn& i);
  void encode_legacy(const Insn& i, const RegisterMap& map, const Mem* mem);
  void encode_vex(const Insn& i, const RegisterMap& map, const Mem* mem);
  void lea(const Insn& i);
  void absolute_mov(const Insn& i);
  void divide(const Insn& i);
  void load_mxcsr(const Insn& i);
  /// State that an instruction wants in the host's registers.
  struct Units {
    bool x87 = false;
    SimdLevel simd = kSimdInMemory;
  };
  [[nodiscard]] static Units units_of(const Insn& i);
  void units_ahead();
  void need(const Insn& i, Units units);
  void need_simd(const Insn& i, SimdLevel level);
  void need_x87(const Insn& i);
  void steps(const Insn& i);

  // ---- emit_stack.cpp
  void push(const Insn& i);
  void pop(const Insn& i);
  void leave(const Insn& i);
  /// Checks the slot below RSP; its VA is in kT0 then.
  void check_push(const Insn& i);
  /// The slot that a push fills, and the one at `base` that a pop reads, checked.
  Mem push_slot(const Insn& i);
  Mem stack_top(const Insn& i, Reg base);
  /// RSP changes by a distance. The host's follows later, together with other changes.
  void move_stack(std::int32_t distance);
  /// The host's RSP follows now. EFLAGS survive.
  void settle_stack();
  /// Whether an instruction leaves RSP alone, or counts with its being behind.
  [[nodiscard]] bool bears_stack_behind(const Insn& i) const;
  /// `sub rsp, imm` and `add rsp, imm` whose flags are dead.
  [[nodiscard]] std::optional<std::int32_t> stack_move(const Insn& i) const;
  [[nodiscard]] unsigned word() const noexcept { return long_mode() ? 8 : 4; }

  // ---- emit_system.cpp
  void system(const Insn& i);
  void sti(const Insn& i);
  [[nodiscard]] bool next_surely_follows(const Insn& i) const;
  void swapgs();
  void pushf(const Insn& i);
  void bit_string(const Insn& i);

  // ---- emit_branch.cpp
  void jump(const Insn& i);
  void jcc(const Insn& i);
  void call(const Insn& i);
  void jump_indirect(const Insn& i);
  void call_indirect(const Insn& i);
  void ret(const Insn& i);
  /// Leaves for a place at a distance from the page's start.
  void go(std::int64_t target);
  void go_far(std::int64_t target);
  /// Finds code for the VA in kT0; kT1 is its JumpEntry's offset. Jumps to `miss` or there with
  /// the miss condition.
  void look_up(const std::function<void(std::size_t)>& miss);
  void enter_found(Reg va);
  /// The target of an indirect branch, in kT0.
  void target(const Insn& i);
  void look_up_target(const Insn& i);

  [[nodiscard]] bool long_mode() const noexcept { return code_.mode.bits == 64; }
  /// The host register with the guest register's value: itself, or `temporary` loaded from home.
  Reg value(ZydisRegister reg, Reg temporary);
  Reg value(unsigned number, Reg temporary);
  /// kT2 is what that guest register becomes. Homes are always up to date: any fault finds them so.
  void store_home(unsigned number);
  void forget_temporaries() noexcept;

  const EmitContext& c_;
  const CodeView& code_;
  const Region& region_;
  Assembler& a_;
  std::uint16_t total_;
  struct Cold {
    std::size_t fixup;
    std::function<void()> emit;
  };
  std::vector<Cold> cold_;
  /// A host instruction that may fault, and how to go on then.
  struct WindowAccess {
    std::uint32_t site = 0;
    std::uint64_t begin = 0, end = 0;
    std::function<void()> va;
    bool flags_at_begin = false;       ///< EFLAGS held the guest's flags
    unsigned homed_in_t2 = kNotHomed;  ///< as at the beginning
    std::optional<Mem> group{};        ///< slot of its group, which kT1 held at the beginning
    bool save_flags = false;           ///< and nothing else did when it faulted
    std::int32_t stack_behind = 0;     ///< as at the beginning
  };
  std::optional<WindowAccess> open_access_;
  std::vector<WindowAccess> window_accesses_;
  unsigned homed_in_t2_ = kNotHomed;                ///< the homed register whose value kT2 is
  std::int8_t group_in_t1_ = GroupedAccess::kNone;  ///< the group whose slot kT1 holds
  /// What is to be added to the host's RSP to make it the guest's.
  std::int32_t stack_behind_ = 0;
  bool in_host_ = false;   ///< EFLAGS hold the guest's flags
  bool in_memory_ = true;  ///< Core::flags does
  /// The instruction whose flags are the guest's, while those registers are as it left them: with
  /// flags neither in EFLAGS nor in Core::flags they are derived.
  struct FlagSource {
    const Insn* insn = nullptr;
    unsigned registers = 0;  ///< one bit each
  };
  FlagSource flag_source_{};
  SimdLevel simd_ = kSimdInMemory;  ///< known to be loaded at least this far
  bool x87_ = false;
  std::uint32_t last_site_ = 0;
  bool ended_ = false;
  bool good_ = true;
};

}  // namespace strata::bt
