// The local APIC of one vCPU: xAPIC page and x2APIC MSRs over the same registers (SDM 3A 11).
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>

#include "devices/apic_bus.hpp"
#include "devices/clock.hpp"
#include "devices/device.hpp"
#include "devices/pic8259.hpp"
#include "devices/state_result.hpp"
#include "engines/engine.hpp"

namespace strata::devices {

/// Rate of the APIC timer's input before the divide register. If CPUID 15h states a crystal rate,
/// it has to be this one: Linux takes the timer's rate from there.
inline constexpr std::uint64_t kApicTimerHz = 1'000'000'000;
inline constexpr std::uint64_t kApicDefaultBase = 0xFEE00000;

inline constexpr std::uint32_t kMsrApicBase = 0x1B;
inline constexpr std::uint32_t kMsrTscDeadline = 0x6E0;
inline constexpr std::uint32_t kMsrX2Apic = 0x800;

/// Register offsets in the xAPIC page; the x2APIC MSR is 800h + offset / 16 (SDM 3A table 11-1).
enum ApicRegister : std::uint32_t {
  kApicId = 0x20,
  kApicVersion = 0x30,
  kApicTpr = 0x80,
  kApicApr = 0x90,
  kApicPpr = 0xA0,
  kApicEoi = 0xB0,
  kApicLdr = 0xD0,
  kApicDfr = 0xE0,
  kApicSvr = 0xF0,
  kApicIsr = 0x100,
  kApicTmr = 0x180,
  kApicIrr = 0x200,
  kApicEsr = 0x280,
  kApicCmci = 0x2F0,
  kApicIcr = 0x300,
  kApicIcrHigh = 0x310,
  kApicLvtTimer = 0x320,
  kApicLvtThermal = 0x330,
  kApicLvtPerf = 0x340,
  kApicLvtLint0 = 0x350,
  kApicLvtLint1 = 0x360,
  kApicLvtError = 0x370,
  kApicInitialCount = 0x380,
  kApicCurrentCount = 0x390,
  kApicDivide = 0x3E0,
  kApicSelfIpi = 0x3F0
};

/// 256 bits, one per vector, as IRR, ISR and TMR are laid out.
class VectorSet {
 public:
  void set(std::uint8_t v) noexcept { words_[v / 32U] |= 1U << (v % 32U); }
  void clear(std::uint8_t v) noexcept { words_[v / 32U] &= ~(1U << (v % 32U)); }
  [[nodiscard]] bool test(std::uint8_t v) const noexcept {
    return (words_[v / 32U] >> (v % 32U) & 1U) != 0;
  }
  [[nodiscard]] std::uint32_t word(std::size_t i) const noexcept { return words_[i % 8]; }
  /// The highest vector in the set; -1: empty.
  [[nodiscard]] int highest() const noexcept;
  /// See devices/device_state.hpp.
  template <class Archive>
  void fields(Archive& a) {
    a("words", words_);
  }

 private:
  std::array<std::uint32_t, 8> words_{};
};

/// Relaxed snapshot.
struct ApicStats {
  std::uint64_t register_reads = 0, register_writes = 0;
  std::uint64_t accepted = 0;  ///< fixed and lowest-priority interrupts set in IRR
  std::uint64_t acknowledged = 0;
  std::uint64_t ipis_sent = 0;
  std::uint64_t timer_interrupts = 0;
};

/// Any thread, except where the engine's interface says otherwise. Lock order: device, PIC or I/O
/// APIC, local APIC; a local APIC calls the bus, the PIC and the callbacks with its lock released.
class LocalApic final : public engine::InterruptSource {
 public:
  struct Config {
    std::uint32_t id = 0;  ///< initial APIC ID; 254 at most
    bool bootstrap = false;
    unsigned physical_bits = 46;  ///< address bits above are reserved in IA32_APIC_BASE
    bool x2apic = true;           ///< CPUID.1:ECX[21]
    bool tsc_deadline = true;     ///< CPUID.1:ECX[24]
  };
  /// All may come from any thread, with locks of devices and interrupt controllers held (but none
  /// of a LocalApic): they must not call devices, only note and wake.
  struct Callbacks {
    /// Something is deliverable, or an NMI waits: Vcpu::interrupt(), and ends the sleep of HLT.
    std::function<void()> wake;
    /// INIT: the vCPU goes to its reset state; not the bootstrap processor: and waits for SIPI.
    std::function<void()> init;
    /// SIPI while waiting for one: starts at CS = vector << 8, IP = 0.
    std::function<void(std::uint8_t vector)> startup;
  };

  /// Registers itself with `bus`. State after power-on (SDM 3A 11.4.7.1).
  LocalApic(const Config& config, ApicBus& bus, Clock& clock, Timers& timers);
  ~LocalApic() override;
  /// Before any vCPU runs or device is connected.
  void set_callbacks(Callbacks callbacks);
  /// Who answers ExtINT acknowledge cycles: the PIC. Before any vCPU runs.
  void connect_pic(ExtIntSource& pic);
  /// The state firmware leaves for a kernel that is booted without firmware: enabled, spurious
  /// vector FFh, LINT0 ExtINT (bootstrap processor; masked on others), LINT1 NMI.
  void enter_virtual_wire_mode();

  // engine::InterruptSource. pending() is one atomic load.
  [[nodiscard]] bool pending() override { return deliverable_.load(std::memory_order_acquire); }
  std::optional<std::uint8_t> acknowledge() override;
  bool take_nmi() override;
  [[nodiscard]] std::uint64_t cr8() override;
  void set_cr8(std::uint64_t value) override;
  /// An NMI waits for take_nmi(): ends HLT as pending() does.
  [[nodiscard]] bool nmi_pending() const noexcept {
    return nmis_.load(std::memory_order_acquire).waiting != 0;
  }
  [[nodiscard]] bool present() override {
    return (base_msr_.load(std::memory_order_acquire) >> 11 & 1) != 0;
  }
  /// After INIT and before SIPI; application processors start so.
  [[nodiscard]] bool waits_for_startup() const;

  /// The xAPIC page is at `pa` for this vCPU now: xAPIC mode and `pa` inside the page.
  [[nodiscard]] bool claims(PA pa) const noexcept;
  /// Accesses the page; only meaningful when claims(pa). Any alignment and size is answered; only
  /// aligned 32-bit writes have an effect (SDM 3A 11.4.1 leaves others undefined).
  [[nodiscard]] std::uint64_t mmio_read(PA pa, unsigned size);
  void mmio_write(PA pa, unsigned size, std::uint64_t value);

  /// IA32_APIC_BASE, IA32_TSC_DEADLINE and 800h-8FFh.
  [[nodiscard]] static bool owns_msr(std::uint32_t msr) noexcept;
  /// Nothing: #GP(0).
  [[nodiscard]] std::optional<std::uint64_t> read_msr(std::uint32_t msr);
  /// False: #GP(0); nothing has changed.
  [[nodiscard]] bool write_msr(std::uint32_t msr, std::uint64_t value);

  /// Takes a message if it is for this APIC (`message.destination` has been matched already).
  /// False: software-disabled, or an illegal vector (noted in ESR).
  bool accept(const ApicMessage& message);
  /// The destination of `message` names this APIC.
  [[nodiscard]] bool matches(const ApicMessage& message) const;
  /// Processor priority (PPR) for lowest-priority arbitration; nothing: does not take interrupts.
  [[nodiscard]] std::optional<std::uint8_t> arbitration_priority() const;

  /// LINT0 takes the PIC's INTR, LINT1 the NMI button.
  [[nodiscard]] IrqLine& lint0() noexcept { return lint0_; }
  [[nodiscard]] IrqLine& lint1() noexcept { return lint1_; }
  [[nodiscard]] std::uint32_t id() const noexcept { return config_.id; }
  [[nodiscard]] ApicStats stats() const noexcept;
  /// The device's state for a saved VM, and back. No vCPU runs meanwhile. load() checks what it is
  /// given; after an error the device must not be used.
  [[nodiscard]] nlohmann::json save();
  [[nodiscard]] StateResult load(const nlohmann::json& state);

 private:
  template <class Archive>
  void fields(Archive& a);
  enum class Mode : std::uint8_t { disabled, xapic, x2apic };
  enum Lvt : std::uint8_t { timer, thermal, performance, lint_0, lint_1, error, lvt_count };
  class LintLine final : public IrqLine {
   public:
    LintLine(LocalApic& apic, unsigned pin) noexcept : apic_{apic}, pin_{pin} {}
    void set(bool level) override { apic_.set_lint(pin_, level); }

   private:
    LocalApic& apic_;
    const unsigned pin_;
  };
  /// NMIs that wait, and how many may. A second one is latched behind one that is about to be
  /// delivered, and only one while a handler blocks them, as on processors and in KVM (SDM 3A
  /// 6.7.1). One word: whether there is room is a question about both numbers at one moment.
  struct Nmis {
    std::uint8_t waiting = 0;
    std::uint8_t limit = kNmiLimit;
  };
  static constexpr std::uint8_t kNmiLimit = 2, kNmiLimitInHandler = 1;
  /// What a register write leaves to do once the lock is released.
  struct Aftermath {
    bool wake = false;
    std::optional<std::uint8_t> eoi;
    std::optional<std::uint64_t> icr;
  };

  // local_apic.cpp: interrupts; all *_locked functions need mutex_.
  void reset_locked();
  void set_lint(unsigned pin, bool level);
  void lint_edge_locked(unsigned pin);
  void set_irr_locked(std::uint8_t vector, bool level);
  void raise_lvt_locked(Lvt which);
  void error_locked(std::uint32_t bit);
  void raise_nmi() noexcept;
  void drop_nmis() noexcept;
  [[nodiscard]] std::uint8_t ppr_locked() const noexcept;
  [[nodiscard]] bool ext_int_locked() const noexcept;
  [[nodiscard]] int deliverable_vector_locked() const noexcept;
  [[nodiscard]] bool update_locked() noexcept;
  void finish(const Aftermath& after);
  void call_wake() const;
  bool accept_special(const ApicMessage& message);

  // local_apic_registers.cpp
  [[nodiscard]] std::uint32_t read_register_locked(std::uint32_t offset);
  void write_register_locked(std::uint32_t offset, std::uint32_t value, Aftermath& after);
  void write_lvt_locked(Lvt which, std::uint32_t value);
  void write_svr_locked(std::uint32_t value);
  void write_esr_locked() noexcept;
  void end_interrupt_locked(Aftermath& after);
  [[nodiscard]] std::uint32_t ldr_locked() const noexcept;
  [[nodiscard]] std::uint64_t read_deadline();
  [[nodiscard]] std::optional<std::uint64_t> read_x2apic(std::uint32_t msr);
  [[nodiscard]] std::optional<std::uint64_t> read_x2apic_locked(std::uint32_t offset);
  [[nodiscard]] bool write_x2apic(std::uint32_t msr, std::uint64_t value);
  [[nodiscard]] bool write_base(std::uint64_t value);
  [[nodiscard]] std::uint64_t base_writable() const noexcept;
  /// IA32_APIC_BASE may hold `value` in `mode`.
  [[nodiscard]] bool base_fits(std::uint64_t value, Mode mode) const noexcept;
  void send_icr(std::uint64_t icr, bool wide);
  [[nodiscard]] std::uint32_t lvt_bits(Lvt which) const noexcept;
  [[nodiscard]] std::optional<std::uint64_t> x2apic_writable(std::uint32_t offset) const noexcept;
  [[nodiscard]] static std::optional<Lvt> lvt_at(std::uint32_t offset) noexcept;

  // local_apic_timer.cpp
  enum class TimerMode : std::uint8_t { one_shot, periodic, tsc_deadline };
  [[nodiscard]] TimerMode timer_mode_locked() const noexcept;
  [[nodiscard]] std::uint64_t tick_ns_locked() const noexcept;
  [[nodiscard]] Nanoseconds period_locked() const noexcept;
  void start_timer_locked();
  void stop_timer_locked();
  void set_divide_locked(std::uint32_t value);
  void timer_mode_changed_locked(TimerMode before);
  [[nodiscard]] std::uint32_t current_count_locked();
  void set_deadline_locked(std::uint64_t tsc);
  bool settle_timer_locked();
  void arm_timer_locked();
  void timer_expired();
  void fire_timer_locked();

  const Config config_;
  ApicBus& bus_;
  Clock& clock_;
  ExtIntSource* pic_ = nullptr;
  Callbacks callbacks_;
  LintLine lint0_{*this, 0}, lint1_{*this, 1};

  std::atomic<bool> deliverable_{false};  ///< the hint behind pending(); written under mutex_
  std::atomic<Nmis> nmis_;
  static_assert(std::atomic<Nmis>::is_always_lock_free);
  std::atomic<std::uint64_t> base_msr_;  ///< IA32_APIC_BASE; written under mutex_
  struct Counters {
    std::atomic<std::uint64_t> reads{0}, writes{0}, accepted{0}, acknowledged{0}, ipis{0}, timer{0};
  } counters_;

  mutable std::mutex mutex_;  ///< guards the rest
  Mode mode_ = Mode::xapic;
  VectorSet irr_, isr_, tmr_;
  std::uint8_t tpr_ = 0;
  std::uint8_t xapic_id_ = 0;  ///< software may change it (SDM 3A 11.4.6)
  std::uint32_t ldr_ = 0, dfr_ = 0xFFFFFFFF, svr_ = 0xFF;
  std::uint32_t esr_ = 0, errors_ = 0;
  std::uint32_t icr_low_ = 0, icr_high_ = 0;
  std::array<std::uint32_t, lvt_count> lvt_{};
  std::array<bool, 2> lint_level_{};
  bool ext_int_message_ = false;  ///< an I/O APIC sent ExtINT
  bool waits_for_startup_ = false;
  std::uint32_t initial_count_ = 0;
  std::uint32_t divide_ = 0;
  Nanoseconds timer_start_ = 0;  ///< when initial_count_ began to count
  bool timer_running_ = false;
  std::uint64_t tsc_deadline_ = 0;  ///< 0: not armed
  Timer timer_;                     ///< last: its callback uses all of the above
};

}  // namespace strata::devices
