#include "self_modifying.hpp"

#include <array>

#include "assembler.hpp"
#include "random.hpp"

namespace strata::fuzz {
namespace {

/// Each sequence finds out where it is with CALL and POP, so that RBX holds the address of `here_`,
/// and patches by displacements to that.
class SelfModifier {
 public:
  SelfModifier(Random& rng, const GuestPlan& plan, unsigned bits, std::vector<std::uint8_t>& out)
      : rng_{rng}, plan_{plan}, a_{bits, out} {}

  void sequence() {
    using Member = void (SelfModifier::*)();
    constexpr std::array<Member, 9> kSequences = {
        &SelfModifier::immediate_ahead,   &SelfModifier::opcode_ahead,  &SelfModifier::itself,
        &SelfModifier::loop_body,         &SelfModifier::subroutine,    &SelfModifier::string_store,
        &SelfModifier::across_a_page_end, &SelfModifier::through_alias, &SelfModifier::wide_store};
    find_place();
    (this->*rng_.pick(kSequences))();
  }

 private:
  static constexpr unsigned kRbx = 3, kRsi = 6, kRdi = 7;

  // ---- pieces ---------------------------------------------------------------------------------

  /// Operands of 32 bits, where the mode's are of 16.
  void wide_operand() {
    if (a_.bits() == 16) a_.put({0x66});
  }
  /// Addresses of 32 bits, and in real mode the segment of code, which can be written to there.
  void code_address() {
    if (a_.bits() != 16) return;
    a_.put({0x67});
    if (plan_.mode == GuestMode::real || plan_.mode == GuestMode::vm86) a_.put({0x2E});
  }
  void rex_w() {
    if (a_.bits() == 64) a_.put({0x48});
  }
  /// call $ + 0; pop rbx
  void find_place() {
    wide_operand();
    a_.put({0xE8});
    a_.number(0, 4);
    here_ = a_.size();
    wide_operand();
    a_.put({0x58 + kRbx});
    alias_ = plan_.paging != PagingMode::off && rng_.chance(40);
  }
  /// Prefixes and opcode of an access to code, ModRM [rbx + disp32]; target() gives the
  /// displacement once it is known.
  [[nodiscard]] std::size_t patch(std::initializer_list<std::uint64_t> opcode, unsigned reg) {
    code_address();
    a_.put(opcode);
    a_.put({0x80U | reg << 3 | kRbx});
    a_.number(0, 4);
    return a_.size() - 4;
  }
  void target(std::size_t displacement, std::size_t at) {
    const std::uint64_t alias = alias_ ? layout::kAlias - layout::kCode : 0;
    a_.fix(displacement, at - here_ + alias, 4);
  }
  /// One byte is stored or changed in place; gives what target() wants.
  [[nodiscard]] std::size_t patch_byte(std::uint64_t value) {
    std::size_t displacement = 0;
    switch (rng_.below(6)) {
      case 0:
        displacement = patch({0xFE}, 0);  // inc
        break;
      case 1:
        displacement = patch({0x80}, 6);  // xor
        a_.put({rng_.below(8)});
        break;
      case 2:
        a_.put({0xB0, value});
        displacement = patch({0xF0, 0x0F, 0xC0}, 0);  // lock xadd
        break;
      default:
        displacement = patch({0xC6}, 0);  // mov
        a_.put({value});
    }
    return displacement;
  }
  /// An instruction of one byte that any mode has and that only changes registers or flags.
  [[nodiscard]] std::uint64_t short_opcode() {
    constexpr std::array<unsigned, 10> kOpcodes = {0x90, 0xF8, 0xF9, 0xF5, 0x98,
                                                   0x99, 0x9E, 0x9F, 0xFC, 0x92};
    return rng_.pick(kOpcodes);
  }
  void filler() {
    for (std::uint64_t n = rng_.below(4); n > 0; --n) a_.put({short_opcode()});
  }
  /// add al, imm8: gives the immediate's place.
  [[nodiscard]] std::size_t victim() {
    a_.put({0x04, rng_.byte()});
    return a_.size() - 1;
  }
  /// mov ecx, a few: gives where the loop begins. Some run long enough to be worth translating.
  [[nodiscard]] std::size_t begin_loop() {
    a_.load(1, 1 + rng_.below(rng_.chance(20) ? 300 : 12));
    return a_.size();
  }
  void end_loop(std::size_t start) {
    wide_operand();
    a_.put({0x83, 0xE9, 1});  // sub ecx, 1
    wide_operand();
    a_.put({0x0F, 0x85});  // jnz
    a_.number(start - (a_.size() + 4), 4);
  }
  /// jmp over what is emitted next: gives what land() wants.
  [[nodiscard]] std::size_t skip() {
    a_.put({0xEB, 0});
    return a_.size();
  }
  void land(std::size_t from) { a_.fix(from - 1, a_.size() - from, 1); }

  // ---- sequences ------------------------------------------------------------------------------

  /// Of the next instruction, or one further on in the same block.
  void immediate_ahead() {
    const std::size_t d = patch_byte(rng_.byte());
    filler();
    target(d, victim());
  }
  void opcode_ahead() {
    const std::size_t d = patch({0xC6}, 0);
    a_.put({short_opcode()});
    filler();
    if (rng_.chance(30)) land(skip());  // ... or in the next block
    target(d, a_.size());
    a_.put({short_opcode()});
    filler();
  }
  /// The patching instruction's own immediate, opcode or displacement, several times over.
  void itself() {
    const std::size_t loop = begin_loop();
    const std::size_t start = a_.size();
    const std::size_t d = patch({rng_.chance(50) ? 0xC6U : 0x80U}, 0);  // mov, add
    a_.put({rng_.byte()});
    target(d, rng_.chance(70) ? a_.size() - 1 : start + rng_.below(a_.size() - start));
    end_loop(loop);
  }
  /// A loop's earlier or later instructions, in each turn or only in some.
  void loop_body() {
    const std::size_t loop = begin_loop();
    const std::size_t before = victim();
    filler();
    std::size_t over = 0;
    const bool sometimes = rng_.chance(50);
    if (sometimes) {
      a_.put({0xF6, 0xC1, 1ULL << rng_.below(5)});  // test cl, 1 << n
      a_.put({0x75, 0});                            // jnz
      over = a_.size();
    }
    const std::size_t d = patch_byte(rng_.byte());
    if (sometimes) land(over);
    filler();
    const std::size_t after = victim();
    target(d, rng_.chance(50) ? before : after);
    end_loop(loop);
  }
  /// A subroutine is called, patched and called again.
  void subroutine() {
    const std::size_t over = skip();
    const std::size_t body = a_.size();
    const std::size_t place = victim();
    filler();
    wide_operand();
    a_.put({0xC3});
    land(over);
    const auto call = [&] {
      wide_operand();
      a_.put({0xE8});
      a_.number(body - (a_.size() + 4), 4);
    };
    const bool loops = rng_.chance(60);
    const std::size_t loop = loops ? begin_loop() : 0;
    call();
    target(patch_byte(rng_.byte()), rng_.chance(80) ? place : place - 1);
    call();
    if (loops) end_loop(loop);
  }
  /// rep stosb over what follows, at times over itself.
  void string_store() {
    const bool real = plan_.mode == GuestMode::real || plan_.mode == GuestMode::vm86;
    if (real) a_.put({0x0E, 0x07});  // push cs; pop es
    const std::size_t d = lea(kRdi);
    const std::uint64_t count = 1 + rng_.below(10);
    a_.put({0xB0, short_opcode()});
    a_.load(1, count);
    a_.put({0xFC});
    if (a_.bits() == 16) a_.put({0x67});
    a_.put({0xF3, 0xAA});
    target(d, a_.size() - (rng_.chance(20) ? 1 + rng_.below(3) : 0));
    for (std::uint64_t n = count; n > 0; --n) a_.put({short_opcode()});
  }
  /// An instruction is written across the end of this page and jumped to.
  void across_a_page_end() {
    const std::size_t d = lea(kRsi);
    target(d, here_);
    rex_w();
    wide_operand();
    a_.put({0x81, 0xCE});  // or esi, FFFh
    a_.number(0xFFF, 4);
    code_address();
    a_.put({0xC6, 0x46, 0x100 - rng_.below(3), 0xB8});  // its opcode: mov eax, imm
    code_address();
    wide_operand();
    a_.put({0xC7, 0x46, rng_.below(3)});  // its immediate, on the next page
    a_.number(rng_(), 4);
    if (rng_.chance(60)) return;
    // sub esi, 0 to 2: where the opcode is, or next to it
    rex_w();
    wide_operand();
    a_.put({0x83, 0xEE, rng_.below(3)});
    jump(kRsi);
  }
  /// The next instruction is patched at one address and executed at another.
  void through_alias() {
    if (plan_.paging == PagingMode::off) return immediate_ahead();
    alias_ = false;
    const std::size_t d = patch_byte(rng_.byte());
    alias_ = true;
    const std::size_t there = lea(kRsi);
    jump(kRsi);
    target(there, a_.size());
    const std::size_t place = victim();
    alias_ = rng_.chance(30);
    target(d, place);
  }
  /// More bytes than one instruction has.
  void wide_store() {
    constexpr std::array<std::array<std::uint64_t, 2>, 2> kVector = {{{0x0F, 0x11}, {0x0F, 0x29}}};
    std::size_t d = 0;
    const std::uint64_t kind = rng_.below(3);
    if (kind == 0) {
      a_.load(0, 0x90909090 ^ (rng_.chance(30) ? rng_() & 0x01010101 : 0));
      wide_operand();
      d = patch({0x89}, 0);  // mov [code], eax
    } else if (kind == 1) {
      wide_operand();
      d = patch({0xC7}, 0);
      for (unsigned i = 0; i < 4; ++i) a_.put({short_opcode()});
    } else {
      const auto& opcode = rng_.pick(kVector);
      d = patch({opcode[0], opcode[1]}, static_cast<unsigned>(rng_.below(8)));  // MOVUPS, MOVAPS
    }
    filler();
    const std::size_t back = rng_.chance(25) ? rng_.below(3) : 0;
    target(d, a_.size() - back);
    for (unsigned i = 0; i < 16; ++i) a_.put({short_opcode()});
  }

  /// lea reg, [rbx + disp32]
  [[nodiscard]] std::size_t lea(unsigned reg) {
    rex_w();
    wide_operand();
    if (a_.bits() == 16) a_.put({0x67});
    a_.put({0x8D, 0x80U | reg << 3 | kRbx});
    a_.number(0, 4);
    return a_.size() - 4;
  }
  void jump(unsigned reg) {
    wide_operand();
    a_.put({0xFF, 0xE0 + reg});
  }

  Random& rng_;
  const GuestPlan& plan_;
  Assembler a_;
  std::size_t here_ = 0;  ///< what RBX points at
  bool alias_ = false;    ///< patches go through the alias
};

}  // namespace

void append_self_modifying(Random& rng, const GuestPlan& plan, unsigned bits,
                           std::vector<std::uint8_t>& out) {
  SelfModifier{rng, plan, bits, out}.sequence();
}

}  // namespace strata::fuzz
