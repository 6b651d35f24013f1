// The run loop: finding blocks, leaving them, events between instructions.
#include "engines/interp/core.hpp"

#include <algorithm>

#include "engines/interp/host_thunk.hpp"
#include "engines/interp/low_memory.hpp"
#include "engines/interp/lower.hpp"
#include "isa/decode.hpp"

namespace strata::interp {

namespace {

constexpr std::size_t kJumpEntries = 4096;

/// Pages that a Core without a group keeps track of: 4 GiB.
constexpr std::uint64_t kAlonePages = 1U << 20;

std::size_t jump_slot(std::uint64_t va) { return (va ^ va >> 12) & (kJumpEntries - 1); }

}  // namespace

/// Put over the steps of dropped blocks: goes back and looks the code up again.
struct StaleStep {
  static const Uop* run(Core& core, const Uop* u) {
    const std::uint64_t here = core.pc_of(u);
    core.abort(u);
    return core.jump(u, here);
  }
};

Core::Core(const CoreEnvironment& environment)
    : env{environment},
      own_group_{environment.group == nullptr ? std::make_unique<VcpuGroup>(kAlonePages) : nullptr},
      group_{environment.group == nullptr ? own_group_.get() : environment.group},
      blocks_{environment.block_cache_bytes, &StaleStep::run},
      jump_cache_(kJumpEntries) {
  // Maps executable memory, which the process may not do once its guest runs (docs/sandbox.md).
  (void)thunk_cache();
  group_->join(env.id, *this);
  env.flush_domain->add(*this);
  set_state(cpu::VcpuState{});
}

void* Core::operator new(std::size_t bytes, std::align_val_t /*alignment*/) {
  return allocate_low(bytes);  // whole pages are aligned to anything
}
void Core::operator delete(void* memory, std::size_t bytes,
                           std::align_val_t /*alignment*/) noexcept {
  free_low(memory, bytes);
}

Core::~Core() {
  env.flush_domain->remove(*this);
  group_->leave(env.id);
}

// ---- run ------------------------------------------------------------------------------------

engine::Exit Core::run() {
  struct Inside {
    explicit Inside(Core& c) : core{c} { core.group_->begin(core.env.id); }
    Inside(const Inside&) = delete;
    Inside& operator=(const Inside&) = delete;
    ~Inside() { core.step_outside(); }
    Core& core;
  };
  const Inside inside{*this};
  attention_flags.fetch_or(attention::kInvalidate, std::memory_order_acquire);
  interrupt_waits = true;  // the VMM may have done anything to the interrupt controllers
  if (resume_from_exit()) {
    std::uint64_t passes = 0;
    for (;;) {
      if (run_limit_ != 0 && limit_reached(passes)) break;
      const Uop* u = dispatch();
      if (u == nullptr) {
        if (leave_ == Leave::exit) break;
        continue;
      }
      while (u != nullptr) u = u->fn(*this, u);
      after_block();
      if (leave_ == Leave::exit) break;
    }
  }
  exited_ = true;
  note_boundary();
  counters.instructions = instructions();
  counters.overhead_bytes = blocks_.bytes() + Tlb::bytes() + jump_cache_.size() * sizeof(JumpEntry);
  if (accelerator_) {
    counters.overhead_bytes += accelerator_->bytes();
    accelerator_->add_to(counters);
  }
  const std::lock_guard guard{mailbox_lock_};
  published_ = counters;
  return exit_;
}

/// Prepares the instruction that exited to run again. False: the exit is still open.
bool Core::resume_from_exit() {
  if (!std::exchange(exited_, false)) return true;
  using engine::ExitKind;
  switch (exit_.kind) {
    case ExitKind::mmio_write:
      if (mmio.count == MmioLog::kCapacity) {
        exit_ = {.kind = ExitKind::internal_error, .reason = "too many MMIO accesses at once"};
        leave_ = Leave::exit;
        return false;
      }
      mmio.done[mmio.count++] = {exit_.pa, exit_.size, true, exit_.data};
      replaying_ = true;
      break;
    case ExitKind::port_write:
    case ExitKind::msr_write:
      completion.ready = true;
      replaying_ = true;
      break;
    case ExitKind::triple_fault:
    case ExitKind::internal_error:
      return false;
    default:
      break;
  }
  mmio.cursor = 0;
  return true;
}

void Core::complete(std::uint64_t value) {
  if (exit_.kind == engine::ExitKind::mmio_read) {
    if (mmio.count < MmioLog::kCapacity) {
      mmio.done[mmio.count++] = {exit_.pa, exit_.size, false, value};
    } else {
      exit_ = {.kind = engine::ExitKind::internal_error,
               .reason = "too many MMIO accesses at once"};
    }
  } else {
    completion = {.ready = true, .failed = false, .value = value};
  }
  replaying_ = true;
}

void Core::fail() {
  completion = {.ready = true, .failed = true, .value = 0};
  replaying_ = true;
}

engine::VcpuStats Core::stats() const noexcept {
  const std::lock_guard guard{mailbox_lock_};
  return published_;
}

/// What happened between run loop and last null step, seen from outside the block.
void Core::after_block() {
  const bool retired =
      leave_ != Leave::retry && leave_ != Leave::exit && leave_ != Leave::exception;
  if (replaying_ && leave_ != Leave::exit && leave_ != Leave::retry) iteration_done();
  if (trap_armed_ || resume_armed_ || debug_hits != 0) debug_after_instruction(retired);
}

bool Core::handle_attention() {
  const std::uint32_t why = attention_flags.exchange(0, std::memory_order_acq_rel);
  if ((why & attention::kInterrupt) != 0) interrupt_waits = true;
  if ((why & attention::kPark) != 0) {
    step_outside();
    step_inside();
  } else if ((why & (attention::kInvalidate | attention::kCodeWritten)) != 0) {
    process_invalidations();
  }
  if ((why & attention::kKick) != 0) {
    if (exception.valid || replaying_) {
      // state() has no place for what is half done: it goes first.
      attention_flags.fetch_or(attention::kKick, std::memory_order_relaxed);
      return true;
    }
    exit_ = {.kind = engine::ExitKind::interrupted};
    leave_ = Leave::exit;
    return false;
  }
  return true;
}

/// An exception has been delivered, and a kick does not wait for the handler to retire something:
/// one whose first instruction faults would keep it waiting for ever. Only after many in a row:
/// positions name the first boundary with their number of instructions (docs/record-and-replay.md).
bool Core::kicked_among_faults() noexcept {
  constexpr unsigned kManyFaults = 64;
  const std::uint64_t now = instructions();
  faults_in_a_row_ = std::exchange(delivered_at_, now) == now ? faults_in_a_row_ + 1 : 0;
  if (faults_in_a_row_ < kManyFaults) return false;
  return (attention_flags.fetch_and(~attention::kKick) & attention::kKick) != 0;
}

/// Counts a pass of the run loop against run_limit_. True: that is enough, exit_ says so.
bool Core::limit_reached(std::uint64_t& passes) {
  if (passes >= run_limit_) {
    exit_ = {.kind = engine::ExitKind::interrupted};
    leave_ = Leave::exit;
    return true;
  }
  ++passes;
  return false;
}

/// A triple fault: out, for good. False, as the answer of take_events().
bool Core::shut_down() {
  exit_ = {.kind = engine::ExitKind::triple_fault};
  leave_ = Leave::exit;
  return false;
}

/// An external interrupt is to be delivered now.
bool Core::interruptible() {
  interrupt_waits = (rflags_other & cpu::rflags::IF) == 0 || env.interrupts->pending();
  return interrupt_waits && (rflags_other & cpu::rflags::IF) != 0;
}

/// Delivers what waits. False: an exit instead (leave_ set).
bool Core::take_events() {
  if (exception.valid) {
    ++counters.exceptions;
    arch.halted = false;
    return deliver_exception() || shut_down();
  }
  shadow_step_ = false;
  if (std::exchange(arch.interrupt_shadow, false)) {
    // The shadow covers one instruction: what waits behind it must not wait for the block's end.
    shadow_step_ = interruptible();
    return true;
  }
  if (!arch.nmi_blocked && env.interrupts->take_nmi()) {
    arch.halted = false;
    arch.nmi_blocked = true;
    return deliver_interrupt(cpu::NMI) || shut_down();
  }
  if (interruptible()) {
    if (const auto vector = env.interrupts->acknowledge()) {
      arch.halted = false;
      ++counters.interrupts;
      if (!deliver_interrupt(*vector)) return shut_down();
    }
  }
  if (arch.halted) {
    exit_ = {.kind = engine::ExitKind::halt};
    leave_ = Leave::exit;
    return false;
  }
  return true;
}

/// The first step of the block at rip; null with leave_ saying why not.
const Uop* Core::dispatch() {
  recorded_ = Leave::look_up;
  if (attention_flags.load(std::memory_order_acquire) != 0 && !handle_attention()) return nullptr;
  if (stop_due()) [[unlikely]]
    return stop_here();
  note_boundary();
  // A delivery that had to exit (a stack in device memory) goes on where it was.
  if (!replaying_ || exception.valid) {
    const bool delivers = exception.valid;
    if (!take_events()) return nullptr;
    if (recorded_ == Leave::exit) return leave(Leave::exit);  // delivery met MMIO or a paused page
    if (exception.valid) return leave(Leave::exception);      // and one more fault after it
    if (stop_due()) [[unlikely]]
      return stop_here();  // the handler's first instruction is where it is due
    if (delivers && kicked_among_faults()) [[unlikely]] {
      exit_ = {.kind = engine::ExitKind::interrupted};
      return leave(Leave::exit);
    }
  }
  mmio.cursor = 0;
  const bool shadowed = std::exchange(debug_shadow, false);
  if (breakpoints.code && !shadowed && at_breakpoint()) return leave(Leave::exception);
  if (accelerator_ && may_accelerate() && accelerator_->run(*this)) {
    after_block();
    return nullptr;
  }
  return start_block();
}

/// Nothing asks for a stop before the next block boundary.
bool Core::may_accelerate() const noexcept {
  return !replaying_ && !shadow_step_ && !single_next_ && run_limit_ == 0 &&
         !(stop_ && stop_->rep_remaining != 0);
}

void Core::begin_instruction() noexcept {
  rep_remaining_ = 0;
  // On the instruction that the stop lies in: its REP goes as far as that and no further.
  rep_floor = stop_ && stop_->rep_remaining != 0 && instructions() == stop_->instructions
                  ? stop_->rep_remaining
                  : 0;
}

const Uop* Core::start_block() {
  const bool single = std::exchange(single_next_, false);
  Block* b = find_block(rip, single);
  // Close to the stop: one instruction at a time.
  if (b != nullptr && b->instructions > budget) b = find_block(rip, true);
  if (b == nullptr) return leave(recorded_);
  if (b->instructions > budget) [[unlikely]] {
    // The stop is due already, and something half-done (a device's answer) goes first.
    set_budget(instructions() + b->instructions);
  }
  if (decode_mode.single) arm_debug_traps(*b);
  if ((b->mode_key & DecodeMode::kSingle) != 0 || run_limit_ != 0) {
    attention_flags.fetch_or(attention::kStep, std::memory_order_relaxed);
  }
  // One block of what an accelerator leaves, real mode apart, which it always leaves.
  if (accelerator_ && !decode_mode.real) {
    ++counters.interpreted_blocks;
    attention_flags.fetch_or(attention::kBlock, std::memory_order_relaxed);
  }
  begin_instruction();
  return enter(b, rip);
}

// ---- positions --------------------------------------------------------------------------------

void Core::set_budget(std::uint64_t end) noexcept {
  const std::uint64_t now = instructions();
  budget_end_ = std::max(end, now);
  budget = static_cast<std::int64_t>(budget_end_ - now);
}

void Core::set_instructions(std::uint64_t count) noexcept {
  no_stop();
  budget_end_ = count + static_cast<std::uint64_t>(budget);
  rep_remaining_ = 0;
  note_boundary();
}

void Core::stop_at(const engine::VcpuPosition& where) noexcept {
  stop_ = where;
  // Between two iterations of a REP: the instruction has to be entered once more.
  set_budget(where.instructions + (where.rep_remaining != 0 ? 1 : 0));
}

void Core::no_stop() noexcept {
  stop_.reset();
  set_budget(instructions() + static_cast<std::uint64_t>(kNoStop));
}

/// The boundary is at or past the requested position and nothing half-done waits.
bool Core::stop_due() const noexcept {
  if (!stop_ || exception.valid || replaying_) return false;
  const std::uint64_t now = instructions();
  if (now != stop_->instructions) return now > stop_->instructions;
  return stop_->rep_remaining == 0 ||
         (rep_remaining_ != 0 && rep_remaining_ <= stop_->rep_remaining);
}

const Uop* Core::stop_here() noexcept {
  no_stop();
  exit_ = {.kind = engine::ExitKind::interrupted};
  return leave(Leave::exit);
}

const Uop* Core::over_budget(const Block* b, std::uint64_t va) noexcept {
  budget += b->instructions;
  rip = va;
  return leave(Leave::attention);
}

void Core::note_position(const Uop* u) noexcept {
  position_ = {instructions() - unretired_from(u, false), 0};
}

// ---- blocks -----------------------------------------------------------------------------------

bool Core::fetch_page(std::uint64_t va, const std::byte*& host, PA& pa) {
  const VA address{va};
  const bool user = cpl == 3;
  const FetchEntry& e = tlb_.fetch_slot(user, address);
  if (e.tag == Tlb::tag(address, pcid)) {
    host = reinterpret_cast<const std::byte*>(va + e.addend);
    pa = PA{(e.pa_and_flags & ~kPageMask) | address.page_offset()};
    return true;
  }
  if (!canonical(va)) return record_exception(cpu::GP, 0);
  ++counters.tlb_misses;
  const Access access{AccessKind::execute, user, false};
  const auto t = ask_mmu(address, access);
  if (!t) return record_fault(t.error(), access);
  host = env.window.host(t->page) + address.page_offset();
  pa = t->pa + address.page_offset();
  tlb_.fill_fetch(user, address, pcid, *t, env.window.host(t->page));
  return true;
}

/// The bytes around a page end, as far as they can be an instruction at `va`.
bool Core::crossing_bytes(std::uint64_t va, std::array<std::byte, 32>& bytes, unsigned& count) {
  const auto head = static_cast<unsigned>(kPageSize - (va & kPageMask));
  const std::byte* host = nullptr;
  PA second{};
  PA first{};
  const std::uint64_t next = wrap_va(va + head);
  const std::uint64_t before = generation_;
  if (!fetch_page(next, host, second)) return false;
  guest::copy(bytes.data() + head, host, 16);
  count = head + 16;
  if (!fetch_page(va, host, first)) return false;
  guest::copy(bytes.data(), host, head);
  if (generation_ != before) return crossing_bytes(va, bytes, count);
  return true;
}

Block* Core::find_block(std::uint64_t va, bool single) {
  const std::byte* host = nullptr;
  PA pa{};
  std::uint64_t room = ~0ULL;
  if (decode_mode.checked && !code_room(va, room)) return nullptr;
  do {
    if (!fetch_page(va, host, pa)) return nullptr;
  } while (!blocks_.page_has_code(page_of(pa)) && !claim_code(page_of(pa)));
  DecodeMode mode = decode_mode;
  mode.single = mode.single || replaying_ || shadow_step_ || single;
  if (room < isa::kMaxInstructionBytes) return shorter_block(va, pa, host, mode, room);
  Block* b = blocks_.find(pa, mode.key());
  const bool fresh = b == nullptr;
  if (fresh) b = build_block(va, pa, host, mode);
  if (b == nullptr) return nullptr;
  if (b->bytes > room) [[unlikely]]
    return find_block(va, true);  // one instruction fits
  if (fresh || !b->crosses) [[likely]]
    return b;
  std::array<std::byte, 32> bytes{};
  unsigned count = 0;
  if (!crossing_bytes(va, bytes, count)) return nullptr;
  if (std::memcmp(bytes.data(), blocks_.crossing(b).data(), b->bytes) == 0) return b;
  drop_code(pa, 1);
  return find_block(va, single);
}

bool Core::claim_code(PPN ppn) {
  blocks_.claim(ppn);
  const VcpuMask writers = group_->code_pages.claim_code(ppn, env.id);
  const auto own = static_cast<VcpuMask>(1U << env.id);
  if ((writers & own) != 0) revoke_writes(ppn);
  const auto others = static_cast<VcpuMask>(writers & ~own);
  if (others == 0) return true;
  quiesce();
  group_->revoke_writes(others, ppn);
  process_invalidations();
  return false;
}

void Core::revoke_writes(PPN ppn) noexcept {
  tlb_.revoke_writes(ppn);
  ++places_;
  group_->code_pages.release_write(ppn, env.id);
}

void Core::flush_blocks() {
  blocks_.for_each_page([this](PPN ppn) { group_->code_pages.release_code(ppn, env.id); });
  blocks_.flush();
  if (accelerator_) accelerator_->flush();
  fetched_.flush_all();
  ++generation_;
}

Block* Core::make_block(const std::vector<Uop>& steps, const DecodeResult& d, PA pa,
                        DecodeMode mode) {
  Block* b = blocks_.allocate(steps.size());
  if (b == nullptr) {
    flush_blocks();
    return nullptr;
  }
  std::copy(steps.begin(), steps.end(), b->first());
  b->pa = pa;
  b->bytes = static_cast<std::uint16_t>(d.bytes);
  b->instructions = static_cast<std::uint16_t>(d.instructions);
  b->mode_key = static_cast<std::uint8_t>(mode.key());
  return b;
}

Block* Core::build_block(std::uint64_t va, PA pa, const std::byte* host, DecodeMode mode) {
  std::vector<Uop> steps;
  const auto in_page = static_cast<std::size_t>(kPageSize - (va & kPageMask));
  DecodeResult d = decode_block(host, in_page, va, mode, *env.model, steps);
  std::array<std::byte, 32> bytes{};
  const bool crosses = d.needs_next_page;
  if (crosses) {
    unsigned count = 0;
    if (!crossing_bytes(va, bytes, count)) return nullptr;
    steps.clear();
    d = decode_block(bytes.data(), count, va, mode, *env.model, steps);
    // Finding the second page was a quiescent point, at which the claim to the first may have gone.
    if (!blocks_.page_has_code(page_of(pa))) return find_block(va, mode.single);
  }
  Block* b = make_block(steps, d, pa, mode);
  if (b == nullptr) return find_block(va, mode.single);  // the page has to be claimed again
  b->crosses = crosses;
  if (crosses) {
    BlockCache::CrossingBytes copy{};
    std::copy_n(bytes.begin(), copy.size(), copy.begin());
    blocks_.remember_crossing(b, copy);
  }
  blocks_.insert(b);
  ++counters.blocks_decoded;
  return b;
}

const Uop* Core::jump(const Uop* /*u*/, std::uint64_t target) {
  rip = target;
  if (attention_flags.load(std::memory_order_relaxed) != 0) return leave(Leave::attention);
  JumpEntry& e = jump_cache_[jump_slot(target)];
  if (e.va == target && e.generation == generation_ && e.context == jump_context_) [[likely]] {
    return enter(e.block, target);
  }
  // A stop due here comes before what fetching from there may raise: the position has to name one
  // state, however a run got to it.
  if (budget == 0) [[unlikely]]
    return leave(Leave::attention);
  recorded_ = Leave::look_up;
  Block* b = find_block(target);
  if (b == nullptr) return leave(recorded_);
  if (!b->crosses) e = {target, generation_, jump_context_, b};
  return enter(b, target);
}

const Uop* Core::link(const Uop* u, std::uint64_t target, const Uop* slot) {
  Block* from = block;
  const std::ptrdiff_t index = slot - from->first();
  const std::uint64_t flushes = blocks_.flushes();
  const Uop* first = jump(u, target);
  if (first != nullptr && flushes == blocks_.flushes() && !block->crosses) {
    from->first()[index].imm = reinterpret_cast<std::uint64_t>(block);
  }
  return first;
}

// ---- leaving a block --------------------------------------------------------------------------

/// How many of the block's instructions have not retired when it is at `u`.
unsigned Core::unretired_from(const Uop* u, bool retired) const noexcept {
  unsigned executed = retired ? 1 : 0;
  std::uint32_t last = ~0U;
  for (const Uop* s = block->first(); s != u; ++s) {
    if (s->offset != last && s->offset != u->offset) ++executed;
    last = s->offset;
  }
  return executed < block->instructions ? block->instructions - executed : 0;
}

/// Takes back what enter() counted too many when the block is left at `u`.
void Core::uncount_from(const Uop* u, bool retired) noexcept {
  budget += unretired_from(u, retired);
}

const Uop* Core::abort(const Uop* u) noexcept {
  uncount_from(u, false);
  rip = pc_of(u);
  return leave(recorded_);
}

const Uop* Core::fault(const Uop* u, std::uint8_t vector,
                       std::optional<std::uint32_t> error) noexcept {
  record_exception(vector, error);
  return abort(u);
}

const Uop* Core::finish(const Uop* u) noexcept { return finish_at(u, next_pc(u)); }

const Uop* Core::finish_at(const Uop* u, std::uint64_t new_rip) noexcept {
  uncount_from(u, true);
  rip = new_rip;
  return leave(Leave::look_up);
}

const Uop* Core::leave_for(const Uop* u, const engine::Exit& exit) noexcept {
  record_exit(exit);
  return abort(u);
}

void Core::iteration_done() noexcept {
  mmio.count = mmio.cursor = 0;
  completion = {};
  replaying_ = false;
}

const Uop* Core::pause(const Uop* u, std::uint64_t remaining) noexcept {
  recorded_ = Leave::attention;
  rep_remaining_ = remaining;
  return abort(u);
}

}  // namespace strata::interp
