#include "engines/bt/emitter.hpp"

#include "engines/interp/lower.hpp"

namespace strata::bt {
namespace {

/// Its code keeps account of what it does to kT1 and kT2. The others use them as they like, but
/// keep nothing there.
bool spares_temporaries(Kind kind) {
  switch (kind) {
    case Kind::verbatim:
    case Kind::nothing:
    case Kind::lea:
    case Kind::push:
    case Kind::pop:
    case Kind::leave:
    case Kind::jcc:
    case Kind::call:
    case Kind::ret:
      return true;
    default:
      return false;
  }
}

}  // namespace

Emitter::Emitter(const EmitContext& context, const CodeView& code, const Region& region,
                 Assembler& a)
    : c_{context},
      code_{code},
      region_{region},
      a_{a},
      total_{static_cast<std::uint16_t>(region.count)} {}

bool Emitter::emit() {
  head();
  units_ahead();
  for (const Insn& i : region_.insns()) {
    one(i);
    if (open_access_) good_ = false;  // its end is not known
    if (!good_) return false;
  }
  settle_stack();
  if (!ended_) {
    const Insn& last = region_.insns().back();
    if ((last.kind == Kind::jcc ? last.live_straight : last.live_after) != 0) spill_flags();
    go(end_of(last));
  }
  forget_temporaries();
  for (std::size_t n = 0; n < cold_.size(); ++n) {
    // Cold code may itself add cold code.
    const Cold c = cold_[n];
    a_.bind(c.fixup);
    c.emit();
  }
  emit_window_exits();
  return true;
}

void Emitter::emit_detour() {
  load_page_va(kT0, static_cast<std::int64_t>(code_.page_offset));
  std::vector<std::size_t> misses;
  look_up([&misses](std::size_t fixup) { misses.push_back(fixup); });
  enter_found(kT0);
  for (const std::size_t fixup : misses) a_.bind(fixup);
  a_.jmp(c_.stubs->look_up);
}

/// Counts the block. At least eleven bytes, which CodeCache::drop() writes over.
void Emitter::head() {
  static_assert(Region::kMaxInstructions <= kBudgetSlice);
  const auto entry = static_cast<std::uint32_t>(a_.here());
  a_.op_reg({0, 0x81}, true, 5, kBudget);  // SUB with four bytes of immediate
  a_.imm32(total_);
  const std::size_t over = a_.jcc_later(kSign);
  cold(over, [this, entry] {
    a_.mov_imm32(kT0, static_cast<std::uint32_t>(code_.page_offset));
    a_.mov_imm32(kT1, total_);
    a_.mov_imm32(kT2, entry);
    a_.jmp(c_.stubs->slice);
  });
}

void Emitter::one(const Insn& i) {
  if (!spares_temporaries(i.kind)) forget_temporaries();
  const bool last_use = ends_flag_source(i);
  if (last_use) give_up_flag_source(i);
  if (!bears_stack_behind(i)) settle_stack();
  dispatch(i);
  if (last_use && flag_source_.insn != &i) {
    if (!in_host_) in_memory_ = true;  // they are dead
    flag_source_ = {};
  }
}

void Emitter::dispatch(const Insn& i) {
  switch (i.kind) {
    case Kind::verbatim:
      return verbatim(i);
    case Kind::nothing:
      return;
    case Kind::lea:
      return lea(i);
    case Kind::absolute_mov:
      return absolute_mov(i);
    case Kind::push:
      return push(i);
    case Kind::pop:
      return pop(i);
    case Kind::leave:
      return leave(i);
    case Kind::divide:
      return divide(i);
    case Kind::load_mxcsr:
      return load_mxcsr(i);
    case Kind::jump:
      return jump(i);
    case Kind::jump_indirect:
      return jump_indirect(i);
    case Kind::jcc:
      return jcc(i);
    case Kind::call:
      return call(i);
    case Kind::call_indirect:
      return call_indirect(i);
    case Kind::ret:
      return ret(i);
    case Kind::cli:
    case Kind::sti:
    case Kind::swapgs:
    case Kind::read_control:
      return system(i);
    case Kind::pushf:
      return pushf(i);
    case Kind::bit_string:
      return bit_string(i);
    case Kind::steps:
      return steps(i);
  }
}

std::uint32_t Emitter::add_site(const Insn& i, bool write, unsigned size) {
  return c_.cache->add_site({.resume = static_cast<std::uint32_t>(a_.here()),
                             .page_offset = page_offset(i),
                             .remaining = remaining(i),
                             .write = write,
                             .size = static_cast<std::uint16_t>(size)});
}

void Emitter::cold(std::size_t fixup, std::function<void()> emit) {
  cold_.push_back({fixup, std::move(emit)});
}

void Emitter::call_stub(std::uint64_t stub, std::uint32_t site) {
  a_.mov_imm32(kT1, site);
  a_.jmp(stub);
}

// ---- the interpreter's instructions -------------------------------------------------------------

namespace {

/// Transfers between user and supervisor, and loads of CR3. Not of CR8, which may let an interrupt
/// through that waits.
bool goes_on_directly(const Insn& i) {
  switch (i.insn.mnemonic) {
    case ZYDIS_MNEMONIC_SYSCALL:
    case ZYDIS_MNEMONIC_SYSRET:
    case ZYDIS_MNEMONIC_IRETQ:
    case ZYDIS_MNEMONIC_IRETD:
    case ZYDIS_MNEMONIC_INVLPG:
    case ZYDIS_MNEMONIC_INVPCID:
    case ZYDIS_MNEMONIC_SERIALIZE:
      return true;
    case ZYDIS_MNEMONIC_MOV:
      return i.ops[0].reg.value == ZYDIS_REGISTER_CR3;
    default:
      return false;
  }
}

/// Behind an instruction that translated code goes on after.
struct Resume {
  static const interp::Uop* run(interp::Core& core, const interp::Uop* u) {
    return core.resume_translated(u);
  }
};

}  // namespace

void Emitter::steps(const Insn& i) {
  spill_flags();
  std::vector<interp::Uop> uops;
  interp::DecodeMode mode = code_.mode;
  mode.single = true;
  const std::uint64_t va = page_offset(i);  // only its offset in the page counts
  const auto result =
      interp::decode_block(reinterpret_cast<const std::byte*>(i.bytes), code_.available - i.offset,
                           va, mode, *code_.model, uops);
  if (result.instructions == 0) {
    good_ = false;
    return;
  }
  // The steps that go on with the next instruction give way to one that comes back here.
  for (interp::Uop& u : uops) {
    if (u.offset == result.bytes && u.length == 0) u.fn = &Resume::run;
  }
  const std::uint32_t site = add_site(i);
  call_stub(c_.stubs->steps, site);
  Site& s = c_.cache->site(site);
  s.steps = c_.cache->add_steps(uops);
  interp::Block* block = c_.cache->steps(s);
  block->pa = PA{va};
  block->bytes = static_cast<std::uint16_t>(result.bytes);
  block->instructions = 1;
  block->mode_key = static_cast<std::uint8_t>(mode.key());
  s.branches = i.opcode.cls == isa::OpcodeClass::branch;
  s.direct = goes_on_directly(i);
  s.resume = static_cast<std::uint32_t>(a_.here());
  in_host_ = false;
  in_memory_ = true;
  simd_ = kSimdInMemory;
  x87_ = false;
  if (i.ends) {
    // It leaves by itself; if not (a refused SYSCALL goes on nowhere), the next place is looked up.
    go(end_of(i));
    ended_ = true;
  }
}

Reg Emitter::value(ZydisRegister reg, Reg temporary) { return value(number(reg), temporary); }

Reg Emitter::value(unsigned n, Reg temporary) {
  if (!long_mode() || !is_homed(n)) return static_cast<Reg>(n);
  if (n != homed_in_t2_) {
    if (temporary == kT2) homed_in_t2_ = kNotHomed;
    a_.load(temporary, absolute(&c_.core->r[n]));
  } else if (temporary != kT2) {
    a_.mov(temporary, kT2);
  }
  return temporary;
}

void Emitter::store_home(unsigned n) {
  a_.store(absolute(&c_.core->r[n]), kT2);
  homed_in_t2_ = n;
}

void Emitter::forget_temporaries() noexcept {
  group_in_t1_ = GroupedAccess::kNone;
  homed_in_t2_ = kNotHomed;
}

unsigned Emitter::number(ZydisRegister reg) noexcept {
  // Zydis counts AH to BH among the byte registers, before SPL.
  if (reg >= ZYDIS_REGISTER_SPL && reg <= ZYDIS_REGISTER_R15B) {
    return static_cast<unsigned>(reg - ZYDIS_REGISTER_SPL) + 4;
  }
  return static_cast<unsigned>(ZydisRegisterGetId(reg)) & 15U;
}

}  // namespace strata::bt
