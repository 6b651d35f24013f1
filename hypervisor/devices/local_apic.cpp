// Interrupt acceptance, priority and delivery (SDM 3A 11.8), resets, messages.
#include "devices/local_apic.hpp"

#include <bit>
#include <utility>

namespace strata::devices {

namespace {

constexpr std::uint32_t kLvtMasked = 1U << 16;
constexpr std::uint32_t kSvrEnabled = 1U << 8;
constexpr std::uint8_t kFirstLegalVector = 16;
constexpr std::uint32_t kEsrReceiveIllegal = 1U << 6;
constexpr std::uint64_t kBaseBootstrap = 1U << 8, kBaseEnable = 1U << 11;

constexpr DeliveryMode lvt_mode(std::uint32_t lvt) noexcept {
  return static_cast<DeliveryMode>(lvt >> 8 & 7);
}

}  // namespace

int VectorSet::highest() const noexcept {
  for (int i = 7; i >= 0; --i) {
    const std::uint32_t w = words_[static_cast<std::size_t>(i)];
    if (w != 0) return i * 32 + 31 - std::countl_zero(w);
  }
  return -1;
}

LocalApic::LocalApic(const Config& config, ApicBus& bus, Clock& clock, Timers& timers)
    : config_{config},
      bus_{bus},
      clock_{clock},
      base_msr_{kApicDefaultBase | kBaseEnable | (config.bootstrap ? kBaseBootstrap : 0)},
      waits_for_startup_{!config.bootstrap},
      timer_{timers, [this] { timer_expired(); }} {
  reset_locked();
  bus_.add(*this);
}

LocalApic::~LocalApic() { bus_.remove(*this); }

void LocalApic::set_callbacks(Callbacks callbacks) { callbacks_ = std::move(callbacks); }

void LocalApic::connect_pic(ExtIntSource& pic) { pic_ = &pic; }

void LocalApic::enter_virtual_wire_mode() {
  Aftermath after;
  {
    const std::lock_guard lock{mutex_};
    svr_ = kSvrEnabled | 0xFF;
    lvt_[lint_0] = config_.bootstrap ? 0x700 : kLvtMasked | 0x700;
    lvt_[lint_1] = 0x400;
    after.wake = update_locked();
  }
  finish(after);
}

/// SDM 3A 11.4.7.1; levels at the pins are not the APIC's to forget.
void LocalApic::reset_locked() {
  irr_ = isr_ = tmr_ = VectorSet{};
  tpr_ = 0;
  ldr_ = 0;
  dfr_ = 0xFFFFFFFF;
  svr_ = 0xFF;
  esr_ = errors_ = 0;
  icr_low_ = icr_high_ = 0;
  lvt_.fill(kLvtMasked);
  ext_int_message_ = false;
  stop_timer_locked();
  initial_count_ = 0;
  divide_ = 0;
  drop_nmis();
  xapic_id_ = static_cast<std::uint8_t>(config_.id);
  (void)update_locked();
}

std::uint8_t LocalApic::ppr_locked() const noexcept {
  const int in_service = isr_.highest();
  const unsigned service_class = in_service < 0 ? 0 : static_cast<unsigned>(in_service) & 0xF0;
  return (tpr_ & 0xF0U) >= service_class ? tpr_ : static_cast<std::uint8_t>(service_class);
}

/// ExtINT passes by the APIC's priorities: the PIC has its own (SDM 3A 11.8.3).
bool LocalApic::ext_int_locked() const noexcept {
  if (pic_ == nullptr) return false;
  // With the APIC disabled in IA32_APIC_BASE, LINT0 is the processor's INTR pin (SDM 3A 11.4.3).
  if (mode_ == Mode::disabled) return lint_level_[0];
  const std::uint32_t lvt = lvt_[lint_0];
  const bool wired = (lvt & kLvtMasked) == 0 && lvt_mode(lvt) == DeliveryMode::ext_int;
  return ext_int_message_ || (wired && lint_level_[0]);
}

int LocalApic::deliverable_vector_locked() const noexcept {
  const int requested = irr_.highest();
  if (requested < 0 || mode_ == Mode::disabled) return -1;
  return (requested & 0xF0) > (ppr_locked() & 0xF0) ? requested : -1;
}

/// Brings the hint behind pending() up to date. True: the vCPU should hear about it.
bool LocalApic::update_locked() noexcept {
  const bool deliverable = ext_int_locked() || deliverable_vector_locked() >= 0;
  deliverable_.store(deliverable, std::memory_order_release);
  return deliverable || nmi_pending();
}

void LocalApic::call_wake() const {
  if (callbacks_.wake) callbacks_.wake();
}

void LocalApic::finish(const Aftermath& after) {
  if (after.wake) call_wake();
  if (after.eoi) bus_.broadcast_eoi(*after.eoi);
  if (after.icr) send_icr(*after.icr, false);
}

std::optional<std::uint8_t> LocalApic::acknowledge() {
  std::optional<std::uint8_t> vector;
  {
    const std::lock_guard lock{mutex_};
    if (!ext_int_locked()) {
      const int v = deliverable_vector_locked();
      if (v >= 0) {
        vector = static_cast<std::uint8_t>(v);
        irr_.clear(*vector);
        isr_.set(*vector);
      }
      (void)update_locked();
      if (!vector) return std::nullopt;
    } else {
      ext_int_message_ = false;
      (void)update_locked();
    }
  }
  // The PIC's lock comes before this one; it drops LINT0 itself.
  if (!vector) vector = pic_->acknowledge_ext_int();
  counters_.acknowledged.fetch_add(1, std::memory_order_relaxed);
  if (pending()) call_wake();
  return vector;
}

bool LocalApic::take_nmi() {
  Nmis now = nmis_.load(std::memory_order_acquire);
  Nmis next;
  do {
    // The vCPU asks when it would take one: no handler runs, and with this one taken one will,
    // until its IRET.
    if (now.waiting == 0 && now.limit == kNmiLimit) return false;
    next = now.waiting == 0 ? Nmis{}
                            : Nmis{static_cast<std::uint8_t>(now.waiting - 1), kNmiLimitInHandler};
  } while (!nmis_.compare_exchange_weak(now, next));
  return now.waiting != 0;
}

void LocalApic::raise_nmi() noexcept {
  Nmis now = nmis_.load(std::memory_order_relaxed);
  while (
      now.waiting < now.limit &&
      !nmis_.compare_exchange_weak(now, {static_cast<std::uint8_t>(now.waiting + 1), now.limit})) {
  }
}

void LocalApic::drop_nmis() noexcept {
  Nmis now = nmis_.load(std::memory_order_relaxed);
  while (!nmis_.compare_exchange_weak(now, {0, now.limit})) {
  }
}

std::uint64_t LocalApic::cr8() {
  const std::lock_guard lock{mutex_};
  return tpr_ >> 4;
}

void LocalApic::set_cr8(std::uint64_t value) {
  Aftermath after;
  {
    const std::lock_guard lock{mutex_};
    tpr_ = static_cast<std::uint8_t>((value & 0xF) << 4);
    after.wake = update_locked();
  }
  finish(after);
}

bool LocalApic::waits_for_startup() const {
  const std::lock_guard lock{mutex_};
  return waits_for_startup_;
}

void LocalApic::set_lint(unsigned pin, bool level) {
  Aftermath after;
  {
    const std::lock_guard lock{mutex_};
    const bool rising = level && !lint_level_[pin];
    lint_level_[pin] = level;
    if (rising) lint_edge_locked(pin);
    after.wake = update_locked();
  }
  finish(after);
}

/// A pin went up. ExtINT follows the level and needs nothing here; a fixed LINT interrupt counts
/// as edge-triggered whatever its LVT says: no device of this machine drives one.
void LocalApic::lint_edge_locked(unsigned pin) {
  if (mode_ == Mode::disabled) {
    if (pin == 1) raise_nmi();
    return;
  }
  const Lvt which = pin == 0 ? lint_0 : lint_1;
  if (lvt_mode(lvt_[which]) != DeliveryMode::ext_int) raise_lvt_locked(which);
}

void LocalApic::set_irr_locked(std::uint8_t vector, bool level) {
  irr_.set(vector);
  if (level) {
    tmr_.set(vector);
  } else {
    tmr_.clear(vector);
  }
  counters_.accepted.fetch_add(1, std::memory_order_relaxed);
}

/// A local interrupt source has something to say. LVTs of a software-disabled APIC are masked.
void LocalApic::raise_lvt_locked(Lvt which) {
  const std::uint32_t lvt = lvt_[which];
  if ((lvt & kLvtMasked) != 0 || mode_ == Mode::disabled) return;
  const bool has_mode = which != timer && which != error;
  if (has_mode && lvt_mode(lvt) == DeliveryMode::nmi) {
    raise_nmi();
    return;
  }
  if (has_mode && lvt_mode(lvt) != DeliveryMode::fixed) return;
  const auto vector = static_cast<std::uint8_t>(lvt);
  if (vector >= kFirstLegalVector) {
    set_irr_locked(vector, false);
  } else if (which != error) {
    error_locked(kEsrReceiveIllegal);
  } else {
    errors_ |= kEsrReceiveIllegal;  // an error about the error interrupt raises no further one
  }
}

void LocalApic::error_locked(std::uint32_t bit) {
  errors_ |= bit;
  raise_lvt_locked(error);
}

bool LocalApic::accept(const ApicMessage& message) {
  const bool plain =
      message.mode == DeliveryMode::fixed || message.mode == DeliveryMode::lowest_priority;
  if (!plain) return accept_special(message);
  Aftermath after;
  bool taken = false;
  {
    const std::lock_guard lock{mutex_};
    if (mode_ == Mode::disabled || (svr_ & kSvrEnabled) == 0) return false;
    taken = message.vector >= kFirstLegalVector;
    if (taken) {
      set_irr_locked(message.vector, message.level);
    } else {
      error_locked(kEsrReceiveIllegal);
    }
    after.wake = update_locked();
  }
  finish(after);
  return taken;
}

/// NMI, INIT and SIPI reach a software-disabled APIC too (SDM 3A 11.4.7.2). SMIs have no handler
/// in this machine.
bool LocalApic::accept_special(const ApicMessage& message) {
  enum class Call : std::uint8_t { none, wake, init, startup } call = Call::none;
  {
    const std::lock_guard lock{mutex_};
    if (mode_ == Mode::disabled) return false;
    switch (message.mode) {
      case DeliveryMode::nmi:
        raise_nmi();
        call = Call::wake;
        break;
      case DeliveryMode::init:
        reset_locked();
        waits_for_startup_ = !config_.bootstrap;
        call = Call::init;
        break;
      case DeliveryMode::startup:
        if (waits_for_startup_) call = Call::startup;
        waits_for_startup_ = false;
        break;
      case DeliveryMode::ext_int:
        if (pic_ == nullptr || (svr_ & kSvrEnabled) == 0) return false;
        ext_int_message_ = true;
        (void)update_locked();
        call = Call::wake;
        break;
      default:
        return false;
    }
  }
  if (call == Call::wake) call_wake();
  if (call == Call::init && callbacks_.init) callbacks_.init();
  if (call == Call::startup && callbacks_.startup) callbacks_.startup(message.vector);
  return call != Call::none;
}

/// Physical and logical destination modes (SDM 3A 11.6.2).
bool LocalApic::matches(const ApicMessage& message) const {
  const std::lock_guard lock{mutex_};
  if (mode_ == Mode::disabled) return false;
  const std::uint32_t dest = message.destination;
  if (dest == (message.wide ? 0xFFFFFFFFU : 0xFFU)) return true;
  if (!message.logical) return dest == (mode_ == Mode::x2apic ? config_.id : xapic_id_);
  if (mode_ == Mode::x2apic) {
    const std::uint32_t own = ldr_locked();
    return dest >> 16 == own >> 16 && (dest & own & 0xFFFF) != 0;
  }
  if (dest > 0xFF) return false;
  const std::uint32_t own = ldr_ >> 24;
  if (dfr_ >> 28 == 0xF) return (dest & own) != 0;                             // flat model
  return dfr_ >> 28 == 0 && dest >> 4 == own >> 4 && (dest & own & 0xF) != 0;  // cluster model
}

std::optional<std::uint8_t> LocalApic::arbitration_priority() const {
  const std::lock_guard lock{mutex_};
  if (mode_ == Mode::disabled || (svr_ & kSvrEnabled) == 0) return std::nullopt;
  return ppr_locked();
}

bool LocalApic::claims(PA pa) const noexcept {
  const std::uint64_t base = base_msr_.load(std::memory_order_acquire);
  const bool xapic = (base >> 10 & 3) == 2;  // EN without EXTD
  return xapic && pa.page_base().value() == PA{base}.page_base().value();
}

ApicStats LocalApic::stats() const noexcept {
  const auto get = [](const std::atomic<std::uint64_t>& c) {
    return c.load(std::memory_order_relaxed);
  };
  return {get(counters_.reads),        get(counters_.writes), get(counters_.accepted),
          get(counters_.acknowledged), get(counters_.ipis),   get(counters_.timer)};
}

}  // namespace strata::devices
