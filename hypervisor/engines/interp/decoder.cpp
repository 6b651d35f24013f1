// From guest bytes to steps, in three passes over a run of instructions: decode, find out backwards
// which arithmetic flags anybody reads, lower.
#include <algorithm>
#include <array>
#include <limits>

#include "cpu/cpu_model.hpp"
#include "engines/interp/branches.hpp"
#include "engines/interp/core.hpp"
#include "engines/interp/lower.hpp"
#include "engines/interp/segment_checks.hpp"
#include "isa/decode.hpp"
#include "isa/opcodes.hpp"

namespace strata::interp {
namespace {

constexpr unsigned kMaxInstructions = 32;
constexpr std::uint32_t kArithmetic = cpu::rflags::ARITHMETIC;

/// How decoding one instruction ended.
enum class Verdict : std::uint8_t { good, undefined, too_long, out_of_bytes };

/// Whether an operand in memory is accessed in one of the ways of `actions`.
bool touches_memory(const Decoded& d, unsigned actions) {
  return std::any_of(d.operands.begin(), d.operands.begin() + d.insn.operand_count,
                     [actions](const ZydisDecodedOperand& o) {
                       return o.type == ZYDIS_OPERAND_TYPE_MEMORY &&
                              o.mem.type != ZYDIS_MEMOP_TYPE_AGEN && (o.actions & actions) != 0;
                     });
}

/// A RIP-relative operand whose distance from the block's first byte does not fit Uop::disp.
bool out_of_reach(const Decoded& d) {
  return std::any_of(d.operands.begin(), d.operands.begin() + d.insn.operand_count,
                     [&d](const ZydisDecodedOperand& o) {
                       return o.type == ZYDIS_OPERAND_TYPE_MEMORY &&
                              o.mem.base == ZYDIS_REGISTER_RIP &&
                              o.mem.disp.value + d.offset + d.insn.length >
                                  std::numeric_limits<std::int32_t>::max();
                     });
}

/// One decoded instruction and what the tables say of it.
struct Entry {
  Decoded d;
  isa::Opcode opcode{};
  Verdict verdict = Verdict::good;
};

/// One run of instructions on its way to steps.
class Run {
 public:
  Run(const std::byte* code, std::size_t available, std::uint64_t va, DecodeMode mode,
      const cpu::CpuModel& model, std::vector<Uop>& out)
      : code_(code),
        available_(available),
        page_offset_(va & kPageMask),
        mode_(mode),
        model_(model),
        out_(out) {}

  DecodeResult build() {
    decode();
    if (count_ == 0) return {0, 0, true};
    find_live_flags();
    for (unsigned i = 0; i < count_; ++i) {
      if (lower(entries_[i])) return {i + 1, end_of(i), false};
    }
    emit_fall_through(out_, static_cast<std::uint16_t>(bytes_),
                      !mode_.checked && page_offset_ + bytes_ < kPageSize);
    return {count_, bytes_, false};
  }

 private:
  /// Pass 1. A run that crosses into the next page is one instruction, so that each page's blocks
  /// depend on that page alone.
  void decode() {
    const ZydisDecoder decoder = isa::make_decoder(mode_.bits, mode_.stack32, model_);
    const bool crosses = page_offset_ + available_ > kPageSize;
    const unsigned limit = mode_.single || crosses ? 1 : kMaxInstructions;
    while (count_ < limit && bytes_ < available_) {
      Entry& e = entries_[count_];
      decode_one(decoder, e);
      if (e.verdict == Verdict::out_of_bytes) return;
      if (e.verdict == Verdict::good && out_of_reach(e.d)) {
        // A block of its own brings it into reach again.
        if (count_ != 0) return;
        e.verdict = Verdict::undefined;
      }
      ++count_;
      if (e.verdict != Verdict::good) {
        // Whatever the processor looked at decides that it stays undefined.
        bytes_ += static_cast<unsigned>(std::min(isa::kMaxInstructionBytes, available_ - bytes_));
        return;
      }
      bytes_ += e.d.insn.length;
      if (e.opcode.has(isa::kEndsRun) && e.opcode.cls != isa::OpcodeClass::system) return;
    }
  }

  void decode_one(const ZydisDecoder& decoder, Entry& e) {
    e.d.offset = static_cast<std::uint16_t>(bytes_);
    e.d.bytes = {};
    const std::size_t left = available_ - bytes_;
    const ZyanStatus status =
        isa::decode(decoder, code_ + bytes_, left, e.d.insn, e.d.operands.data());
    if (ZYAN_SUCCESS(status)) {
      std::memcpy(e.d.bytes.data(), code_ + bytes_, e.d.insn.length);
      e.opcode = isa::opcode_of(e.d.insn, e.d.operands.data());
      // VEX is for protected mode (SDM 2A 2.3.12).
      const bool vex = e.d.insn.encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY;
      const bool exists = isa::available(e.opcode, e.d.insn, model_) && !(vex && mode_.real);
      e.verdict = exists ? Verdict::good : Verdict::undefined;
    } else if (status == ZYDIS_STATUS_NO_MORE_DATA) {
      e.verdict = Verdict::out_of_bytes;
    } else if (status == ZYDIS_STATUS_INSTRUCTION_TOO_LONG) {
      e.verdict = Verdict::too_long;
    } else {
      e.verdict = Verdict::undefined;
    }
  }

  /// Pass 2, backwards: which flags may be read before they are written again.
  void find_live_flags() {
    std::uint32_t live = kArithmetic;
    for (unsigned i = count_; i-- > 0;) {
      Entry& e = entries_[i];
      if (e.verdict != Verdict::good || e.opcode.cls != isa::OpcodeClass::integer ||
          touches_memory(e.d, ZYDIS_OPERAND_ACTION_MASK_WRITE)) {
        // A store may hit this very block, which then ends behind it with code nobody has decoded
        // yet; and of the other classes we know nothing.
        e.d.flags_live = true;
        live = kArithmetic;
        continue;
      }
      live = live_before(e, live);
      // Its fault shows all flags to a handler.
      if (e.opcode.has(isa::kMayFault) ||
          touches_memory(e.d, ZYDIS_OPERAND_ACTION_MASK_READ | ZYDIS_OPERAND_ACTION_MASK_WRITE)) {
        live = kArithmetic;
      }
    }
  }

  /// The flags live before `e` given those live behind it; decides e.d.flags_live.
  static std::uint32_t live_before(Entry& e, std::uint32_t live) {
    const ZydisAccessedFlags* f = e.d.insn.cpu_flags;
    e.d.flags_live = false;
    if (f == nullptr) return live;
    const std::uint32_t writes = f->modified | f->set_0 | f->set_1;
    e.d.flags_live = ((writes | f->undefined) & live) != 0;
    if (e.opcode.has(isa::kReplacesFlags)) return f->tested & kArithmetic;
    if (!e.opcode.has(isa::kMayKeepFlags)) live &= ~writes;
    // Undefined flags are what the host's instruction makes of the old ones.
    return live | ((f->tested | f->undefined) & kArithmetic);
  }

  /// Pass 3. True: nothing runs behind this instruction.
  bool lower(const Entry& e) {
    Lowering l(e.d, mode_, model_, page_offset_, out_);
    const std::size_t before = out_.size();
    if (e.verdict == Verdict::good) {
      emit_checks(l);
      if (lower_by_class(l, e.opcode.cls)) return l.ends();
    }
    out_.resize(before);
    emit_fault(out_, e.d.offset, e.verdict == Verdict::too_long ? cpu::GP : cpu::UD);
    return true;
  }

  static bool lower_by_class(Lowering& l, isa::OpcodeClass cls) {
    switch (cls) {
      case isa::OpcodeClass::integer:
      case isa::OpcodeClass::branch:
      case isa::OpcodeClass::string:
        return lower_integer(l);
      case isa::OpcodeClass::system:
        return lower_system(l) || lower_vector(l);
      case isa::OpcodeClass::vector:
      case isa::OpcodeClass::x87:
        return lower_vector(l) || lower_system(l);
      case isa::OpcodeClass::unknown:
        return false;
    }
    return false;
  }

  [[nodiscard]] unsigned end_of(unsigned i) const {
    return i + 1 == count_ ? bytes_ : entries_[i + 1].d.offset;
  }

  const std::byte* code_;
  std::size_t available_;
  std::uint64_t page_offset_;
  DecodeMode mode_;
  const cpu::CpuModel& model_;
  std::vector<Uop>& out_;
  std::array<Entry, kMaxInstructions> entries_;
  unsigned count_ = 0;
  unsigned bytes_ = 0;
};

}  // namespace

DecodeResult decode_block(const std::byte* code, std::size_t available, std::uint64_t va,
                          DecodeMode mode, const cpu::CpuModel& model, std::vector<Uop>& out) {
  return Run(code, available, va, mode, model, out).build();
}

}  // namespace strata::interp
