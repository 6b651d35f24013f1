// No guest access reaches memory of the VMM through a window: a guest that tries. It accesses every
// address at which this process has something, and every address that a window's arithmetic takes
// there, with every kind of instruction; and each time its own exception must come, with all that
// belongs to it, as under the interpreter.
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <set>

#include "engines/bt/translator.hpp"
#include "process_maps.hpp"
#include "small_vm.hpp"

namespace strata::bt::test {
namespace {

using conformance::SmallVm;
using Format = SmallVm::Format;
using Bytes = std::vector<std::uint8_t>;

/// The guest's address space: a few pages in each of the slices in which processes have things too.
constexpr std::uint64_t kCode = 0x4000'0000'0000, kSystem = 0xFFFF'8000'0000'0000;
constexpr std::uint64_t kTable = 0x7000'0000'0000, kLog = kTable + 0x10'0000;
constexpr std::uint64_t kData[] = {0x2000'0000'0000, 0x5500'0000'0000, 0x7F00'0000'0000, 0x3000,
                                   kSystem + (1ULL << 40) - kPageSize};
constexpr std::uint64_t kGdt = kSystem + 0x800, kIdt = kSystem + 0x1000, kTss = kSystem + 0x2000;
constexpr std::uint64_t kIstStack = kSystem + 0x4000, kStack = kSystem + 0x5000;
constexpr std::uint64_t kHandlers = kSystem + 0x6000;
constexpr std::uint64_t kSystemPages = 7, kTablePages = 16, kLogPages = 64, kCodePages = 512;
/// Where it all is in the guest's physical memory.
constexpr std::uint64_t kSystemPa = 0x10'0000, kTablePa = 0x20'0000, kLogPa = 0x30'0000,
                        kDataPa = 0x40'0000, kCodePa = 0x80'0000;

/// One way to access the address in RBX. Of the displacement extremes and of the indices it is the
/// base that is in RBX.
struct Form {
  std::string_view name;
  Bytes code;
};

const std::vector<Form>& forms() {
  static const std::vector<Form> all{
      {"load", {0x48, 0x8B, 0x03}},
      {"load of a byte", {0x8A, 0x03}},
      {"store", {0x48, 0x89, 0x03}},
      {"store of a constant", {0xC7, 0x03, 1, 2, 3, 4}},
      {"add to memory", {0x48, 0x01, 0x03}},
      {"inc", {0x48, 0xFF, 0x03}},
      {"lock add", {0xF0, 0x48, 0x01, 0x03}},
      {"xchg", {0x48, 0x87, 0x0B}},
      {"lock cmpxchg", {0xF0, 0x48, 0x0F, 0xB1, 0x0B}},
      {"lock cmpxchg16b", {0xF0, 0x48, 0x0F, 0xC7, 0x0B}},
      {"movups load", {0x0F, 0x10, 0x03}},
      {"movaps load", {0x0F, 0x28, 0x03}},
      {"movups store", {0x0F, 0x11, 0x03}},
      {"vmovups ymm load", {0xC5, 0xFC, 0x10, 0x03}},
      {"vmovups ymm store", {0xC5, 0xFC, 0x11, 0x03}},
      {"fld", {0xDD, 0x03}},
      {"farthest displacement up", {0x48, 0x8B, 0x83, 0xFF, 0xFF, 0xFF, 0x7F}},
      {"farthest displacement down", {0x48, 0x8B, 0x83, 0x00, 0x00, 0x00, 0x80}},
      {"farthest store up", {0x48, 0x89, 0x83, 0xF8, 0xFF, 0xFF, 0x7F}},
      {"farthest store down", {0x48, 0x89, 0x83, 0x00, 0x00, 0x00, 0x80}},
      // mov rcx, 0x1fffffffffffffff; mov rax, [rbx + rcx*8 + 8]
      {"index",
       {0x48, 0xB9, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x1F, 0x48, 0x8B, 0x44, 0xCB, 8}},
      // mov rcx, 0x7fffffff; mov [rbx + rcx*8 + 0x7fffffff], rax
      {"index and displacement",
       {0xB9, 0xFF, 0xFF, 0xFF, 0x7F, 0x48, 0x89, 0x84, 0xCB, 0xFF, 0xFF, 0xFF, 0x7F}},
      // mov ecx, 0xffffffff; mov rax, [rbx + rcx*8 + 0x40000000]
      {"near index, farthest up",
       {0xB9, 0xFF, 0xFF, 0xFF, 0xFF, 0x48, 0x8B, 0x84, 0xCB, 0x00, 0x00, 0x00, 0x40}},
      // mov ecx, 0x80000000; movsxd rcx, ecx; mov [rbx + rcx*8 - 0x40000000], rax
      {"near index, farthest down",
       {0xB9, 0, 0, 0, 0x80, 0x48, 0x63, 0xC9, 0x48, 0x89, 0x84, 0xCB, 0x00, 0x00, 0x00, 0xC0}},
      // mov ecx, 0xffffffff; mov rax, [rbx + 8]; mov [rbx + rcx*8 + 0x40000000], rcx
      {"near index in a group",
       {0xB9, 0xFF, 0xFF, 0xFF, 0xFF, 0x48, 0x8B, 0x43, 0x08, 0x48, 0x89, 0x8C, 0xCB, 0x00, 0x00,
        0x00, 0x40}},
      // mov ecx, ebx; mov rax, [rcx*8 + 0x3000]
      {"near index alone", {0x89, 0xD9, 0x48, 0x8B, 0x04, 0xCD, 0x00, 0x30, 0x00, 0x00}},
      // xor ecx, ecx; mov rax, [rcx + rbx*1 + 8]; add rcx, 8; mov rdx, [rcx + rbx*1 + 0x40000000]
      {"group of two registers",
       {0x31, 0xC9, 0x48, 0x8B, 0x44, 0x19, 0x08, 0x48, 0x83, 0xC1, 0x08, 0x48, 0x8B, 0x94, 0x19,
        0x00, 0x00, 0x00, 0x40}},
      // mov rcx, rbx; xor ebx, ebx; mov rax, [rcx*1 + 0]; the register is an index alone
      {"index alone", {0x48, 0x89, 0xD9, 0x48, 0x8B, 0x04, 0x0D, 0, 0, 0, 0}},
      {"RIP-relative up", {0x48, 0x8B, 0x05, 0x00, 0xC0, 0xFF, 0x7F}},
      {"RIP-relative, farthest up", {0x48, 0x8B, 0x05, 0xF0, 0xFF, 0xFF, 0x7F}},
      {"RIP-relative down", {0x48, 0x89, 0x05, 0x00, 0x00, 0x00, 0x80}},
      {"32-bit address", {0x67, 0x48, 0x8B, 0x03}},
      {"FS", {0x64, 0x48, 0x8B, 0x03}},
      {"GS store", {0x65, 0x48, 0x89, 0x03}},
      {"two of a group", {0x48, 0x8B, 0x4B, 0x08, 0x48, 0x8B, 0x93, 0, 0, 0, 0x3F}},
      {"group at its farthest", {0x8A, 0x8B, 0, 0, 0, 0xC0, 0x88, 0x8B, 0, 0, 0, 0x40}},
      // mov rsp, rbx; and then
      {"push", {0x48, 0x89, 0xDC, 0x50}},
      {"push twice", {0x48, 0x89, 0xDC, 0x50, 0x51}},
      {"pop", {0x48, 0x89, 0xDC, 0x58}},
      {"call", {0x48, 0x89, 0xDC, 0xE8, 0, 0, 0, 0}},
      {"ret", {0x48, 0x89, 0xDC, 0xC3}},
      {"stack frame", {0x48, 0x89, 0xDC, 0x48, 0x8B, 0x84, 0x24, 0xF8, 0xFF, 0xFF, 0x7F}},
      {"sub rsp, push", {0x48, 0x89, 0xDC, 0x48, 0x81, 0xEC, 0, 0, 1, 0, 0x50, 0x50}},
      {"push, sub rsp, push",
       {0x48, 0x89, 0xDC, 0x50, 0x48, 0x81, 0xEC, 0, 0x10, 0, 0, 0x31, 0xC0, 0x50}},
      {"pop, add rsp, pop",
       {0x48, 0x89, 0xDC, 0x58, 0x48, 0x81, 0xC4, 0, 0x10, 0, 0, 0x31, 0xC0, 0x59}},
      {"pop, pop, ret", {0x48, 0x89, 0xDC, 0x58, 0x59, 0xC3}},
      // mov rbp, rbx; leave
      {"leave", {0x48, 0x89, 0xDD, 0xC9}},
      {"push of memory", {0xFF, 0x33}},
      {"jump by memory", {0xFF, 0x23}},
      {"call by memory", {0xFF, 0x13}},
      {"bt of a string", {0x48, 0x0F, 0xA3, 0x03}},
      // mov rsi, rbx; lodsq, and mov rdi, rbx; stosq
      {"lods", {0x48, 0x89, 0xDE, 0x48, 0xAD}},
      {"stos", {0x48, 0x89, 0xDF, 0x48, 0xAB}},
  };
  return all;
}

void append(Bytes& to, const Bytes& more) { to.insert(to.end(), more.begin(), more.end()); }

void append32(Bytes& to, std::uint64_t value) {
  for (unsigned n = 0; n < 4; ++n) to.push_back(static_cast<std::uint8_t>(value >> 8 * n));
}

/// Takes each address of the table at R14, accesses it, and logs at R13 what came of it; R12 times.
/// Each access is an instruction of its own, so that not all of them are soon left to the
/// interpreter: eight addresses that are no window's business are enough for that.
constexpr std::uint64_t kRounds = 7;
struct Program {
  Bytes code;
  std::uint64_t copies = 0;
  explicit Program(const Form& form) {
    constexpr std::size_t kTail = 16, kRest = 26;
    while (code.size() + form.code.size() + kRest + kTail < kPageSize) {
      append(code, {0x49, 0x8B, 0x1E, 0x49, 0x83, 0xC6, 0x08});  // mov rbx, [r14]; add r14, 8
      append(code, {0x31, 0xC0, 0x4C, 0x8D, 0x3D});              // xor eax, eax; lea r15, [resume]
      append32(code, form.code.size());
      append(code, form.code);
      append(code, {0x4C, 0x89, 0xC4});                                // mov rsp, r8
      append(code, {0x49, 0x89, 0x45, 0x00, 0x49, 0x83, 0xC5, 0x08});  // mov [r13], rax; add r13, 8
      ++copies;
    }
    append(code, {0x49, 0xFF, 0xCC, 0x0F, 0x85});  // dec r12; jnz
    append32(code, 0 - (code.size() + 4));
    code.push_back(0xF4);
  }
};

/// Logs its vector, error code, CR2 and the RIP and RSP that it came from; goes on at R15.
Bytes handler(std::uint8_t vector) {
  return {0x49, 0xC7, 0x45, 0x00, vector, 0,    0,    0,                  // mov [r13], vector
          0x5A, 0x49, 0x89, 0x55, 0x08,                                   // pop, log
          0x0F, 0x20, 0xD2, 0x49, 0x89,   0x55, 0x10,                     // mov rdx, cr2; log
          0x48, 0x8B, 0x14, 0x24, 0x49,   0x89, 0x55, 0x18,               // [rsp]; log
          0x48, 0x8B, 0x54, 0x24, 0x18,   0x49, 0x89, 0x55, 0x20,         // [rsp + 24]; log
          0x49, 0x83, 0xC5, 0x28, 0x4C,   0x89, 0x3C, 0x24, 0x48, 0xCF};  // resume: iretq
}

/// A VM with that address space. `vm.core` is at rest between runs.
class Guest {
 public:
  explicit Guest(std::string_view engine) : vm{conformance::backends().front(), false, 16, engine} {
    if (engine != "interp") {
      // One whose table can be seen.
      vm.core->accelerate(nullptr);
      auto translator = std::make_unique<Translator>(*vm.core, 8U << 20);
      translator_ = translator.get();
      vm.core->accelerate(std::move(translator));
    }
    build_tables();
    build_descriptors();
  }

  /// Runs the form on the addresses. The log, and what is left in the guest's data.
  Bytes run(const Form& form, const std::vector<std::uint64_t>& targets) {
    const Program program{form};
    Bytes log;
    std::size_t at = 0;
    while (at < targets.size()) at += batch(program, targets, at, log);
    for (std::size_t n = 0; n < std::size(kData); ++n) append_page(log, kDataPa + n * kPageSize);
    return log;
  }

  /// Runs code that ends with HLT, where handlers go on, with SMAP in force. The log.
  Bytes run_with_smap(const Bytes& code, std::uint64_t rsp) {
    must_write(kCodePa, code);
    cpu::VcpuState s = start(kCode);
    s.cr4 |= cpu::cr4::SMAP;
    s.gpr[cpu::RSP] = rsp;
    s.gpr[cpu::R15] = kCode + code.size() - 1;
    vm.core->set_state(s);
    EXPECT_EQ(vm.core->run().kind, engine::ExitKind::halt);
    Bytes log;
    append_page(log, kLogPa);
    return log;
  }

  /// Makes translated code use every slice of its address space.
  void touch_everything() {
    (void)run({"load", {0x48, 0x8B, 0x03}}, {std::begin(kData), std::end(kData)});
  }

  [[nodiscard]] const SliceTable& slices() const { return translator_->slices(); }
  [[nodiscard]] engine::VcpuStats stats() const { return vm.core->stats(); }

 private:
  void map(std::uint64_t va, std::uint64_t pa, std::uint64_t pages, bool user = false) {
    for (std::uint64_t n = 0; n < pages; ++n) {
      vm.machine.map<Format>(root_, VA{va + n * kPageSize}, PA{pa + n * kPageSize}, {.user = user});
      vm.machine.store<std::uint64_t>(PA{pa + n * kPageSize}, 0);
    }
  }
  void build_tables() {
    root_ = vm.machine.new_table();
    map(kSystem, kSystemPa, kSystemPages);
    map(kTable, kTablePa, kTablePages);
    map(kLog, kLogPa, kLogPages);
    map(kCode, kCodePa, kCodePages);
    for (std::size_t n = 0; n < std::size(kData); ++n)
      map(kData[n], kDataPa + n * kPageSize, 1, true);
  }
  void build_descriptors() {
    const auto store = [this](std::uint64_t va, std::uint64_t value) {
      vm.machine.store(PA{va - kSystem + kSystemPa}, value);
    };
    store(kGdt + 8, 0x00AF'9B00'0000'FFFF);   // 64-bit code
    store(kGdt + 16, 0x00CF'9300'0000'FFFF);  // data
    store(kTss + 36, kIstStack);              // IST1 (SDM 3A figure 8-11)
    for (const std::uint8_t vector : {cpu::SS_FAULT, cpu::GP, cpu::PF}) {
      const std::uint64_t at = kHandlers + vector * 64U;
      // A 64-bit interrupt gate with IST 1 (SDM 3A figure 6-8).
      store(kIdt + vector * 16U, 0x0000'8E01'0008'0000 | (at & 0xFFFF) | (at >> 16 & 0xFFFF) << 48);
      store(kIdt + vector * 16U + 8, at >> 32);
      must_write(at - kSystem + kSystemPa, handler(vector));
    }
  }
  void must_write(std::uint64_t pa, const Bytes& bytes) {
    machine::test::must(
        vm.machine.guest.write(machine::kIdentitySpace, PA{pa}, std::as_bytes(std::span{bytes})));
  }

  [[nodiscard]] cpu::VcpuState start(std::uint64_t code) const {
    cpu::VcpuState s = vm.start_state();
    s.cr3 = root_.value();
    s.cr4 |= cpu::cr4::OSXSAVE;
    s.vector.xcr0 = 7;
    s.rip = code;
    s.gpr = {};
    s.gpr[cpu::RSP] = s.gpr[cpu::R8] = kStack;
    s.gpr[cpu::R12] = kRounds;
    s.gpr[cpu::R13] = kLog;
    s.gpr[cpu::R14] = kTable;
    s.gdtr = {kGdt, 23};
    s.idtr = {kIdt, 4095};
    s.tr.base = kTss;
    s.tr.limit = 103;
    s.tr.attributes = 0x8B;
    s.segment[cpu::FS].base = 0x1234'5678'9000;
    s.segment[cpu::GS].base = 0xFFFF'8000'0000'0000;
    return s;
  }

  /// As many of the targets from `at` on as a page of code takes. Returns how many.
  std::size_t batch(const Program& program, const std::vector<std::uint64_t>& targets,
                    std::size_t at, Bytes& log) {
    const std::uint64_t page = batches_++ % kCodePages;
    must_write(kCodePa + page * kPageSize, program.code);
    const std::uint64_t count = program.copies * kRounds;
    for (std::uint64_t n = 0; n < count; ++n) {
      // Where there are no more, the last one again.
      const std::uint64_t target = targets[std::min(at + n, targets.size() - 1)];
      vm.machine.store(PA{kTablePa + n * 8}, target);
    }
    vm.core->set_state(start(kCode + page * kPageSize));
    EXPECT_EQ(vm.core->run().kind, engine::ExitKind::halt);
    const cpu::VcpuState end = vm.core->state();
    append32(log, end.gpr[cpu::R13] - kLog);
    for (std::uint64_t pa = kLogPa; pa < kLogPa + (end.gpr[cpu::R13] - kLog); pa += kPageSize) {
      append_page(log, pa);
    }
    return count;
  }
  void append_page(Bytes& to, std::uint64_t pa) {
    const std::size_t at = to.size();
    to.resize(at + kPageSize);
    machine::test::must(vm.machine.guest.read(machine::kIdentitySpace, PA{pa},
                                              std::as_writable_bytes(std::span{to}.subspan(at))));
  }

  SmallVm vm;
  Translator* translator_ = nullptr;
  PA root_{};
  std::uint64_t batches_ = 0;
};

/// Memory of the VMM that nothing may change.
class Canaries {
 public:
  /// Wherever the host has room: right behind and before guard zones, and where they ought to be.
  explicit Canaries(const SliceTable& table) {
    add(0);
    for (std::size_t n = 0; n < table.size(); ++n) {
      if (table[n] == no_window(n)) continue;
      const std::uint64_t base = slice_base(table, n);
      constexpr std::uint64_t kGiB = 1ULL << 30;
      const std::uint64_t end = base + kSliceBytes;
      for (const std::uint64_t at :
           {end, end + kGiB, end + 2 * kGiB - kPageSize, end + kFarthestAccess, end + kGuardBytes,
            base - kPageSize, base - kGiB, base - 2 * kGiB, base - kFarthestAccess,
            base - kGuardBytes - kPageSize}) {
        add(at);
      }
    }
    EXPECT_FALSE(pages_.empty());
  }
  Canaries(const Canaries&) = delete;
  Canaries& operator=(const Canaries&) = delete;
  ~Canaries() {
    for (void* p : pages_) munmap(p, kPageSize);
  }
  [[nodiscard]] static std::uint64_t slice_base(const SliceTable& table, std::size_t n) {
    const auto high = static_cast<std::int64_t>(n << 56) >> 16;
    return table[n] + static_cast<std::uint64_t>(high);
  }
  [[nodiscard]] bool intact() const {
    for (const void* p : pages_) {
      const auto* bytes = static_cast<const std::uint8_t*>(p);
      for (std::size_t i = 0; i < kPageSize; ++i) {
        if (bytes[i] != kCanary) return false;
      }
    }
    return true;
  }

 private:
  static constexpr std::uint8_t kCanary = 0xC7;
  void add(std::uint64_t at) {
    void* wanted = reinterpret_cast<void*>(at);
    const int fixed = at == 0 ? 0 : MAP_FIXED_NOREPLACE;
    void* p =
        mmap(wanted, kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | fixed, -1, 0);
    if (p == MAP_FAILED) return;
    std::memset(p, kCanary, kPageSize);
    pages_.push_back(p);
  }
  std::vector<void*> pages_;
};

/// Of every mapping of the process its ends and its middle.
std::set<std::uint64_t> host_addresses() {
  std::set<std::uint64_t> all;
  for (const Mapping& m : process_maps()) {
    if (m.rights.starts_with("---")) continue;
    all.insert({m.begin, (m.begin + (m.end - m.begin) / 2) & ~15ULL, m.end - 64});
  }
  return all;
}

/// `host` itself, the addresses that the table's addends take there, and their aliases.
void add_targets(std::set<std::uint64_t>& all, const SliceTable& table, std::uint64_t host) {
  std::set<std::uint64_t> addends{0, no_window(0), no_window(0x7F), no_window(0xFF)};
  for (std::size_t n = 0; n < table.size(); ++n) {
    if (table[n] != no_window(n)) addends.insert(table[n]);
  }
  for (const std::uint64_t addend : addends) {
    const std::uint64_t va = host - addend;
    all.insert(va);
    for (const std::uint64_t k : {1ULL, 0x7FULL, 0x80ULL, 0xFFULL, 0x8000ULL, 0xFFFFULL}) {
      all.insert(va + (k << 48));
    }
  }
}

/// Addresses that are special by themselves: every slice's edges, and where canonical ones end.
void add_edges(std::set<std::uint64_t>& all) {
  for (std::uint64_t k = 0; k < kSlices; ++k) {
    const std::uint64_t high = k < 0x80 ? 0 : 0xFFFFULL << 48;
    const std::uint64_t begin = high | k << kSliceShift;
    all.insert({begin, begin - 16, begin + kSliceBytes - (1ULL << 31)});
    all.insert({begin ^ 1ULL << 48, begin ^ 0xFFFFULL << 48, begin ^ 1ULL << 63});
  }
}

std::vector<std::uint64_t> targets_for(const SliceTable& table) {
  std::set<std::uint64_t> all;
  const std::set<std::uint64_t> hosts = host_addresses();
  for (const std::uint64_t host : hosts) add_targets(all, table, host);
  // One host address, by every k<<40.
  for (std::uint64_t k = 0; k < kSlices; ++k) all.insert(*hosts.rbegin() + (k << kSliceShift));
  add_edges(all);
  return {all.begin(), all.end()};
}

class WindowSafety : public ::testing::TestWithParam<std::size_t> {};

TEST_P(WindowSafety, GuestExceptionsComeInsteadOfTheVmmsMemory) {
  const Form& form = forms()[GetParam()];
  Guest windowed{"bt_windows"};
  Guest reference{"interp"};
  windowed.touch_everything();
  reference.touch_everything();
  if (windowed.stats().window_fills == 0) GTEST_SKIP() << "this host has no windows";
  const Canaries canaries{windowed.slices()};
  const std::vector<std::uint64_t> targets = targets_for(windowed.slices());
  const std::uint64_t fills = windowed.stats().window_fills;
  const Bytes got = windowed.run(form, targets);
  EXPECT_TRUE(canaries.intact()) << form.name;
  const Bytes wanted = reference.run(form, targets);
  EXPECT_TRUE(got == wanted) << form.name << ": the guest can tell, with " << targets.size()
                             << " addresses";
  EXPECT_GT(windowed.stats().window_fills, fills) << "windows were in use";
  EXPECT_GT(reference.stats().exceptions, targets.size() / 2) << "the addresses are bad ones";
}

INSTANTIATE_TEST_SUITE_P(Forms, WindowSafety, ::testing::Range(std::size_t{0}, forms().size()));

TEST(WindowSafety, NothingButTheGuestsPagesIsAccessibleInSlicesAndGuardZones) {
  Guest guest{"bt_windows"};
  guest.touch_everything();
  if (guest.stats().window_fills == 0) GTEST_SKIP() << "this host has no windows";
  const SliceTable& table = guest.slices();
  std::size_t used = 0;
  for (std::size_t n = 0; n < table.size(); ++n) {
    if (table[n] == no_window(n)) continue;
    ++used;
    const std::uint64_t base = Canaries::slice_base(table, n);
    EXPECT_TRUE(all_reserved(base - kGuardBytes, base + kSliceBytes + kGuardBytes));
    const std::uint64_t most = kSystemPages + kTablePages + kLogPages + kCodePages;
    const std::uint64_t bytes =
        accessible_bytes(base - kGuardBytes, base + kSliceBytes + kGuardBytes);
    EXPECT_GT(bytes, 0U);
    EXPECT_LE(bytes, most * kPageSize);
    EXPECT_EQ(accessible_bytes(base - kGuardBytes, base), 0U);
    EXPECT_EQ(accessible_bytes(base + kSliceBytes, base + kSliceBytes + kGuardBytes), 0U);
  }
  EXPECT_GE(used, std::size(kData));
}

/// An access anywhere in a page makes the page part of the window.
TEST(WindowSafety, AccessesInTheMiddleOfPagesGoThroughWindows) {
  Guest guest{"bt_windows"};
  guest.touch_everything();
  if (guest.stats().window_fills == 0) GTEST_SKIP() << "this host has no windows";
  const std::uint64_t before = guest.stats().interpreted;
  (void)guest.run({"load", {0x48, 0x8B, 0x03}}, std::vector<std::uint64_t>(1000, kData[3] + 0x128));
  EXPECT_LT(guest.stats().interpreted, before + 100);
}

/// Instructions that a window is not for check against a TLB: that of the rights of the moment.
TEST(WindowSafety, CodeIsNotSharedBetweenRights) {
  // stac; 3: pushf; pop rax; clac; jmp 3; hlt. SMAP refuses the second PUSHF (SDM 3A 4.6.1).
  const Bytes code{0x0F, 0x01, 0xCB, 0x9C, 0x58, 0x0F, 0x01, 0xCA, 0xEB, 0xF9, 0xF4};
  Guest windowed{"bt_windows"};
  Guest reference{"interp"};
  const Bytes got = windowed.run_with_smap(code, kData[1] + 0x800);
  EXPECT_TRUE(got == reference.run_with_smap(code, kData[1] + 0x800));
  EXPECT_EQ(got[0], cpu::PF);
  EXPECT_EQ(got[8], pf::kWrite | pf::kPresent);
}

/// Whatever bits 48 to 63 are: where there is no window no address of a process comes out.
TEST(WindowSafety, WithoutAWindowNoSumIsAnAddressOfTheProcess) {
  for (std::uint64_t high = 0; high < 0x10000; ++high) {
    for (std::uint64_t k = 0; k < kSlices; ++k) {
      for (const std::uint64_t low : {std::uint64_t{0}, kSliceBytes - 1}) {
        const std::uint64_t va = high << 48 | k << kSliceShift | low;
        const std::uint64_t sum = va + no_window(k);
        // With every displacement, and the longest access on top.
        ASSERT_NE((sum - (1ULL << 31)) >> 47 & 1, 0U) << std::hex << va;
        ASSERT_NE((sum + (1ULL << 31) + 64) >> 47 & 1, 0U) << std::hex << va;
      }
    }
  }
}

}  // namespace
}  // namespace strata::bt::test
