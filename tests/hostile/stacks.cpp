// Stacks where no stack should be, and addresses at the ends of what an address can be.
#include "cases.hpp"

namespace strata::hostile {
namespace {

using namespace layout;

using Bytes = std::vector<std::uint64_t>;

/// Wherever devices, ROM, nothing, tables or the ends of address space are.
constexpr std::array<std::uint64_t, 22> kPlaces{0,
                                                4,
                                                8,
                                                kRom + 0x800,
                                                kRom,
                                                kMmio + 16,
                                                kMmio,
                                                kMmio + 4,
                                                kMmio + kMmioPages * 4096,
                                                kRam,
                                                kRam + 4,
                                                kMapped,
                                                kMapped + 4,
                                                0x7FFF'FFFF'FFFF,
                                                0x8000'0000'0000,
                                                0x8000'0000'0004,
                                                0xFFFF'7FFF'FFFF'FFFF,
                                                0xFFFF'8000'0000'0000,
                                                ~0ULL,
                                                ~0ULL - 7,
                                                ~0ULL - 3,
                                                kRoot + 0x800};

void try_places(Guest& g, std::initializer_list<Bytes> operations, unsigned reg) {
  g.exceptions_on_ist();
  // INT 0x30 stays on the stack that is there.
  g.gate(0x30, kHalt + 1);
  g.put(kHalt + 1, {0xCC});
  Code c{64};
  for (const std::uint64_t place : kPlaces) {
    for (const Bytes& operation : operations) {
      c.recover([&] {
        c.put({0x48, 0xB8U + reg});
        c.number(place, 8);
        for (const std::uint64_t byte : operation) c.put({byte});
      });
    }
  }
  c.recover([&] { c.put({0x0F, 0x0B}); });
  c.put({0xF4});
  g.put(c);
}

void stacks_everywhere(Guest& g) {
  try_places(g,
             {{0x50},                    // push rax
              {0x58},                    // pop rax
              {0xE8, 0, 0, 0, 0},        // call
              {0xC3},                    // ret
              {0xC2, 0xFF, 0xFF},        // ret 0xFFFF
              {0xC8, 0x20, 0, 0},        // enter 32, 0
              {0xC8, 0xFF, 0xFF, 0x1F},  // enter 0xFFFF, 31
              {0xC9},                    // leave
              {0x48, 0xCF},              // iretq
              {0x48, 0xCB},              // far ret
              {0x9C},                    // pushf
              {0xCD, 0x30},              // int 0x30
              {0xFF, 0x34, 0x24},        // push [rsp]
              {0x8F, 0x04, 0x24},        // pop [rsp]
              {0xFF, 0x14, 0x24}},       // call [rsp]
             cpu::RSP);
}
void frames_everywhere(Guest& g) {
  try_places(g, {{0xC9}, {0xC8, 0, 0, 3}, {0x48, 0x89, 0xEC, 0x53}}, cpu::RBP);
}
/// Loads, stores, locked, wide and string accesses; jumps.
void accesses_everywhere(Guest& g) {
  try_places(g,
             {{0x48, 0x8B, 0x03},                                // mov rax, [rbx]
              {0x88, 0x03},                                      // mov [rbx], al
              {0x48, 0x8B, 0x43, 0xFF},                          // mov rax, [rbx - 1]
              {0x48, 0x8B, 0x43, 0x7F, 0x48, 0x8B, 0x43, 0x01},  // two at a distance
              {0xF0, 0x48, 0x0F, 0xC7, 0x0B},                    // lock cmpxchg16b [rbx]
              {0xF0, 0xFF, 0x43, 0xFD},                          // lock inc dword [rbx - 3]
              {0x0F, 0x10, 0x43, 0xF9},                          // movups xmm0, [rbx - 7]
              {0x0F, 0xAE, 0x0B},                                // fxrstor [rbx]
              {0xDB, 0x2B},                                      // fld tbyte [rbx]
              {0xDD, 0x33},                                      // fnsave [rbx]
              {0x48, 0x89, 0xDE, 0xA5},                          // movsd from there
              {0x0F, 0x01, 0x3B},                                // invlpg [rbx]
              {0xFF, 0x2B}},                                     // jmp far [rbx]
             cpu::RBX);
}
/// Where there is something to execute, or a fault.
void jumps_everywhere(Guest& g) {
  g.unmap(kMmio);
  g.unmap(kMmio + kMmioPages * 4096);
  g.unmap(kRam);
  try_places(g, {{0xFF, 0xE3}, {0xFF, 0xD3}}, cpu::RBX);
}
void jump_into_mmio(Guest& g) {
  Code c{64};
  c.branch({0xE9}, kMmio);
  g.put(c);
}
/// An event's frame on each of those places, of which one is not a place to push a frame to.
template <std::uint64_t kPlace>
void event_stack(Guest& g) {
  g.poke<std::uint64_t>(kTss + 36, kPlace);
  g.exceptions_on_ist();
  g.gate(cpu::DF, kHandlers + cpu::DF * kHandlerBytes);  // on the good one
  Code c{64};
  for (unsigned n = 0; n < 20; ++n) c.recover([&] { c.put({0x0F, 0x0B}); });
  c.put({0xF4});
  g.put(c);
}

// ---- running off the ends -----------------------------------------------------------------------

void nops_at(Guest& g, std::uint64_t va) {
  g.fill(kData, 4096, 0x90);
  g.map(va & ~0xFFFULL, kData);
  Code c{64};
  c.recover([&] {
    c.load(cpu::RAX, va);
    c.put({0xFF, 0xE0});
  });
  c.put({0xF4});
  g.put(c);
}
void off_the_lower_half(Guest& g) { nops_at(g, 0x7FFF'FFFF'FF00); }
/// The last instruction ends at 2^64; page 0 goes on.
void off_the_end(Guest& g) { nops_at(g, ~0xFFULL); }
/// One that begins before the end and goes on in page 0.
void across_the_end(Guest& g) {
  nops_at(g, ~0xFFULL);
  g.put(kData + 4094, {0xB8, 0x11});
}
void across_the_lower_half(Guest& g) {
  nops_at(g, 0x7FFF'FFFF'FF00);
  g.put(kData + 4094, {0xB8, 0x11});
}
/// A branch whose target is beyond the half, and a call that pushes before it finds out.
void branches_off_the_half(Guest& g) {
  nops_at(g, 0x7FFF'FFFF'FF00);
  g.put(kData + 4080, {0x72, 0x20, 0x73, 0x20});  // jc, jnc
  g.put(kData + 4091, {0xE8, 0, 1, 0, 0});        // call
}
/// 32-bit code with i386 paging, off the end of 4 GiB.
void off_4_gib(Guest& g) {
  constexpr std::uint64_t kLow = kTables, kHigh = kTables + 0x1000;
  for (unsigned i = 0; i < 2; ++i) {
    g.poke<std::uint32_t>(kLow + i * 4, static_cast<std::uint32_t>(i << 22 | 0xE7));
  }
  g.poke<std::uint32_t>(kLow + 1023 * 4, kHigh | 0x67);
  g.poke<std::uint32_t>(kHigh + 1023 * 4, kData | 0x67);
  g.fill(kData, 4096, 0x90);
  g.put(kData + 4094, {0xB8, 0x11});
  g.state.cr3 = kLow;
  g.state.cr0 |= cpu::cr0::PG | cpu::cr0::WP;
  g.state.cr4 |= cpu::cr4::PSE;
  Code c{32};
  for (const std::uint64_t at : {0xFFFF'FF00U, 0xFFFF'FFFDU, 0xFFFF'FFFEU, 0xFFFF'FFFFU}) {
    c.recover([&] {
      c.load(cpu::RAX, at);
      c.put({0xFF, 0xE0});
    });
    c.recover([&] {
      c.load(cpu::RAX, at);
      c.put({0x8B, 0x18, 0x01, 0x58, 0x04, 0x89, 0x18});  // mov ebx, [eax]; add [eax + 4], ebx; ...
    });
  }
  c.put({0xF4});
  g.put(c);
}

}  // namespace

std::vector<Case> stack_cases() {
  Case top{"Off4GiB", off_4_gib, End::halt, 32};
  top.example = false;
  return {
      {"StacksEverywhere", stacks_everywhere},
      {"FramesEverywhere", frames_everywhere},
      {"AccessesEverywhere", accesses_everywhere},
      {"JumpsEverywhere", jumps_everywhere},
      {"EventStackInMmio", event_stack<kMmio + 0x80>},
      {"EventStackBeginsInMmio", event_stack<kMmio + kMmioPages * 4096 + 16>},
      {"EventStackInRom", event_stack<kRom + 0x80>},
      {"EventStackNowhere", event_stack<kMapped + 0x1000>},
      {"EventStackBeyond", event_stack<0x8000'0000'0000>},
      {"EventStackAtZero", event_stack<0>},
      {"EventStackIsTheRootTable", event_stack<kRoot + 0x1000>},
      {"EventStackIsTheIdt", event_stack<kIdt + 0x800>},
      {"OffTheLowerHalf", off_the_lower_half},
      {"OffTheEnd", off_the_end},
      {"AcrossTheEnd", across_the_end},
      {"AcrossTheLowerHalf", across_the_lower_half},
      {"BranchesOffTheHalf", branches_off_the_half},
      top,
      {"JumpIntoMmio", jump_into_mmio, End::refused},
  };
}

}  // namespace strata::hostile
