// What a guest may see between an edit of its tables and the flush that it owes: random programs of
// loads, stores, edits and every kind of flush run in the guest, and each answer has to be one that
// SDM 3A 4.10 permits. The model keeps, for every PCID and page, since when each cached value may
// live on, and so the whole set of permitted answers.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <functional>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "small_vm.hpp"

namespace strata::conformance {
namespace {

constexpr std::uint64_t kPresent = 1, kWritable = 2, kGlobal = 0x100, kUsed = 0x60;
constexpr unsigned kSlots = 6, kPcids = 3, kFrames = 10, kSteps = 250;
constexpr std::uint64_t kProgram = 0x20'0000, kLog = 0x30'0000, kDescriptor = 0x3F'0000;
constexpr std::uint64_t kFaultMark = 0xFA00'0000'0000'0000;

/// A value and when it was stored.
struct Stored {
  unsigned time;
  std::uint64_t value;
};
using History = std::vector<Stored>;

/// The values that `h` had at some time in [since, now].
std::vector<std::uint64_t> values_since(const History& h, unsigned since) {
  std::vector<std::uint64_t> out;
  for (std::size_t i = 0; i < h.size(); ++i) {
    const bool superseded = i + 1 < h.size() && h[i + 1].time <= since;
    if (!superseded) out.push_back(h[i].value);
  }
  return out;
}

/// SDM 3A 4.10: what may be cached. Two page tables can stand in the one directory entry.
class CacheModel {
 public:
  struct Answer {
    bool faulted = false;
    std::uint64_t value = 0;  ///< error code, or the tag read
  };

  void tick() { ++now_; }
  void leaf(unsigned table, unsigned slot, std::uint64_t value) {
    leaves_.at(table).at(slot).push_back({now_, value});
  }
  void directory(unsigned table) { directory_.push_back({now_, table}); }

  /// INVLPG and what a page fault drops (4.10.4.1): the page in this PCID and global ones, and all
  /// paging-structure caches of the PCID.
  void invlpg(unsigned pcid, unsigned slot) {
    since_.at(pcid).at(slot) = now_;
    global_since_.at(slot) = now_;
    structures_since_.at(pcid) = now_;
  }
  /// INVPCID 0: globals may stay.
  void invpcid_address(unsigned pcid, unsigned slot) {
    since_.at(pcid).at(slot) = now_;
    structures_for_.at(pcid).at(slot) = now_;
  }
  /// MOV to CR3, INVPCID 1.
  void flush_pcid(unsigned pcid) {
    since_.at(pcid).fill(now_);
    structures_since_.at(pcid) = now_;
  }
  void flush_non_global() {
    for (unsigned p = 0; p < kPcids; ++p) flush_pcid(p);
  }
  void flush_all() {
    flush_non_global();
    global_since_.fill(now_);
  }

  /// Whether `answer` to a load or store of `slot` is permitted now.
  [[nodiscard]] bool permits(unsigned pcid, unsigned slot, bool write, Answer answer,
                             const std::array<std::uint32_t, kFrames>& tags) const {
    const unsigned structures =
        std::max(structures_since_.at(pcid), structures_for_.at(pcid).at(slot));
    const unsigned own = std::min(structures, since_.at(pcid).at(slot));
    for (const std::uint64_t table : values_since(directory_, own)) {
      const History& h = leaves_.at(table).at(slot);
      if (fits(values_since(h, since_.at(pcid).at(slot)), write, answer, tags)) return true;
      // An entry that is not present is never cached (4.10.2.3): such a fault is about memory.
      const bool absent = (h.back().value & kPresent) == 0;
      if (answer.faulted && answer.value == (write ? 2U : 0U) && absent) return true;
    }
    // A global translation outlives flushes of its PCID, and serves every PCID (4.10.2.4).
    for (const std::uint64_t table : values_since(directory_, global_since_.at(slot))) {
      std::vector<std::uint64_t> global =
          values_since(leaves_.at(table).at(slot), global_since_.at(slot));
      std::erase_if(global, [](std::uint64_t e) { return (e & kGlobal) == 0; });
      if (fits(global, write, answer, tags)) return true;
    }
    return false;
  }

 private:
  static bool fits(const std::vector<std::uint64_t>& entries, bool write, Answer answer,
                   const std::array<std::uint32_t, kFrames>& tags) {
    return std::any_of(entries.begin(), entries.end(), [&](std::uint64_t e) {
      if ((e & kPresent) == 0) return false;
      const bool refused = write && (e & kWritable) == 0;
      if (answer.faulted) return refused && answer.value == 3;
      const std::uint64_t frame = ((e & 0xF'FFFF'F000) - SmallVm::kWindowPa) >> kPageShift;
      return !refused && answer.value == tags.at(frame);
    });
  }

  unsigned now_ = 0;
  std::array<std::array<History, kSlots>, 2> leaves_;
  History directory_;
  std::array<std::array<unsigned, kSlots>, kPcids> since_{}, structures_for_{};
  std::array<unsigned, kSlots> global_since_{};
  std::array<unsigned, kPcids> structures_since_{};
};

/// Assembles the guest's program.
class Assembler {
 public:
  void bytes(std::initializer_list<std::uint8_t> b) { code.insert(code.end(), b); }
  /// mov r64, imm64; `reg` 0..7.
  void load(unsigned reg, std::uint64_t value) {
    bytes({0x48, static_cast<std::uint8_t>(0xB8 + reg)});
    for (unsigned i = 0; i < 64; i += 8) code.push_back(static_cast<std::uint8_t>(value >> i));
  }
  /// lea r14, [rip + `over`]: where the fault handler goes on.
  void resume_after(std::uint8_t over) { bytes({0x4C, 0x8D, 0x35, over, 0, 0, 0}); }
  std::vector<std::uint8_t> code;
};

class TlbSemantics : public testing::TestWithParam<Subject> {
 protected:
  void SetUp() override {
    // The handler logs the error code, marked by rdi, and goes on at r14:
    // pop rax; or rax, rdi; mov [r15], rax; add r15, 8; mov [rsp], r14; iretq.
    vm.on_page_fault({0x58, 0x48, 0x09, 0xF8, 0x49, 0x89, 0x07, 0x49, 0x83, 0xC7, 0x08, 0x4C, 0x89,
                      0x34, 0x24, 0x48, 0xCF});
    for (unsigned f = 0; f < kFrames; ++f) {
      tags.at(f) = 0xF00 + f;
      vm.machine.store<std::uint32_t>(PA{SmallVm::kWindowPa + f * kPageSize}, tags.at(f));
    }
    directory = vm.machine.entry_address<SmallVm::Format>(vm.root, VA{SmallVm::kWindow}, 2);
    tables.at(0) = PA{vm.window_entry(0).value() & ~kPageMask};
    tables.at(1) = vm.machine.new_table();
  }
  [[nodiscard]] unsigned below(unsigned n) { return static_cast<unsigned>(random() % n); }
  [[nodiscard]] std::uint64_t random_leaf() {
    if (below(5) == 0) return 0;
    const std::uint64_t frame = SmallVm::kWindowPa + below(kFrames) * kPageSize;
    return frame | kPresent | (below(3) == 0 ? 0 : kWritable) | (below(3) == 0 ? kGlobal : 0) |
           (below(2) == 0 ? kUsed : 0);
  }
  void store(PA at, std::uint64_t value) {
    code.load(cpu::RDX, at.value());
    code.load(cpu::RAX, value);
    code.bytes({0x48, 0x89, 0x02});  // mov [rdx], rax
  }
  void edit_leaf() {
    const unsigned table = below(2);
    const unsigned slot = below(kSlots);
    const std::uint64_t value = random_leaf();
    store(tables.at(table) + slot * 8, value);
    later([=, this] { model.leaf(table, slot, value); });
  }
  void edit_directory() {
    const unsigned table = below(2);
    store(directory, tables.at(table).value() | 7);
    later([=, this] { model.directory(table); });
  }
  void invpcid(unsigned type, unsigned of, unsigned slot) {
    store(PA{kDescriptor}, of);
    store(PA{kDescriptor + 8}, SmallVm::kWindow + slot * kPageSize);
    code.load(cpu::RAX, type);
    code.load(cpu::RDX, kDescriptor);
    code.bytes({0x66, 0x0F, 0x38, 0x82, 0x02});
  }
  void flush() {
    const unsigned slot = below(kSlots);
    const unsigned of = below(kPcids);
    switch (below(8)) {
      case 0:
        invpcid(0, of, slot);
        later([=, this] { model.invpcid_address(of, slot); });
        break;
      case 1:
        invpcid(1, of, slot);
        later([=, this] { model.flush_pcid(of); });
        break;
      case 2:
        invpcid(2, 0, slot);
        later([this] { model.flush_all(); });
        break;
      case 3:
        invpcid(3, 0, slot);
        later([this] { model.flush_non_global(); });
        break;
      case 4:  // MOV to CR3 that flushes
        pcid = of;
        code.load(cpu::RAX, vm.root.value() | pcid);
        code.bytes({0x0F, 0x22, 0xD8});
        later([this, pcid = pcid] { model.flush_pcid(pcid); });
        break;
      case 5:  // ... and one that does not
        pcid = of;
        code.load(cpu::RAX, vm.root.value() | pcid | 1ULL << 63);
        code.bytes({0x0F, 0x22, 0xD8});
        break;
      case 6:  // CR4.PGE off and on
        code.bytes({0x0F, 0x20, 0xE0, 0x0F, 0xBA, 0xF0, 7, 0x0F, 0x22, 0xE0});
        code.bytes({0x0F, 0xBA, 0xE8, 7, 0x0F, 0x22, 0xE0});
        later([this] { model.flush_all(); });
        break;
      default:
        code.load(cpu::RBX, SmallVm::kWindow + slot * kPageSize);
        code.bytes({0x0F, 0x01, 0x3B});
        later([=, this, pcid = pcid] { model.invlpg(pcid, slot); });
    }
  }
  /// A load logs what it read; a store writes the tag back and logs it: both answer with the tag of
  /// the frame, the store by an exchange.
  void access(unsigned step) {
    const unsigned slot = below(kSlots);
    const bool write = below(3) == 0;
    code.load(cpu::RBX, SmallVm::kWindow + slot * kPageSize);
    code.bytes({0x31, 0xC0});  // xor eax, eax
    code.resume_after(static_cast<std::uint8_t>((write ? 4 : 2) + 3 + 4));
    if (write) {
      code.bytes({0xF0, 0x0F, 0xC1, 0x03});  // lock xadd [rbx], eax
    } else {
      code.bytes({0x8B, 0x03});  // mov eax, [rbx]
    }
    code.bytes({0x49, 0x89, 0x07, 0x49, 0x83, 0xC7, 0x08});  // mov [r15], rax; add r15, 8
    later([=, this, pcid = pcid] { check(step, pcid, slot, write); });
  }
  /// What the model does at this step, once the program has run.
  void later(std::function<void()> event) { events.push_back(std::move(event)); }

  void check(unsigned step, unsigned of, unsigned slot, bool write) {
    const auto word = vm.machine.load<std::uint64_t>(PA{kLog + 8 * logged++});
    const bool faulted = (word & kFaultMark) == kFaultMark;
    const CacheModel::Answer answer{faulted, word & ~kFaultMark};
    EXPECT_TRUE(model.permits(of, slot, write, answer, tags))
        << "seed " << seed << " step " << step << (write ? " store" : " load") << " page " << slot
        << " pcid " << of << std::hex << " answered " << word;
    if (faulted) model.invlpg(of, slot);
  }

  /// Tables of a new program, and nothing left of the last one's translations.
  void begin() {
    random.seed(seed);
    model = CacheModel{};
    code.code.clear();
    events.clear();
    pcid = logged = 0;
    for (unsigned table = 0; table < 2; ++table) {
      for (unsigned slot = 0; slot < kSlots; ++slot) {
        const std::uint64_t value = random_leaf();
        vm.machine.store(tables.at(table) + slot * 8, value);
        model.leaf(table, slot, value);
      }
    }
    vm.machine.store(directory, tables.at(0).value() | 7);
    model.directory(0);
    code.load(cpu::RAX, 2);  // INVPCID 2
    code.load(cpu::RDX, kDescriptor);
    code.bytes({0x66, 0x0F, 0x38, 0x82, 0x02});
  }
  void run() {
    machine::test::must(vm.machine.guest.write(machine::kIdentitySpace, PA{kProgram},
                                               std::as_bytes(std::span{code.code})));
    cpu::VcpuState state = vm.start_state();
    state.rip = kProgram;
    state.cr4 |= 1U << 17;  // PCIDE
    state.gpr[cpu::RDI] = kFaultMark;
    state.gpr[cpu::R15] = kLog;
    vm.core->set_state(state);
    ASSERT_EQ(vm.core->run().kind, engine::ExitKind::halt);
    ASSERT_EQ(vm.core->state().rip, kProgram + code.code.size());
  }

  SmallVm vm{GetParam().backend, true, 16, GetParam().engine};
  CacheModel model;
  Assembler code;
  std::vector<std::function<void()>> events;
  std::array<std::uint32_t, kFrames> tags{};
  std::array<PA, 2> tables{};
  PA directory{};
  unsigned pcid = 0, logged = 0, seed = 0;
  std::mt19937_64 random{1};
};

TEST_P(TlbSemantics, RandomGuestsSeeOnlyPermittedAnswers) {
  for (seed = 1; seed <= 12; ++seed) {
    begin();
    for (unsigned step = 0; step < kSteps; ++step) {
      later([this] { model.tick(); });
      const unsigned what = below(10);
      if (what < 6) {
        access(step);
      } else if (what < 8) {
        edit_leaf();
      } else if (what == 8) {
        flush();
      } else if (below(3) == 0) {
        edit_directory();
      }
    }
    code.bytes({0xF4});
    run();
    for (const auto& event : events) event();
    ASSERT_FALSE(HasFailure());
  }
}

INSTANTIATE_TEST_SUITE_P(Subjects, TlbSemantics, testing::ValuesIn(subjects(backends())),
                         [](const auto& instance) { return name_of(instance.param); });

}  // namespace
}  // namespace strata::conformance
