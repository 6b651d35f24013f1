#include "guest_run.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "invariants.hpp"
#include "isa/decode.hpp"

namespace strata::fuzz {
namespace {

using engine::ExitKind;
using machine::test::must;

constexpr std::uint8_t kNeighbourByte = 0xA5;
constexpr std::uint64_t kNeighbourBytes = 64 << 10;

/// Limits of the engine that are documented, and end the guest alone.
bool is_known_limit(std::string_view reason) {
  constexpr std::array<std::string_view, 2> kLimits = {
      "the guest executes from an address without memory", "too many MMIO accesses at once"};
  return std::ranges::find(kLimits, reason) != kLimits.end();
}

std::uint64_t hash_bytes(std::uint64_t h, const std::byte* bytes, std::size_t count) {
  for (std::size_t i = 0; i + 8 <= count; i += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, bytes + i, 8);
    h = (h ^ word) * 0x9E3779B97F4A7C15ULL;
    h ^= h >> 29;
  }
  return h;
}

/// Empty, or how two steps differ.
std::string compare(const Step& x, const Step& y) {
  if (x.kind != y.kind || x.data != y.data) {
    return fmt::format("{} {:#x} against {} {:#x}", name_of(x.kind), x.data, name_of(y.kind),
                       y.data);
  }
  if (x.state != y.state) return difference(x.state, y.state);
  if (x.position != y.position) {
    return fmt::format("instruction {} against {}, left of REP {} against {}",
                       x.position.instructions, y.position.instructions, x.position.rep_remaining,
                       y.position.rep_remaining);
  }
  return x.memory_hash != y.memory_hash ? "memory" : "";
}

}  // namespace

/// Stores that do not come from a vCPU, passed on to whoever keeps derived copies.
class GuestRun::Listener final : public machine::WriteListener {
 public:
  explicit Listener(GuestRun& run) : run_{run} {}
  void memory_written(PA pa, std::uint64_t length) override {
    run_.mmu_->guest_wrote(pa, length);
    for (auto& cpu : run_.cpus_) cpu->core->memory_written(pa, length);
  }

 private:
  GuestRun& run_;
};

GuestRun::GuestRun(const Subject& subject, const GuestImage& image, const cpu::CpuModel& model,
                   const RunOptions& options)
    : model_{model},
      options_{options},
      rng_{options.seed ^ 0x5EED},
      machine_{layout::kRamMib, layout::kSegmentMib},
      neighbour_{must(machine_.memory->create_segment(kNeighbourBytes, "neighbour"))},
      mmu_{conformance::make_backend(subject.backend, machine_.p2m, machine_.frames,
                                     machine_.domain, true)},
      randomness_{options.seed} {
  std::memset(machine_.window().host(neighbour_->base()), kNeighbourByte, kNeighbourBytes);
  build_memory(image);
  for (unsigned id = 0; id < options.vcpus; ++id) {
    auto cpu = std::make_unique<VirtualCpu>();
    interp::CoreEnvironment e;
    e.id = id;
    e.mmu = mmu_.get();
    e.window = machine_.window();
    e.flush_domain = &machine_.domain;
    e.interrupts = &cpu->interrupts;
    e.tsc = &tsc_;
    e.random = &randomness_;
    e.model = &model_;
    e.vcpus = options.vcpus;
    e.exact_state = true;  // every state is compared with another engine's
    e.block_cache_bytes = rng_.chance(20) ? 16 << 10 : 256 << 10;
    if (options.code_cache_bytes != 0) e.code_cache_bytes = options.code_cache_bytes;
    cpu->core = conformance::make_engine(subject.engine, e);
    cpu->core->set_state(image.make_state(rng_));
    cpus_.push_back(std::move(cpu));
  }
  listener_ = std::make_unique<Listener>(*this);
  machine_.guest.add_listener(*listener_);
}

GuestRun::~GuestRun() { machine_.guest.remove_listener(*listener_); }

void GuestRun::build_memory(const GuestImage& image) {
  for (std::uint64_t i = 0; i < layout::kRomPages * kPageSize; ++i) {
    rom_.push_back(static_cast<std::byte>(i * 7 >> 3));
  }
  must(machine_.p2m.add_rom({page_of(PA{layout::kRom}), layout::kRomPages}, rom_));
  must(machine_.p2m.add_mmio({page_of(PA{layout::kMmio}), layout::kMmioPages}));
  must(machine_.guest.write(machine::kIdentitySpace, PA{0}, image.bytes()));
}

std::string GuestRun::run(RunTotals& totals) {
  ++totals.runs;
  for (unsigned n = 0; n < options_.turns && !over_; ++n) {
    if (options_.reference != nullptr && steps_.size() == options_.reference->size()) break;
    VirtualCpu& cpu = *cpus_[n % cpus_.size()];
    if (cpu.stopped) continue;
    if (auto why = turn(cpu, totals); !why.empty()) return why;
  }
  for (const auto& cpu : cpus_) {
    const engine::VcpuStats stats = cpu->core->stats();
    totals.instructions += stats.instructions;
    totals.exceptions += stats.exceptions;
    totals.interrupts += stats.interrupts;
    totals.code_evictions += stats.code_evictions;
  }
  return check_host();
}

/// Says how far the next run() goes. The instruction count of a comparable step's end.
std::uint64_t GuestRun::limit(VirtualCpu& cpu) {
  const std::uint64_t here = cpu.core->position().instructions;
  retired_ = here;
  edits_ = mmu_->stats().traced_writes;
  if (!options_.comparable) {
    cpu.core->limit_run(1 + rng_.below(200));
    if (rng_.chance(20)) {
      cpu.core->stop_at({here + 1 + rng_.below(300), rng_.chance(20) ? 1 + rng_.below(20) : 0});
    }
    return 0;
  }
  std::uint64_t length = 1;
  // What waits behind an exception is taken at a block's end, which is the engine's affair: then
  // every instruction is a block.
  if (options_.stride > 1) {
    length = 1 + rng_.below(options_.stride);
    if (cpu.interrupts.waiting()) length = 1;
  }
  if (options_.cut && options_.cut->step == steps_.size()) {
    length = std::min(length, options_.cut->instructions);
    over_ = true;
  }
  // How often the run loop looks around is the engine's and the backend's affair too, so the limit
  // is only there to end a guest that retires nothing any more.
  const auto* reference = options_.reference;
  const bool limited = options_.stride == 1 || options_.scout ||
                       (reference != nullptr && steps_.size() < reference->size() &&
                        (*reference)[steps_.size()].may_differ);
  cpu.core->limit_run(limited ? 60 + 4 * options_.stride : 0);
  cpu.core->stop_at({here + length, 0});
  return here + length;
}

std::string GuestRun::turn(VirtualCpu& cpu, RunTotals& totals) {
  const std::uint64_t end = limit(cpu);
  const engine::Exit exit = cpu.core->run();
  ++totals.exits[static_cast<std::size_t>(exit.kind)];
  const cpu::VcpuState state = cpu.core->state();
  if (auto why = broken_rule(state, model_); !why.empty()) return why;
  if (auto why = broken_exit(exit, model_); !why.empty()) return why;
  if (options_.comparable) {
    if (auto why = note_step(cpu, exit, state, end); !why.empty() || over_) return why;
  }
  if (auto why = answer(cpu, exit); !why.empty()) return why;
  if (!cpu.stopped) disturb(cpu);
  return {};
}

std::string GuestRun::note_step(VirtualCpu& cpu, const engine::Exit& exit,
                                const cpu::VcpuState& state, std::uint64_t end) {
  const engine::VcpuPosition here = cpu.core->position();
  const bool cut_short = exit.kind == ExitKind::interrupted && here.instructions < end;
  const bool long_steps = options_.stride > 1;
  if (cut_short && options_.scout) {
    over_ = true;
    return {};
  }
  const bool limited = cut_short && here.instructions == retired_ && !long_steps;
  tables_edited_ = tables_edited_ || mmu_->stats().traced_writes != edits_;
  const bool may_differ = limited || tables_edited_;
  const std::size_t number = steps_.size();
  const Step* other = options_.reference != nullptr && number < options_.reference->size()
                          ? &(*options_.reference)[number]
                          : nullptr;
  const bool hashed = may_differ || (other != nullptr && other->may_differ);
  const std::uint64_t hash = hashed       ? memory_hash()
                             : long_steps ? memory_hash(layout::kImageEnd)
                                          : 0;
  steps_.push_back({exit.kind, exit.data + exit.pa.value(), state, may_differ, hash, here});
  if (other == nullptr) return {};
  const std::string why = compare(*other, steps_.back());
  if (why.empty()) return {};
  over_ = true;
  ended_early_ = other->may_differ || may_differ;
  differs_ = !ended_early_;
  return ended_early_ ? std::string{} : fmt::format("step {}: {}", number, why);
}

std::string GuestRun::answer(VirtualCpu& cpu, const engine::Exit& exit) {
  interp::Core& core = *cpu.core;
  switch (exit.kind) {
    case ExitKind::port_read:
    case ExitKind::mmio_read:
      // Devices may answer with more than was asked for.
      core.complete(rng_.chance(50) ? rng_() : rng_.edge());
      break;
    case ExitKind::msr_read:
    case ExitKind::hypercall:
      if (exit.kind == ExitKind::msr_read && rng_.chance(50)) {
        core.fail();
      } else {
        core.complete(rng_());
      }
      break;
    case ExitKind::msr_write:
      if (rng_.chance(50)) core.fail();
      break;
    case ExitKind::halt:
      if (rng_.chance(60)) cpu.interrupts.assert_interrupt(rng_.byte());
      if (rng_.chance(40)) cpu.interrupts.assert_nmi();
      core.interrupt();
      break;
    case ExitKind::triple_fault:
      cpu.stopped = true;
      break;
    case ExitKind::internal_error:
      cpu.stopped = true;
      if (!is_known_limit(exit.reason)) return "internal error: " + exit.reason;
      break;
    case ExitKind::paused:
    case ExitKind::out_of_memory:
      return fmt::format("{} at {:#x}", name_of(exit.kind), exit.pa.value());
    case ExitKind::interrupted:
    case ExitKind::port_write:
    case ExitKind::mmio_write:
      break;
  }
  return {};
}

/// What happens to a vCPU from outside between two instructions.
void GuestRun::disturb(VirtualCpu& cpu) {
  interp::Core& core = *cpu.core;
  const bool boundary = !core.exception.valid && core.mmio.count == 0 && !core.completion.ready;
  if (boundary && (options_.comparable || rng_.chance(5))) {
    core.set_state(core.state());  // drops every cached translation
    tables_edited_ = false;
  }
  // With long steps nothing may wait for a block's end: see limit().
  const bool now = boundary || options_.stride == 1;
  if (rng_.chance(12) && now) {
    cpu.interrupts.assert_interrupt(static_cast<std::uint8_t>(16 + rng_.below(240)));
    core.interrupt();
  }
  if (rng_.chance(4) && now) {
    cpu.interrupts.assert_nmi();
    core.interrupt();
  }
  if (rng_.chance(3) && options_.stride == 1) core.kick();
  // Translations cached on the way into an event may outlive a device's store to the tables, or
  // not.
  if (rng_.chance(8) && (boundary || !options_.comparable)) interfere_with_memory();
}

/// Devices that write to memory, a balloon, and dirty logging.
void GuestRun::interfere_with_memory() {
  const std::uint64_t at = rng_.below(layout::kImageEnd);
  if (rng_.chance(60)) {
    std::array<std::byte, 24> bytes{};
    for (std::byte& b : bytes) b = static_cast<std::byte>(rng_());
    must(machine_.guest.write(machine::kIdentitySpace, PA{at},
                              std::span{bytes}.first(1 + rng_.below(bytes.size()))));
    return;
  }
  Flush flush{machine_.domain};
  const PpnRange range{page_of(PA{rng_.below(layout::kRamEnd)}), 1 + rng_.below(4)};
  // A range at the end of memory is refused, which is an answer too.
  if (rng_.chance(50)) {
    static_cast<void>(machine_.p2m.discard(range, flush).has_value());
  } else {
    static_cast<void>(machine_.p2m.log_dirty(range, flush).has_value());
  }
  flush.commit();
}

/// Nothing outside the guest's own memory has changed.
std::string GuestRun::check_host() {
  const std::byte* other = machine_.window().host(neighbour_->base());
  if (!std::all_of(other, other + kNeighbourBytes,
                   [](std::byte b) { return b == std::byte{kNeighbourByte}; })) {
    return "the guest changed memory of a neighbour";
  }
  std::vector<std::byte> now(rom_.size());
  must(machine_.guest.read(machine::kIdentitySpace, PA{layout::kRom}, now));
  return now == rom_ ? std::string{} : "the guest changed ROM";
}

std::vector<std::byte> GuestRun::code_at(const cpu::VcpuState& state) {
  const VA start{state.segment[cpu::CS].base + state.rip};
  std::vector<std::byte> bytes(isa::kMaxInstructionBytes);
  std::size_t got = 0;
  const Access access{AccessKind::execute, state.segment[cpu::SS].dpl() == 3, false};
  // Byte by byte: the page after it may not be there.
  while (got < bytes.size()) {
    const auto t = mmu_->translate(0, start + got, access);
    if (!t) break;
    must(machine_.guest.read(machine::kIdentitySpace, t->pa + (start + got).page_offset(),
                             std::span{bytes}.subspan(got, 1)));
    ++got;
  }
  bytes.resize(got);
  return bytes;
}

std::uint64_t GuestRun::memory_hash(std::uint64_t end) {
  std::vector<std::byte> page(kPageSize);
  std::uint64_t h = 0;
  for (std::uint64_t at = 0; at < end; at += kPageSize) {
    must(machine_.guest.read(machine::kIdentitySpace, PA{at}, page));
    h = hash_bytes(h, page.data(), page.size());
  }
  return h;
}

}  // namespace strata::fuzz
