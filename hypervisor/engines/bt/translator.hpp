// The binary translator as a Core's accelerator: finds, makes and runs translated blocks, and is
// what their stubs call.
#pragma once

#include <memory>
#include <set>
#include <unordered_map>

#include "engines/bt/code_cache.hpp"
#include "engines/bt/emitter.hpp"
#include "engines/bt/native_state.hpp"
#include "engines/bt/region.hpp"
#include "engines/bt/windows.hpp"
#include "engines/interp/accelerator.hpp"
#include "engines/interp/core.hpp"

namespace strata::bt {

/// What a translator counts; relaxed snapshots are taken with the Core's.
struct TranslatorStats {
  std::uint64_t blocks = 0;       ///< translated
  std::uint64_t flushes = 0;      ///< of the whole code cache
  std::uint64_t evictions = 0;    ///< of its units
  std::uint64_t interpreted = 0;  ///< instructions that went to the interpreter
  // TSC counts: in run(), in it with a window, and in the interpreter's steps (from samples).
  std::uint64_t cycles = 0;
  std::uint64_t window_cycles = 0;
  std::uint64_t interpreted_cycles = 0;
};

class Translator final : public interp::Accelerator {
 public:
  /// `core` outlives it and lies in low memory. No code cache (usable() false) if the host refuses
  /// executable memory below 2 GiB.
  Translator(interp::Core& core, std::size_t code_budget);
  ~Translator() override;

  [[nodiscard]] bool usable() const noexcept { return cache_.size() != 0; }

  bool run(interp::Core& core) override;
  std::size_t drop(PA pa, std::uint64_t length) noexcept override;
  [[nodiscard]] bool has_code(PPN ppn) const noexcept override { return cache_.has_code(ppn); }
  void flush() noexcept override;
  void attend() noexcept override;
  [[nodiscard]] std::size_t bytes() const noexcept override;
  void add_to(engine::VcpuStats& stats) const noexcept override;
  /// What code adds to VAs, for tests.
  [[nodiscard]] const SliceTable& slices() const noexcept { return state_->slices; }

 private:
  struct Calls;  ///< the functions that stubs call

  /// What was found of code, memory and translations is as it was while this is.
  struct Stamp {
    std::uint64_t changes = 0, places = 0, generation = 0;
    friend bool operator==(const Stamp&, const Stamp&) = default;
  };
  [[nodiscard]] Stamp stamp() const noexcept {
    return {cache_.changes(), core_.places(), core_.generation_};
  }

  [[nodiscard]] bool mode_is_native() const noexcept;
  /// Adds the time since the last call to what executed.
  void count_cycles() noexcept;
  /// The interpreter's steps at `site`.
  void interpret_steps(const Site& site);
  /// What executes next goes through a window, or not.
  void choose_window();
  void revalidate();
  [[nodiscard]] std::uint64_t code_mode() const noexcept;
  [[nodiscard]] std::uint32_t mode_key() const noexcept;
  [[nodiscard]] std::uint64_t context() const noexcept;
  /// Brings what translated code reads of the Core's state up to date.
  void refresh() noexcept;
  /// Code for core.rip, translated if need be; 0: the Core's leave_ says why not.
  std::uint64_t code_at_rip();
  std::uint64_t code_for(std::uint64_t va);
  /// `e`, known of another address space or from before a flush, serves again: its VA still, or
  /// also, leads to its page.
  bool still_valid(JumpEntry& e);
  /// What is known of the VA's code depends on its page's translation.
  void note_fetched(std::uint64_t va) noexcept;
  const TranslatedBlock* block_at(std::uint64_t va);
  const TranslatedBlock* crossing_block_at(std::uint64_t va, PA pa, CodeView code);
  bool fetch(std::uint64_t va, const std::byte*& host, PA& pa);
  void make_room();
  /// Emits region_ as `block`, whose addresses are filled in.
  const TranslatedBlock* translate(const CodeView& code, TranslatedBlock block);
  /// Guest code goes on at `va`: where in host code.
  std::uint64_t go_on(std::uint64_t va);
  template <class Link>
  std::uint64_t go_on_linked(std::uint64_t va, Link&& link);
  std::uint64_t leave(interp::Leave why) noexcept;
  [[nodiscard]] std::uint64_t in_page(std::uint64_t offset) const noexcept;
  /// Takes back what the head of the block counted for the instructions from `site` on.
  void rewind(const Site& site) noexcept;

  [[nodiscard]] JumpEntry& jump_entry(std::uint64_t va) noexcept;
  void forget_offset(std::uint64_t va) noexcept;
  std::uint64_t stale(std::uint32_t entry);
  std::uint64_t link(std::uint64_t offset, std::uint64_t field);
  std::uint64_t link_far(std::uint64_t va, std::uint64_t at);
  std::uint64_t over_budget(std::uint64_t offset, std::uint64_t count);
  std::uint64_t memory(std::uint64_t va, Site site);
  std::uint64_t group(std::uint64_t va, Site site);
  std::uint64_t window(std::uint64_t va, std::uint32_t index);
  /// The pages of a TLB entry's large page around `va`, or some small ones, as far as they are one
  /// extent; `va` becomes the first one's.
  Extent around(VA& va);
  bool neighbour(VA va, Extent& extent);
  /// The window is not for this site's instruction.
  std::uint64_t refuse(std::uint32_t index);
  std::uint64_t steps(const Site& site);
  bool may_go_on();
  std::uint64_t jump(std::uint64_t va, Site site);
  std::uint64_t interpret(const Site& site);
  std::uint64_t load_simd(const Site& site, std::uint64_t level);
  std::uint64_t load_x87(const Site& site);
  /// Vector and x87 state to memory, for code that may look at it.
  void unload() noexcept;

  struct LowMemoryDelete {
    void operator()(NativeState* p) const noexcept;
  };

  interp::Core& core_;
  std::unique_ptr<NativeState, LowMemoryDelete> state_;
  CodeCache cache_;
  Stubs stubs_{};
  Region region_;
  bool ungrouped_ = false;       ///< look for, and make, code that checks each access by itself
  bool interpret_next_ = false;  ///< the next block is the interpreter's
  std::unique_ptr<Windows> windows_;  ///< null: none are wanted, or the host can not
  LookUpPage neighbours_;         ///< neighbour(), where more than was accessed may be looked up
  bool windowed_ = false;         ///< what executes goes through a window
  std::uint64_t counted_at_ = 0;  ///< TSC of the last count_cycles()
  Executed accounted_{};          ///< what windows_ has heard of
  /// Instructions that windows are not for, by page: offsets in it.
  std::unordered_map<PPN, std::set<std::uint16_t>> refused_;
  TranslatorStats stats_;
};

/// A Core that translates, or, where the host refuses what that needs, null.
[[nodiscard]] std::unique_ptr<interp::Core> make_core(const interp::CoreEnvironment& environment);

/// Whether the host gives what make_core() needs for a vCPU: tries it.
[[nodiscard]] bool host_can();

}  // namespace strata::bt
