// Decoding for engines, fuzzer and tests: Zydis, set up for a processor model, with what it
// misreads put right.
#pragma once

#include <Zydis/Zydis.h>

#include <cstddef>
#include <cstdint>

#include "cpu/cpu_model.hpp"

namespace strata::isa {

/// Longest instruction there is (SDM 2A 2.3.11).
inline constexpr std::size_t kMaxInstructionBytes = 15;

/// A decoder for code of `bits` (16, 32, 64) and, outside 64-bit mode, SS.B.
[[nodiscard]] ZydisDecoder make_decoder(unsigned bits, bool stack32,
                                        const cpu::CpuModel& model) noexcept;

/// As ZydisDecoderDecodeFull().
[[nodiscard]] ZyanStatus decode(const ZydisDecoder& decoder, const void* bytes,
                                std::size_t available, ZydisDecodedInstruction& insn,
                                ZydisDecodedOperand* operands) noexcept;

}  // namespace strata::isa
