#include "run.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "invariants.hpp"

namespace strata::hostile {
namespace {

using engine::ExitKind;
using machine::test::must;
using namespace std::chrono_literals;

constexpr std::uint8_t kNeighbourByte = 0xA5;
constexpr std::uint64_t kNeighbourBytes = 64 << 10;
constexpr std::uint64_t kMaxExits = 20'000;
/// What devices answer: as an address, it is in page 0.
constexpr std::uint64_t kAnswer = 0x5A;

/// Limits of the engine that are documented, and end the guest alone.
bool is_known_limit(std::string_view reason) {
  return reason == "the guest executes from an address without memory" ||
         reason == "too many MMIO accesses at once";
}

/// Answers an exit. False: the run is over, and `o` says how.
bool answer(interp::Core& core, const engine::Exit& exit, Outcome& o) {
  switch (exit.kind) {
    case ExitKind::port_read:
    case ExitKind::mmio_read:
    case ExitKind::hypercall:
      core.complete(kAnswer);
      return true;
    case ExitKind::port_write:
    case ExitKind::mmio_write:
      return true;
    case ExitKind::msr_read:
    case ExitKind::msr_write:
      core.fail();
      return true;
    case ExitKind::interrupted:
      o.end = End::count;
      return false;
    case ExitKind::halt:
      o.end = End::halt;
      return false;
    case ExitKind::triple_fault:
      o.end = End::triple_fault;
      return false;
    case ExitKind::internal_error:
      o.end = End::refused;
      if (!is_known_limit(exit.reason)) o.wrong = "internal error: " + exit.reason;
      return false;
    case ExitKind::paused:
    case ExitKind::out_of_memory:
      o.wrong = fmt::format("{} at {:#x}", engine::name_of(exit.kind), exit.pa.value());
      return false;
  }
  return false;
}

void drive(interp::Core& core, World& world, Outcome& o) {
  for (;;) {
    const engine::Exit exit = core.run();
    if (o.wrong.empty()) o.wrong = fuzz::broken_rule(core.state(), world.model);
    if (o.wrong.empty()) o.wrong = fuzz::broken_exit(exit, world.model);
    if (!o.wrong.empty() || !answer(core, exit, o)) return;
    if (++o.exits == kMaxExits) {
      o.end = End::exits;
      return;
    }
  }
}

}  // namespace

std::string_view name_of(End end) noexcept {
  constexpr std::array<std::string_view, 6> kNames = {"halt",   "triple fault", "count",
                                                      "kicked", "exits",        "refused"};
  return kNames[static_cast<std::size_t>(end)];
}

/// Stores that do not come from a vCPU, passed on to whoever keeps derived copies.
class World::Listener final : public machine::WriteListener {
 public:
  explicit Listener(World& world) : world_{world} {}
  void memory_written(PA pa, std::uint64_t length) override {
    world_.mmu->guest_wrote(pa, length);
    for (interp::Core* core : world_.cores) core->memory_written(pa, length);
  }

 private:
  World& world_;
};

World::World(const Guest& guest, std::string_view backend)
    : machine{layout::kRamMib, layout::kSegmentMib},
      mmu{conformance::make_backend(backend, machine.p2m, machine.frames, machine.domain, true)},
      model{*cpu::CpuModel::by_name("default")},
      neighbour_{must(machine.memory->create_segment(kNeighbourBytes, "neighbour"))} {
  std::memset(machine.window().host(neighbour_->base()), kNeighbourByte, kNeighbourBytes);
  const auto rom = std::as_bytes(std::span{guest.rom});
  rom_.assign(rom.begin(), rom.end());
  must(machine.p2m.add_rom({page_of(PA{layout::kRom}), layout::kRomPages}, rom_));
  must(machine.p2m.add_mmio({page_of(PA{layout::kMmio}), layout::kMmioPages}));
  const auto ram = std::as_bytes(std::span{guest.ram});
  for (std::uint64_t at = 0; at < ram.size(); at += kPageSize) {
    const auto page = ram.subspan(at, kPageSize);
    if (std::ranges::all_of(page, [](std::byte b) { return b == std::byte{0}; })) continue;
    must(machine.guest.write(machine::kIdentitySpace, PA{at}, page));
  }
  listener_ = std::make_unique<Listener>(*this);
  machine.guest.add_listener(*listener_);
}

World::~World() { machine.guest.remove_listener(*listener_); }

interp::CoreEnvironment World::environment() {
  interp::CoreEnvironment e;
  e.mmu = mmu.get();
  e.window = machine.window();
  e.flush_domain = &machine.domain;
  e.interrupts = &interrupts;
  e.tsc = &tsc;
  e.model = &model;
  e.exact_state = true;
  return e;
}

std::string World::damage() {
  const std::byte* other = machine.window().host(neighbour_->base());
  if (!std::all_of(other, other + kNeighbourBytes,
                   [](std::byte b) { return b == std::byte{kNeighbourByte}; })) {
    return "the guest changed memory of a neighbour";
  }
  std::vector<std::byte> now(rom_.size());
  must(machine.guest.read(machine::kIdentitySpace, PA{layout::kRom}, now));
  return now == rom_ ? std::string{} : "the guest changed ROM";
}

std::uint64_t World::memory_hash() {
  std::vector<std::uint64_t> words(kPageSize / 8);
  std::uint64_t h = 0;
  for (std::uint64_t at = 0; at < layout::kRam; at += kPageSize) {
    if (machine.p2m.lookup(page_of(PA{at})).entry.state() == PageState::zero) continue;
    must(machine.guest.read(machine::kIdentitySpace, PA{at},
                            std::as_writable_bytes(std::span{words})));
    h += at;
    for (const std::uint64_t w : words) {
      h = (h ^ w) * 0x9E3779B97F4A7C15ULL;
      h ^= h >> 29;
    }
  }
  return h;
}

Watchdog::Watchdog(std::chrono::milliseconds after, std::function<void()> act)
    : thread_{[this, after, act = std::move(act)] {
        std::unique_lock guard{lock_};
        if (changed_.wait_for(guard, after, [this] { return over_; })) return;
        barked_ = true;
        act();
        if (changed_.wait_for(guard, 10s, [this] { return over_; })) return;
        fmt::print(stderr, "run() does not end after a kick\n");
        std::abort();
      }} {}

Watchdog::~Watchdog() {
  {
    const std::lock_guard guard{lock_};
    over_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

Outcome run(const Case& c, const conformance::Subject& subject) {
  Guest guest{c.bits};
  c.build(guest);
  World world{guest, subject.backend};
  interp::CoreEnvironment e = world.environment();
  e.code_cache_bytes = c.code_cache_bytes;
  const auto core = conformance::make_engine(subject.engine, e);
  world.cores = {core.get()};
  core->set_state(guest.state);
  core->stop_at({c.instructions, 0});
  Outcome o;
  {
    // One that has to be kicked gets time to show that it goes on by itself for ever.
    const Watchdog dog{c.end == End::kicked ? 30ms : 20s, [&] { core->kick(); }};
    drive(*core, world, o);
    if (dog.barked() && o.end == End::count) o.end = End::kicked;
  }
  o.state = core->state();
  o.position = core->position();
  o.stats = core->stats();
  if (o.wrong.empty()) o.wrong = world.damage();
  o.memory_hash = world.memory_hash();
  return o;
}

}  // namespace strata::hostile
