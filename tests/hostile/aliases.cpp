// One physical page at many addresses, with code that is patched through another of them.
#include "cases.hpp"

namespace strata::hostile {
namespace {

using namespace layout;

constexpr std::uint64_t kAlias = 0x4000'0000;
constexpr unsigned kAliases = 64;

/// The code page, again and again.
void map_aliases(Guest& g) {
  for (unsigned i = 0; i < kAliases; ++i) g.map(kAlias + i * 4096, kCode);
}

/// Each round patches an immediate through one alias and goes on in the next one.
void patch_and_jump(Guest& g) {
  map_aliases(g);
  Code c{64};
  c.load(cpu::RCX, 3000);
  c.load_wide(cpu::RSI, kAlias);
  const std::uint64_t loop = c.here();
  c.put({0xFF, 0x86});  // inc dword [rsi + the immediate]
  const std::size_t fix = c.size();
  c.number(0, 4);
  c.put({0x41, 0x81, 0xC4});  // add r12d, immediate
  c.fix(fix, c.here() - kCode, 4);
  c.number(1, 4);
  c.put({0x41, 0xC1, 0xC4, 3});              // rol r12d, 3
  c.put({0x81, 0xC6, 0, 0x50, 0, 0});        // add esi, 5 pages
  c.put({0x81, 0xE6, 0, 0xF0, 0x03, 0x40});  // and esi, kAlias + 63 pages
  c.put({0x48, 0x8D, 0xBE});                 // lea rdi, [rsi + loop]
  c.number(loop - kCode, 4);
  c.put({0xFF, 0xC9, 0x74, 0x02, 0xFF, 0xE7});  // dec ecx; jz out; jmp rdi
  c.put({0xF4});
  g.put(c);
}
/// A store whose first half is in another page and whose second half patches the code page's head.
void patch_across_the_edge(Guest& g) {
  map_aliases(g);
  g.map(kAlias - 4096, kData);
  Code c{64, kCode};
  c.put({0x41, 0x81, 0xC4, 1, 0, 0, 0});  // add r12d, 1: the immediate is at kCode + 3
  c.put({0xFF, 0xC9, 0x74});              // dec ecx; jz out
  const std::size_t out = c.size();
  c.put({0});
  c.load_wide(cpu::RDX, kAlias - 3);
  // The quadword is the end of kData and the first five bytes of the code.
  c.put({0x48, 0x8B, 0x02});  // mov rax, [rdx]
  c.put({0x48, 0xBB});
  c.number(1ULL << 48 | 1, 8);                  // mov rbx, ...
  c.put({0x48, 0x01, 0xD8, 0x48, 0x89, 0x02});  // add rax, rbx; mov [rdx], rax
  c.branch({0xE9}, kCode);
  c.fix(out, c.size() - out - 1, 1);
  c.put({0xF4});
  g.put(c);
  g.state.gpr[cpu::RCX] = 2000;
}
/// An instruction of two pages, which are one and the same at other addresses: its tail is patched
/// through the head's page.
void crossing_into_itself(Guest& g) {
  map_aliases(g);
  // At the page's end: add r12d, imm32 with the immediate's last three bytes at the page's start.
  g.put(kCode + 4096 - 4, {0x41, 0x81, 0xC4, 5});
  Code c{64, kCode};
  c.put({0, 0, 0});                             // the tail
  c.put({0xFE, 0x86, 1, 0, 0, 0});              // inc byte [rsi + 1]: patches the tail
  c.put({0x81, 0xC6, 0, 0x10, 0, 0});           // add esi, 4096
  c.put({0x81, 0xE6, 0, 0xF0, 0x01, 0x40});     // and esi, kAlias + 31 pages
  c.put({0xFF, 0xC9, 0x75, 0x01, 0xF4});        // dec ecx; jnz on; hlt
  c.put({0x48, 0x8D, 0xBE, 0xFC, 0x0F, 0, 0});  // lea rdi, [rsi + 4092]
  c.put({0xFF, 0xE7});
  g.put(c);
  g.state.gpr[cpu::RCX] = 3000;
  g.state.gpr[cpu::RSI] = kAlias;
  g.state.rip = kAlias + 4092;
}
/// The code pushes what it executes next.
void stack_is_code(Guest& g) {
  Code c{64, kCode};
  c.load_wide(cpu::RBX, 0x9090'C1FF'9090'C1FF);
  const std::uint64_t loop = c.here();
  c.put({0x48, 0x8D, 0x25});  // lea rsp, [rip + ...]: behind the slot
  const std::size_t at = c.size();
  c.number(0, 4);
  c.put({0x53});                       // push rbx: writes the slot
  c.put({0x48, 0xC1, 0xC3, 16});       // rol rbx, 16
  c.number(0x9090'9090'9090'9090, 8);  // the slot
  c.fix(at, c.size() - (at + 4), 4);
  c.put({0x81, 0xF9, 0x00, 0x10, 0, 0});  // cmp ecx, 4096
  c.branch({0x0F, 0x82}, loop);
  c.put({0xF4});
  g.put(c);
}
/// Calls into the page of the stack: every call's return address lands in the code that runs.
void calls_overwrite_code(Guest& g) {
  map_aliases(g);
  Code c{64};
  c.load_wide(cpu::RSP, kAlias + 0x800);
  c.load(cpu::RCX, 500);
  const std::uint64_t loop = c.here();
  c.put({0xE8, 0, 0, 0, 0, 0xFF, 0xC9});  // call next; dec ecx
  c.branch({0x0F, 0x85}, loop);
  c.put({0xF4});
  g.put(c);
}
/// Jumps between all aliases, in no order, without end.
void jumps_between_aliases(Guest& g) {
  map_aliases(g);
  Code c{64};
  c.put({0x69, 0xC0, 0x6D, 0x4E, 0xC6, 0x41, 0x05, 0x39, 0x30, 0, 0});  // eax = eax * a + 12345
  c.put({0x89, 0xC7, 0xC1, 0xEF, 0x1A, 0xC1, 0xE7, 0x0C});              // edi = eax >> 26 << 12
  c.put({0x81, 0xC7});
  c.number(kAlias, 4);
  c.put({0x41, 0x01, 0xC4, 0xFF, 0xE7});  // add r12d, eax; jmp rdi
  g.put(c);
}
/// A loop that overwrites the next instruction with what it is already, with what it is not, by
/// every kind of store.
void rewrites_itself_for_ever(Guest& g) {
  map_aliases(g);
  Code c{64};
  c.load_wide(cpu::RDX, kAlias);
  c.load(cpu::RCX, 1U << 30);
  const std::uint64_t loop = c.here();
  const auto patch = [&](std::initializer_list<std::uint64_t> opcode, unsigned offset) {
    c.put(opcode);
    const std::size_t at = c.size();
    c.number(0, 4);
    const std::uint64_t next = c.here() - kCode + offset;
    c.fix(at, next, 4);
  };
  patch({0x80, 0x82}, 4);  // add byte [rdx + ...], 1: the immediate of what follows
  c.put({1});
  c.put({0x41, 0x83, 0xC4, 1});                 // add r12d, imm8
  patch({0xF0, 0xFE, 0x82}, 3);                 // lock inc byte
  c.put({0x41, 0x83, 0xF4, 1});                 // xor r12d, imm8
  c.put({0x48, 0x89, 0xD7, 0x48, 0x81, 0xC7});  // mov rdi, rdx; add rdi, ...
  const std::size_t at = c.size();
  c.number(0, 4);
  c.put({0x44, 0x88, 0xE0, 0xAA});  // mov al, r12b; stosb
  c.fix(at, c.here() - kCode + 3, 4);
  c.put({0x41, 0xC0, 0xC4, 1});  // rol r12b, imm8
  c.put({0xFF, 0xC9});
  c.branch({0x0F, 0x85}, loop);
  c.put({0xF4});
  g.put(c);
}

}  // namespace

std::vector<Case> alias_cases() {
  return {
      {"PatchAndJump", patch_and_jump},
      {"PatchAcrossTheEdge", patch_across_the_edge},
      {"CrossingIntoItself", crossing_into_itself},
      {"StackIsCode", stack_is_code},
      {"CallsOverwriteCode", calls_overwrite_code, End::count},
      {"JumpsBetweenAliases", jumps_between_aliases, End::count},
      {"RewritesItselfForEver", rewrites_itself_for_ever, End::count, 64, true, true, 50'000},
  };
}

}  // namespace strata::hostile
