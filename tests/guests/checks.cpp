// What the guest tests of the machine below it. Each check leaves the machine as it found it.
#include "checks.hpp"

#include <cstddef>

#include "boot/machine_layout.hpp"
#include "console.hpp"
#include "cpu.hpp"
#include "paging.hpp"
#include "smp.hpp"
#include "traps.hpp"

namespace guest {
namespace {

constexpr std::uint64_t kArea = 0x4000000000;        // each check uses its own 1 GiB from here
constexpr std::uint64_t kHigh = 0xFFFF900000000000;  // the upper half
constexpr std::uint64_t kUserArea = 0x10000000000;   // behind a PML4 entry open to ring 3
constexpr std::uint64_t kGiB = 1ULL << 30;
constexpr std::uint64_t kPfVector = 14;
constexpr std::uint64_t kWp = 1ULL << 16;

bool cpuid_works() {
  const bool vendor = cpuid(0).ebx != 0;
  const bool long_mode = (cpuid(0x80000001).edx >> 29 & 1) != 0;
  return vendor && long_mode && cpuid(0).eax >= 1;
}

bool tsc_advances() {
  const std::uint64_t first = rdtsc();
  for (unsigned i = 0; i < 1000; ++i) asm volatile("pause");
  return rdtsc() > first;
}

bool sse_works() { return sse_sum(40, 2) == 42; }

bool segment_bases() {
  constexpr std::uint32_t kFsBase = 0xC0000100, kGsBase = 0xC0000101, kKernelGsBase = 0xC0000102;
  const std::uint64_t page = allocate_page();
  word(page) = 0x1111;
  word(page + 8) = 0x2222;
  wrmsr(kFsBase, page);
  wrmsr(kGsBase, page);
  wrmsr(kKernelGsBase, page + 8);
  std::uint64_t fs = 0;
  std::uint64_t gs = 0;
  std::uint64_t swapped = 0;
  asm volatile("mov %%fs:0, %0; mov %%gs:0, %1; swapgs; mov %%gs:0, %2; swapgs"
               : "=&r"(fs), "=&r"(gs), "=&r"(swapped));
  return fs == 0x1111 && gs == 0x1111 && swapped == 0x2222;
}

bool exceptions() {
  expect_trap();
  probe_divide();
  const bool divide = take_trap().is(0, 0);
  expect_trap();
  probe_breakpoint();
  const bool breakpoint = take_trap().is(3, 0);
  expect_trap();
  probe_undefined();
  const bool undefined = take_trap().is(6, 0);
  expect_trap();
  probe_general();
  const bool general = take_trap().is(13, 0);
  return divide && breakpoint && undefined && general;
}

bool maps_pages() {
  const std::uint64_t frame = allocate_page();
  map(kArea, frame, kPresent | kWritable);
  map(kHigh, frame, kPresent | kWritable);
  word(kArea + 8) = 0xABCD;
  return word(frame + 8) == 0xABCD && word(kHigh + 8) == 0xABCD;
}

bool remaps_with_invlpg() {
  const std::uint64_t first = allocate_page();
  const std::uint64_t second = allocate_page();
  word(first) = 1;
  word(second) = 2;
  map(kArea + kGiB, first, kPresent);
  const bool before = word(kArea + kGiB) == 1;
  entry_of(kArea + kGiB) = second | kPresent;
  invlpg(kArea + kGiB);
  return before && word(kArea + kGiB) == 2;
}

bool remaps_with_cr3() {
  constexpr std::uint64_t kAddress = kArea + kGiB + 16 * kPage;
  const std::uint64_t first = allocate_page();
  const std::uint64_t second = allocate_page();
  word(first) = 1;
  word(second) = 2;
  map(kAddress, first, kPresent);
  const bool before = word(kAddress) == 1;
  entry_of(kAddress) = second | kPresent;
  write_cr3(read_cr3());
  return before && word(kAddress) == 2;
}

/// A table is replaced above the leaf: paging-structure caches must follow INVLPG.
bool replaces_tables() {
  constexpr std::uint64_t kAddress = kArea + 2 * kGiB;
  map(kAddress, allocate_page(), kPresent | kWritable);
  word(kAddress) = 1;
  const std::uint64_t table = allocate_page();
  const std::uint64_t frame = allocate_page();
  word(frame) = 3;
  word(table) = frame | kPresent | kWritable;
  large_entry_of(kAddress) = table | kPresent | kWritable;
  invlpg(kAddress);
  return word(kAddress) == 3;
}

bool faults_not_present() {
  constexpr std::uint64_t kAddress = kArea + 3 * kGiB + 0x123;
  expect_trap();
  (void)probe_read(kAddress);
  const Trap read = take_trap();
  expect_trap();
  probe_write(kAddress);
  const Trap write = take_trap();
  return read.is(kPfVector, 0) && read.cr2 == kAddress && write.is(kPfVector, 2) &&
         write.cr2 == kAddress;
}

bool faults_across_pages() {
  constexpr std::uint64_t kAddress = kArea + 4 * kGiB;
  map(kAddress, allocate_page(), kPresent | kWritable);
  entry_of(kAddress + kPage) = 0;
  expect_trap();
  (void)probe_read8(kAddress + kPage - 4);
  const Trap trap = take_trap();
  return trap.is(kPfVector, 0) && trap.cr2 == kAddress + kPage;
}

bool copies_until_fault() {
  constexpr std::uint64_t kAddress = kArea + 5 * kGiB;
  const std::uint64_t from = allocate_page();
  map(kAddress, allocate_page(), kPresent | kWritable);
  entry_of(kAddress + kPage) = 0;
  word(from) = 0x1122334455667788;
  expect_trap();
  const std::uint64_t left = probe_copy(kAddress + kPage - 8, from, 64);
  const Trap trap = take_trap();
  return trap.is(kPfVector, 2) && trap.cr2 == kAddress + kPage && left == 56 &&
         word(kAddress + kPage - 8) == 0x1122334455667788;
}

bool write_protect() {
  constexpr std::uint64_t kAddress = kArea + 6 * kGiB;
  map(kAddress, allocate_page(), kPresent);
  expect_trap();
  probe_write(kAddress);
  const Trap trap = take_trap();
  write_cr0(read_cr0() & ~kWp);
  expect_trap();
  probe_write(kAddress);
  const Trap none = take_trap();
  write_cr0(read_cr0() | kWp);
  expect_trap();
  probe_write(kAddress);
  const Trap again = take_trap();
  return trap.is(kPfVector, 3) && trap.cr2 == kAddress && !none.happened && again.is(kPfVector, 3);
}

bool no_execute() {
  constexpr std::uint64_t kAddress = kArea + 7 * kGiB;
  const std::uint64_t frame = allocate_page();
  word(frame) = 0xC3;  // ret
  map(kAddress, frame, kPresent | kNoExecute);
  expect_trap();
  (void)probe_execute(kAddress);
  const Trap trap = take_trap();
  map(kAddress, frame, kPresent);
  expect_trap();
  (void)probe_execute(kAddress);
  return trap.is(kPfVector, 0x11) && trap.cr2 == kAddress && !take_trap().happened;
}

bool reserved_bits() {
  const unsigned bits = cpuid(0x80000008).eax & 0xFF;
  if (bits >= 52) return true;  // no bit of an address is reserved
  constexpr std::uint64_t kAddress = kArea + 8 * kGiB;
  map(kAddress, allocate_page() | 1ULL << bits, kPresent);
  expect_trap();
  (void)probe_read(kAddress);
  const Trap trap = take_trap();
  entry_of(kAddress) = 0;
  // SDM 3A 4.7: RSVD comes with P only. QEMU 7.2's TCG leaves P out.
  const bool tcg = cpuid(0x40000000).ebx == 0x54474354;
  return trap.is(kPfVector, 9) || (tcg && trap.is(kPfVector, 8));
}

bool accessed_and_dirty() {
  constexpr std::uint64_t kAddress = kArea + 9 * kGiB;
  map(kAddress, allocate_page(), kPresent | kWritable);
  volatile std::uint64_t& entry = entry_of(kAddress);
  const bool clean = (entry & (kAccessed | kDirty)) == 0;
  (void)probe_read(kAddress);
  const bool read = (entry & (kAccessed | kDirty)) == kAccessed;
  probe_write(kAddress);
  const bool written = (entry & (kAccessed | kDirty)) == (kAccessed | kDirty);
  // Taken away again: the processor must set them anew once its memory of the page is gone.
  entry = entry & ~(kAccessed | kDirty);
  invlpg(kAddress);
  probe_write(kAddress);
  const bool anew = (entry & (kAccessed | kDirty)) == (kAccessed | kDirty);
  return clean && read && written && anew;
}

bool large_pages() {
  constexpr std::uint64_t kAddress = kArea + 10 * kGiB;
  static std::uint64_t frame = 0;  // the checks can run again, large pages are few
  if (frame == 0) frame = allocate_large_page();
  volatile std::uint64_t& entry = large_entry_of(kAddress);
  entry = frame | kPresent | kLarge;
  write_cr3(read_cr3());
  word(frame + 0x123000) = 77;
  const bool reads = word(kAddress + 0x123000) == 77;
  expect_trap();
  probe_write(kAddress + 0x1FFFFF);
  const bool protects = take_trap().is(kPfVector, 3);
  entry = frame | kPresent | kWritable | kLarge;
  invlpg(kAddress);
  probe_write(kAddress + 0x1FFFFF);
  const bool dirty = (entry & (kAccessed | kDirty)) == (kAccessed | kDirty);
  entry = 0;
  invlpg(kAddress);
  expect_trap();
  (void)probe_read(kAddress + 0x123000);
  return reads && protects && dirty && take_trap().is(kPfVector, 0);
}

bool demand_pages() {
  static std::uint64_t round = 0;
  const std::uint64_t base = kArea + (11 + round++ % 64) * kGiB;
  constexpr std::uint64_t kPages = 64;
  set_demand_region(base, kPages * kPage);
  const std::uint64_t before = demand_faults();
  for (std::uint64_t i = 0; i < kPages; ++i) word(base + i * kPage) = i * i;
  std::uint64_t sum = 0;
  for (std::uint64_t i = 0; i < kPages; ++i) sum += word(base + i * kPage);
  set_demand_region(0, 0);
  return sum == 85344 && demand_faults() - before == kPages;
}

/// `mov eax, imm32; ret`, changed through another mapping of the page.
bool modified_code() {
  constexpr std::uint64_t kAddress = kArea + 100 * kGiB;
  const std::uint64_t frame = allocate_page();
  map(kAddress, frame, kPresent);
  bool good = true;
  for (std::uint64_t value = 1; value <= 20; ++value) {
    word(frame) = 0x0000C300000000B8 | value << 8;
    (void)cpuid(0);  // serialises: cross-modifying code asks for it
    good = good && (probe_execute(kAddress) & 0xFFFFFFFF) == value;
  }
  return good;
}

/// Runs [code, end) in ring 3 on pages of its own.
std::uint64_t run_user(const char* code, const char* end) {
  static std::uint64_t frame = 0;
  static std::uint64_t stack = 0;
  if (frame == 0) frame = allocate_page();
  if (stack == 0) stack = allocate_page();
  const auto bytes = static_cast<std::size_t>(end - code);
  for (std::size_t i = 0; i < bytes; ++i) {
    *reinterpret_cast<volatile char*>(frame + i) = code[i];
  }
  map(kUserArea, frame, kPresent | kUser);
  map(kUserArea + kPage, stack, kPresent | kWritable | kUser | kNoExecute);
  return enter_user(kUserArea, kUserArea + 2 * kPage);
}

bool user_mode() { return run_user(user_syscall, user_syscall_end) == 42; }

bool user_interrupt() { return run_user(user_int80, user_int80_end) == 0x1235; }

bool user_is_kept_out() {
  expect_trap();
  (void)run_user(user_read, user_read_end);
  const Trap read = take_trap();
  expect_trap();
  (void)run_user(user_privileged, user_privileged_end);
  const Trap privileged = take_trap();
  return read.is(kPfVector, 5) && read.cr2 == 0x100000 && read.from_user && privileged.is(13, 0) &&
         privileged.from_user;
}

bool smep_and_smap() {
  constexpr std::uint64_t kSmep = 1ULL << 20, kSmap = 1ULL << 21, kAddress = kUserArea + 8 * kPage;
  const std::uint32_t features = cpuid(7).ebx;
  const std::uint64_t frame = allocate_page();
  word(frame) = 0xC3;  // ret
  map(kAddress, frame, kPresent | kWritable | kUser);
  const std::uint64_t cr4 = read_cr4();
  bool good = true;
  if ((features >> 7 & 1) != 0) {
    write_cr4(cr4 | kSmep);
    expect_trap();
    (void)probe_execute(kAddress);
    good = good && take_trap().is(kPfVector, 0x11);
  }
  if ((features >> 20 & 1) != 0) {
    write_cr4(cr4 | kSmap);
    expect_trap();
    (void)probe_read(kAddress);
    good = good && take_trap().is(kPfVector, 1);
    expect_trap();
    asm volatile("stac");
    (void)probe_read(kAddress);
    asm volatile("clac");
    good = good && !take_trap().happened;
  }
  write_cr4(cr4);
  expect_trap();
  (void)probe_execute(kAddress);
  return good && !take_trap().happened;
}

volatile std::uint32_t& apic(std::uint64_t offset) {
  return *reinterpret_cast<volatile std::uint32_t*>(strata::boot::layout::kLocalApicBase + offset);
}

bool apic_timer() {
  constexpr std::uint64_t kSpurious = 0xF0, kTimer = 0x320, kInitial = 0x380, kDivide = 0x3E0;
  constexpr std::uint32_t kEnable = 1U << 8, kMasked = 1U << 16;
  out8(0x21, 0xFF);  // the 8259s, if there are any, keep quiet
  out8(0xA1, 0xFF);
  apic(kSpurious) = kEnable | 0xFF;
  apic(kDivide) = 0xB;          // by one
  apic(kTimer) = kTimerVector;  // one shot
  const std::uint64_t before = timer_ticks();
  apic(kInitial) = 100000;
  while (timer_ticks() == before) wait_for_interrupt();
  apic(kTimer) = kTimerVector | kMasked;
  return timer_ticks() == before + 1;
}

struct Check {
  const char* name;
  bool (*run)();
};

constexpr Check kChecks[] = {
    {"cpuid", cpuid_works},
    {"tsc advances", tsc_advances},
    {"sse", sse_works},
    {"segment bases", segment_bases},
    {"exceptions", exceptions},
    {"maps pages", maps_pages},
    {"remaps with invlpg", remaps_with_invlpg},
    {"remaps with cr3", remaps_with_cr3},
    {"replaces tables", replaces_tables},
    {"fault: not present", faults_not_present},
    {"fault: across pages", faults_across_pages},
    {"fault: string copy", copies_until_fault},
    {"write protect", write_protect},
    {"no execute", no_execute},
    {"reserved bits", reserved_bits},
    {"accessed and dirty", accessed_and_dirty},
    {"2 MiB pages", large_pages},
    {"demand paging", demand_pages},
    {"modified code", modified_code},
    {"user mode", user_mode},
    {"user interrupt", user_interrupt},
    {"user is kept out", user_is_kept_out},
    {"smep and smap", smep_and_smap},
    {"apic timer", apic_timer},
};

/// Whether `words` has the word skip=NAME.
bool is_skipped(const char* words, const char* name) {
  constexpr char kSkip[] = "skip=";
  while (*words != '\0') {
    if (starts_with(words, kSkip)) {
      const char* w = words + sizeof kSkip - 1;
      const char* n = name;
      for (; *n != '\0' && *w == (*n == ' ' ? '-' : *n); ++n) ++w;
      if (*n == '\0' && (*w == '\0' || *w == ' ')) return true;
    }
    while (*words != '\0' && *words != ' ') ++words;
    while (*words == ' ') ++words;
  }
  return false;
}

}  // namespace

unsigned run_checks(const char* words) {
  constexpr std::uint32_t kStar = 0xC0000081, kLstar = 0xC0000082, kSfmask = 0xC0000084;
  wrmsr(kStar, 0x0018000800000000);  // SYSRET from 18h, SYSCALL to 08h
  wrmsr(kLstar, reinterpret_cast<std::uint64_t>(&syscall_entry));
  wrmsr(kSfmask, 0x600);  // interrupts and direction
  unsigned number = 0;
  unsigned failed = 0;
  for (const Check& check : kChecks) {
    if (is_skipped(words, check.name)) {
      print("skipped: ");
      print(check.name);
      print("\n");
      continue;
    }
    const bool good = check.run();
    print(good ? "ok " : "FAIL ");
    print_number(++number);
    print(" ");
    print(check.name);
    print("\n");
    failed += good ? 0 : 1;
  }
  if (cpu_count() > 1) {
    const SmpResult smp = run_smp_checks(number + 1);
    number += smp.run;
    failed += smp.failed;
  }
  print("checks: ");
  print_number(number - failed);
  print(" ok, ");
  print_number(failed);
  print(" failed\n");
  return failed;
}

}  // namespace guest
