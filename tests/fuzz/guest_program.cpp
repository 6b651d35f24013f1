#include "guest_program.hpp"

#include <array>

#include "assembler.hpp"
#include "guest_image.hpp"
#include "self_modifying.hpp"

namespace strata::fuzz {
namespace {

/// Displacements and immediates that reach memory, tables and selectors.
class GuestConstants final : public ConstantSource {
 public:
  explicit GuestConstants(unsigned bits) : bits_{bits} {}
  std::uint64_t displacement(Random& rng, unsigned bytes) override {
    if (bytes == 1 || rng.chance(40)) return rng.below(256) - 128;
    if (bits_ == 16) return rng.below(0x10000);
    return interesting_address(rng, false);
  }
  std::uint64_t immediate(Random& rng, unsigned bytes) override {
    if (bytes == 2 && rng.chance(50)) return interesting_selector(rng);
    if (bytes >= 2 && rng.chance(50)) return interesting_address(rng, bytes == 8);
    return rng.edge();
  }
  std::int64_t branch_distance(Random& rng) override {
    return static_cast<std::int64_t>(rng.below(240)) - 100;
  }

 private:
  unsigned bits_;
};

constexpr std::array<std::uint32_t, 34> kMsrs = {
    0x10,       0x1B,       0x3B,       0x48,       0x49,       0x174,      0x175,
    0x176,      0x179,      0x17A,      0x1A0,      0x1D9,      0x200,      0x201,
    0x250,      0x268,      0x277,      0x2FF,      0x6E0,      0x800,      0x80B,
    0x830,      0xC0000080, 0xC0000081, 0xC0000082, 0xC0000083, 0xC0000084, 0xC0000100,
    0xC0000101, 0xC0000102, 0xC0000103, 0x4B564D00, 0x4B564D01, 0xFE};

/// Short sequences that change the machine's state.
class Writer : private Assembler {
 public:
  Writer(Random& rng, const GuestPlan& plan, unsigned bits, std::vector<std::uint8_t>& out)
      : Assembler{bits, out}, rng_{rng}, plan_{plan}, bits_{bits} {}

  /// One sequence, at random.
  void sequence() {
    using Member = void (Writer::*)();
    constexpr std::array<Member, 18> kSequences = {&Writer::control_register,
                                                   &Writer::debug_register,
                                                   &Writer::model_specific,
                                                   &Writer::load_segment,
                                                   &Writer::set_flags,
                                                   &Writer::far_return,
                                                   &Writer::far_jump,
                                                   &Writer::interrupts,
                                                   &Writer::table_register,
                                                   &Writer::port,
                                                   &Writer::repeat,
                                                   &Writer::edit_page_table,
                                                   &Writer::edit_code,
                                                   &Writer::halt,
                                                   &Writer::extended_state,
                                                   &Writer::system_call,
                                                   &Writer::jump,
                                                   &Writer::registers};
    (this->*rng_.pick(kSequences))();
  }

 private:
  [[nodiscard]] std::uint64_t address() { return interesting_address(rng_, bits_ == 64); }
  [[nodiscard]] std::uint64_t code() {
    const std::uint64_t offset = rng_.below(layout::kCodeEnd - layout::kCode);
    return bits_ == 16 ? offset : layout::kCode + offset;
  }
  /// A register with some of its bits, or one bit, on.
  [[nodiscard]] std::uint64_t bits_of(std::uint64_t likely, unsigned width) {
    return likely ^ (rng_.chance(70) ? 1ULL << rng_.below(width) : 0);
  }

  void control_register() {
    using namespace cpu;
    std::uint64_t value = 0;
    constexpr std::array<unsigned, 6> kNumbers = {0, 0, 2, 3, 4, 8};
    const unsigned n = rng_.pick(kNumbers);
    if (n == 0) {
      value = bits_of(cr0::ET | (plan_.mode == GuestMode::real ? 0 : cr0::PE) |
                          (plan_.paging == PagingMode::off ? 0 : cr0::PG),
                      32);
      if (rng_.chance(25)) value ^= cr0::PE;
      if (rng_.chance(25)) value ^= cr0::PG | cr0::PE;
    } else if (n == 3) {
      value = rng_.chance(85) ? layout::kRoot | rng_.below(4) : address();
      if (bits_ == 64 && rng_.chance(20)) value |= 1ULL << 63;
    } else if (n == 4) {
      value = bits_of((plan_.paging >= PagingMode::pae ? cr4::PAE : 0) | cr4::OSFXSR | cr4::OSXSAVE,
                      23);
    } else {
      value = rng_.edge();
    }
    load(0, value);
    put({0x0F, 0x22, 0xC0U | n << 3});
    if (rng_.chance(30)) put({0x0F, 0x20, 0xC0U | n << 3});
  }
  void debug_register() {
    const auto n = rng_.below(8);
    load(0, n == 7 ? rng_() & 0xFFFF27FF : n == 6 ? rng_() : address());
    put({0x0F, 0x23, 0xC0 | n << 3});
    if (rng_.chance(40)) put({0x0F, 0x21, 0xC0 | n << 3});
  }
  void model_specific() {
    load(1, rng_.chance(90) ? rng_.pick(kMsrs) : rng_());
    const std::uint64_t value = rng_.chance(50) ? address() : rng_.edge() & rng_.edge();
    load(0, value & 0xFFFFFFFF);
    load(2, value >> 32);
    put({0x0F, rng_.chance(60) ? 0x30U : 0x32U});
  }
  void load_segment() {
    constexpr std::array<unsigned, 5> kLoadable = {0, 2, 3, 4, 5};
    load(0, interesting_selector(rng_));
    put({0x8E, 0xC0U | rng_.pick(kLoadable) << 3});
  }
  void set_flags() {
    using namespace cpu;
    std::uint64_t flags = rng_() & (rflags::ARITHMETIC | rflags::IF | rflags::IOPL | rflags::ID);
    if (rng_.chance(20)) flags |= rflags::TF;
    if (rng_.chance(20)) flags |= rng_() & 0x3F'FFFF;
    push(flags);
    put({0x9D});
  }
  void far_return() {
    const bool interrupt = rng_.chance(60);
    const bool wide = bits_ == 64;
    if (rng_.chance(50)) {
      push(interesting_selector(rng_));
      push(layout::kStacksEnd - 512);
    }
    if (interrupt) push((rng_() & 0x3000) | (rng_.chance(10) ? rng_() & 0x3F'FFFF : 2));
    push(interesting_selector(rng_));
    push(code());
    if (wide && rng_.chance(85)) put({0x48});
    put({interrupt ? 0xCFU : 0xCBU});
  }
  void far_jump() {
    if (bits_ == 64) {
      load(3, layout::kData + rng_.below(0x7000));
      put({0xFF, (rng_.chance(50) ? 5U : 3U) << 3 | 3U});
      return;
    }
    put({rng_.chance(50) ? 0xEAU : 0x9AU});
    number(code(), bits_ / 8);
    const std::uint64_t selector =
        plan_.mode == GuestMode::real && rng_.chance(80) ? 0x1000 : interesting_selector(rng_);
    number(selector, 2);
  }
  void interrupts() {
    constexpr std::array<unsigned, 6> kPlain = {0xCC, 0xCE, 0xF1, 0xFA, 0xFB, 0x9B};
    if (rng_.chance(60)) {
      put({0xCD, rng_.byte()});
    } else {
      put({rng_.pick(kPlain)});
    }
  }
  void table_register() {
    load(3, layout::kData + rng_.below(0x7000));
    load(0, interesting_selector(rng_));
    if (rng_.chance(50)) {
      put({0x0F, 0x00, 0xC0 | rng_.below(8) << 3});  // SLDT, STR, LLDT, LTR, VERR, VERW
    } else if (rng_.chance(60)) {
      put({0x0F, 0x01, rng_.below(8) << 3 | (bits_ == 16 ? 7U : 3U)});  // SGDT ... INVLPG
    } else {
      put({0x0F, 0x01, 0xC0U | rng_.byte()});
    }
  }
  void port() {
    load(2, rng_.chance(70) ? rng_() & 0xFFFF : rng_.below(0x100));
    constexpr std::array<unsigned, 8> kOpcodes = {0xEC, 0xED, 0xEE, 0xEF, 0x6C, 0x6D, 0x6E, 0x6F};
    if (rng_.chance(30)) put({0x66});
    if (rng_.chance(30)) put({0xF3});
    put({rng_.pick(kOpcodes)});
  }
  void repeat() {
    constexpr std::array<unsigned, 10> kStrings = {0xA4, 0xA5, 0xA6, 0xA7, 0xAA,
                                                   0xAB, 0xAC, 0xAD, 0xAE, 0xAF};
    load(1, rng_.chance(90) ? rng_.below(3000) : rng_.edge());
    load(6, address());
    load(7, address());
    if (rng_.chance(20)) put({rng_.chance(50) ? 0xFCU : 0xFDU});
    put({rng_.chance(70) ? 0xF3U : 0xF2U});
    if (bits_ == 64 && rng_.chance(40)) put({0x48});
    put({rng_.pick(kStrings)});
  }
  void edit_page_table() {
    load(3, layout::kRoot + 8 * rng_.below((layout::kTablesEnd - layout::kRoot) / 8));
    load(0, interesting_entry(rng_));
    if (bits_ == 64) put({0x48});
    if (bits_ == 16) put({0x67, 0x66});
    put({0x89, 0x03});
    if (!rng_.chance(50)) return;
    load(3, address());
    if (bits_ == 16) put({0x67});
    put({0x0F, 0x01, 0x3B});  // INVLPG
  }
  void edit_code() {
    load(3, layout::kCode + rng_.below(layout::kCodeEnd - layout::kCode));
    if (bits_ == 16) put({0x67});
    put({0xC6, 0x03, rng_.byte()});
  }
  void halt() {
    if (rng_.chance(50)) put({0xFB});
    put({0xF4});
  }
  void extended_state() {
    load(3, layout::kData + (rng_.chance(90) ? 64 * rng_.below(0x100) : rng_.below(0x7000)));
    load(0, rng_.chance(80) ? 7 : rng_());
    load(2, rng_.chance(90) ? 0 : rng_());
    if (rng_.chance(30)) {
      load(1, rng_.chance(80) ? 0 : rng_());
      put({0x0F, 0x01, rng_.chance(60) ? 0xD1U : 0xD0U});  // XSETBV, XGETBV
      return;
    }
    if (bits_ == 16) put({0x67});
    if (bits_ == 64 && rng_.chance(50)) put({0x48});
    put({0x0F, 0xAE, rng_.below(8) << 3 | 3});  // FXSAVE ... XRSTOR, XSAVEOPT, CLFLUSH
  }
  void system_call() {
    constexpr std::array<unsigned, 4> kCalls = {0x05, 0x07, 0x34, 0x35};
    load(1, rng_.chance(80) ? code() : address());
    load(2, rng_.chance(80) ? code() : address());
    if (bits_ == 64 && rng_.chance(50)) put({0x48});
    put({0x0F, rng_.pick(kCalls)});
  }
  void jump() {
    load(0, rng_.chance(90) ? code() : address());
    put({0xFF, rng_.chance(50) ? 0xE0U : 0xD0U});
  }
  void registers() {
    for (std::uint64_t n = 1 + rng_.below(3); n > 0; --n) {
      const auto reg = static_cast<unsigned>(rng_.below(8));
      if (reg != cpu::RSP || rng_.chance(15)) load(reg, address());
    }
  }

  Random& rng_;
  const GuestPlan& plan_;
  const unsigned bits_;
};

}  // namespace

std::vector<std::uint8_t> make_program(Random& rng, const GuestPlan& plan,
                                       const Catalogues& catalogues, unsigned bits,
                                       std::size_t bytes) {
  using isa::OpcodeClass;
  constexpr std::array<OpcodeClass, 12> kClasses = {
      OpcodeClass::integer, OpcodeClass::integer, OpcodeClass::integer, OpcodeClass::integer,
      OpcodeClass::branch,  OpcodeClass::string,  OpcodeClass::system,  OpcodeClass::system,
      OpcodeClass::vector,  OpcodeClass::vector,  OpcodeClass::vector,  OpcodeClass::x87};
  const Catalogue& catalogue = catalogues.of(bits);
  GuestConstants constants{bits};
  std::vector<std::uint8_t> out;
  out.reserve(bytes + 64);
  Writer writer{rng, plan, bits, out};
  while (out.size() < bytes) {
    if (plan.self_modifying && rng.chance(60)) {
      append_self_modifying(rng, plan, bits, out);
    } else if (rng.chance(20)) {
      writer.sequence();
    } else if (rng.chance(5)) {
      for (std::uint64_t n = rng.below(16); n > 0; --n) out.push_back(rng.byte());
    } else {
      const auto& entry = catalogue.pick(rng, rng.pick(kClasses));
      catalogue.append(rng, rng.pick(entry.points), constants, out);
    }
  }
  return out;
}

}  // namespace strata::fuzz
