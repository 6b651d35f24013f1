#include "engines/interp/host_thunk_emit.hpp"

#include <cstddef>
#include <initializer_list>

#include "engines/interp/host_thunk.hpp"

namespace strata::interp {
namespace {

enum HostRegister : std::uint8_t { kRax = 0, kRcx = 1, kRdx = 2, kRbx = 3, kRsi = 6, kRdi = 7 };

/// Where v0 to v3 are (see VectorThunk); the frame is in R8 and the memory operand in R9.
inline constexpr std::array<std::uint8_t, 4> kSlotPointer{kRdi, kRsi, kRcx, kRdx};

class Emitter {
 public:
  void put(std::initializer_list<unsigned> bytes) {
    for (const unsigned b : bytes) code_.bytes[code_.size++] = static_cast<std::byte>(b);
  }
  /// One-opcode instruction with a ThunkFrame field as memory operand: [R8 + offset].
  void frame_op(std::initializer_list<unsigned> opcode, unsigned reg, std::size_t offset) {
    put(opcode);
    put({0x40U | reg << 3, static_cast<unsigned>(offset)});  // mod 01, rm R8 with REX.B
  }
  void instruction(const ThunkForm& form) {
    if (form.immediate_at != 0) {
      code_.immediate_at = static_cast<std::uint16_t>(code_.size + form.immediate_at);
    }
    for (unsigned i = 0; i < form.size; ++i) put({form.bytes[i]});
  }
  [[nodiscard]] std::uint16_t here() const noexcept { return code_.size; }
  void patch(std::uint16_t at, unsigned byte) { code_.bytes[at] = static_cast<std::byte>(byte); }
  [[nodiscard]] const ThunkCode& code() const noexcept { return code_; }

 private:
  ThunkCode code_;
};

/// Moves a slot between its host register and memory: 16 bytes for legacy SSE, so that the upper
/// half in memory stays; all 32 for VEX, whose result has the upper half right in the register.
void move_slot(Emitter& e, const ThunkForm& form, unsigned index, bool store) {
  const ThunkSlot& slot = form.slots[index];
  const unsigned modrm = static_cast<unsigned>(slot.host) << 3 | kSlotPointer[index];
  if (slot.mmx) {
    e.put({0x0F, store ? 0x7FU : 0x6FU, modrm});  // MOVQ
  } else if (form.kind == ThunkKind::avx) {
    e.put({0xC5, 0xFE, store ? 0x7FU : 0x6FU, modrm});  // VMOVDQU ymm
  } else {
    e.put({0x0F, store ? 0x11U : 0x10U, modrm});  // MOVUPS
  }
}

void load_inputs(Emitter& e, const ThunkForm& form) {
  for (unsigned i = 0; i < form.slot_count; ++i) move_slot(e, form, i, false);
  if (form.gpr_read) e.frame_op({0x49, 0x8B}, kRax, offsetof(ThunkFrame, gpr));
  if (form.length_inputs) {
    e.frame_op({0x49, 0x8B}, kRax, offsetof(ThunkFrame, rax));
    e.frame_op({0x49, 0x8B}, kRdx, offsetof(ThunkFrame, rdx));
  }
  if (form.floating) e.frame_op({0x41, 0x0F, 0xAE}, 2, offsetof(ThunkFrame, mxcsr_in));  // LDMXCSR
}

/// LAHF and SETO in the format of flags.hpp. Uses AX: general results must be saved before.
void save_flags(Emitter& e) {
  e.put({0x9F, 0x0F, 0x90, 0xC0, 0x66});
  e.frame_op({0x41, 0x89}, kRax, offsetof(ThunkFrame, flags));
}

/// Results that are not architectural state yet.
void save_to_frame(Emitter& e, const ThunkForm& form) {
  if (form.gpr_write) e.frame_op({0x49, 0x89}, kRax, offsetof(ThunkFrame, gpr));
  if (form.index_output) e.frame_op({0x49, 0x89}, kRcx, offsetof(ThunkFrame, rcx));
  if (form.flags_written) save_flags(e);
}

ThunkCode emit_vector(const ThunkForm& form) {
  Emitter e;
  load_inputs(e, form);
  e.instruction(form);
  save_to_frame(e, form);
  std::uint16_t skip = 0;
  if (form.floating) {
    e.frame_op({0x41, 0x0F, 0xAE}, 3, offsetof(ThunkFrame, mxcsr_out));  // STMXCSR
    e.frame_op({0x41, 0x8B}, kRax, offsetof(ThunkFrame, mxcsr_out));
    e.frame_op({0x41, 0x85}, kRax, offsetof(ThunkFrame, unmasked));  // TEST
    e.put({0x75, 0});                                                // JNZ past the stores
    skip = e.here();
  }
  for (unsigned i = 0; i < form.slot_count; ++i) {
    if (form.slots[i].written) move_slot(e, form, i, true);
  }
  if (form.floating) e.patch(static_cast<std::uint16_t>(skip - 1), e.here() - skip);
  if (form.uses_mmx) e.put({0x0F, 0x77});                      // EMMS
  if (form.kind == ThunkKind::avx) e.put({0xC5, 0xF8, 0x77});  // VZEROUPPER
  e.put({0xC3});
  return e.code();
}

/// A field of the frame, which x87 thunks get in RSI, with AX.
void x87_flags(Emitter& e, unsigned opcode) {
  e.put({0x66, opcode, 0x46, static_cast<unsigned>(offsetof(ThunkFrame, flags))});
}

/// RDI is the FXSAVE area, RSI the frame, RDX the memory operand, which the form names [RDX].
ThunkCode emit_x87(const ThunkForm& form) {
  Emitter e;
  e.put({0x48, 0x0F, 0xAE, 0x0F});  // FXRSTOR64 [RDI]
  if (form.flags_written) {
    x87_flags(e, 0x8B);
    // OF is the low byte: 1 + 7Fh overflows, 0 + 7Fh does not; SAHF leaves OF alone.
    e.put({0x04, 0x7F, 0x9E});
  }
  e.instruction(form);
  if (form.flags_written) {
    e.put({0x9F, 0x0F, 0x90, 0xC0});  // LAHF; SETO AL
    x87_flags(e, 0x89);
  }
  // Neither waits for a pending exception; the second clears it.
  e.put({0x48, 0x0F, 0xAE, 0x07, 0xDB, 0xE3});  // FXSAVE64 [RDI]; FNINIT
  e.put({0xC3});
  return e.code();
}

}  // namespace

ThunkCode emit_thunk(const ThunkForm& form) {
  return form.kind == ThunkKind::x87 ? emit_x87(form) : emit_vector(form);
}

}  // namespace strata::interp
