// The interpreter's vCPU: hot state, memory access, control flow between steps. Handlers in the
// other files of this folder are its implementation and work on its members directly.
//
// Contract of a handler (see Handler in uop.hpp):
//   fall through        return u + 1;
//   near branch         return core.jump(u, target_va);            (commits rip)
//   memory said no      if (!core.load(va, x)) return core.abort(u);
//   raise an exception  return core.fault(u, cpu::GP, 0);           (nothing changed)
//   state changed that blocks depend on, or interrupts may now be taken
//                       return core.finish(u);                      (instruction retired)
//   the VMM must act    return core.leave_for(u, exit);             (not retired; runs again with
//                       core.completion set, see below)
#pragma once

#include <array>
#include <atomic>
#include <bit>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <vector>

#include "cpu/vcpu_state.hpp"
#include "engines/engine.hpp"
#include "engines/interp/accelerator.hpp"
#include "engines/interp/block_cache.hpp"
#include "engines/interp/flags.hpp"
#include "engines/interp/guest_access.hpp"
#include "engines/interp/tlb.hpp"
#include "engines/interp/uop.hpp"
#include "engines/interp/vcpu_group.hpp"
#include "mmu/frames.hpp"
#include "mmu/mmu.hpp"

namespace strata::cpu {
class CpuModel;
}
namespace strata::bt {
class Translator;
}

namespace strata::interp {

struct DecodeResult;

/// What a Core needs from the VM around it. All outlive the Core.
struct CoreEnvironment {
  VcpuId id = 0;
  Mmu* mmu = nullptr;
  MachineWindow window{};
  FlushDomain* flush_domain = nullptr;
  engine::InterruptSource* interrupts = nullptr;
  engine::TscSource* tsc = nullptr;
  engine::RandomSource* random = nullptr;  ///< null: the host's RDRAND and RDSEED
  const cpu::CpuModel* model = nullptr;
  unsigned vcpus = 1;
  /// The Cores of the same VM; null: this one is alone.
  VcpuGroup* group = nullptr;
  std::size_t block_cache_bytes = 8U << 20;
  std::size_t code_cache_bytes = 8U << 20;  ///< of a translator: code, and what is known of it
  WindowUse windows = WindowUse::automatic;
  /// A translator must leave everything at every block's end as the interpreter would: arithmetic
  /// flags that no code can read, and FIP, FDP and FOP of the x87 too. For states that are
  /// compared, saved or recorded.
  bool exact_state = false;
};

/// An exception that an instruction raised and the run loop will deliver.
struct PendingException {
  bool valid = false;
  std::uint8_t vector = 0;
  bool has_error = false;
  /// An external interrupt, or NMI with vector 2: no fault bits in the frame, NMI gets blocked.
  bool external = false;
  std::uint32_t error = 0;
  std::uint64_t cr2 = 0;  ///< for #PF
  std::uint64_t dr6 = 0;  ///< for #DB: bits to set
};

/// What the debug registers ask for (SDM 3B 18.2), so that nobody decodes DR7 on the way.
struct Breakpoints {
  bool code = false;  ///< an instruction breakpoint is enabled
  bool data = false;  ///< a data breakpoint is enabled
  bool io = false;    ///< a port breakpoint is enabled (CR4.DE)
};

/// Why the last handler returned null.
enum class Leave : std::uint8_t {
  look_up,    ///< find the block at rip
  retry,      ///< the same, and the instruction at rip did not retire
  attention,  ///< see Core::attention_flags
  exception,  ///< Core::exception is valid
  exit,       ///< the VMM must act
  resume,     ///< an instruction of translated code is done, which goes on behind it
};

/// Reasons to stop at the next block boundary. Set from any thread.
namespace attention {
inline constexpr std::uint32_t kInterrupt = 1, kKick = 2, kInvalidate = 4, kCodeWritten = 8,
                               kStep = 16,  // own thread: leave after one instruction
    kPark = 32,                             // another vCPU wants to be alone
    kBlock = 64;  // own thread: leave after this block, however long its instructions take
}

/// The VMM's answer to the last exit, for the instruction that runs again.
struct Completion {
  bool ready = false;
  bool failed = false;  ///< the MSR does not exist or refuses the value: #GP(0)
  std::uint64_t value = 0;
};

/// MMIO accesses of the instruction in progress that the VMM has already carried out: when the
/// instruction runs again they are replayed from here instead of exiting.
struct MmioLog {
  struct Access {
    PA pa{};
    std::uint8_t size = 0;
    bool write = false;
    std::uint64_t value = 0;
  };
  /// XSAVE to device memory is the longest; beyond it the instruction is refused.
  static constexpr unsigned kCapacity = 160;
  std::array<Access, kCapacity> done{};
  unsigned count = 0;
  unsigned cursor = 0;
};

/// A read-modify-write in progress: `host` is where the operand can be changed in place.
struct Rmw {
  void* host = nullptr;
  std::uint64_t va = 0;
  PA pa{};
  unsigned size = 0;
  bool traced = false;   ///< the Mmu must hear of the store
  bool code = false;     ///< the page has cached code
  bool bounced = false;  ///< `host` is `bounce`: MMIO or page-crossing; stored by rmw_end()
  alignas(16) std::array<std::byte, 16> bounce{};
};

class Core final : public engine::Vcpu, private TranslationHolder {
 public:
  explicit Core(const CoreEnvironment& environment);
  ~Core() override;
  /// In low memory, for translated code addresses the state below absolutely.
  static void* operator new(std::size_t bytes, std::align_val_t alignment);
  static void operator delete(void* memory, std::size_t bytes, std::align_val_t alignment) noexcept;

  /// From now on blocks are executed by `accelerator` where it can. Before the first run().
  void accelerate(std::unique_ptr<Accelerator> accelerator) noexcept {
    accelerator_ = std::move(accelerator);
  }

  // ---- engine::Vcpu -------------------------------------------------------------------------
  engine::Exit run() override;
  void complete(std::uint64_t value) override;
  void fail() override;
  void interrupt() noexcept override { attend(attention::kInterrupt); }
  void kick() noexcept override { attend(attention::kKick); }
  [[nodiscard]] bool counts_instructions() const noexcept override { return true; }
  [[nodiscard]] engine::VcpuPosition position() const noexcept override { return position_; }
  void set_instructions(std::uint64_t count) noexcept override;
  void stop_at(const engine::VcpuPosition& where) noexcept override;
  void no_stop() noexcept override;
  [[nodiscard]] cpu::VcpuState state() const override;
  void set_state(const cpu::VcpuState& state) override;
  void memory_written(PA pa, std::uint64_t length) noexcept override;
  [[nodiscard]] TranslationHolder& holder() noexcept override { return *this; }
  [[nodiscard]] engine::VcpuStats stats() const noexcept override;

  /// From now on each run() returns ExitKind::interrupted after at most `boundaries` block
  /// boundaries, string iterations or exceptions (0: no limit): also out of a guest that retires
  /// no instruction any more, which stop_at() waits for. An exception may still be waiting for
  /// delivery then. Every block goes back to the run loop, which is slow: for fuzzers. Not while
  /// run() is active.
  void limit_run(std::uint64_t boundaries) noexcept { run_limit_ = boundaries; }

  // ---- the group; see vcpu_group.hpp ----------------------------------------------------------
  [[nodiscard]] VcpuGroup& group() noexcept { return *group_; }
  /// Writable translations of `ppn` have to go. Returns what revoked() will reach then. Any thread.
  [[nodiscard]] std::uint64_t post_revocation(PPN ppn) noexcept;
  /// The last revocation in force here; the maximum while this vCPU uses no translation. Any
  /// thread.
  [[nodiscard]] std::uint64_t revoked() const noexcept {
    return revoked_.load(std::memory_order_acquire);
  }
  /// Asks for a stop at the next instruction boundary. Any thread.
  void park() noexcept { attend(attention::kPark); }
  /// Own thread: stops to count as executing instructions, and counts as quiescent; and back, when
  /// nobody is exclusive. What was found in the TLB before is stale afterwards.
  void step_outside() noexcept;
  void step_inside() noexcept;
  /// PAUSE in a spin: lets another thread of the host run. Ends the instruction.
  const Uop* rest(const Uop* u) noexcept;
  /// Grows whenever a host pointer found before may be stale or may no longer be written to
  /// unannounced.
  [[nodiscard]] std::uint64_t places() const noexcept { return places_; }

  // ---- hot state ----------------------------------------------------------------------------
  std::array<std::uint64_t, kRegisterSlots> r{};
  ArithFlags flags = 0;  ///< CF PF AF ZF SF OF live here, not in rflags_other
  std::uint8_t cpl = 0;
  std::uint16_t pcid = 0;  ///< as TLB tags have it: see Tlb::asid()
  TlbMode data_mode = kSupervisor;
  TlbEntry* dtlb = nullptr;  ///< entries of data_mode
  /// Linear address of the next instruction: RIP itself in 64-bit mode, EIP plus the CS base
  /// elsewhere, so that finding blocks needs no addition; ip() is the architectural one. Valid
  /// between blocks; inside one see pc_of().
  std::uint64_t rip = 0;
  std::array<std::uint64_t, 7> segment_base{};
  Block* block = nullptr;  ///< now executing
  std::atomic<std::uint32_t> attention_flags{0};
  /// Instructions that may retire before the run loop has to look: counts down, so that entering a
  /// block costs no comparison beside the count. See instructions().
  std::int64_t budget = kNoStop;
  std::uint64_t rep_floor = 0;  ///< a REP stops with this many iterations left, for stop_at()
  /// Something may wait for RFLAGS.IF: translated code must not set it on its own.
  bool interrupt_waits = true;
  std::uint64_t rflags_other = cpu::rflags::FIXED;  ///< RFLAGS without the arithmetic flags

  // ---- everything else of the architecture; gpr, rip and rflags in here are not kept up to date
  cpu::VcpuState arch{};
  std::array<std::uint64_t, 4> pdpte{};  ///< PAE paging's registers, loaded with CR3 (SDM 3A 4.4.1)
  DecodeMode decode_mode{};
  PendingException exception{};
  Completion completion{};
  MmioLog mmio{};
  Breakpoints breakpoints{};
  /// DR6 bits of breakpoints that the instruction in progress has met; a trap if it retires.
  std::uint64_t debug_hits = 0;
  /// MOV SS or POP SS was the last instruction: debug traps wait too (SDM 3A 6.8.3).
  bool debug_shadow = false;
  const CoreEnvironment env;

  // ---- position -----------------------------------------------------------------------------
  static constexpr std::int64_t kNoStop = std::int64_t{1} << 62;
  /// Retired so far, all of the current block included.
  [[nodiscard]] std::uint64_t instructions() const noexcept {
    return budget_end_ - static_cast<std::uint64_t>(budget);
  }
  /// Before a handler calls its environment: makes position() that of the instruction at `u`.
  void note_position(const Uop* u) noexcept;

  // ---- registers ----------------------------------------------------------------------------
  template <class T>
  [[nodiscard]] T reg(std::uint8_t offset) const noexcept {
    T v;
    std::memcpy(&v, reinterpret_cast<const std::byte*>(r.data()) + offset, sizeof v);
    return v;
  }
  /// 32-bit writes clear the upper half (SDM 1 3.4.1.1).
  template <class T>
  void set_reg(std::uint8_t offset, T v) noexcept {
    if constexpr (sizeof(T) == 4) {
      const std::uint64_t wide = static_cast<std::uint32_t>(v);
      std::memcpy(reinterpret_cast<std::byte*>(r.data()) + offset, &wide, sizeof wide);
    } else {
      std::memcpy(reinterpret_cast<std::byte*>(r.data()) + offset, &v, sizeof v);
    }
  }
  [[nodiscard]] std::uint64_t rflags() const noexcept { return rflags_other | to_rflags(flags); }
  /// Replaces RFLAGS; follow with finish(), since IF, TF and AC change what blocks may assume.
  void set_rflags(std::uint64_t value) noexcept;
  [[nodiscard]] bool long_mode() const noexcept { return decode_mode.bits == 64; }

  // ---- addresses ----------------------------------------------------------------------------
  /// Offset within the segment.
  [[nodiscard]] std::uint64_t offset_of(const Uop* u) const noexcept {
    const std::uint64_t ea = reg<std::uint64_t>(u->base) +
                             (reg<std::uint64_t>(u->index) << u->scale) +
                             static_cast<std::uint64_t>(static_cast<std::int64_t>(u->disp));
    if (u->address_form == 0) [[likely]]
      return ea;
    const unsigned size = (u->address_form & 0x7FU) - 1;
    return size == 1   ? static_cast<std::uint32_t>(ea)
           : size == 2 ? static_cast<std::uint16_t>(ea)
                       : ea;
  }
  [[nodiscard]] std::uint64_t linear(const Uop* u, std::uint64_t offset) const noexcept {
    const std::uint64_t va = offset + segment_base[u->segment];
    return (u->address_form & 0x80U) != 0 ? static_cast<std::uint32_t>(va) : va;
  }
  /// Linear address of the memory operand.
  [[nodiscard]] std::uint64_t ea(const Uop* u) const noexcept { return linear(u, offset_of(u)); }
  /// VA (CS base included) of the instruction `u` belongs to, and of the next one.
  [[nodiscard]] std::uint64_t pc_of(const Uop* u) const noexcept { return r[kPcSlot] + u->offset; }
  [[nodiscard]] std::uint64_t next_pc(const Uop* u) const noexcept {
    return wrap_ip(r[kPcSlot] + u->offset + u->length);
  }
  [[nodiscard]] std::uint64_t wrap_ip(std::uint64_t ip) const noexcept {
    return decode_mode.bits == 64 ? ip : static_cast<std::uint32_t>(ip);
  }
  /// The instruction pointer (offset in CS) of linear address `va`, and the other way round.
  [[nodiscard]] std::uint64_t ip_at(std::uint64_t va) const noexcept {
    return wrap_ip(va - segment_base[cpu::CS]);
  }
  [[nodiscard]] std::uint64_t ip() const noexcept { return ip_at(rip); }
  [[nodiscard]] std::uint64_t next_ip(const Uop* u) const noexcept { return ip_at(next_pc(u)); }
  /// Continues at offset `ip` of CS, whose base has to be in segment_base already
  /// (segments_changed()).
  void set_ip(std::uint64_t ip) noexcept { rip = wrap_ip(ip + segment_base[cpu::CS]); }

  // ---- memory: false means abort(u); the reason is recorded -----------------------------------
  template <class T>
  [[nodiscard]] bool load(std::uint64_t va, T& out) {
    const TlbEntry& e = dtlb[tlb_index(va, pcid)];
    if (e.read_tag == (((va + sizeof(T) - 1) & ~kPageMask) | pcid)) [[likely]] {
      out = guest::load<T>(reinterpret_cast<const void*>(va + e.addend));
      return true;
    }
    return load_slow(va, &out, sizeof(T), {AccessKind::read, cpl == 3, ac()});
  }
  template <class T>
  [[nodiscard]] bool store(std::uint64_t va, T value) {
    const TlbEntry& e = dtlb[tlb_index(va, pcid)];
    if (e.write_tag == (((va + sizeof(T) - 1) & ~kPageMask) | pcid)) [[likely]] {
      guest::store(reinterpret_cast<void*>(va + e.addend), value);
      return true;
    }
    return store_slow(va, &value, sizeof(T), {AccessKind::write, cpl == 3, ac()});
  }
  /// Any length up to 4096; all or nothing. For vector registers, x87 images and string chunks.
  [[nodiscard]] bool load_bytes(std::uint64_t va, void* out, unsigned size);
  [[nodiscard]] bool store_bytes(std::uint64_t va, const void* data, unsigned size);
  /// Faults as a store of `size` bytes would, and changes nothing.
  [[nodiscard]] bool check_store(std::uint64_t va, unsigned size);
  /// The host bytes from `va` to the end of its page if they can be read (written) directly, with
  /// the count in `available`; null sends the caller to load/store, which find out why not.
  [[nodiscard]] const std::byte* read_span(std::uint64_t va, std::uint64_t& available);
  [[nodiscard]] std::byte* write_span(std::uint64_t va, std::uint64_t& available);

  /// Starts a read-modify-write of 1 to 16 bytes: checks write access, loads the operand where it
  /// has to be bounced. Change *host (atomically for LOCK), then call rmw_end().
  template <class T>
  [[nodiscard]] bool rmw_begin(std::uint64_t va, Rmw& m) {
    const TlbEntry& e = dtlb[tlb_index(va, pcid)];
    if (e.write_tag == (((va + sizeof(T) - 1) & ~kPageMask) | pcid)) [[likely]] {
      m.host = reinterpret_cast<void*>(va + e.addend);
      return true;
    }
    return rmw_begin_slow(va, sizeof(T), m);
  }
  /// Announces or stores the result. False only where the store itself must go to the VMM: the
  /// instruction then runs again from its start, so commit registers and flags after this.
  /// The same on a copy, always. For operands that Exclusive protects.
  [[nodiscard]] bool rmw_begin_copy(std::uint64_t va, unsigned size, Rmw& m);
  [[nodiscard]] bool rmw_end(Rmw& m) {
    if (m.size == 0) [[likely]]
      return true;
    return rmw_end_slow(m);
  }

  /// Implicit supervisor accesses: descriptor tables, TSS, interrupt frames pushed to inner stacks.
  template <class T>
  [[nodiscard]] bool system_load(std::uint64_t va, T& out) {
    return load_slow(va, &out, sizeof(T), {AccessKind::read, false, false});
  }
  template <class T>
  [[nodiscard]] bool system_store(std::uint64_t va, T value) {
    return store_slow(va, &value, sizeof(T), {AccessKind::write, false, false});
  }
  /// Sets bits of a descriptor's type byte (accessed, busy) atomically, as the processor does.
  [[nodiscard]] bool system_set_bits(std::uint64_t va, std::uint8_t bits);
  /// Reads the four PDPTEs that `cr3` names, from guest-physical memory.
  [[nodiscard]] bool read_pdptes(std::uint64_t cr3, std::array<std::uint64_t, 4>& out);

  // ---- control flow: what handlers return -----------------------------------------------------
  /// Near branch to `target`, found through the jump cache.
  const Uop* jump(const Uop* u, std::uint64_t target);
  /// Near branch to a target in the same page as this block; `slot` is a spare step of this block
  /// whose imm caches the target block.
  const Uop* jump_linked(const Uop* u, std::uint64_t target, const Uop* slot) {
    if (attention_flags.load(std::memory_order_relaxed) == 0) [[likely]] {
      if (Block* b = reinterpret_cast<Block*>(slot->imm); b != nullptr) [[likely]] {
        return enter(b, target);
      }
    }
    return link(u, target, slot);
  }
  /// The instruction did not complete; load/store/... recorded why.
  const Uop* abort(const Uop* u) noexcept;
  /// Raises an exception at this instruction. `error` only for vectors that push one.
  const Uop* fault(const Uop* u, std::uint8_t vector,
                   std::optional<std::uint32_t> error = std::nullopt) noexcept;
  /// The instruction retired; go through the run loop before the next one (mode, IF, TLB changed).
  const Uop* finish(const Uop* u) noexcept;
  /// As finish(), with rip already set by the handler (far transfers, IRET, SYSCALL, SYSRET).
  const Uop* finish_at(const Uop* u, std::uint64_t new_rip) noexcept;
  /// To the VMM; the instruction runs again afterwards and finds `completion.ready`.
  const Uop* leave_for(const Uop* u, const engine::Exit& exit) noexcept;
  /// A REP string instruction finished an iteration and will go on: what the VMM answered is used
  /// up. Call after committing RCX, RSI, RDI.
  void iteration_done() noexcept;
  /// Whether a long-running instruction (REP) should stop between iterations; if so return
  /// pause(u, remaining), which restarts it later; `remaining` is what rCX holds then.
  [[nodiscard]] bool should_pause() const noexcept {
    return (attention_flags.load(std::memory_order_relaxed) & ~attention::kBlock) != 0;
  }
  const Uop* pause(const Uop* u, std::uint64_t remaining) noexcept;
  /// The last step of an instruction that translated code has had executed here; `u` is the place
  /// behind it.
  const Uop* resume_translated(const Uop* u) noexcept {
    rip = wrap_ip(pc_of(u));
    return leave(Leave::resume);
  }

  // ---- consequences of state changes ------------------------------------------------------------
  /// Recomputes everything derived from arch: cpl, pcid, data_mode, decode_mode, segment_base, the
  /// Mmu's context. Call after changing CRs, EFER, segments, RFLAGS.AC/VM; then finish().
  void update_derived();
  /// The part of it that follows from segments, CPL and RFLAGS; CRs and EFER did not change.
  void segments_changed();
  /// DR7 or CR4.DE changed: what breakpoints watch for, and what must not be cached because of it.
  void debug_registers_changed() noexcept;
  /// Marks the enabled breakpoints of kind `io` (ports) or data that overlap the access.
  void note_access(std::uint64_t at, unsigned size, bool write, bool io = false) noexcept;
  /// For instructions whose single-step trap depends on TF as they leave it: INT n, SYSCALL,
  /// SYSRET.
  void step_trap_by_new_flags() noexcept { trap_armed_ = (rflags_other & cpu::rflags::TF) != 0; }
  /// TLB effects of CR writes, INVLPG, INVPCID (SDM 3A 4.10.4). Reach the Mmu too.
  void flush_tlb(FlushScope scope, std::uint16_t which_pcid, VA va);
  void flush_page(VA va);
  [[nodiscard]] std::uint16_t arch_pcid() const noexcept {
    return static_cast<std::uint16_t>((arch.cr4 & cpu::cr4::PCIDE) != 0 ? arch.cr3 & 0xFFF : 0);
  }
  /// PKRU or another input of user-page rights changed: cached rights go, the Mmu hears the
  /// context.
  void rights_changed();

  // ---- events (events.cpp) ----------------------------------------------------------------------
  /// Delivers the pending exception, escalating to #DF and triple fault; false: triple fault.
  [[nodiscard]] bool deliver_exception();
  /// Delivers an external interrupt or NMI; exceptions on the way are delivered too.
  [[nodiscard]] bool deliver_interrupt(std::uint8_t vector);

  /// Makes an exception pending without leaving the instruction: false, for accesses that fail.
  bool record_exception(std::uint8_t vector, std::optional<std::uint32_t> error) noexcept;

  /// Effective AC for SMAP and, at CPL 3, alignment checks.
  [[nodiscard]] bool ac() const noexcept { return (rflags_other & cpu::rflags::AC) != 0; }

  engine::VcpuStats counters{};  ///< the vCPU thread's own; stats() gives them as of the last exit

 private:
  /// Runs blocks in this class's stead: part of its implementation that lives elsewhere.
  friend class bt::Translator;

  // TranslationHolder
  void invalidate(const Invalidation& what, Epoch epoch) noexcept override;
  [[nodiscard]] Epoch passed() const noexcept override {
    return passed_.load(std::memory_order_acquire);
  }

  void attend(std::uint32_t why) noexcept {
    attention_flags.fetch_or(why);
    if (accelerator_) accelerator_->attend();
  }
  const Uop* enter(Block* b, std::uint64_t va) noexcept {
    block = b;
    r[kPcSlot] = va;
    budget -= b->instructions;
    if (budget < 0) [[unlikely]]
      return over_budget(b, va);
    return b->first();
  }
  const Uop* over_budget(const Block* b, std::uint64_t va) noexcept;
  [[nodiscard]] unsigned unretired_from(const Uop* u, bool retired) const noexcept;
  const Uop* link(const Uop* u, std::uint64_t target, const Uop* slot);
  const Uop* leave(Leave why) noexcept {
    leave_ = why;
    return nullptr;
  }
  void uncount_from(const Uop* u, bool retired) noexcept;

  /// How a TLB miss of translated code ended.
  enum class Refill : std::uint8_t {
    filled,
    interpret,  ///< the access needs more than a translation
    refused,    ///< it faults, or the VMM must act: recorded
  };
  /// The TLB allows reads (stores) at `va` without asking.
  [[nodiscard]] bool cached(std::uint64_t va, bool write) noexcept {
    const TlbEntry& e = tlb_.slot(data_mode, VA{va}, pcid);
    return (write ? e.write_tag : e.read_tag) == Tlb::tag(VA{va}, pcid);
  }
  Refill refill(std::uint64_t va, unsigned size, bool write);
  /// Fills the TLB for reads at `va` that nobody has asked for, and that nobody is to see. False:
  /// that is not possible.
  bool refill_unasked(std::uint64_t va);
  bool load_slow(std::uint64_t va, void* out, unsigned size, Access access);
  bool store_slow(std::uint64_t va, const void* data, unsigned size, Access access);
  bool rmw_begin_slow(std::uint64_t va, unsigned size, Rmw& m);
  bool rmw_end_slow(Rmw& m);
  void traced_store_done(PA pa, std::uint64_t length);
  /// One page's worth of an access, resolved: a host pointer, or an MMIO address.
  struct Place;
  bool locate(std::uint64_t va, Access access, Place& place);
  /// Calls transfer(place, offset, bytes) for each page of the access once all of it is located.
  template <class Transfer>
  bool each_place(std::uint64_t va, unsigned size, Access access, Transfer&& transfer);
  bool place_load(const Place& p, void* out, unsigned size);
  bool place_store(const Place& p, const void* data, unsigned size);
  bool mmio_load(PA pa, void* out, unsigned size);
  bool mmio_store(PA pa, const void* data, unsigned size);
  bool record_fault(const Fault& f, Access access);
  bool record_exit(engine::Exit exit) noexcept;

  // run loop
  bool resume_from_exit();
  bool handle_attention();
  bool kicked_among_faults() noexcept;
  bool limit_reached(std::uint64_t& passes);
  bool shut_down();
  bool take_events();
  bool interruptible();
  std::uint16_t asid_of(std::uint16_t which_pcid);
  const Uop* dispatch();
  const Uop* start_block();
  /// Where a REP stops, for the instruction about to be entered.
  void begin_instruction() noexcept;
  [[nodiscard]] bool may_accelerate() const noexcept;
  [[nodiscard]] bool stop_due() const noexcept;
  const Uop* stop_here() noexcept;
  void set_budget(std::uint64_t end) noexcept;
  void note_boundary() noexcept { position_ = {instructions(), rep_remaining_}; }
  void after_block();
  Block* find_block(std::uint64_t va, bool single = false);
  bool fetch_page(std::uint64_t va, const std::byte*& host, PA& pa);
  Block* build_block(std::uint64_t va, PA pa, const std::byte* host, DecodeMode mode);
  /// Bytes from `va` to the end of CS; false, with #GP recorded: it lies beyond the limit.
  bool code_room(std::uint64_t va, std::uint64_t& room);
  /// The block for the one instruction at `va` where CS ends before a cached block would. Found by
  /// nobody else, since the limit is not part of a block's key.
  Block* shorter_block(std::uint64_t va, PA pa, const std::byte* host, DecodeMode mode,
                       std::uint64_t room);
  /// A block, of which everything but its place in the cache is filled in. Null: there was no room,
  /// and the cache has been flushed.
  Block* make_block(const std::vector<Uop>& steps, const DecodeResult& d, PA pa, DecodeMode mode);
  /// Records what the instruction about to run begins with: TF, RF, and where it ends.
  void arm_debug_traps(const Block& b) noexcept;
  /// Debug traps of the instruction that has just been left, and the end of RF.
  void debug_after_instruction(bool retired) noexcept;
  /// An instruction breakpoint is set on rip and RF does not mask it: #DB recorded.
  bool at_breakpoint() noexcept;
  [[nodiscard]] bool page_watched(std::uint64_t va) const noexcept;
  bool crossing_bytes(std::uint64_t va, std::array<std::byte, 32>& bytes, unsigned& count);
  /// Mmu::translate(), as the quiescent point it is: other holders' frees need not wait for it, and
  /// the answer is asked for again if an invalidation arrived meanwhile.
  Expected<Translation, Fault> ask_mmu(VA va, Access access);
  /// Drops what the mailbox names. False: there was nothing.
  bool process_invalidations() noexcept;
  /// No translation is in use: nobody has to wait for this vCPU.
  void quiesce() noexcept;
  /// This vCPU stored to a page with code: all vCPUs hear of it.
  void code_written(PA pa, std::uint64_t length);
  void drop_code(PA pa, std::uint64_t length);
  /// Makes this vCPU a coder of the page. False: that took a quiescent point; look again.
  bool claim_code(PPN ppn);
  void drop_all_code();
  void flush_blocks();
  void revoke_writes(PPN ppn) noexcept;
  [[nodiscard]] bool canonical(std::uint64_t va) const noexcept {
    return !long_mode() ||
           static_cast<std::uint64_t>(static_cast<std::int64_t>(va << 16) >> 16) == va;
  }
  [[nodiscard]] std::uint64_t wrap_va(std::uint64_t va) const noexcept {
    return long_mode() ? va : static_cast<std::uint32_t>(va);
  }
  [[nodiscard]] TlbMode mode_of(Access access) const noexcept {
    if (access.user) return kUser;
    return access.ac || (arch.cr4 & cpu::cr4::SMAP) == 0 ? kSupervisorAc : kSupervisor;
  }

  std::unique_ptr<Accelerator> accelerator_;  ///< null: this interpreter does everything
  std::unique_ptr<VcpuGroup> own_group_;      ///< where env names none
  VcpuGroup* const group_;
  Tlb tlb_;
  BlockCache blocks_;
  struct JumpEntry {
    std::uint64_t va = ~0ULL;
    std::uint64_t generation = 0;
    std::uint32_t context = 0;  ///< jump_context_ of its time
    Block* block = nullptr;
  };
  std::vector<JumpEntry> jump_cache_;
  std::uint64_t generation_ = 1;  ///< grows when any VA -> block knowledge may be stale
  FetchedPages fetched_;          ///< for an accelerator's knowledge of VAs
  std::uint64_t places_ = 1;
  unsigned pauses_ = 0;                 ///< PAUSE since the last rest
  std::uint64_t delivered_at_ = ~0ULL;  ///< instructions() when an exception was last delivered
  unsigned faults_in_a_row_ = 0;        ///< exceptions since, at the same instructions()
  Leave leave_ = Leave::look_up;
  engine::Exit exit_{};
  Leave recorded_ = Leave::look_up;  ///< what a failed access asks abort() to do
  bool exited_ = false;              ///< run() returned exit_ and the VMM has not been back
  bool replaying_ = false;           ///< the next instruction finds answers in completion or mmio
  bool shadow_step_ = false;         ///< the next instruction ends an interrupt shadow
  bool single_next_ = false;         ///< the next block is one instruction long
  bool trap_armed_ = false;          ///< RFLAGS.TF was set when the instruction began
  std::uint64_t run_limit_ = 0;      ///< see limit_run()
  bool resume_armed_ = false;        ///< RFLAGS.RF was set as well
  std::uint64_t sequel_ = 0;         ///< VA behind the instruction being stepped
  /// PCID, privilege and decode mode: what a VA's block depends on besides generation_. Kept so
  /// that a system call keeps the jump cache.
  std::uint32_t jump_context_ = 0;
  /// CS as blocks found with DecodeMode::checked were measured against.
  std::uint64_t checked_base_ = 0;
  std::uint32_t checked_limit_ = 0;
  PagingContext context_{};
  std::uint64_t budget_end_ = kNoStop;  ///< instructions() when the budget is used up
  std::optional<engine::VcpuPosition> stop_;
  std::uint64_t rep_remaining_ = 0;  ///< see VcpuPosition
  engine::VcpuPosition position_{};

  /// Guards the mailbox that other threads fill.
  mutable std::mutex mailbox_lock_;
  Invalidation mailbox_;
  std::vector<std::pair<PA, std::uint64_t>> mailbox_written_;
  bool mailbox_all_written_ = false;  ///< too many to list
  std::vector<PPN> mailbox_revoked_;
  bool mailbox_all_revoked_ = false;
  std::uint64_t revocations_ = 0;  ///< posted so far
  Epoch mailbox_epoch_ = 0;
  std::atomic<Epoch> passed_{~0ULL};
  std::atomic<std::uint64_t> revoked_{~0ULL};
  engine::VcpuStats published_{};  ///< stats() as of the last exit; under mailbox_lock_
};

}  // namespace strata::interp
