// Lock-step. The first VM, the leader, runs in turns and records into a queue. Wherever it stands
// between two instructions, it leaves a mark; the follower plays the queue up to that, and both are
// compared.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "cpu/cpu_model.hpp"
#include "isa/decode.hpp"
#include "isa/disassemble.hpp"
#include "vmm/replay/machine_state.hpp"
#include "vmm/vm_parts.hpp"

namespace strata::vmm {

namespace {

/// Instructions between two comparisons of all memory, which take a tenth of a second for 256 MiB.
constexpr std::uint64_t kMemoryEvery = 10'000'000;

/// A field's name as registers are called, from its path in the JSON of a state.
std::string field_name(const std::string& path) {
  constexpr std::array<std::string_view, 16> kNames{"rax", "rcx", "rdx", "rbx", "rsp", "rbp",
                                                    "rsi", "rdi", "r8",  "r9",  "r10", "r11",
                                                    "r12", "r13", "r14", "r15"};
  const auto number = [&path](std::string_view prefix) -> std::optional<std::size_t> {
    if (!path.starts_with(prefix)) return std::nullopt;
    return std::stoul(path.substr(prefix.size()));
  };
  if (const auto n = number("/gpr/")) return std::string{kNames.at(*n)};
  if (const auto n = number("/vector/ymm/")) return fmt::format("ymm{}[{}]", *n / 4, *n % 4);
  if (const auto n = number("/vector/legacy/")) return fmt::format("FXSAVE image[{}]", *n * 8);
  return path.substr(1);
}

std::string field_value(const nlohmann::json& value) {
  return value.is_number() ? fmt::format("{:#018x}", value.get<std::uint64_t>()) : value.dump();
}

struct Difference {
  std::string names;
  std::string lines;
};

Difference difference(const cpu::VcpuState& leader, const cpu::VcpuState& follower) {
  const nlohmann::json a = replay::save_vcpu(leader).flatten();
  const nlohmann::json b = replay::save_vcpu(follower).flatten();
  Difference d;
  for (const auto& [path, value] : a.items()) {
    if (!b.contains(path) || b[path] == value) continue;
    const std::string name = field_name(path);
    d.names += (d.names.empty() ? "" : " ") + name;
    d.lines += fmt::format("  {:<20} {}  {}\n", name, field_value(value), field_value(b[path]));
  }
  return d;
}

/// What is mapped at a state's instruction pointer, up to the first byte that is not.
std::vector<std::byte> code_at(Mmu& mmu, machine::GuestMemory& memory, VcpuId vcpu,
                               const cpu::VcpuState& state, std::size_t count) {
  std::vector<std::byte> bytes(count);
  const Access access{AccessKind::execute, state.segment[cpu::SS].dpl() == 3, false};
  std::size_t got = 0;
  for (; got < count; ++got) {
    const VA va{state.segment[cpu::CS].base + state.rip + got};
    const auto t = mmu.translate(vcpu, va, access);
    const auto one = std::span{bytes}.subspan(got, 1);
    if (!t || !memory.read(machine::kIdentitySpace, t->pa + va.page_offset(), one)) break;
  }
  bytes.resize(got);
  return bytes;
}

}  // namespace

// ---- the two VMs --------------------------------------------------------------------------------

void Vm::prepare_check() {
  exact_->check = std::make_unique<Check>();
  exact_->check->next_memory = config_.check.from;
  record_to(exact_->check->inputs);
}

Expected<void, ConfigError> Vm::start_follower() {
  Check& check = *exact_->check;
  VmConfig config = config_;
  const CheckTarget target = check_target(config_);
  config.engine = target.engine;
  config.mmu = target.mmu;
  config.check = {};
  config.disks.clear();  // what they did comes with the leader's inputs
  config.save.clear();
  config.save_at.reset();
  // As in a replay nothing moves this clock: the devices behind it stay as they are made.
  auto clocks = std::make_unique<Clocks>(1);
  check.follower.reset(new Vm{config, map_, std::move(clocks), model_});
  Vm& follower = *check.follower;
  follower.exact_ = std::make_unique<Exactness>();
  devices::MemoryWriter& memory = follower;
  follower.exact_->player = std::make_unique<replay::Player>(check.inputs, config.cpus, memory,
                                                             model_.cpuid(1, 0, {}).eax);
  if (auto done = follower.build(check.silence); !done) return done;
  const auto copied = replay::copy_memory(*guest_memory_, *follower.guest_memory_, map_.backed());
  if (!copied) return Unexpected{ConfigError{copied.error().message}};
  check.state = vcpus_[0]->vcpu().state();
  check.position = vcpus_[0]->vcpu().position();
  return follower.take_machine(machine_json(), false, "--check");
}

// ---- comparing ----------------------------------------------------------------------------------

std::uint64_t Vm::next_check(std::uint64_t here, std::uint64_t stop) {
  Check& check = *exact_->check;
  const std::uint64_t retired = instructions_retired();
  if (retired < config_.check.from) {
    return std::min(stop, here + (config_.check.from - retired));
  }
  if (config_.check.every != 0) return std::min(stop, here + config_.check.every);
  if (!std::exchange(check.by_blocks, true)) {
    for (interp::Core* core : check.cores) core->limit_run(1);
  }
  return stop;
}

/// A position names the first boundary at which so many instructions have retired. A run that is
/// limited to a block may end at others: with an exception still to be delivered, with an answer
/// still to be taken, or between two iterations.
bool Vm::can_check(const VcpuThread& vcpu) const {
  const interp::Core& core = *exact_->check->cores[vcpu.id()];
  return !core.exception.valid && !core.completion.ready && core.mmio.count == 0 &&
         core.position().rep_remaining == 0;
}

void Vm::check_here(const VcpuThread& vcpu) {
  Check& check = *exact_->check;
  const engine::VcpuPosition here = vcpu.vcpu().position();
  // A delivery that faulted has come to no other position.
  if (check.vcpu == vcpu.id() && check.position == here && check.result.states != 0) return;
  exact_->recorder->mark();
  replay::Player& player = *check.follower->exact_->player;
  if (player.run(std::nullopt) == replay::Player::Stop::error) {
    return diverged(player.error(), {});
  }
  if (instructions_retired() < config_.check.from) return;
  const cpu::VcpuState state = vcpu.vcpu().state();
  const cpu::VcpuState other = check.follower->vcpus_[vcpu.id()]->vcpu().state();
  ++check.result.states;
  if (state != other) {
    const Difference d = difference(state, other);
    return diverged(d.names, fmt::format("  {:<20} {:<18}  follower\n", "", "leader") + d.lines);
  }
  check_memory();
  if (!check.result.report.empty()) return;
  check.inputs.forget();
  check.state_agreed = instructions_retired();
  check.vcpu = vcpu.id();
  check.position = here;
  check.state = state;
  if (config_.check.until && check.state_agreed > *config_.check.until) stop(Ending::quit);
}

void Vm::check_memory() {
  Check& check = *exact_->check;
  const std::uint64_t retired = instructions_retired();
  std::optional<PA> found;
  machine::GuestMemory& other = *check.follower->guest_memory_;
  if (config_.check.page) {
    const std::array<boot::Region, 1> page{{{PA{*config_.check.page}, kPageSize}}};
    found = replay::first_difference(*guest_memory_, other, page);
  } else if (retired >= check.next_memory || has_ended()) {
    check.next_memory = retired + kMemoryEvery;
    ++check.result.memories;
    found = replay::first_difference(*guest_memory_, other, map_.backed());
    if (!found) check.memory_agreed = retired;
  }
  if (!found) return;
  check.result.page = found->page_base().value();
  std::array<std::byte, 16> a{};
  std::array<std::byte, 16> b{};
  const PA line{found->value() & ~15ULL};
  (void)guest_memory_->read(machine::kIdentitySpace, line, a);
  (void)other.read(machine::kIdentitySpace, line, b);
  std::string lines;
  for (const auto& [name, bytes] : {std::pair{"leader", a}, std::pair{"follower", b}}) {
    lines += fmt::format("  {:<20}", name);
    for (const std::byte v : bytes) lines += fmt::format(" {:02x}", static_cast<unsigned>(v));
    lines += "\n";
  }
  diverged(fmt::format("memory at {:#x}", found->value()), lines);
}

/// The first VM has ended: the second has to come to the same end.
void Vm::finish_check() {
  Check& check = *exact_->check;
  if (!check.follower || !check.result.report.empty()) return;
  exact_->recorder->end();
  replay::Player& player = *check.follower->exact_->player;
  if (player.run(std::nullopt) != replay::Player::Stop::end) {
    return diverged(player.error().empty() ? "the end" : player.error(), {});
  }
  for (std::size_t i = 0; i < vcpus_.size(); ++i) {
    const cpu::VcpuState state = vcpus_[i]->vcpu().state();
    const cpu::VcpuState other = check.follower->vcpus_[i]->vcpu().state();
    ++check.result.states;
    if (state == other) continue;
    const Difference d = difference(state, other);
    return diverged(fmt::format("vCPU {} at the end: {}", i, d.names), d.lines);
  }
  check_memory();
}

// ---- the report ---------------------------------------------------------------------------------

void Vm::diverged(const std::string& what, const std::string& details) {
  Check& check = *exact_->check;
  const VcpuId id = static_cast<VcpuId>(exact_->turn);
  const engine::VcpuPosition here = vcpus_[id]->vcpu().position();
  check.result.agreed = check.result.page ? check.memory_agreed : check.state_agreed;
  check.result.found = instructions_retired();
  std::string& text = check.result.report;
  text = fmt::format("vCPU {} at {}: leader ({} on {}) and follower ({} on {}) differ: {}\n", id,
                     replay::describe(here), config_.engine, mmu_name_,
                     check.follower->config_.engine, check.follower->mmu_name_, what);
  text += details;
  text += fmt::format("states were equal at {} of vCPU {}; since then:\n",
                      replay::describe(check.position), check.vcpu);
  for (const replay::Event& e : check.inputs.recent()) {
    text += fmt::format("  {}: {}\n", replay::describe(e.position), replay::describe(e));
  }
  constexpr std::uint64_t kMostInstructions = 40;
  const std::uint64_t count =
      std::min(std::max<std::uint64_t>(here.instructions - check.position.instructions, 1),
               kMostInstructions);
  const auto bytes = code_at(*check.follower->mmu_.mmu, *check.follower->guest_memory_, check.vcpu,
                             check.state, count * isa::kMaxInstructionBytes);
  text += "the code from there on:\n";
  text += isa::disassemble(bytes, isa::code_bits(check.state), check.state.rip,
                           static_cast<unsigned>(count), model_);
  {
    const std::lock_guard guard{lock_};
    outcome_ = Outcome{Ending::diverged, 0, what};
  }
  ended({Ending::diverged, 0, what});
}

std::optional<CheckResult> Vm::check_result() const {
  if (!exact_->check) return std::nullopt;
  return exact_->check->result;
}

}  // namespace strata::vmm
