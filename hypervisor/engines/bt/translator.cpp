#include "engines/bt/translator.hpp"

#include <x86intrin.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>
#include <vector>

#include "cpu/cpu_model.hpp"
#include "engines/bt/host_faults.hpp"
#include "engines/bt/stubs.hpp"
#include "engines/interp/low_memory.hpp"

namespace strata::bt {

using interp::Core;
using interp::Leave;

namespace {

/// Beside a TlbMode in contexts. That counts too: instructions that a window is not for check their
/// accesses against the TLB of the mode that they were translated for.
constexpr std::uint64_t kWindowedMode = 4;
/// Bits of a context that say what code is translated for: all but the generation and the number
/// of the address space, of which the page-table half counts (Core::update_derived()).
constexpr std::uint64_t kModeOfContext = 0x7FF'1001;
/// The number of the address space: no part of the context of code that all of them have.
constexpr std::uint64_t kSpaceOfContext = 0xFFE;
/// A context that no look-up finds.
constexpr std::uint64_t kNoContext = ~0ULL;

NativeState* make_state() { return new (interp::allocate_low(sizeof(NativeState))) NativeState{}; }

bool host_has_bmi2() noexcept { return __builtin_cpu_supports("bmi2") != 0; }
bool host_has_avx() noexcept { return __builtin_cpu_supports("avx") != 0; }

}  // namespace

struct Translator::Calls {
  static Translator& self(void* p) { return *static_cast<Translator*>(p); }
  static std::uint64_t look_up(void* p, std::uint64_t va, std::uint64_t /*b*/) {
    return self(p).go_on(va);
  }
  static std::uint64_t stale(void* p, std::uint64_t /*a*/, std::uint64_t entry) {
    return self(p).stale(static_cast<std::uint32_t>(entry));
  }
  static std::uint64_t link(void* p, std::uint64_t offset, std::uint64_t field) {
    return self(p).link(offset, field);
  }
  static std::uint64_t link_far(void* p, std::uint64_t va, std::uint64_t at) {
    return self(p).link_far(va, at);
  }
  static std::uint64_t attention(void* p, std::uint64_t offset, std::uint64_t /*b*/) {
    Translator& t = self(p);
    t.core_.rip = t.in_page(offset);
    return t.leave(Leave::attention);
  }
  static std::uint64_t budget(void* p, std::uint64_t offset, std::uint64_t count) {
    return self(p).over_budget(offset, count);
  }
  static std::uint64_t memory(void* p, std::uint64_t va, std::uint64_t site) {
    return self(p).memory(va, self(p).cache_.site(static_cast<std::uint32_t>(site)));
  }
  static std::uint64_t group(void* p, std::uint64_t va, std::uint64_t site) {
    return self(p).group(va, self(p).cache_.site(static_cast<std::uint32_t>(site)));
  }
  static std::uint64_t window(void* p, std::uint64_t va, std::uint64_t site) {
    return self(p).window(va, static_cast<std::uint32_t>(site));
  }
  static std::uint64_t steps(void* p, std::uint64_t /*a*/, std::uint64_t site) {
    return self(p).steps(Site{self(p).cache_.site(static_cast<std::uint32_t>(site))});
  }
  static std::uint64_t jump(void* p, std::uint64_t va, std::uint64_t site) {
    return self(p).jump(va, self(p).cache_.site(static_cast<std::uint32_t>(site)));
  }
  static std::uint64_t interpret(void* p, std::uint64_t /*a*/, std::uint64_t site) {
    return self(p).interpret(self(p).cache_.site(static_cast<std::uint32_t>(site)));
  }
  static std::uint64_t simd(void* p, std::uint64_t level, std::uint64_t site) {
    return self(p).load_simd(self(p).cache_.site(static_cast<std::uint32_t>(site)), level);
  }
  static std::uint64_t x87(void* p, std::uint64_t /*a*/, std::uint64_t site) {
    return self(p).load_x87(self(p).cache_.site(static_cast<std::uint32_t>(site)));
  }
};

void Translator::LowMemoryDelete::operator()(NativeState* p) const noexcept {
  p->~NativeState();
  interp::free_low(p, sizeof(NativeState));
}

Translator::Translator(Core& core, std::size_t code_budget)
    : core_{core}, state_{make_state()}, cache_{code_budget} {
  if (!usable()) return;
  Assembler a{cache_.cursor()};
  const StubTargets targets{.look_up = &Calls::look_up,
                            .stale = &Calls::stale,
                            .link = &Calls::link,
                            .link_far = &Calls::link_far,
                            .attention = &Calls::attention,
                            .budget = &Calls::budget,
                            .memory = &Calls::memory,
                            .group = &Calls::group,
                            .window = &Calls::window,
                            .steps = &Calls::steps,
                            .jump = &Calls::jump,
                            .interpret = &Calls::interpret,
                            .simd = &Calls::simd,
                            .x87 = &Calls::x87};
  stubs_ = emit_stubs(a, core, *state_, targets, this, host_has_avx());
  if (!cache_.append(a.bytes())) std::abort();  // less than the smallest unit
  cache_.keep({.stale = stubs_.stale, .far = stubs_.link_far});
  const bool catches = CatchHostFaults::install();
  if (core.env.windows != interp::WindowUse::never && host_has_bmi2() && catches) {
    windows_ = std::make_unique<Windows>(state_->slices, core.env.windows);
    core.tlb_.set_mirror(windows_.get());
    // When pages are looked up is not part of what states are compared for.
    if (!core.env.exact_state) {
      neighbours_ = [this](VA va, Extent& e) { return neighbour(va, e); };
    }
  }
}

Translator::~Translator() { core_.tlb_.set_mirror(nullptr); }

// ---- modes --------------------------------------------------------------------------------------

/// 64-bit code, and 32-bit code in the flat segments that every system uses. The rest, and what is
/// watched step by step, is left to the interpreter.
bool Translator::mode_is_native() const noexcept {
  const interp::DecodeMode& m = core_.decode_mode;
  // Code depends on the privilege level as far as data does: user or supervisor.
  if (m.single || m.aligned || core_.cpl == 1 || core_.cpl == 2) return false;
  if (m.bits == 64) return true;
  if (m.bits != 32 || !m.stack32 || m.checked || m.real) return false;
  return (core_.segment_base[cpu::CS] | core_.segment_base[cpu::DS] | core_.segment_base[cpu::ES] |
          core_.segment_base[cpu::SS]) == 0;
}

void Translator::count_cycles() noexcept {
  const std::uint64_t now = __rdtsc();
  stats_.cycles += now - counted_at_;
  if (windowed_) stats_.window_cycles += now - counted_at_;
  counted_at_ = now;
}

/// The TlbMode that the running code uses, and whether it goes through a window.
std::uint64_t Translator::code_mode() const noexcept {
  return core_.data_mode | (windowed_ ? kWindowedMode : 0);
}

std::uint32_t Translator::mode_key() const noexcept {
  return core_.decode_mode.key() | static_cast<std::uint32_t>(core_.data_mode) << 8 |
         static_cast<std::uint32_t>(interp::tlb_bank(core_.pcid)) << 10 |
         (ungrouped_ ? 1U << 11 : 0U) | (windowed_ ? 1U << 12 : 0U);
}

std::uint64_t Translator::context() const noexcept {
  // 27 bits of mode and PCID; generations are a few per system call and do not reach 2^37.
  const bool user = core_.cpl == 3;
  const std::uint64_t space = core_.fetched_.all_global(user) ? kSpaceOfContext : 0;
  return core_.fetched_.generation(user) << 27 | code_mode() << 24 | (core_.jump_context_ & ~space);
}

void Translator::refresh() noexcept {
  state_->context.store(context());
  state_->pcid = core_.pcid;
  state_->tlb_place =
      static_cast<std::uint32_t>(interp::tlb_index(0, core_.pcid) * sizeof(interp::TlbEntry));
  const bool user = core_.cpl == 3;
  const std::uint32_t space = core_.fetched_.all_global(user) ? 0U : core_.arch_pcid();
  state_->jump_salt =
      ((space << 1 | (user ? 1U : 0U)) * 0x61U + static_cast<std::uint32_t>(code_mode() << 10))
      << kJumpSaltShift;
  if (core_.long_mode()) return;
  for (unsigned n = 0; n < 2; ++n) {
    const cpu::Segment& s = core_.arch.segment[cpu::FS + n];
    // Present, writable, expand-up data (SDM 3A 3.4.5.1): only the limit is left to check.
    const bool plain = !s.unusable() && (s.type() & 0xEU) == 2;
    state_->segment_limit[n] = plain ? s.limit : 0;
  }
}

// ---- running ------------------------------------------------------------------------------------

bool Translator::run(Core& core) {
  if (std::exchange(interpret_next_, false) || !mode_is_native()) return false;
  counted_at_ = __rdtsc();
  choose_window();
  refresh();
  const CatchHostFaults catch_faults{cache_, *state_, stubs_};
  const std::uint64_t code = code_at_rip();
  if (code == 0) return interpret_next_ ? (interpret_next_ = false) : true;
  // attend() may have come before the context was stored.
  if (core.attention_flags.load() != 0) return false;
  const std::int64_t budget = core.budget;
  reinterpret_cast<void (*)(std::uint64_t)>(stubs_.enter)(code);
  unload();
  count_cycles();
  // Nothing was done but to find out that the first instruction is the interpreter's, which takes
  // it at once: an event would otherwise come before it, which the run loop has seen to already. It
  // may be the one for which STI holds them off.
  const bool idle = core.leave_ == Leave::look_up || core.leave_ == Leave::attention;
  if (idle && core.budget == budget) return interpret_next_ = false;
  return true;
}

void Translator::attend() noexcept { state_->context.store(kNoContext); }

std::uint64_t Translator::leave(Leave why) noexcept {
  core_.leave(why);
  return stubs_.leave;
}

std::uint64_t Translator::in_page(std::uint64_t offset) const noexcept {
  return core_.wrap_ip(state_->page_va + offset);
}

JumpEntry& Translator::jump_entry(std::uint64_t va) noexcept {
  return state_->jumps[jump_offset(va, state_->jump_salt) / sizeof(JumpEntry)];
}

std::uint64_t Translator::code_at_rip() {
  state_->page_va = core_.rip & ~kPageMask;
  return code_for(core_.rip);
}

std::uint64_t Translator::code_for(std::uint64_t va) {
  JumpEntry& known = jump_entry(va);
  if (known.va == va && !ungrouped_ && (known.context == context() || still_valid(known))) {
    return known.code;
  }
  const TranslatedBlock* b = block_at(va);
  if (b == nullptr) return 0;
  note_fetched(va);
  // Fetching may have taken an invalidation in.
  refresh();
  if (ungrouped_) return b->entry;  // the exception, not what others are to find
  const std::uint64_t ppn = page_of(b->pa).value();
  const bool whole = !b->crosses && ppn < JumpEntry::kNoPage;
  jump_entry(va) = {.va = va,
                    .context = context(),
                    .code = b->entry,
                    .chain = b->chain,
                    .page = whole ? static_cast<std::uint32_t>(ppn) : JumpEntry::kNoPage};
  return b->entry;
}

void Translator::note_fetched(std::uint64_t va) noexcept {
  const bool user = core_.cpl == 3;
  core_.fetched_.note(user, VA{va}, core_.tlb_.fetch_slot(user, VA{va}).pa_and_flags);
}

bool Translator::still_valid(JumpEntry& e) {
  if (e.page == JumpEntry::kNoPage || ((e.context ^ context()) & kModeOfContext) != 0) return false;
  const std::byte* host = nullptr;
  PA pa{};
  const std::uint64_t va = e.va;
  if (!core_.fetch_page(va, host, pa)) {
    core_.exception.valid = false;  // whoever looks for a block meets it again
    return false;
  }
  // Fetching may have taken an invalidation in.
  refresh();
  if (&e != &jump_entry(va) || page_of(pa).value() != e.page) return false;
  note_fetched(va);
  e.context = context();
  return true;
}

/// The block at `va`. Null: the Core's leave_ says why.
const TranslatedBlock* Translator::block_at(std::uint64_t va) {
  core_.recorded_ = Leave::look_up;
  CodeView code{.page_offset = va & kPageMask,
                .mode = core_.decode_mode,
                .model = core_.env.model,
                .cpl = core_.cpl,
                .exact_state = core_.env.exact_state};
  code.mode.single = false;
  code.grouped = !ungrouped_;
  code.windowed = windowed_;
  const std::byte* host = nullptr;
  PA pa{};
  if (!core_.fetch_page(va, host, pa)) {
    core_.leave(core_.recorded_);
    return nullptr;
  }
  // A page with a block is claimed.
  if (const TranslatedBlock* b = cache_.find(pa, mode_key()); b != nullptr) return b;
  if (!fetch(va, host, pa)) return nullptr;
  if (const auto refused = refused_.find(page_of(pa)); refused != refused_.end()) {
    code.refused = &refused->second;
  }
  if (const TranslatedBlock* b = cache_.find(pa, mode_key()); b != nullptr) return b;
  make_room();
  code.bytes = reinterpret_cast<const std::uint8_t*>(host);
  code.available = static_cast<std::size_t>(kPageSize - (va & kPageMask));
  decode_region(code, region_);
  if (region_.count == 0) return crossing_block_at(va, pa, code);
  return translate(code, {.pa = pa,
                          .key = mode_key(),
                          .bytes = region_.bytes,
                          .from = region_.from,
                          .to = region_.to});
}

/// Instruction fetch, with the page claimed for code. False: the Core's leave_ says why.
bool Translator::fetch(std::uint64_t va, const std::byte*& host, PA& pa) {
  do {
    if (!core_.fetch_page(va, host, pa)) {
      core_.leave(core_.recorded_);
      return false;
    }
  } while (!core_.blocks_.page_has_code(page_of(pa)) && !core_.claim_code(page_of(pa)));
  return true;
}

const TranslatedBlock* Translator::crossing_block_at(std::uint64_t va, PA pa, CodeView code) {
  const std::uint64_t next = core_.wrap_ip((va & ~kPageMask) + kPageSize);
  const std::byte* host = nullptr;
  PA second{};
  const std::uint64_t generation = core_.generation_;
  if (!fetch(next, host, second)) return nullptr;
  const bool user = core_.cpl == 3;
  core_.fetched_.note(user, VA{next}, core_.tlb_.fetch_slot(user, VA{next}).pa_and_flags);
  // The second page's fetch was a quiescent point for the first: look at that again.
  if (generation != core_.generation_ || !core_.blocks_.page_has_code(page_of(pa))) {
    return block_at(va);
  }
  if (const auto* b = cache_.find_crossing(pa, mode_key(), page_of(second)); b != nullptr) return b;
  std::array<std::uint8_t, 32> bytes{};
  interp::guest::copy(bytes.data(), code.bytes, code.available);
  interp::guest::copy(bytes.data() + code.available, host, 16);
  code.bytes = bytes.data();
  code.available += 16;
  code.crosses = true;
  decode_region(code, region_);
  return translate(code, {.pa = pa,
                          .key = mode_key(),
                          .bytes = static_cast<std::uint16_t>(kPageSize - (va & kPageMask)),
                          .from = static_cast<std::uint16_t>(va & kPageMask),
                          .to = static_cast<std::uint16_t>(kPageSize),
                          .crosses = true,
                          .second = page_of(second)});
}

void Translator::make_room() {
  const CodeRange gone = cache_.make_room();
  if (gone.empty()) return;
  for (JumpEntry& e : state_->jumps) {
    if (gone.contains(e.code)) e = {};
  }
  ++stats_.evictions;
}

const TranslatedBlock* Translator::translate(const CodeView& code, TranslatedBlock block) {
  const EmitContext context{
      .core = &core_, .state = state_.get(), .cache = &cache_, .stubs = &stubs_, .tlb = core_.dtlb};
  Assembler a{cache_.cursor()};
  Emitter emitter{context, code, region_, a};
  block.chain = static_cast<std::uint32_t>(a.here());
  if (block.crosses) emitter.emit_detour();
  block.entry = static_cast<std::uint32_t>(a.here());
  if (region_.count == 0 || !emitter.emit() || !cache_.append(a.bytes())) {
    interpret_next_ = true;
    core_.leave(Leave::look_up);
    return nullptr;
  }
  ++stats_.blocks;
  return cache_.insert(block);
}

// ---- what stubs ask for -------------------------------------------------------------------------

std::uint64_t Translator::go_on(std::uint64_t va) {
  core_.rip = va;
  // A stop that is due comes before a fault of the next instruction's fetch.
  if (core_.budget == 0 || core_.attention_flags.load() != 0) return leave(Leave::attention);
  const std::uint64_t code = code_at_rip();
  if (code == 0) return stubs_.leave;
  state_->context.store(context());
  if (core_.attention_flags.load() != 0) return leave(Leave::attention);
  return code;
}

/// go_on(), and link(code) if there is some and what is to lead there has not gone meanwhile.
template <class Link>
std::uint64_t Translator::go_on_linked(std::uint64_t va, Link&& link) {
  const std::uint64_t evictions = cache_.evictions();
  const std::uint64_t code = go_on(va);
  if (code != stubs_.leave && evictions == cache_.evictions()) link(code);
  return code;
}

std::uint64_t Translator::link(std::uint64_t offset, std::uint64_t field) {
  const std::uint64_t va = in_page(offset);
  return go_on_linked(va, [&](std::uint64_t) { cache_.link(field, jump_entry(va).chain); });
}

/// A jump to another page goes there directly as long as it comes from the same VA in the same
/// context.
std::uint64_t Translator::link_far(std::uint64_t va, std::uint64_t at) {
  const std::uint64_t page = state_->page_va;
  return go_on_linked(va, [&](std::uint64_t code) {
    cache_.link_far(at,
                    {.page_va = page, .context = context(), .target = code, .miss = stubs_.far});
  });
}

/// No jump finds a dropped block at the place of `va` in its page any more. A successor that asks
/// the table where to go on would be led back to itself, for ever, by what other address spaces
/// know of the VA: this block, or an older one that leads here.
void Translator::forget_offset(std::uint64_t va) noexcept {
  const JumpEntry& known = jump_entry(va);
  for (JumpEntry& e : state_->jumps) {
    if (((e.va ^ va) & kPageMask) == 0 && &e != &known) e = {};
  }
}

/// A block that was dropped is entered once more. From then on it leads to its successor, which is
/// code for the same guest bytes' place.
std::uint64_t Translator::stale(std::uint32_t entry) {
  const std::uint64_t va = in_page(cache_.dropped_offset(entry));
  // What is known of the VA may be this block, or an older one that leads here.
  jump_entry(va) = {};
  return go_on_linked(va, [&](std::uint64_t code) {
    const std::uint32_t chain = jump_entry(va).chain;
    if (chain != code) forget_offset(va);
    cache_.redirect(entry, chain);
  });
}

std::uint64_t Translator::over_budget(std::uint64_t offset, std::uint64_t count) {
  core_.budget += static_cast<std::int64_t>(count);
  core_.rip = in_page(offset);
  interpret_next_ = true;
  return leave(Leave::attention);
}

void Translator::rewind(const Site& site) noexcept {
  core_.budget += site.remaining;
  core_.rip = in_page(site.page_offset);
}

std::uint64_t Translator::memory(std::uint64_t va, Site site) {
  using Refill = Core::Refill;
  if (site.aligned && (va & (site.size - 1U)) != 0) return interpret(site);
  const Stamp before = stamp();
  switch (core_.refill(va, site.size, site.write)) {
    case Refill::filled:
      if (before == stamp()) return site.resume;
      rewind(site);
      return go_on(core_.rip);
    case Refill::refused:
      rewind(site);
      return leave(core_.recorded_);
    case Refill::interpret:
      break;
  }
  return interpret(site);
}

/// Finds code for an indirect branch's target before the branch is taken.
std::uint64_t Translator::jump(std::uint64_t va, Site site) {
  const std::uint64_t evictions = cache_.evictions();
  const std::uint64_t places = core_.places();
  // Where a stop is due behind the branch its target is not to be fetched yet.
  const bool possible =
      core_.budget != 0 && core_.attention_flags.load() == 0 && core_.canonical(va);
  if (possible && code_for(va) != 0 && evictions == cache_.evictions() &&
      places == core_.places() && core_.attention_flags.load() == 0) {
    state_->context.store(context());
    return site.resume;
  }
  // Whatever was in the way is met again, at the target.
  core_.exception.valid = false;
  interpret_next_ = false;
  return interpret(site);
}

std::uint64_t Translator::interpret(const Site& site) {
  rewind(site);
  ++stats_.interpreted;
  core_.single_next_ = true;
  return leave(Leave::look_up);
}

/// The span from `va` on is not known to lie in one page that allows all of its accesses. Only the
/// first of them is certain to be made.
std::uint64_t Translator::group(std::uint64_t va, Site site) {
  Site first = site;
  first.size = site.first_size;
  first.write = site.first_write;
  const std::uint64_t next = memory(va + site.first_at, first);
  if (next != site.resume) return next;
  const bool one_page = (va & kPageMask) + site.size <= kPageSize;
  if (one_page && core_.cached(va, site.write)) return next;
  rewind(site);
  ungrouped_ = true;
  const std::uint64_t code = go_on(core_.rip);
  ungrouped_ = false;
  return code;
}

/// Behind an instruction that changed the mode or the address space: nothing happens before the
/// next instruction that the run loop would have to see to.
bool Translator::may_go_on() {
  const bool open = (core_.rflags_other & cpu::rflags::IF) != 0 && core_.interrupt_waits;
  if (open || core_.attention_flags.load() != 0 || core_.arch.interrupt_shadow ||
      core_.debug_shadow || core_.debug_hits != 0 || !core_.may_accelerate()) {
    return false;
  }
  if (!mode_is_native()) return false;
  choose_window();
  refresh();
  return true;
}

void Translator::interpret_steps(const Site& site) {
  // Reading the clock costs as much as a short step.
  constexpr std::uint64_t kSample = 64;
  const bool sample = stats_.interpreted % kSample == 0;
  const std::uint64_t start = sample ? __rdtsc() : 0;
  const interp::Uop* u = core_.enter(cache_.steps(site), core_.rip);
  while (u != nullptr) u = u->fn(core_, u);
  if (sample) stats_.interpreted_cycles += (__rdtsc() - start) * kSample;
}

std::uint64_t Translator::steps(const Site& site) {
  unload();
  ++stats_.interpreted;
  const Stamp before = stamp();
  rewind(site);
  core_.begin_instruction();
  core_.recorded_ = Leave::look_up;
  // A branch would go on into the interpreter's next block.
  if (site.branches) core_.attention_flags.fetch_or(interp::attention::kBlock);
  const bool nmi_blocked = core_.arch.nmi_blocked;
  interpret_steps(site);
  if (core_.leave_ != Leave::resume) {
    const bool direct = site.direct && core_.leave_ == Leave::look_up && !nmi_blocked;
    return direct && may_go_on() ? go_on(core_.rip) : stubs_.leave;
  }
  if (!core_.long_mode()) {
    // Loads of segment registers need not end a block.
    if (!mode_is_native()) return leave(Leave::look_up);
    refresh();
  }
  const std::int64_t left = site.remaining - 1;
  if (core_.attention_flags.load() == 0 && before == stamp() && core_.debug_hits == 0 &&
      core_.budget >= left) {
    core_.budget -= left;
    return site.resume;
  }
  return leave(Leave::look_up);
}

// ---- code that goes -----------------------------------------------------------------------------

std::size_t Translator::drop(PA pa, std::uint64_t length) noexcept {
  return cache_.drop(pa, length);
}

void Translator::flush() noexcept {
  cache_.flush();
  // Other flushes leave code known by its VA where it may serve again.
  state_->jumps.fill({});
  ++stats_.flushes;
}

std::size_t Translator::bytes() const noexcept {
  return cache_.bytes() + sizeof(NativeState) + (windows_ ? windows_->bytes() : 0);
}

void Translator::add_to(engine::VcpuStats& stats) const noexcept {
  stats.blocks_translated = stats_.blocks;
  stats.code_flushes = stats_.flushes;
  stats.code_evictions = stats_.evictions;
  stats.interpreted = stats_.interpreted;
  stats.translated_cycles = stats_.cycles;
  stats.window_cycles = stats_.window_cycles;
  stats.interpreted_cycles = stats_.interpreted_cycles;
  if (!windows_) return;
  const WindowCounts& w = windows_->counts();
  stats.window_promotions = w.promotions;
  stats.window_demotions = w.demotions;
  stats.window_fills = w.fills;
  stats.window_pages = w.filled_pages;
  stats.window_flushes = w.flushes;
  stats.window_checks = w.checked_pages;
  stats.window_instructions = w.instructions;
}

std::unique_ptr<Core> make_core(const interp::CoreEnvironment& environment) {
  auto core = std::make_unique<Core>(environment);
  if (!interp::is_low(core.get(), sizeof(Core))) return nullptr;
  auto translator = std::make_unique<Translator>(*core, environment.code_cache_bytes);
  if (!translator->usable()) return nullptr;
  core->accelerate(std::move(translator));
  return core;
}

bool host_can() {
  constexpr std::size_t kPage = 4096;
  const std::vector<std::byte, interp::LowAllocator<std::byte>> data(kPage);
  const CodeCache code{interp::CoreEnvironment{}.code_cache_bytes};
  return interp::is_low(data.data(), kPage) && code.size() != 0;
}

}  // namespace strata::bt
