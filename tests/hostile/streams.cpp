// Long things: REP over ranges that no buffer would have, prefixes without end, more code than the
// code cache holds.
#include "cases.hpp"

namespace strata::hostile {
namespace {

using namespace layout;

struct Range {
  std::uint64_t from, to, count;
  bool down = false;
};

void rep(Code& c, const Range& r, std::initializer_list<std::uint64_t> instruction) {
  c.recover([&] {
    c.put({0x48, 0xBE});
    c.number(r.from, 8);
    c.put({0x48, 0xBF});
    c.number(r.to, 8);
    c.put({0x48, 0xB9});
    c.number(r.count, 8);
    if (r.down) c.put({0xFD});
    c.put(instruction);
  });
  c.put({0xFC, 0x49, 0x01, 0xCC, 0x49, 0x01, 0xF4, 0x49, 0x01, 0xFC});  // cld; r12 += rcx, rsi, rdi
}

void long_strings(Guest& g) {
  constexpr std::uint64_t kSpace = kData + 0x10000, kHole = kData + 0x40000;
  g.exceptions_on_ist();
  g.unmap(kHole);
  for (unsigned i = 0; i < 4096; ++i) g.ram[kData + i] = static_cast<std::uint8_t>(i);
  const std::array<Range, 14> ranges{{
      {kData, kData + 1, 0x3000},  // overlapping
      {kData + 1, kData, 0x3000},
      {kData + 0x3000, kData + 0x3001, 0x3000, true},
      {kData, kHole - 0x1800, 0x2000},  // into a hole
      {kHole - 0x800, kSpace, 0x1000},
      {kHole + 0x1000, kSpace, 0x3000, true},
      {kData, kRom - 0x100, 0x1200},  // into ROM
      {kRom, kSpace, 0x2000},
      {kMmio - 0x20, kSpace, 0x40},  // from nothing into device memory
      {kData, kMmio - 0x20, 0x40},
      {kMmio, kMmio + 0x100, 0x20},
      {kData, 0x7FFF'FFFF'FF00, ~0ULL},  // off the half
      {~0ULL - 0x10, kData, 0x40},
      {kData, kData, 0},
  }};
  Code c{64};
  for (const Range& r : ranges) {
    rep(c, r, {0xF3, 0xA4});                                       // movsb
    rep(c, r, {0xF3, 0x48, 0xA5});                                 // movsq
    rep(c, r, {0xF3, 0xAA});                                       // stosb
    rep(c, r, {0xF3, 0xA6});                                       // cmpsb
    rep(c, r, {0xF2, 0xAE});                                       // scasb
    rep(c, {r.from, r.to, r.count & 0x3F, r.down}, {0xF3, 0x6C});  // insb
    rep(c, {r.from, r.to, r.count & 0x3F, r.down}, {0xF3, 0x6F});  // outsd
  }
  c.put({0xF4});
  g.put(c);
}
/// All of device memory and all that is nothing: a device access each.
void string_of_mmio(Guest& g) {
  Code c{64};
  rep(c, {0, kMmio, ~0ULL}, {0xF3, 0xAA});
  c.put({0xF4});
  g.put(c);
}
/// REP STOS over the instruction itself and everything before it.
void string_eats_its_code(Guest& g) {
  Code c{64};
  c.load(cpu::RAX, 0xF4);
  rep(c, {0, kCode - 0x100, 0x1000}, {0xF3, 0xAA});
  g.put(c);
}

// ---- code ---------------------------------------------------------------------------------------

/// Fifteen prefixes are too many; so are a page of them, and one that ends at a hole.
void prefixes(Guest& g) {
  g.exceptions_on_ist();
  g.unmap(kData + 8192);
  g.fill(kData, 8192, 0x66);
  Code c{64};
  for (unsigned back = 1; back < 20; ++back) {
    c.recover([&] { c.branch({0xE9}, kData + 8192 - back); });
    c.recover([&] { c.branch({0xE9}, kData + 4096 - back); });
  }
  for (const unsigned prefix : {0xF0U, 0xF2U, 0x2EU, 0x67U, 0x48U}) {
    for (unsigned count = 12; count < 17; ++count) {
      c.recover([&] {
        for (unsigned i = 0; i < count; ++i) c.put({prefix});
        c.put({0xFF, 0x00});  // inc dword [rax]
      });
    }
  }
  // Each as often as there is room for, before a memory operand that takes more room on the host.
  c.load(cpu::RAX, kData);
  const std::array<std::vector<std::uint64_t>, 4> tails{
      {{0x0F, 0x10, 0x00}, {0x0F, 0x58, 0x00}, {0x0F, 0x38, 0x00, 0x00}, {0xFF, 0x00}}};
  for (const unsigned prefix : {0x66U, 0xF2U, 0xF3U, 0xF0U}) {
    for (const auto& tail : tails) {
      c.recover([&] {
        for (std::size_t i = tail.size(); i < 15; ++i) c.put({prefix});
        for (const std::uint64_t byte : tail) c.put({byte});
      });
    }
  }
  c.put({0xF4});
  g.put(c);
}
/// Pages full of additions, each of another number, twice.
void more_code_than_fits(Guest& g) {
  g.all_ram();
  constexpr std::uint64_t kFirst = 8ULL << 20, kApart = 4 * 4096;
  for (std::uint64_t page = kFirst; page < kRam; page += kApart) {
    Code c{64, page};
    while (c.size() < 4000) {
      c.put({0x41, 0x81, 0xC4});
      c.number(page ^ c.size() * 0x9E3779B1, 4);
    }
    if (page + kApart < kRam) {
      c.branch({0xE9}, page + kApart);
    } else {
      c.put({0xFF, 0xC9});
      c.branch({0x0F, 0x85}, kFirst);
      c.put({0xF4});
    }
    g.put(c);
  }
  g.state.gpr[cpu::RCX] = 2;
  g.state.rip = kFirst;
}
/// A block that is written anew each round, and never as it was.
void code_without_end(Guest& g) {
  Code c{64};
  const std::uint64_t loop = c.here();
  c.put({0x41, 0x69, 0xC4, 0x6D, 0x4E, 0xC6, 0x41, 0x41, 0x89, 0xC4});  // imul eax, r12d, a; ...
  c.put({0x41, 0xFF, 0xC4});                                            // inc r12d
  for (unsigned i = 0; i < 16; ++i) c.memory({0x89}, cpu::RAX, kData + i * 8 + 1);
  c.branch({0xE8}, kData);
  c.branch({0xE9}, loop);
  g.put(c);
  for (unsigned i = 0; i < 16; ++i) {
    g.put(kData + i * 8,
          {0xB8 + cpu::RDI, 0, 0, 0, 0, 0x01, 0xFB, 0x90});  // mov edi, n; add ebx, edi
  }
  g.put(kData + 128, {0xC3});
}
/// Calls into themselves: the return stack goes through all of memory that is mapped.
void recursion(Guest& g) {
  g.exceptions_on_ist();
  g.unmap(kStackFloor);
  Code c{64};
  c.recover([&] { c.put({0xE8, 0xFB, 0xFF, 0xFF, 0xFF}); });
  c.put({0xF4});
  g.put(c);
}

}  // namespace

std::vector<Case> stream_cases() {
  Case flood{"MoreCodeThanFits", more_code_than_fits};
  flood.instructions = 20'000'000;
  flood.code_cache_bytes = 4 << 20;
  flood.floods = true;
  Case anew{"CodeWithoutEnd", code_without_end, End::count};
  anew.instructions = 400'000;
  anew.code_cache_bytes = 1 << 20;
  anew.floods = true;
  return {
      {"LongStrings", long_strings},
      {"StringOfMmio", string_of_mmio, End::exits},
      {"StringEatsItsCode", string_eats_its_code},
      {"Prefixes", prefixes},
      flood,
      anew,
      {"Recursion", recursion},
  };
}

}  // namespace strata::hostile
