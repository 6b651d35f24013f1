// Exact runs: vCPUs take turns on one thread, so that a run is a function of its input alone.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "vmm/vm_parts.hpp"

namespace strata::vmm {

namespace {

/// Instructions of one turn. Alone, a vCPU needs turns only as stops in a recording, which bound
/// how far a reader looks ahead.
constexpr std::uint64_t kSlice = 50'000, kSliceAlone = 4'000'000;

}  // namespace

bool Vm::takes_turns() const {
  return clocks_->instructions || exact_->recorder || !config_.save.empty();
}

bool Vm::has_ended() const {
  const std::lock_guard guard{lock_};
  return outcome_.has_value();
}

std::uint64_t Vm::instructions_retired() const {
  std::uint64_t sum = 0;
  for (const auto& vcpu : vcpus_) sum += vcpu->vcpu().position().instructions;
  return sum;
}

void Vm::run_turns() {
  Expected<void, ConfigError> begun;
  if (exact_->record_file) begun = write_state(*exact_->record_file);
  if (exact_->check) begun = start_follower();
  platform_->resume();
  if (exact_->recorder) exact_->recorder->watch(*guest_memory_);
  if (!begun) return ended({Ending::internal_error, 0, begun.error().message});
  std::size_t& next = exact_->turn;
  while (!has_ended()) {
    std::size_t tried = 0;
    while (tried < vcpus_.size() && !vcpus_[next]->wants_turn()) {
      next = (next + 1) % vcpus_.size();
      ++tried;
    }
    if (tried < vcpus_.size()) {
      run_slice(*vcpus_[next]);
      if (exact_->slice_left == 0) next = (next + 1) % vcpus_.size();
    } else if (clocks_->instructions && clocks_->instructions->skip()) {
      clocks_->instructions->run_due();
    } else {
      wait_for_request();
    }
    if (exact_->save_requested && !has_ended()) save_now();
  }
  if (exact_->check) finish_check();
  if (exact_->record_file) {
    if (const auto done = finish_recording(); !done) {
      const std::lock_guard guard{lock_};
      outcome_ = Outcome{Ending::internal_error, 0, done.error().message};
    }
  }
}

/// The instruction count at which a vCPU that stands at `here` has to stop, `end` at the latest.
std::uint64_t Vm::next_stop(std::uint64_t here, std::uint64_t end) {
  std::uint64_t stop = end;
  if (clocks_->instructions) {
    if (const auto ticks = clocks_->instructions->ticks_to_next()) {
      stop = std::min(stop, here + *ticks);
    }
  }
  if (config_.save_at && *config_.save_at >= instructions_retired()) {
    stop = std::min(stop, here + (*config_.save_at - instructions_retired()));
  }
  return exact_->check ? next_check(here, stop) : stop;
}

/// One vCPU runs until its slice is used up, it sleeps, or the VM ends: always to a boundary
/// between two instructions.
void Vm::run_slice(VcpuThread& vcpu) {
  devices::InstructionClock* clock = clocks_->instructions.get();
  if (exact_->recorder) exact_->recorder->turn(vcpu.id());
  if (clock != nullptr) clock->follow(vcpu.vcpu());
  const auto here = [&] { return vcpu.vcpu().position().instructions; };
  const std::uint64_t rest = std::exchange(exact_->slice_left, 0);
  const std::uint64_t whole = vcpus_.size() == 1 ? kSliceAlone : kSlice;
  const std::uint64_t end = here() + (rest != 0 ? std::min(rest, whole) : whole);
  for (;;) {
    if (clock != nullptr) clock->run_due();
    if (exact_->recorder) exact_->recorder->drain();
    vcpu.vcpu().stop_at({next_stop(here(), end), 0});
    const VcpuThread::Turn turn = vcpu.take_turn();
    if (turn == VcpuThread::Turn::stopped) return;
    if (turn == VcpuThread::Turn::exited) continue;
    if (exact_->check) {
      if (!can_check(vcpu)) continue;
      check_here(vcpu);
    }
    if (config_.save_at && instructions_retired() == *config_.save_at) {
      exact_->save_requested = true;
    }
    if (turn == VcpuThread::Turn::asleep || here() >= end || has_ended()) return;
    if (exact_->save_requested) {
      exact_->slice_left = end - here();
      return;
    }
  }
}

/// Sleeps until a vCPU is asked for something. Looks up now and then: a signal handler that wants
/// the VM saved can not notify.
void Vm::wait_for_request() {
  constexpr std::chrono::milliseconds kLook{50};
  std::unique_lock guard{lock_};
  changed_.wait_for(guard, kLook, [this] { return poked_ || outcome_.has_value(); });
  poked_ = false;
}

void Vm::poke() {
  {
    const std::lock_guard guard{lock_};
    poked_ = true;
  }
  changed_.notify_all();
}

// ---- recording ----------------------------------------------------------------------------------

Expected<void, ConfigError> Vm::start_recording() {
  auto output = host::OutputFile::open(config_.record);
  if (!output) return Unexpected{ConfigError{"--record: " + output.error().message}};
  auto file = replay::ChunkWriter::create(std::move(*output), replay::FileKind::recording);
  if (!file) return Unexpected{ConfigError{"--record: " + file.error().message}};
  exact_->record_file = std::move(*file);
  exact_->log = std::make_unique<replay::EventWriter>(*exact_->record_file, config_.cpus);
  record_to(*exact_->log);
  return {};
}

void Vm::record_to(replay::EventSink& log) {
  engine::RandomSource& random = clocks_->instructions
                                     ? static_cast<engine::RandomSource&>(exact_->seeded)
                                     : exact_->host_random;
  exact_->recorder = std::make_unique<replay::Recorder>(log, config_.cpus, clock_, random);
}

Expected<void, ConfigError> Vm::finish_recording() {
  exact_->recorder->end();
  exact_->record_file->write_json(replay::ChunkType::end, end_json());
  if (const auto done = exact_->record_file->finish(); !done) {
    return Unexpected{ConfigError{"--record: " + done.error().message}};
  }
  return {};
}

// ---- replay -------------------------------------------------------------------------------------

const engine::Vcpu& Vm::replaying_vcpu() const { return vcpus_[exact_->player->current()]->vcpu(); }

ReplayResult Vm::replay(std::optional<std::uint64_t> until) {
  replay::Player& player = *exact_->player;
  const replay::Player::Stop stop = player.run(until);
  ReplayResult result;
  result.events = exact_->events->events();
  if (stop == replay::Player::Stop::error) {
    result.message = player.error();
    return result;
  }
  if (stop == replay::Player::Stop::reached) {
    result.stopped = true;
    result.message = fmt::format("stopped at {}", replay::describe(replaying_vcpu().position()));
    return result;
  }
  const auto recorded = exact_->events->end();
  if (!recorded) {
    result.message = recorded.error().message;
    return result;
  }
  const nlohmann::json got = end_json();
  for (const char* part : {"vcpus", "memory_checksum"}) {
    const nlohmann::json was =
        recorded->is_object() ? recorded->value(part, nlohmann::json{}) : nlohmann::json{};
    if (was == got[part]) continue;
    result.message = fmt::format("at the end, {} is not as recorded: {}", part,
                                 nlohmann::json::diff(was, got[part]).dump());
    return result;
  }
  result.ended = true;
  result.message = fmt::format("{} instructions, memory checksum {}", instructions_retired(),
                               got["memory_checksum"].get<std::string>());
  return result;
}

}  // namespace strata::vmm
