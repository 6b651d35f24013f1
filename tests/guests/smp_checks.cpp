// What several processors do to each other.
#include "console.hpp"
#include "cpu.hpp"
#include "paging.hpp"
#include "smp.hpp"

namespace guest {
namespace {

constexpr std::uint64_t kArea = 0x5000000000;
constexpr std::uint32_t kFixed = 0x4000, kLowest = 0x4100, kNmi = 0x4400, kLogical = 1U << 11,
                        kSelf = 1U << 18, kAll = 2U << 18, kOthers = 3U << 18;

unsigned online = 1;

/// Runs `job` on all processors, this one included.
void everywhere(Job job) {
  for (unsigned cpu = 1; cpu < online; ++cpu) begin(cpu, job);
  job(0);
  for (unsigned cpu = 1; cpu < online; ++cpu) finish(cpu);
}

/// Waits, asleep where nothing has come yet, until `done`.
template <class Done>
void sleep_until(Done done) {
  asm volatile("cli");
  while (!done()) asm volatile("sti; hlt; cli" : : : "memory");
}
void spin_until_equal(volatile std::uint64_t& value, std::uint64_t wanted) {
  while (value != wanted) asm volatile("pause");
}

bool starts_all() {
  const unsigned count = cpu_count();
  enable_apic();
  online = 1;
  for (unsigned cpu = 1; cpu < count; ++cpu) {
    if (!start_cpu(cpu)) return false;
    ++online;
  }
  return online == count && this_cpu() == 0;
}

bool starts_again() {
  const std::uint64_t before = cpus[1].starts;
  return start_cpu(1) && cpus[1].starts == before + 1;
}

/// Both ends sleep between the IPIs: a lost wake-up hangs.
bool ping_pong() {
  const std::uint64_t before = cpus[1].pings;
  for (std::uint64_t round = 1; round <= 300; ++round) {
    const std::uint64_t wanted = cpus[0].pongs + 1;
    send_ipi(1, kFixed | kPingVector);
    sleep_until([wanted] { return cpus[0].pongs == wanted; });
    if (cpus[1].pings != before + round) return false;
  }
  return true;
}

std::uint64_t total_counts() {
  std::uint64_t sum = 0;
  for (unsigned cpu = 0; cpu < online; ++cpu) sum += cpus[cpu].counts;
  return sum;
}

/// Interrupts of one kind arrive at exactly as many processors as they are for.
bool arrives_at(std::uint32_t destination, std::uint32_t low, unsigned processors) {
  const std::uint64_t wanted = total_counts() + processors;
  send_ipi(destination, low | kCountVector);
  asm volatile("sti");
  while (total_counts() < wanted) asm volatile("pause");
  for (unsigned i = 0; i < 1000; ++i) asm volatile("pause");
  asm volatile("cli");
  return total_counts() == wanted;
}

void set_logical_id(unsigned cpu) {
  constexpr std::uint64_t kLdr = 0xFEE000D0, kDfr = 0xFEE000E0;
  *reinterpret_cast<volatile std::uint32_t*>(kDfr) = 0xFFFFFFFF;  // flat
  *reinterpret_cast<volatile std::uint32_t*>(kLdr) = 1U << (24 + cpu);
}

bool kinds_of_ipi() {
  everywhere(set_logical_id);
  const std::uint32_t all = (1U << online) - 1;
  return arrives_at(0, kFixed | kOthers, online - 1) && arrives_at(0, kFixed | kAll, online) &&
         arrives_at(0, kFixed | kSelf, 1) && arrives_at(1, kFixed, 1) &&
         arrives_at(0xFF, kFixed, online) && arrives_at(2, kFixed | kLogical, 1) &&
         arrives_at(all, kFixed | kLogical, online) && arrives_at(all, kLowest | kLogical, 1);
}

bool nmi() {
  const std::uint64_t before = cpus[1].nmis;
  send_ipi(1, kNmi);
  spin_until_equal(cpus[1].nmis, before + 1);
  return true;
}

volatile std::uint64_t counter;
alignas(64) volatile char split_space[128];

bool locked_counter() {
  counter = 0;
  everywhere([](unsigned) {
    for (unsigned i = 0; i < 20000; ++i) asm volatile("lock incq %0" : "+m"(counter));
  });
  return counter == 20000ULL * online;
}

/// The operand lies across two cache lines.
bool split_locks() {
  auto* const operand =
      reinterpret_cast<volatile std::uint64_t*>(reinterpret_cast<std::uintptr_t>(split_space) + 60);
  *operand = 0;
  everywhere([](unsigned) {
    auto* const mine = reinterpret_cast<volatile std::uint64_t*>(
        reinterpret_cast<std::uintptr_t>(split_space) + 60);
    for (unsigned i = 0; i < 300; ++i) asm volatile("lock addq $1, %0" : "+m"(*mine));
  });
  return *operand == 300ULL * online;
}

/// The others read through a mapping that is changed under them. Once all have acknowledged the
/// flush, nobody may see the old page.
volatile std::uint64_t expected_value;
volatile bool shootdown_over, saw_old;
volatile std::uint64_t wrong;

void read_mapping(unsigned) {
  while (!shootdown_over) {
    const std::uint64_t before = expected_value;
    const std::uint64_t seen = word(kArea);
    // `before` was announced after the flush that made its page the only one.
    if (seen < before) wrong = wrong + 1;
  }
}

bool shootdown() {
  const std::uint64_t frames[2] = {allocate_page(), allocate_page()};
  word(frames[0]) = 0;
  map(kArea, frames[0], kPresent | kWritable);
  expected_value = 0;
  wrong = 0;
  shootdown_over = false;
  for (unsigned cpu = 1; cpu < online; ++cpu) begin(cpu, read_mapping);
  for (std::uint64_t round = 1; round <= 100; ++round) {
    word(frames[round % 2]) = round;
    std::uint64_t flushes[kMaxCpus];
    for (unsigned cpu = 1; cpu < online; ++cpu) flushes[cpu] = cpus[cpu].flushes;
    map(kArea, frames[round % 2], kPresent | kWritable);
    send_ipi(0, kFixed | kOthers | kFlushVector);
    for (unsigned cpu = 1; cpu < online; ++cpu)
      spin_until_equal(cpus[cpu].flushes, flushes[cpu] + 1);
    expected_value = round;
  }
  shootdown_over = true;
  for (unsigned cpu = 1; cpu < online; ++cpu) finish(cpu);
  return wrong == 0;
}

/// SDM 3A 8.1.3: the code is changed, a flag is set; who sees the flag serializes and runs it.
volatile std::uint32_t code_round;
volatile std::uint64_t code_acks;
constexpr std::uint32_t kCodeRounds = 100;

void run_changing(unsigned) {
  for (std::uint32_t round = 1; round <= kCodeRounds; ++round) {
    while (code_round < round) asm volatile("pause");
    (void)cpuid(0);
    if (changing_function() != round) wrong = wrong + 1;
    asm volatile("lock incq %0" : "+m"(code_acks));
  }
}

bool cross_modifying_code() {
  // The image's code is mapped by the 2 MiB pages of start.S, which are writable.
  auto* const immediate = reinterpret_cast<volatile std::uint32_t*>(
      reinterpret_cast<std::uintptr_t>(&changing_function) + 1);
  code_round = 0;
  code_acks = 0;
  wrong = 0;
  for (unsigned cpu = 1; cpu < online; ++cpu) begin(cpu, run_changing);
  for (std::uint32_t round = 1; round <= kCodeRounds; ++round) {
    *immediate = round;
    code_round = round;
    spin_until_equal(code_acks, std::uint64_t{round} * (online - 1));
  }
  for (unsigned cpu = 1; cpu < online; ++cpu) finish(cpu);
  return wrong == 0;
}

/// A and D bits set by walkers on other processors must not undo what is written to the entry's
/// other bits meanwhile: 52 to 58 are software's, and count here.
volatile bool race_over;

void dirty_page(unsigned) {
  while (!race_over) {
    invlpg(kArea + kPage);
    word(kArea + kPage) = 1;
  }
}

bool accessed_dirty_race() {
  constexpr std::uint64_t kStep = 1ULL << 52, kSoftware = 0x7FULL << 52;
  const std::uint64_t frame = allocate_page();
  map(kArea + kPage, frame, kPresent | kWritable);
  volatile std::uint64_t& entry = entry_of(kArea + kPage);
  race_over = false;
  for (unsigned cpu = 1; cpu < online; ++cpu) begin(cpu, dirty_page);
  std::uint64_t lost = 0;
  for (unsigned round = 1; round <= 2000; ++round) {
    asm volatile("lock andq %1, %0" : "+m"(entry) : "r"(~(kAccessed | kDirty)));
    const bool wraps = (entry & kSoftware) == kSoftware;
    const std::uint64_t before = wraps ? 0 : entry & kSoftware;
    if (wraps) asm volatile("lock andq %1, %0" : "+m"(entry) : "r"(~kSoftware));
    asm volatile("lock addq %1, %0" : "+m"(entry) : "r"(kStep));
    const std::uint64_t now = entry;
    if ((now & kSoftware) != before + kStep) ++lost;
    // Now and then until a walker has been here, so that there is a race whatever the host does.
    while (round % 100 == 0 && (entry & kDirty) == 0) asm volatile("pause");
    if ((now & 0x000FFFFFFFFFF000ULL) != frame) ++lost;
  }
  race_over = true;
  for (unsigned cpu = 1; cpu < online; ++cpu) finish(cpu);
  return lost == 0;
}

void enter_x2apic(unsigned) {
  constexpr std::uint32_t kApicBase = 0x1B;
  wrmsr(kApicBase, rdmsr(kApicBase) | 1U << 10);
}

/// Back through "disabled", which forgets the APIC's state (SDM 3A 11.12.5).
void leave_x2apic(unsigned) {
  constexpr std::uint32_t kApicBase = 0x1B;
  constexpr std::uint64_t kEnable = 1U << 11, kExtended = 1U << 10;
  const std::uint64_t base = rdmsr(kApicBase);
  wrmsr(kApicBase, base & ~(kEnable | kExtended));
  wrmsr(kApicBase, base & ~kExtended);
  enable_apic();
}

/// Clusters of 16, one bit each (SDM 3A 11.12.10.2).
bool x2apic_ipis() {
  everywhere(enter_x2apic);
  if (rdmsr(0x802) != 0) return false;
  const std::uint32_t all = (1U << online) - 1;
  const bool good = arrives_at(1, kFixed, 1) && arrives_at(0, kFixed | kOthers, online - 1) &&
                    arrives_at(0xFFFFFFFF, kFixed, online) && arrives_at(2, kFixed | kLogical, 1) &&
                    arrives_at(all, kFixed | kLogical, online) &&
                    arrives_at(all, kLowest | kLogical, 1) && ping_pong();
  everywhere(leave_x2apic);
  return good && ping_pong();
}

struct Check {
  const char* name;
  bool (*run)();
};
constexpr Check kChecks[] = {
    {"starts all processors", starts_all},
    {"starts one again", starts_again},
    {"ipi ping-pong", ping_pong},
    {"kinds of ipi", kinds_of_ipi},
    {"nmi", nmi},
    {"locked counter", locked_counter},
    {"split locks", split_locks},
    {"tlb shootdown", shootdown},
    {"cross-modified code", cross_modifying_code},
    {"accessed and dirty race", accessed_dirty_race},
    {"x2apic ipis", x2apic_ipis},
};

}  // namespace

SmpResult run_smp_checks(unsigned first_number) {
  SmpResult result{0, 0};
  for (const Check& check : kChecks) {
    const bool good = check.run();
    print(good ? "ok " : "FAIL ");
    print_number(first_number + result.run);
    print(" smp: ");
    print(check.name);
    print("\n");
    ++result.run;
    result.failed += good ? 0 : 1;
    if (result.run == 1 && !good) break;  // the others need them all
  }
  return result;
}

}  // namespace guest
