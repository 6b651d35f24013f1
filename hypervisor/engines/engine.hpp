// The interface between an engine, which executes guest instructions, and the VMM (design rule 8).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "cpu/vcpu_state.hpp"
#include "mmu/address.hpp"
#include "mmu/flush.hpp"
#include "mmu/mmu.hpp"

namespace strata::engine {

enum class ExitKind : std::uint8_t {
  interrupted,  ///< kick() or stop_at() asked run() to return; nothing to complete
  halt,         ///< HLT with interrupts enabled or not: sleep until the interrupt source has one
  port_read,    ///< IN: answer with complete()
  port_write,   ///< OUT: done when run() is called again
  mmio_read,    ///< answer with complete()
  mmio_write,
  msr_read,   ///< an MSR the engine does not own: complete() or fail()
  msr_write,  ///< run() again accepts it; fail() makes it #GP
  hypercall,  ///< VMCALL/VMMCALL: complete() with RAX
  paused,     ///< the page at `pa` must come back first; run() again retries
  triple_fault,
  out_of_memory,   ///< the host has no frame for the page at `pa`
  internal_error,  ///< a bug or a limit of the engine; `reason` says which
};
inline constexpr std::size_t kExitKinds = 13;
[[nodiscard]] std::string_view name_of(ExitKind kind) noexcept;

/// Why run() returned. Reads finish in two phases: run() exits, the VMM answers, run() goes on.
struct Exit {
  ExitKind kind = ExitKind::interrupted;
  std::uint8_t size = 0;  ///< bytes of a port or MMIO access: 1, 2, 4 or 8
  std::uint16_t port = 0;
  std::uint32_t msr = 0;
  PA pa{};
  std::uint64_t data = 0;  ///< value written
  std::string reason{};    ///< internal_error: one line for the log
};

/// What the interrupt controllers offer a vCPU. Called by the vCPU's thread only; the
/// implementation synchronises with devices. When something becomes deliverable, the
/// implementation calls Vcpu::interrupt().
class InterruptSource {
 public:
  InterruptSource() = default;
  InterruptSource(const InterruptSource&) = delete;
  InterruptSource& operator=(const InterruptSource&) = delete;
  virtual ~InterruptSource() = default;
  /// Something of high enough priority waits (whatever RFLAGS.IF says).
  [[nodiscard]] virtual bool pending() = 0;
  /// Takes it: the vector to deliver. Nothing if it went away in the meantime.
  virtual std::optional<std::uint8_t> acknowledge() = 0;
  /// Takes a pending NMI.
  virtual bool take_nmi() = 0;
  /// The local APIC is enabled in IA32_APIC_BASE: what CPUID.1:EDX[9] says.
  [[nodiscard]] virtual bool present() { return true; }
  /// CR8 and the APIC's TPR are one register: bits 7:4 of the TPR.
  [[nodiscard]] virtual std::uint64_t cr8() = 0;
  virtual void set_cr8(std::uint64_t value) = 0;
};

/// Guest time-stamp counter. Any thread.
class TscSource {
 public:
  TscSource() = default;
  TscSource(const TscSource&) = delete;
  TscSource& operator=(const TscSource&) = delete;
  virtual ~TscSource() = default;
  [[nodiscard]] virtual std::uint64_t tsc() noexcept = 0;
};

/// Random numbers for RDRAND and RDSEED. vCPU thread.
class RandomSource {
 public:
  RandomSource() = default;
  RandomSource(const RandomSource&) = delete;
  RandomSource& operator=(const RandomSource&) = delete;
  virtual ~RandomSource() = default;
  /// `bytes` is 2, 4 or 8; `seed` tells RDSEED from RDRAND. Nothing: CF = 0, none was ready.
  virtual std::optional<std::uint64_t> random(bool seed, unsigned bytes) noexcept = 0;
};

/// Where in its instruction stream a vCPU is. Two runs of one guest that got the same input are in
/// the same state at the same position, whichever engine or backend executes them.
struct VcpuPosition {
  std::uint64_t instructions = 0;  ///< retired since the Vcpu was made or set_position()
  /// Iterations left of a REP instruction that was left between two of them; 0: at an
  /// instruction's start. Retirement does not tell such positions apart.
  std::uint64_t rep_remaining = 0;
  friend bool operator==(const VcpuPosition&, const VcpuPosition&) = default;
};

/// What an engine counts by itself. Monotonic.
struct VcpuStats {
  std::uint64_t instructions = 0;
  std::uint64_t blocks_decoded = 0;
  std::uint64_t blocks_invalidated = 0;
  std::uint64_t tlb_misses = 0;  ///< slow paths that asked the Mmu
  std::uint64_t tlb_flushes = 0;
  std::uint64_t exceptions = 0;
  std::uint64_t interrupts = 0;
  std::uint64_t page_faults = 0;
  std::uint64_t overhead_bytes = 0;  ///< code or block caches, TLBs
  std::uint64_t blocks_translated = 0;
  std::uint64_t code_flushes = 0;    ///< of a whole code cache
  std::uint64_t code_evictions = 0;  ///< of units of a code cache, to make room
  /// Instructions of a translating engine that were interpreted one by one, and blocks that were.
  std::uint64_t interpreted = 0;
  std::uint64_t interpreted_blocks = 0;
  // Its time, as TSC counts: in translated code and what that calls; in the interpreter for it,
  // from samples; and with a window.
  std::uint64_t translated_cycles = 0;
  std::uint64_t interpreted_cycles = 0;
  std::uint64_t window_cycles = 0;
  // Windows of a translating engine in the host's MMU: address spaces that got and lost one,
  // extents mapped and with how many pages, whole windows flushed, pages looked at again for that,
  // instructions with one.
  std::uint64_t window_promotions = 0;
  std::uint64_t window_demotions = 0;
  std::uint64_t window_fills = 0;
  std::uint64_t window_pages = 0;
  std::uint64_t window_flushes = 0;
  std::uint64_t window_checks = 0;
  std::uint64_t window_instructions = 0;
};

/// One vCPU: driven by one host thread. Functions marked (any thread) may come from elsewhere and
/// take effect at the next instruction boundary.
class Vcpu {
 public:
  Vcpu() = default;
  Vcpu(const Vcpu&) = delete;
  Vcpu& operator=(const Vcpu&) = delete;
  virtual ~Vcpu() = default;

  /// Executes until something needs the VMM.
  virtual Exit run() = 0;
  /// Answers the last exit's read.
  virtual void complete(std::uint64_t value) = 0;
  /// The last exit's MSR does not exist or the value is not allowed: #GP(0).
  virtual void fail() = 0;
  /// The interrupt source may have something. (any thread)
  virtual void interrupt() noexcept = 0;
  /// run() returns ExitKind::interrupted soon, with nothing half done that state() does not tell.
  /// (any thread)
  virtual void kick() noexcept = 0;

  /// The engine counts instructions: the four functions below do what they say. An engine that
  /// leaves the counting to a processor that can not stop exactly keeps these defaults.
  [[nodiscard]] virtual bool counts_instructions() const noexcept { return false; }
  /// Where the vCPU is: exact after run() has returned, and inside a call that run() makes to an
  /// InterruptSource, TscSource or RandomSource. vCPU thread.
  [[nodiscard]] virtual VcpuPosition position() const noexcept { return {}; }
  /// Sets what position().instructions counts on from (a state loaded from elsewhere). Not while
  /// run() is active.
  virtual void set_instructions(std::uint64_t /*count*/) noexcept {}
  /// run() returns ExitKind::interrupted at the first boundary at or after `where`: exactly there,
  /// before events of that boundary are taken, if the vCPU comes by. Once; replaces an earlier
  /// request. Where an exception or an exit's answer is still to be delivered, that comes first.
  /// vCPU thread, not while run() is active.
  virtual void stop_at(const VcpuPosition& /*where*/) noexcept {}
  /// Takes stop_at() back.
  virtual void no_stop() noexcept {}

  /// The state at this instruction boundary; only while run() is not active.
  [[nodiscard]] virtual cpu::VcpuState state() const = 0;
  virtual void set_state(const cpu::VcpuState& state) = 0;

  /// Bytes of guest memory changed under the engine (device DMA, loader): cached decodes of them
  /// are dropped. (any thread)
  virtual void memory_written(PA pa, std::uint64_t length) noexcept = 0;
  /// The engine's TLB as a holder of translations, for the VM's FlushDomain.
  [[nodiscard]] virtual TranslationHolder& holder() noexcept = 0;

  /// Relaxed snapshot. (any thread)
  [[nodiscard]] virtual VcpuStats stats() const noexcept = 0;
};

}  // namespace strata::engine
