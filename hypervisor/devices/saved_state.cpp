// What each device keeps in a saved VM, in one place: a field that is added to a device is added
// here, and saved_state_test.cpp compares devices that were loaded with the ones that were saved.
// Timers are not here: Timers::deadlines() has them all.
#include <atomic>
#include <mutex>

#include "devices/acpi_pm.hpp"
#include "devices/apic_bus.hpp"
#include "devices/device_state.hpp"
#include "devices/ioapic.hpp"
#include "devices/kvmclock.hpp"
#include "devices/local_apic.hpp"
#include "devices/pci_host.hpp"
#include "devices/pic8259.hpp"
#include "devices/pit8254.hpp"
#include "devices/rtc_cmos.hpp"
#include "devices/serial8250.hpp"
#include "devices/system_ports.hpp"

namespace strata::devices {

namespace {

/// Atomics go through a copy.
template <class Archive, class T>
void atomic_field(Archive& a, const char* key, std::atomic<T>& value) {
  T copy = value.load(std::memory_order_relaxed);
  a(key, copy);
  if constexpr (Archive::kReads) value.store(copy, std::memory_order_release);
}

/// fields(archive) into a saved device, under the device's lock.
template <class Fields>
nlohmann::json saved(std::mutex& mutex, Fields fields) {
  const std::lock_guard lock{mutex};
  StateWriter writer;
  fields(writer);
  return std::move(writer).take();
}

/// fields(archive) out of one; `part` names the device in errors.
template <class Fields>
StateResult loaded(std::mutex& mutex, const nlohmann::json& state, const char* part,
                   Fields fields) {
  const std::lock_guard lock{mutex};
  StateReader reader{state, part};
  fields(reader);
  return reader.result();
}

}  // namespace

// ---- PIC ----------------------------------------------------------------------------------------

template <class Archive>
void Pic8259Chip::fields(Archive& a) {
  a("lines", lines_);
  a("irr", irr_);
  a("imr", imr_);
  a("isr", isr_);
  a("level_triggered", level_triggered_);
  a("vector_base", vector_base_);
  a("lowest", lowest_, 7);
  a("next_icw", next_icw_, 4);
  a("expects_icw4", expects_icw4_);
  a("single", single_);
  a("auto_eoi", auto_eoi_);
  a("rotate_on_auto_eoi", rotate_on_auto_eoi_);
  a("special_mask", special_mask_);
  a("special_fully_nested", special_fully_nested_);
  a("read_isr", read_isr_);
  a("poll", poll_);
}

template <class Archive>
void Pic8259::fields(Archive& a) {
  a.part("master", master_);
  a.part("slave", slave_);
  a("intr", intr_level_);
}

nlohmann::json Pic8259::save() {
  return saved(mutex_, [this](auto& a) { fields(a); });
}

StateResult Pic8259::load(const nlohmann::json& state) {
  return loaded(mutex_, state, "pic", [this](auto& a) { fields(a); });
}

// ---- I/O APIC -----------------------------------------------------------------------------------

template <class Archive>
void IoApic::fields(Archive& a) {
  a("entries", entries_);
  a("levels", levels_, (1U << kPins) - 1);
  a("index", index_);
  a("id", id_);
}

nlohmann::json IoApic::save() {
  return saved(mutex_, [this](auto& a) { fields(a); });
}

StateResult IoApic::load(const nlohmann::json& state) {
  return loaded(mutex_, state, "ioapic", [this](auto& a) { fields(a); });
}

// ---- PIT ----------------------------------------------------------------------------------------

template <class Archive>
void PitCounter::fields(Archive& a) {
  constexpr std::uint64_t kLongest = 0x10000;
  a("mode", mode_, 5);
  a("access", access_, 3);
  a("bcd", bcd_);
  a("gate", gate_);
  a("loaded", loaded_);
  a("waits", waits_);
  a("stopped", stopped_);
  a("high_next_write", high_next_write_);
  a("high_next_read", high_next_read_);
  a("low_byte", low_byte_);
  a("reload", reload_, kLongest);
  a.require("reload", reload_ != 0);
  a("next_reload", next_reload_, kLongest);
  a.require("next_reload", next_reload_ != 0U);
  a("start", start_);
  a("held", held_);
  a("status_latch", status_latch_);
  a("count_latch", count_latch_);
}

template <class Archive>
void Pit8254::fields(Archive& a) {
  a.part("counter0", counters_[0]);
  a.part("counter1", counters_[1]);
  a.part("counter2", counters_[2]);
  a("speaker_data", speaker_data_);
  a("edge", edge_);
}

nlohmann::json Pit8254::save() {
  return saved(mutex_, [this](auto& a) { fields(a); });
}

StateResult Pit8254::load(const nlohmann::json& state) {
  return loaded(mutex_, state, "pit", [this](auto& a) { fields(a); });
}

// ---- RTC ----------------------------------------------------------------------------------------

template <class Archive>
void RtcCmos::Calendar::fields(Archive& a) {
  a("second", second, 255);
  a("minute", minute, 255);
  a("hour", hour, 255);
  a("weekday", weekday, 7);
  a("day", day, 255);
  a("month", month, 255);
  a("year", year, 99'999);
}

template <class Archive>
void RtcCmos::fields(Archive& a) {
  // A century on either side of the host's clock: sums with it can not overflow.
  constexpr std::int64_t kCenturies = 4'000'000'000'000'000'000;
  a("ram", ram_);
  a("index", index_, 127);
  a("nmi_masked", nmi_masked_);
  a("offset", offset_ns_);
  a.require("offset", offset_ns_ >= -kCenturies && offset_ns_ <= kCenturies);
  a.part("frozen", frozen_);
  a("last_second", last_second_);
  a("next_periodic", next_periodic_);
  a("irq", irq_level_);
}

nlohmann::json RtcCmos::save() {
  return saved(mutex_, [this](auto& a) { fields(a); });
}

StateResult RtcCmos::load(const nlohmann::json& state) {
  return loaded(mutex_, state, "rtc", [this](auto& a) { fields(a); });
}

// ---- ACPI ---------------------------------------------------------------------------------------

template <class Archive>
void AcpiPm::fields(Archive& a) {
  a("status", status_);
  a("enable", enable_);
  a("control", control_value_);
  a("gpe_status", gpe_status_);
  a("gpe_enable", gpe_enable_);
  a("carries", carries_);
  a("sci", sci_level_);
}

nlohmann::json AcpiPm::save() {
  return saved(mutex_, [this](auto& a) { fields(a); });
}

StateResult AcpiPm::load(const nlohmann::json& state) {
  return loaded(mutex_, state, "acpi", [this](auto& a) { fields(a); });
}

// ---- serial port --------------------------------------------------------------------------------

template <class Archive>
void Serial8250::fields(Archive& a) {
  a("input", input_, kInputQueue);
  a("fifo", fifo_, 16);
  a("divisor", divisor_);
  a("ier", ier_, 0xF);
  a("lcr", lcr_);
  a("mcr", mcr_);
  a("scr", scr_);
  a("line_errors", line_errors_);
  a("msr", msr_);
  a("fifo_on", fifo_on_);
  a("trigger", trigger_, 14);
  a.require("trigger", trigger_ != 0);
  a("thre_pending", thre_pending_);
  a("refused", refused_);
  a("irq", irq_level_);
}

nlohmann::json Serial8250::save() {
  return saved(mutex_, [this](auto& a) { fields(a); });
}

StateResult Serial8250::load(const nlohmann::json& state) {
  return loaded(mutex_, state, "serial", [this](auto& a) { fields(a); });
}

// ---- PCI, odd ports -----------------------------------------------------------------------------

template <class Archive>
void PciHost::fields(Archive& a) {
  a("address", address_);
  a("reset", reset_);
}

nlohmann::json PciHost::save() {
  return saved(mutex_, [this](auto& a) { fields(a); });
}

StateResult PciHost::load(const nlohmann::json& state) {
  return loaded(mutex_, state, "pci", [this](auto& a) { fields(a); });
}

nlohmann::json SystemPorts::save() {
  StateWriter writer;
  atomic_field(writer, "post", post_);
  return std::move(writer).take();
}

StateResult SystemPorts::load(const nlohmann::json& state) {
  StateReader reader{state, "ports"};
  atomic_field(reader, "post", post_);
  return reader.result();
}

// ---- paravirtual clock --------------------------------------------------------------------------

template <class Archive>
void KvmClock::fields(Archive& a) {
  a("base_tsc", base_tsc_);
  a("base_ns", base_ns_);
  a("system_time", system_time_);
  a("versions", versions_);
  a("wall_clock", wall_clock_);
  a("wall_version", wall_version_);
}

nlohmann::json KvmClock::save() {
  return saved(mutex_, [this](auto& a) { fields(a); });
}

StateResult KvmClock::load(const nlohmann::json& state) {
  return loaded(mutex_, state, "kvmclock", [this](auto& a) { fields(a); });
}

// ---- APIC bus -----------------------------------------------------------------------------------

template <class Archive>
void ApicBus::fields(Archive& a) {
  atomic_field(a, "rotor", rotor_);
}

nlohmann::json ApicBus::save() {
  StateWriter writer;
  fields(writer);
  return std::move(writer).take();
}

StateResult ApicBus::load(const nlohmann::json& state) {
  StateReader reader{state, "apic_bus"};
  fields(reader);
  return reader.result();
}

// ---- local APIC ---------------------------------------------------------------------------------

template <class Archive>
void LocalApic::fields(Archive& a) {
  Nmis nmis = nmis_.load(std::memory_order_relaxed);
  a("nmis", nmis.waiting);
  a.require("nmis", nmis.waiting <= kNmiLimit);
  a("nmi_limit", nmis.limit);
  a.require("nmi_limit", nmis.limit == kNmiLimitInHandler || nmis.limit == kNmiLimit);
  if constexpr (Archive::kReads) nmis_.store(nmis, std::memory_order_release);
  a("xapic_id", xapic_id_);
  atomic_field(a, "base", base_msr_);
  a("mode", mode_, Mode::x2apic);
  a.part("irr", irr_);
  a.part("isr", isr_);
  a.part("tmr", tmr_);
  a("tpr", tpr_);
  a("ldr", ldr_);
  a("dfr", dfr_);
  a("svr", svr_);
  a("esr", esr_);
  a("errors", errors_);
  a("icr_low", icr_low_);
  a("icr_high", icr_high_);
  a("lvt", lvt_);
  a("lint_level", lint_level_);
  a("ext_int_message", ext_int_message_);
  a("waits_for_startup", waits_for_startup_);
  a("initial_count", initial_count_);
  a("divide", divide_, 0xB);
  a("timer_start", timer_start_);
  a("timer_running", timer_running_);
  // The period is divided by.
  a.require("timer_running", !timer_running_ || initial_count_ != 0);
  a("tsc_deadline", tsc_deadline_);
}

nlohmann::json LocalApic::save() {
  return saved(mutex_, [this](auto& a) { fields(a); });
}

StateResult LocalApic::load(const nlohmann::json& state) {
  {
    const std::lock_guard lock{mutex_};
    StateReader reader{state, "apic"};
    fields(reader);
    reader.require("base", base_fits(base_msr_.load(), mode_));
    if (!reader.ok()) return reader.result();
    (void)update_locked();
  }
  call_wake();
  return {};
}

}  // namespace strata::devices
