// The registers of the local APIC, as a page of memory and as MSRs (SDM 3A 11.4, 11.12).
#include "devices/local_apic.hpp"

namespace strata::devices {

namespace {

constexpr std::uint32_t kLvtMasked = 1U << 16;
constexpr std::uint32_t kLvtReadOnly = 1U << 12 | 1U << 14;  // delivery status, remote IRR
constexpr std::uint32_t kSvrEnabled = 1U << 8;
constexpr std::uint32_t kSvrBits = 0x3FF;
constexpr std::uint32_t kDivideBits = 0xB;
constexpr std::uint32_t kEsrSendIllegal = 1U << 5, kEsrIllegalRegister = 1U << 7;
constexpr std::uint32_t kIcrStatus = 1U << 12;
/// Vector, mode, destination mode, level, trigger, shorthand; and the status, which was once here.
constexpr std::uint64_t kIcrBits = 0xFFFFFFFF000CDFFFULL;
/// Integrated APIC; 6 LVT entries; no suppression of EOI broadcasts (SDM 3A figure 11-7).
constexpr std::uint32_t kVersion = 0x14 | 5U << 16;
constexpr std::uint64_t kBaseBootstrap = 1U << 8, kBaseExtended = 1U << 10, kBaseEnable = 1U << 11;

constexpr std::uint32_t x2apic_offset(std::uint32_t msr) noexcept {
  return (msr - kMsrX2Apic) << 4;
}

}  // namespace

std::optional<LocalApic::Lvt> LocalApic::lvt_at(std::uint32_t offset) noexcept {
  if (offset < kApicLvtTimer || offset > kApicLvtError) return std::nullopt;
  return static_cast<Lvt>((offset - kApicLvtTimer) >> 4);
}

std::uint32_t LocalApic::lvt_bits(Lvt which) const noexcept {
  switch (which) {
    case timer:
      return kLvtMasked | 0xFF | 1U << 17 | (config_.tsc_deadline ? 1U << 18 : 0);
    case lint_0:
    case lint_1:
      return kLvtMasked | 0x7FF | 1U << 13 | 1U << 15;
    case error:
      return kLvtMasked | 0xFF;
    default:
      return kLvtMasked | 0x7FF;
  }
}

/// x2APIC: cluster in the upper half, one bit of 16 in the lower (SDM 3A 11.12.10.2).
std::uint32_t LocalApic::ldr_locked() const noexcept {
  if (mode_ != Mode::x2apic) return ldr_;
  return (config_.id >> 4) << 16 | 1U << (config_.id & 0xF);
}

std::uint32_t LocalApic::read_register_locked(std::uint32_t offset) {
  if (const auto lvt = lvt_at(offset)) return lvt_[*lvt];
  if (offset >= kApicIsr && offset < kApicEsr) {
    const std::size_t word = (offset >> 4) & 7;
    if (offset < kApicTmr) return isr_.word(word);
    return offset < kApicIrr ? tmr_.word(word) : irr_.word(word);
  }
  switch (offset) {
    case kApicId:
      return mode_ == Mode::x2apic ? config_.id : std::uint32_t{xapic_id_} << 24;
    case kApicVersion:
      return kVersion;
    case kApicTpr:
      return tpr_;
    case kApicApr:
    case kApicPpr:
      return ppr_locked();
    case kApicEoi:
      return 0;
    case kApicLdr:
      return ldr_locked();
    case kApicDfr:
      return dfr_;
    case kApicSvr:
      return svr_;
    case kApicEsr:
      return esr_;
    case kApicIcr:
      return icr_low_;
    case kApicIcrHigh:
      return icr_high_;
    case kApicInitialCount:
      return initial_count_;
    case kApicCurrentCount:
      settle_timer_locked();
      return current_count_locked();
    case kApicDivide:
      return divide_;
    default:
      error_locked(kEsrIllegalRegister);
      return 0;
  }
}

void LocalApic::write_register_locked(std::uint32_t offset, std::uint32_t value, Aftermath& after) {
  if (const auto lvt = lvt_at(offset)) return write_lvt_locked(*lvt, value);
  switch (offset) {
    case kApicId:
      xapic_id_ = static_cast<std::uint8_t>(value >> 24);
      break;
    case kApicTpr:
      tpr_ = static_cast<std::uint8_t>(value);
      break;
    case kApicEoi:
      end_interrupt_locked(after);
      break;
    case kApicLdr:
      ldr_ = value & 0xFF000000;
      break;
    case kApicDfr:
      dfr_ = value | 0x0FFFFFFF;
      break;
    case kApicSvr:
      write_svr_locked(value);
      break;
    case kApicEsr:
      write_esr_locked();
      break;
    case kApicIcr:
      icr_low_ = value & static_cast<std::uint32_t>(kIcrBits) & ~kIcrStatus;
      after.icr = std::uint64_t{icr_high_} << 32 | icr_low_;
      break;
    case kApicIcrHigh:
      icr_high_ = value & 0xFF000000;
      break;
    case kApicInitialCount:
      if (timer_mode_locked() == TimerMode::tsc_deadline) break;
      settle_timer_locked();
      initial_count_ = value;
      start_timer_locked();
      break;
    case kApicDivide:
      set_divide_locked(value);
      break;
    default:
      // Read-only registers ignore writes; what is no register at all is an error.
      (void)read_register_locked(offset);
      break;
  }
}

void LocalApic::write_lvt_locked(Lvt which, std::uint32_t value) {
  if (which == timer) settle_timer_locked();
  const TimerMode before = timer_mode_locked();
  value &= lvt_bits(which);
  if ((svr_ & kSvrEnabled) == 0) value |= kLvtMasked;
  lvt_[which] = value;
  if (which == timer) timer_mode_changed_locked(before);
}

/// Software disable masks every LVT (SDM 3A 11.4.7.2); what is in IRR and ISR stays.
void LocalApic::write_svr_locked(std::uint32_t value) {
  settle_timer_locked();
  svr_ = value & kSvrBits;
  if ((svr_ & kSvrEnabled) != 0) return;
  for (std::uint32_t& lvt : lvt_) lvt |= kLvtMasked;
}

/// A write, of whatever value, shows the errors since the last one (SDM 3A 11.5.3).
void LocalApic::write_esr_locked() noexcept {
  esr_ = errors_;
  errors_ = 0;
}

void LocalApic::end_interrupt_locked(Aftermath& after) {
  const int highest = isr_.highest();
  if (highest < 0) return;
  const auto vector = static_cast<std::uint8_t>(highest);
  isr_.clear(vector);
  if (tmr_.test(vector)) after.eoi = vector;
}

std::uint64_t LocalApic::mmio_read(PA pa, unsigned size) {
  counters_.reads.fetch_add(1, std::memory_order_relaxed);
  const auto offset = static_cast<std::uint32_t>(pa.page_offset());
  const std::uint32_t within = offset & 0xF;
  std::uint64_t value = 0;
  Aftermath after;
  {
    const std::lock_guard lock{mutex_};
    value = read_register_locked(offset & ~0xFU);
    // An illegal register may raise the error interrupt, the timer turn out to have expired.
    after.wake = update_locked();
  }
  finish(after);
  // Of each 16 bytes, 4 are a register; the others read as 0.
  value = within >= 4 ? 0 : value >> (8 * within);
  return size >= 8 ? value : value & ((1ULL << (8 * size)) - 1);
}

void LocalApic::mmio_write(PA pa, unsigned size, std::uint64_t value) {
  counters_.writes.fetch_add(1, std::memory_order_relaxed);
  const auto offset = static_cast<std::uint32_t>(pa.page_offset());
  if (size != 4 || (offset & 0xF) != 0) return;
  Aftermath after;
  {
    const std::lock_guard lock{mutex_};
    write_register_locked(offset, static_cast<std::uint32_t>(value), after);
    after.wake = update_locked();
  }
  finish(after);
}

bool LocalApic::owns_msr(std::uint32_t msr) noexcept {
  return msr == kMsrApicBase || msr == kMsrTscDeadline || (msr >= 0x800 && msr <= 0x8FF);
}

std::optional<std::uint64_t> LocalApic::read_msr(std::uint32_t msr) {
  counters_.reads.fetch_add(1, std::memory_order_relaxed);
  if (msr == kMsrApicBase) return base_msr_.load(std::memory_order_acquire);
  if (msr == kMsrTscDeadline) {
    return config_.tsc_deadline ? std::optional{read_deadline()} : std::nullopt;
  }
  return owns_msr(msr) ? read_x2apic(msr) : std::nullopt;
}

bool LocalApic::write_msr(std::uint32_t msr, std::uint64_t value) {
  counters_.writes.fetch_add(1, std::memory_order_relaxed);
  if (msr == kMsrApicBase) return write_base(value);
  if (msr != kMsrTscDeadline) return owns_msr(msr) && write_x2apic(msr, value);
  if (!config_.tsc_deadline) return false;
  Aftermath after;
  {
    const std::lock_guard lock{mutex_};
    set_deadline_locked(value);
    after.wake = update_locked();
  }
  finish(after);
  return true;
}

std::uint64_t LocalApic::read_deadline() {
  std::uint64_t value = 0;
  Aftermath after;
  {
    const std::lock_guard lock{mutex_};
    settle_timer_locked();
    value = tsc_deadline_;
    after.wake = update_locked();
  }
  finish(after);
  return value;
}

std::optional<std::uint64_t> LocalApic::read_x2apic(std::uint32_t msr) {
  std::optional<std::uint64_t> value;
  Aftermath after;
  {
    const std::lock_guard lock{mutex_};
    value = read_x2apic_locked(x2apic_offset(msr));
    after.wake = update_locked();  // the timer may turn out to have expired
  }
  finish(after);
  return value;
}

/// SDM 3A 11.12.1.2, table 11-6: no DFR, no upper half of ICR, EOI and SELF IPI write-only.
std::optional<std::uint64_t> LocalApic::read_x2apic_locked(std::uint32_t offset) {
  if (mode_ != Mode::x2apic) return std::nullopt;
  if (offset == kApicIcr) return std::uint64_t{icr_high_} << 32 | icr_low_;
  const bool vectors = offset >= kApicIsr && offset < kApicEsr;
  if (vectors || lvt_at(offset)) return read_register_locked(offset);
  switch (offset) {
    case kApicId:
    case kApicVersion:
    case kApicTpr:
    case kApicPpr:
    case kApicLdr:
    case kApicSvr:
    case kApicEsr:
    case kApicInitialCount:
    case kApicCurrentCount:
    case kApicDivide:
      return read_register_locked(offset);
    default:
      return std::nullopt;
  }
}

/// Which bits of a register may be written as 1 through its MSR; nothing: not writable at all.
std::optional<std::uint64_t> LocalApic::x2apic_writable(std::uint32_t offset) const noexcept {
  if (const auto lvt = lvt_at(offset)) return lvt_bits(*lvt) | kLvtReadOnly;
  switch (offset) {
    case kApicTpr:
    case kApicSelfIpi:
      return 0xFF;
    case kApicEoi:
    case kApicEsr:
      return 0;
    case kApicSvr:
      return kSvrBits;
    case kApicIcr:
      return kIcrBits;
    case kApicInitialCount:
      return 0xFFFFFFFF;
    case kApicDivide:
      return kDivideBits;
    default:
      return std::nullopt;
  }
}

bool LocalApic::write_x2apic(std::uint32_t msr, std::uint64_t value) {
  const std::uint32_t offset = x2apic_offset(msr);
  const auto writable = x2apic_writable(offset);
  if (!writable || (value & ~*writable) != 0) return false;
  Aftermath after;
  std::optional<std::uint64_t> icr;
  {
    const std::lock_guard lock{mutex_};
    if (mode_ != Mode::x2apic) return false;
    if (offset == kApicIcr) {
      icr_low_ = static_cast<std::uint32_t>(value) & ~kIcrStatus;
      icr_high_ = static_cast<std::uint32_t>(value >> 32);
      icr = std::uint64_t{icr_high_} << 32 | icr_low_;
    } else if (offset == kApicSelfIpi) {
      icr = 1ULL << 18 | value;  // the same as ICR with the self shorthand
    } else {
      write_register_locked(offset, static_cast<std::uint32_t>(value), after);
    }
    after.wake = update_locked();
  }
  finish(after);
  if (icr) send_icr(*icr, true);
  return true;
}

/// Mode changes (SDM 3A 11.12.5): x2APIC is entered from xAPIC and left through disabled only;
/// EXTD without EN is no mode. Disabling forgets the APIC's state (SDM 3A 11.4.3).
std::uint64_t LocalApic::base_writable() const noexcept {
  const std::uint64_t address_bits = (1ULL << config_.physical_bits) - 1;
  const std::uint64_t bits = (address_bits & ~kPageMask) | kBaseBootstrap | kBaseEnable;
  return config_.x2apic ? bits | kBaseExtended : bits;
}

bool LocalApic::base_fits(std::uint64_t value, Mode mode) const noexcept {
  const std::uint64_t bits = mode == Mode::disabled ? 0
                             : mode == Mode::xapic  ? kBaseEnable
                                                    : kBaseEnable | kBaseExtended;
  return (value & ~base_writable()) == 0 && (value & (kBaseEnable | kBaseExtended)) == bits &&
         ((value & kBaseBootstrap) != 0) == config_.bootstrap;
}

bool LocalApic::write_base(std::uint64_t value) {
  if ((value & ~base_writable()) != 0) return false;
  const bool enable = (value & kBaseEnable) != 0;
  const bool extended = (value & kBaseExtended) != 0;
  if (extended && !enable) return false;
  const Mode next = !enable ? Mode::disabled : extended ? Mode::x2apic : Mode::xapic;
  Aftermath after;
  {
    const std::lock_guard lock{mutex_};
    if (mode_ == Mode::disabled && next == Mode::x2apic) return false;
    if (mode_ == Mode::x2apic && next == Mode::xapic) return false;
    if (next == Mode::disabled && mode_ != Mode::disabled) reset_locked();
    if (next == Mode::x2apic && mode_ == Mode::xapic) icr_high_ = 0;
    mode_ = next;
    // Which processor booted the machine does not change by writing it here.
    const std::uint64_t bootstrap = config_.bootstrap ? kBaseBootstrap : 0;
    base_msr_.store((value & ~kBaseBootstrap) | bootstrap, std::memory_order_release);
    after.wake = update_locked();
  }
  finish(after);
  return true;
}

/// Sends what ICR says (SDM 3A 11.6.1). `wide`: destination in bits 63:32, else in 63:56.
void LocalApic::send_icr(std::uint64_t icr, bool wide) {
  enum Shorthand : std::uint8_t { none, self, all, others };
  const auto shorthand = static_cast<Shorthand>(icr >> 18 & 3);
  ApicMessage message;
  message.destination = static_cast<std::uint32_t>(wide ? icr >> 32 : icr >> 56);
  message.wide = wide;
  message.logical = (icr & 1U << 11) != 0;
  message.mode = static_cast<DeliveryMode>(icr >> 8 & 7);
  message.vector = static_cast<std::uint8_t>(icr);
  const bool plain =
      message.mode == DeliveryMode::fixed || message.mode == DeliveryMode::lowest_priority;
  if (plain && message.vector < 16) {
    Aftermath after;
    {
      const std::lock_guard lock{mutex_};
      error_locked(kEsrSendIllegal);
      after.wake = update_locked();
    }
    return finish(after);
  }
  // ExtINT and the reserved mode cannot be sent; INIT level de-assert is of the first APICs only.
  const bool level_trigger = (icr & 1U << 15) != 0;
  const bool asserted = (icr & 1U << 14) != 0;
  if (message.mode == DeliveryMode::ext_int || message.mode == DeliveryMode::reserved) return;
  if (message.mode == DeliveryMode::init && level_trigger && !asserted) return;
  counters_.ipis.fetch_add(1, std::memory_order_relaxed);
  switch (shorthand) {
    case none:
      bus_.deliver(message);
      break;
    case self:  // only fixed means anything to oneself (SDM 3A table 11-3); NMI does no harm
      if (plain || message.mode == DeliveryMode::nmi) accept(message);
      break;
    case all:
      if (plain) bus_.deliver_to_all(message, nullptr);
      break;
    case others:
      bus_.deliver_to_all(message, this);
      break;
  }
}

}  // namespace strata::devices
