#include "vmm/replay/player.hpp"

#include <fmt/format.h>

#include <utility>

namespace strata::replay {

using engine::ExitKind;
using engine::VcpuPosition;

/// An instruction's start comes first, then the iterations of its REP, fewer left being later.
bool before(const VcpuPosition& a, const VcpuPosition& b) noexcept {
  if (a.instructions != b.instructions) return a.instructions < b.instructions;
  return a.rep_remaining == 0 ? b.rep_remaining != 0
                              : b.rep_remaining != 0 && a.rep_remaining > b.rep_remaining;
}

std::string describe(const VcpuPosition& p) {
  return p.rep_remaining == 0
             ? fmt::format("instruction {}", p.instructions)
             : fmt::format("instruction {}, {} iterations left", p.instructions, p.rep_remaining);
}

/// In place of one local APIC.
class Player::Interrupts final : public engine::InterruptSource {
 public:
  explicit Interrupts(Player& player) : player_{player} {}
  bool pending() override { return player_.interrupt_here(EventKind::interrupt); }
  std::optional<std::uint8_t> acknowledge() override {
    const Event* front = player_.front();
    if (front == nullptr || front->kind != EventKind::interrupt) return std::nullopt;
    const auto vector = static_cast<std::uint8_t>(front->value);
    player_.events_.pop();
    return vector;
  }
  bool take_nmi() override {
    if (!player_.interrupt_here(EventKind::nmi)) return false;
    player_.events_.pop();
    return true;
  }
  std::uint64_t cr8() override {
    const auto e = player_.expect({.kind = EventKind::cr8});
    return e ? e->value : 0;
  }
  void set_cr8(std::uint64_t) override {}
  bool present() override {
    const auto e = player_.expect({.kind = EventKind::apic});
    return e && e->value != 0;
  }

 private:
  Player& player_;
};

Player::Player(EventSource& events, unsigned vcpus, devices::MemoryWriter& memory,
               std::uint32_t signature)
    : events_{events}, memory_{memory}, signature_{signature}, vcpus_(vcpus, nullptr) {
  for (unsigned i = 0; i < vcpus; ++i) interrupts_.push_back(std::make_unique<Interrupts>(*this));
}

Player::~Player() = default;

engine::InterruptSource& Player::interrupts(VcpuId vcpu) { return *interrupts_[vcpu]; }

void Player::connect(VcpuId vcpu, engine::Vcpu& engine) { vcpus_[vcpu] = &engine; }

// ---- divergence ---------------------------------------------------------------------------------

/// The first error counts; the vCPU may be in the middle of run() and is asked to come out.
void Player::fail(std::string message) {
  if (error_.empty()) error_ = std::move(message);
  vcpu().kick();
}

const Event* Player::front() {
  const auto front = events_.front();
  if (front) return *front;
  fail(front.error().message);
  return nullptr;
}

void Player::diverge(const std::string& got) {
  const Event* next = front();
  fail(fmt::format(
      "diverged on vCPU {} at {}: got {}; recorded is {}", current_, describe(vcpu().position()),
      got, next == nullptr ? "nothing" : describe(*next) + " at " + describe(next->position)));
}

std::optional<Event> Player::expect(Event asked) {
  asked.vcpu = current_;
  asked.position = {vcpu().position().instructions, 0};
  for (;;) {
    const Event* next = front();
    if (next == nullptr) {
      diverge(describe(asked));
      return std::nullopt;
    }
    Event e = *next;
    if (e.kind == EventKind::memory) {
      if (!memory_.write(PA{e.address}, e.bytes)) fail("a recorded device write is not to memory");
      events_.pop();
      continue;
    }
    // What the guest said must be the same; what it was told is taken from the recording.
    const bool writes = e.kind == EventKind::port_write || e.kind == EventKind::mmio_write ||
                        e.kind == EventKind::msr_write;
    if (e.kind != asked.kind || e.position != asked.position || e.size != asked.size ||
        e.flag != asked.flag || e.address != asked.address || (writes && e.value != asked.value)) {
      diverge(describe(asked));
      return std::nullopt;
    }
    events_.pop();
    return e;
  }
}

bool Player::interrupt_here(EventKind kind) {
  const Event* next = front();
  return next != nullptr && next->kind == kind && next->position == vcpu().position();
}

// ---- running ------------------------------------------------------------------------------------

Player::Stop Player::run(std::optional<std::uint64_t> until) {
  while (error_.empty()) {
    const VcpuPosition here = vcpu().position();
    if (until && here.instructions >= *until) return Stop::reached;
    const Event* first = front();
    if (first == nullptr) return error_.empty() ? Stop::waiting : Stop::error;
    const auto stop = events_.next_stop();
    if (!stop) {
      fail(stop.error().message);
      break;
    }
    const Event& e = *first;
    VcpuPosition next = *stop;
    if (between_instructions(e.kind)) {
      if (e.position == here) {
        if (apply(e)) return Stop::end;
        continue;
      }
      if (before(e.position, here)) {
        diverge("nothing of the kind");
        break;
      }
    } else if (!before(here, next)) {
      // The instruction at the stop asks for something first: it goes ahead.
      next = {here.instructions + 1, 0};
    }
    if (until && next.instructions >= *until) next = {*until, 0};
    advance(next);
  }
  return Stop::error;
}

void Player::advance(const VcpuPosition& stop) {
  vcpu().stop_at(stop);
  const engine::Exit exit = vcpu().run();
  if (error_.empty()) answer(exit);
}

/// An interrupt or NMI: the vCPU takes it at once, or the recording is not of this guest.
void Player::deliver() {
  const std::uint64_t before_it = events_.events();
  advance({vcpu().position().instructions + 1, 0});
  if (error_.empty() && events_.events() == before_it) diverge("a vCPU that does not take it");
}

bool Player::apply(const Event& e) {
  switch (e.kind) {
    case EventKind::interrupt:
    case EventKind::nmi:
      deliver();
      return false;
    case EventKind::dma:
      if (!memory_.write(PA{e.address}, e.bytes)) fail("a recorded device write is not to memory");
      break;
    case EventKind::init:
      vcpu().set_state(cpu::after_init(vcpu().state(), signature_));
      break;
    case EventKind::startup: {
      cpu::VcpuState state = vcpu().state();
      cpu::start_up(state, static_cast<std::uint8_t>(e.value));
      vcpu().set_state(state);
      break;
    }
    case EventKind::turn:
      current_ = static_cast<VcpuId>(e.value);
      break;
    default:
      events_.pop();
      return true;
  }
  events_.pop();
  return false;
}

namespace {

Event request(EventKind kind, const engine::Exit& exit) {
  Event e;
  e.kind = kind;
  e.value = exit.data;
  switch (kind) {
    case EventKind::port_read:
    case EventKind::port_write:
      e.address = exit.port;
      e.size = exit.size;
      break;
    case EventKind::msr_read:
    case EventKind::msr_write:
      e.address = exit.msr;
      break;
    case EventKind::mmio_read:
    case EventKind::mmio_write:
      e.address = exit.pa.value();
      e.size = exit.size;
      break;
    default:
      break;
  }
  return e;
}

std::optional<EventKind> kind_of(ExitKind kind) noexcept {
  switch (kind) {
    case ExitKind::port_read:
      return EventKind::port_read;
    case ExitKind::port_write:
      return EventKind::port_write;
    case ExitKind::mmio_read:
      return EventKind::mmio_read;
    case ExitKind::mmio_write:
      return EventKind::mmio_write;
    case ExitKind::msr_read:
      return EventKind::msr_read;
    case ExitKind::msr_write:
      return EventKind::msr_write;
    case ExitKind::hypercall:
      return EventKind::hypercall;
    default:
      return std::nullopt;
  }
}

}  // namespace

void Player::answer(const engine::Exit& exit) {
  if (exit.kind == ExitKind::interrupted) return;
  const auto kind = kind_of(exit.kind);
  if (!kind) {
    // HLT, or the guest's end: what comes next in the recording comes right here.
    const Event* next = front();
    const bool here =
        next != nullptr && between_instructions(next->kind) && next->position == vcpu().position();
    if (!here) diverge(fmt::format("the exit '{}' {}", name_of(exit.kind), exit.reason));
    return;
  }
  const auto e = expect(request(*kind, exit));
  if (!e) return;
  switch (*kind) {
    case EventKind::port_read:
    case EventKind::mmio_read:
    case EventKind::hypercall:
      vcpu().complete(e->value);
      break;
    case EventKind::msr_read:
      if (e->failed) {
        vcpu().fail();
      } else {
        vcpu().complete(e->value);
      }
      break;
    case EventKind::msr_write:
      if (e->failed) vcpu().fail();
      break;
    default:
      break;
  }
}

// ---- values -------------------------------------------------------------------------------------

std::uint64_t Player::tsc() noexcept {
  const auto e = expect({.kind = EventKind::tsc});
  return e ? e->value : 0;
}

std::optional<std::uint64_t> Player::random(bool seed, unsigned bytes) noexcept {
  const auto e =
      expect({.kind = EventKind::random, .size = static_cast<std::uint8_t>(bytes), .flag = seed});
  if (!e || e->failed) return std::nullopt;
  return e->value;
}

}  // namespace strata::replay
