#include "engines/interp/host_thunk_form.hpp"

#include <algorithm>
#include <span>

#include "engines/interp/vector.hpp"

namespace strata::interp {
namespace {

inline constexpr std::uint8_t kHostMemory = 9;  ///< R9 holds the pointer to the memory operand

bool is_class(const ZydisDecodedOperand& op, ZydisRegisterClass c) {
  return op.type == ZYDIS_OPERAND_TYPE_REGISTER && ZydisRegisterGetClass(op.reg.value) == c;
}
bool is_mmx(const ZydisDecodedOperand& op) { return is_class(op, ZYDIS_REGCLASS_MMX); }
bool is_general(const ZydisDecodedOperand& op) {
  return is_class(op, ZYDIS_REGCLASS_GPR32) || is_class(op, ZYDIS_REGCLASS_GPR64);
}
bool is_visible(const ZydisDecodedOperand& op) {
  return op.visibility == ZYDIS_OPERAND_VISIBILITY_EXPLICIT;
}
bool reads(const ZydisDecodedOperand& op) {
  return (op.actions & ZYDIS_OPERAND_ACTION_MASK_READ) != 0;
}
bool writes(const ZydisDecodedOperand& op) {
  return (op.actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) != 0;
}

std::span<const ZydisDecodedOperand> operands(const Lowering& l) {
  return {l.ops, l.insn.operand_count};
}

/// Whether rounding, denormal control or exception flags of MXCSR matter.
bool is_floating(const ZydisDecodedInstruction& insn) {
  switch (insn.meta.exception_class) {
    case ZYDIS_EXCEPTION_CLASS_SSE2:
    case ZYDIS_EXCEPTION_CLASS_SSE3:
    case ZYDIS_EXCEPTION_CLASS_AVX2:
    case ZYDIS_EXCEPTION_CLASS_AVX3:
    case ZYDIS_EXCEPTION_CLASS_AVX11:
      return true;
    case ZYDIS_EXCEPTION_CLASS_NONE:
      // CVTPI2PS and relatives have no class of their own.
      return insn.meta.category == ZYDIS_CATEGORY_CONVERT;
    default:
      return false;
  }
}

/// Assigns host registers to operands and collects what goes in and out.
class FormBuilder {
 public:
  explicit FormBuilder(const Lowering& l) : l_{l} {}

  bool collect() {
    const bool implicit_xmm0 =
        std::any_of(operands(l_).begin(), operands(l_).end(),
                    [](const auto& op) { return !is_visible(op) && is_vector_register(op); });
    next_host_ = implicit_xmm0 ? 1 : 0;
    for (const ZydisDecodedOperand& op : operands(l_)) {
      if (is_visible(op) && !take_explicit(op)) return false;
    }
    form.explicit_slots = form.slot_count;
    for (const ZydisDecodedOperand& op : operands(l_)) {
      if (!is_visible(op) && !take_hidden(op)) return false;
    }
    form.kind = is_vex(l_) ? ThunkKind::avx : ThunkKind::sse;
    form.floating = is_floating(l_.insn);
    // General-register instructions belong to others, but CVTSS2SI r, m is one of these.
    if (form.slot_count == 0 && !form.floating) return false;
    if (form.uses_mmx &&
        std::none_of(operands(l_).begin(), operands(l_).end(), is_vector_register)) {
      form.kind = ThunkKind::mmx;
    }
    return true;
  }

  /// The host register number of an operand by its place in the encoding; -1 if none is there.
  [[nodiscard]] int host_of(ZydisOperandEncoding encoding) const {
    for (const ZydisDecodedOperand& op : operands(l_)) {
      if (!is_visible(op) || op.encoding != encoding) continue;
      if (op.type == ZYDIS_OPERAND_TYPE_MEMORY) return kHostMemory;
      if (op.type == ZYDIS_OPERAND_TYPE_REGISTER) return host_[op.id];
    }
    return -1;
  }

  ThunkForm form;

 private:
  bool take_slot(const ZydisDecodedOperand& op, std::uint8_t host) {
    if (form.slot_count == form.slots.size()) return false;
    host_[op.id] = host;
    form.slots[form.slot_count++] = {host, is_mmx(op), writes(op)};
    form.uses_mmx = form.uses_mmx || is_mmx(op);
    return true;
  }

  bool take_explicit(const ZydisDecodedOperand& op) {
    if (op.type == ZYDIS_OPERAND_TYPE_IMMEDIATE) return true;
    if (is_vector_register(op) || is_mmx(op)) return take_slot(op, next_host_++);
    if (is_general(op)) {
      if (form.gpr_read || form.gpr_write) return false;
      form.gpr_read = reads(op);
      form.gpr_write = writes(op);
      host_[op.id] = 0;
      return true;
    }
    if (op.type != ZYDIS_OPERAND_TYPE_MEMORY || op.size == 0 || op.size > 256) return false;
    if (reads(op) == writes(op)) return false;
    form.memory = reads(op) ? ThunkMemory::read : ThunkMemory::write;
    form.memory_bytes = static_cast<std::uint8_t>(op.size / 8);
    form.alignment = static_cast<std::uint8_t>(required_alignment(l_.insn, op));
    return true;
  }

  bool take_hidden(const ZydisDecodedOperand& op) {
    if (op.type != ZYDIS_OPERAND_TYPE_REGISTER) return false;
    switch (op.reg.value) {
      case ZYDIS_REGISTER_XMM0:
        return take_slot(op, 0);
      case ZYDIS_REGISTER_EAX:
      case ZYDIS_REGISTER_RAX:
      case ZYDIS_REGISTER_EDX:
      case ZYDIS_REGISTER_RDX:
        form.length_inputs = true;
        return !writes(op);
      case ZYDIS_REGISTER_ECX:
      case ZYDIS_REGISTER_RCX:
        form.index_output = true;
        return !reads(op);
      case ZYDIS_REGISTER_FLAGS:
      case ZYDIS_REGISTER_EFLAGS:
      case ZYDIS_REGISTER_RFLAGS:
        form.flags_written = writes(op);
        return !reads(op);
      default:
        return false;
    }
  }

  const Lowering& l_;
  std::uint8_t next_host_ = 0;
  std::array<std::uint8_t, ZYDIS_MAX_OPERAND_COUNT> host_{};
};

/// Bytes of the instruction with the builder's registers.
class Encoder {
 public:
  Encoder(const Lowering& l, const FormBuilder& builder, bool w, ThunkForm& out)
      : l_{l}, builder_{builder}, w_{w}, out_{out} {}

  bool encode() {
    out_.size = 0;
    out_.immediate_at = 0;
    const auto& raw = l_.insn.raw;
    if ((l_.insn.attributes & ZYDIS_ATTRIB_HAS_MODRM) == 0) return false;
    reg_ = builder_.host_of(ZYDIS_OPERAND_ENCODING_MODRM_REG);
    rm_ = builder_.host_of(ZYDIS_OPERAND_ENCODING_MODRM_RM);
    if (rm_ < 0) return false;
    if (is_vex(l_)) {
      vex();
    } else if (!legacy()) {
      return false;
    }
    put(l_.insn.opcode);
    const bool memory = out_.memory != ThunkMemory::none;
    put((memory ? 0U : 0xC0U) | static_cast<unsigned>(reg_ < 0 ? raw.modrm.reg : reg_ & 7) << 3 |
        static_cast<unsigned>(rm_ & 7));
    tail();
    return true;
  }

 private:
  void put(unsigned byte) { out_.bytes[out_.size++] = static_cast<std::uint8_t>(byte); }

  void vex() {
    const auto& v = l_.insn.raw.vex;
    const int vvvv = builder_.host_of(ZYDIS_OPERAND_ENCODING_NDSNDD);
    put(0xC4);
    put((reg_ < 8 ? 0x80U : 0U) | 0x40U | (rm_ < 8 ? 0x20U : 0U) | v.m_mmmm);
    put((w_ ? 0x80U : 0U) | (~static_cast<unsigned>(vvvv < 0 ? 0 : vvvv) & 15U) << 3 |
        static_cast<unsigned>(v.L) << 2 | v.pp);
  }

  bool legacy() {
    const auto& raw = l_.insn.raw;
    for (unsigned i = 0; i < raw.prefix_count; ++i) {
      if (raw.prefixes[i].type == ZYDIS_PREFIX_TYPE_MANDATORY) put(raw.prefixes[i].value);
    }
    const unsigned rex = (w_ ? 8U : 0U) | (reg_ >= 8 ? 4U : 0U) | (rm_ >= 8 ? 1U : 0U);
    if (rex != 0) put(0x40U | rex);
    put(0x0F);
    switch (l_.insn.opcode_map) {
      case ZYDIS_OPCODE_MAP_0F:
        return true;
      case ZYDIS_OPCODE_MAP_0F38:
        put(0x38);
        return true;
      case ZYDIS_OPCODE_MAP_0F3A:
        put(0x3A);
        return true;
      default:
        return false;
    }
  }

  void tail() {
    if (const int is4 = builder_.host_of(ZYDIS_OPERAND_ENCODING_IS4); is4 >= 0) {
      put(static_cast<unsigned>(is4) << 4);
    } else if (l_.insn.raw.imm[0].size == 8) {
      out_.immediate_at = out_.size;
      put(l_.d.bytes[l_.insn.raw.imm[0].offset]);
    }
  }

  const Lowering& l_;
  const FormBuilder& builder_;
  bool w_;
  ThunkForm& out_;
  int reg_ = -1;
  int rm_ = -1;
};

/// Whether the bytes decode, in 64-bit mode, to what the guest's instruction does: the same
/// operation on operands of the same kinds and sizes, with memory at [R9].
bool same_operation(const Lowering& l, const ThunkForm& form) {
  ZydisDecoder decoder;
  ZydisDecodedInstruction insn;
  std::array<ZydisDecodedOperand, ZYDIS_MAX_OPERAND_COUNT> ops;
  if (!ZYAN_SUCCESS(ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64)) ||
      !ZYAN_SUCCESS(
          ZydisDecoderDecodeFull(&decoder, form.bytes.data(), form.size, &insn, ops.data()))) {
    return false;
  }
  if (insn.mnemonic != l.insn.mnemonic || insn.length != form.size ||
      insn.operand_count != l.insn.operand_count) {
    return false;
  }
  for (unsigned i = 0; i < insn.operand_count; ++i) {
    const ZydisDecodedOperand& a = ops[i];
    const ZydisDecodedOperand& b = l.ops[i];
    const bool flags = !is_visible(a);  // EFLAGS and RFLAGS are one
    if (a.type != b.type || a.actions != b.actions || (a.size != b.size && !flags)) return false;
    if (a.type == ZYDIS_OPERAND_TYPE_MEMORY &&
        (a.mem.base != ZYDIS_REGISTER_R9 || a.mem.index != ZYDIS_REGISTER_NONE ||
         a.mem.disp.has_displacement)) {
      return false;
    }
  }
  return true;
}

}  // namespace

std::optional<ThunkForm> normal_form(const Lowering& l) {
  FormBuilder builder{l};
  if (!builder.collect()) return std::nullopt;
  const bool encoded =
      is_vex(l) ? l.insn.raw.vex.W != 0
                : (l.insn.attributes & ZYDIS_ATTRIB_HAS_REX) != 0 && l.insn.raw.rex.W != 0;
  // Outside 64-bit mode W is ignored where it would select a 64-bit general register (SDM
  // 2A 2.3.5.5), such as the implicit lengths of PCMPESTRI.
  const bool w = encoded && (l.mode.bits == 64 || !builder.form.length_inputs);
  for (const bool try_w : {w, false}) {
    ThunkForm form = builder.form;
    if (Encoder{l, builder, try_w, form}.encode() && same_operation(l, form)) return form;
  }
  return std::nullopt;
}

}  // namespace strata::interp
