// FXSAVE, FXRSTOR and the XSAVE family on an emulated layout (SDM 1 10.5 and 13): the components
// are those the model has, wherever the host's processor would put them.
#include <algorithm>

#include "engines/interp/x87_state.hpp"

namespace strata::interp {
namespace {

namespace xstate = cpu::xstate;

inline constexpr std::uint32_t kMxcsrInitial = 0x1F80;
inline constexpr std::uint32_t kMxcsrMask = 0xFFFF;
inline constexpr std::size_t kLegacyBytes = 512;
inline constexpr std::size_t kHeaderBytes = 64;
inline constexpr std::uint64_t kCompacted = 1ULL << 63;  ///< XCOMP_BV[63]

/// Uop::aux of these instructions.
inline constexpr std::uint8_t kWide = 1;     ///< REX.W: 64-bit FIP and FDP, no selectors
inline constexpr std::uint8_t kSixteen = 2;  ///< 64-bit mode: 16 vector registers, else 8
inline constexpr std::uint8_t kInit = 4;     ///< XSAVEOPT: leaves initial components unwritten
inline constexpr std::uint8_t kCompact = 8;  ///< XSAVEC

unsigned register_count(const Uop* u) noexcept { return (u->aux & kSixteen) != 0 ? 16 : 8; }

/// Pieces of guest memory to be written, all or none.
class StoreList {
 public:
  void add(std::uint64_t offset, const void* data, unsigned size) {
    pieces_[count_++] = {offset, data, size};
  }
  [[nodiscard]] bool store(Core& core, std::uint64_t va) const {
    for (unsigned i = 0; i < count_; ++i) {
      if (!core.check_store(va + pieces_[i].offset, pieces_[i].size)) return false;
    }
    for (unsigned i = 0; i < count_; ++i) {
      if (!core.store_bytes(va + pieces_[i].offset, pieces_[i].data, pieces_[i].size)) return false;
    }
    return true;
  }

 private:
  struct Piece {
    std::uint64_t offset;
    const void* data;
    unsigned size;
  };
  std::array<Piece, 8> pieces_{};
  unsigned count_ = 0;
};

/// The legacy region as it would be saved now.
struct LegacyRegion {
  std::array<std::byte, kLegacyBytes> bytes{};

  void fill(const Core& core, bool wide) {
    const X87Image x87 = get_x87(core);
    std::copy(x87.bytes.begin(), x87.bytes.end(), bytes.begin());
    if (!wide) {
      // 32-bit FIP and FDP, each followed by a selector, which this processor does not keep
      // (CPUID.7:EBX[13], SDM 1 8.1.8).
      std::fill_n(bytes.begin() + fx::kFip + 4, 4, std::byte{0});
      std::fill_n(bytes.begin() + fx::kFdp + 4, 4, std::byte{0});
    }
    const std::uint32_t mask = kMxcsrMask;
    std::memcpy(bytes.data() + fx::kMxcsr, &core.arch.vector.mxcsr, 4);
    std::memcpy(bytes.data() + fx::kMxcsrMask, &mask, 4);
    for (std::size_t i = 0; i < 16; ++i) {
      std::memcpy(bytes.data() + fx::kXmm + 16 * i, core.arch.vector.ymm[i].data(), 16);
    }
  }
};

void load_x87(Core& core, const std::byte* region, bool wide) {
  X87Image image;
  std::copy_n(region, kX87Bytes, image.bytes.begin());
  if (!wide) {
    image.set<std::uint32_t>(fx::kFip + 4, 0);
    image.set<std::uint32_t>(fx::kFdp + 4, 0);
  }
  canonicalise_x87(image);
  set_x87(core, image);
}

void load_xmm(Core& core, const std::byte* region, unsigned count) {
  for (std::size_t i = 0; i < count; ++i) {
    std::memcpy(core.arch.vector.ymm[i].data(), region + fx::kXmm + 16 * i, 16);
  }
}

std::uint32_t mxcsr_in(const std::byte* region) noexcept {
  std::uint32_t v = 0;
  std::memcpy(&v, region + fx::kMxcsr, sizeof v);
  return v;
}

const Uop* fxsave(Core& core, const Uop* u) {
  if (const auto why = refusal<Unit::x87>(core); why != 0) return core.fault(u, why);
  const std::uint64_t va = core.ea(u);
  if ((va & 15) != 0) return core.fault(u, cpu::GP, 0);
  // All 512 bytes are the operand; 416 and up stay as they are (SDM 1 table 10-2).
  if (!core.check_store(va, kLegacyBytes)) return refuse(core, u);
  LegacyRegion region;
  region.fill(core, (u->aux & kWide) != 0);
  const auto size = static_cast<unsigned>(fx::kXmm + 16 * register_count(u));
  if (!core.store_bytes(va, region.bytes.data(), size)) return refuse(core, u);
  return u + 1;
}

const Uop* fxrstor(Core& core, const Uop* u) {
  if (const auto why = refusal<Unit::x87>(core); why != 0) return core.fault(u, why);
  const std::uint64_t va = core.ea(u);
  if ((va & 15) != 0) return core.fault(u, cpu::GP, 0);
  std::array<std::byte, kLegacyBytes> region;
  if (!core.load_bytes(va, region.data(), kLegacyBytes)) return refuse(core, u);
  const std::uint32_t mxcsr = mxcsr_in(region.data());
  if ((mxcsr & ~kMxcsrMask) != 0) return core.fault(u, cpu::GP, 0);
  load_x87(core, region.data(), (u->aux & kWide) != 0);
  load_xmm(core, region.data(), register_count(u));
  core.arch.vector.mxcsr = mxcsr;
  return u + 1;
}

/// EDX:EAX restricted to what the guest enabled.
std::uint64_t requested(const Core& core) noexcept {
  const std::uint64_t mask = static_cast<std::uint32_t>(core.r[cpu::RAX]) | core.r[cpu::RDX] << 32;
  return mask & core.arch.vector.xcr0;
}

/// Conditions common to the family: 0, or the vector to raise (SDM 2, XSAVE; #GP for alignment is
/// checked by the caller because it has an error code).
std::uint8_t xsave_refusal(const Core& core) noexcept {
  if ((core.arch.cr4 & cpu::cr4::OSXSAVE) == 0) return cpu::UD;
  if ((core.arch.cr0 & cpu::cr0::TS) != 0) return cpu::NM;
  return 0;
}

/// Offset of component `index` in an area of the given format. Compacted areas pack what XCOMP_BV
/// names; none of our components asks for 64-byte alignment (SDM 1 13.4.3).
std::uint32_t component_offset(const cpu::CpuModel& model, unsigned index, bool compact,
                               std::uint64_t xcomp) {
  if (!compact) return model.xstate_component(index).offset;
  auto offset = static_cast<std::uint32_t>(kLegacyBytes + kHeaderBytes);
  for (unsigned i = 2; i < index; ++i) {
    if ((xcomp >> i & 1) != 0) offset += model.xstate_component(i).bytes;
  }
  return offset;
}

using UpperHalves = std::array<std::uint64_t, 32>;

/// What XSAVE, XSAVEOPT and XSAVEC have in common: stores the components of `saved`.
bool store_components(Core& core, const Uop* u, std::uint64_t va, std::uint64_t saved,
                      bool with_mxcsr, const std::array<std::uint64_t, 2>& header,
                      std::uint64_t rfbm) {
  const bool compact = (u->aux & kCompact) != 0;
  const unsigned count = register_count(u);
  LegacyRegion region;
  region.fill(core, (u->aux & kWide) != 0);
  UpperHalves upper;
  for (std::size_t i = 0; i < 16; ++i) {
    std::copy_n(core.arch.vector.ymm[i].begin() + 2, 2, upper.begin() + 2 * i);
  }
  const std::array<std::uint32_t, 2> pkru{core.arch.pkru, 0};
  StoreList list;
  if ((saved & xstate::kX87) != 0) {
    list.add(0, region.bytes.data(), fx::kMxcsr);
    list.add(fx::kSt, region.bytes.data() + fx::kSt, kX87Bytes - fx::kSt);
  }
  if (with_mxcsr) list.add(fx::kMxcsr, region.bytes.data() + fx::kMxcsr, 8);
  if ((saved & xstate::kSse) != 0) list.add(fx::kXmm, region.bytes.data() + fx::kXmm, 16 * count);
  if ((saved & xstate::kAvx) != 0) {
    list.add(component_offset(*core.env.model, 2, compact, rfbm), upper.data(), 16 * count);
  }
  if ((saved & xstate::kPkru) != 0) {
    list.add(component_offset(*core.env.model, 9, compact, rfbm), pkru.data(), sizeof pkru);
  }
  list.add(kLegacyBytes, header.data(), compact ? 16 : 8);
  return list.store(core, va);
}

/// XSAVE and XSAVEOPT: standard format (SDM 1 13.7, 13.9). The modified optimisation is not used.
const Uop* xsave(Core& core, const Uop* u) {
  if (const auto why = xsave_refusal(core); why != 0) return core.fault(u, why);
  const std::uint64_t va = core.ea(u);
  if ((va & 63) != 0) return core.fault(u, cpu::GP, 0);
  std::uint64_t old_bv = 0;
  if (!core.load(va + kLegacyBytes, old_bv)) return refuse(core, u);
  const std::uint64_t rfbm = requested(core);
  const std::uint64_t used = xstate_in_use(core);
  const std::array<std::uint64_t, 2> header{(old_bv & ~rfbm) | (used & rfbm), 0};
  // MXCSR goes with SSE or AVX, whether or not their registers are written (13.7, 13.9).
  std::uint64_t saved = rfbm;
  if ((u->aux & kInit) != 0) saved &= used;
  constexpr std::uint64_t kWithMxcsr = xstate::kSse | xstate::kAvx;
  const bool with_mxcsr = (rfbm & kWithMxcsr) != 0;
  if (!store_components(core, u, va, saved, with_mxcsr, header, rfbm)) return refuse(core, u);
  return u + 1;
}

/// XSAVEC: compacted format, initial components left out (SDM 1 13.10).
const Uop* xsavec(Core& core, const Uop* u) {
  if (const auto why = xsave_refusal(core); why != 0) return core.fault(u, why);
  const std::uint64_t va = core.ea(u);
  if ((va & 63) != 0) return core.fault(u, cpu::GP, 0);
  const std::uint64_t rfbm = requested(core);
  std::uint64_t saved = rfbm & xstate_in_use(core);
  if (core.arch.vector.mxcsr != kMxcsrInitial) saved |= rfbm & xstate::kSse;
  const std::array<std::uint64_t, 2> header{saved, rfbm | kCompacted};
  const bool with_mxcsr = (saved & xstate::kSse) != 0;
  if (!store_components(core, u, va, saved, with_mxcsr, header, rfbm)) return refuse(core, u);
  return u + 1;
}

struct XsaveHeader {
  std::uint64_t xstate_bv = 0;
  std::uint64_t xcomp_bv = 0;
  std::array<std::uint64_t, 6> reserved{};
};
static_assert(sizeof(XsaveHeader) == kHeaderBytes);

/// The checks of XRSTOR on the header (SDM 1 13.8.1 and 13.8.2).
bool header_valid(const Core& core, const XsaveHeader& h) {
  const std::uint64_t xcr0 = core.arch.vector.xcr0;
  if ((h.xcomp_bv & kCompacted) == 0) {
    return (h.xstate_bv & ~xcr0) == 0 && h.xcomp_bv == 0 && h.reserved[0] == 0;
  }
  if (!core.env.model->has(cpu::Feature::xsavec)) return false;
  return (h.xcomp_bv & ~kCompacted & ~xcr0) == 0 && (h.xstate_bv & ~h.xcomp_bv) == 0 &&
         std::all_of(h.reserved.begin(), h.reserved.end(), [](auto w) { return w == 0; });
}

/// Everything XRSTOR reads, before it changes anything.
struct RestoreInput {
  XsaveHeader header;
  std::array<std::byte, kLegacyBytes> legacy{};
  UpperHalves upper{};
  std::uint32_t pkru = 0;
  std::uint64_t rfbm = 0;
  std::uint64_t from_memory = 0;  ///< of rfbm: loaded; the others are initialised
  bool loads_mxcsr = false;
};

bool read_components(Core& core, const Uop* u, std::uint64_t va, RestoreInput& in) {
  const bool compact = (in.header.xcomp_bv & kCompacted) != 0;
  const std::uint64_t xcomp = in.header.xcomp_bv;
  in.from_memory = in.rfbm & in.header.xstate_bv;
  // Standard format: MXCSR is loaded with SSE or AVX, whatever XSTATE_BV says (13.8.1).
  in.loads_mxcsr = compact ? (in.from_memory & xstate::kSse) != 0
                           : (in.rfbm & (xstate::kSse | xstate::kAvx)) != 0;
  const bool legacy = in.loads_mxcsr || (in.from_memory & (xstate::kX87 | xstate::kSse)) != 0;
  if (legacy && !core.load_bytes(va, in.legacy.data(), kLegacyBytes)) return false;
  if ((in.from_memory & xstate::kAvx) != 0) {
    const std::uint64_t at = va + component_offset(*core.env.model, 2, compact, xcomp);
    if (!core.load_bytes(at, in.upper.data(), 16 * register_count(u))) return false;
  }
  if ((in.from_memory & xstate::kPkru) != 0) {
    const std::uint64_t at = va + component_offset(*core.env.model, 9, compact, xcomp);
    if (!core.load(at, in.pkru)) return false;
  }
  return true;
}

void restore_vectors(Core& core, const RestoreInput& in, unsigned count) {
  for (std::size_t i = 0; i < count; ++i) {
    VectorRegister& r = core.arch.vector.ymm[i];
    if ((in.rfbm & xstate::kSse) != 0) {
      if ((in.from_memory & xstate::kSse) != 0) {
        std::memcpy(r.data(), in.legacy.data() + fx::kXmm + 16 * i, 16);
      } else {
        r[0] = r[1] = 0;
      }
    }
    // `upper` is zero where AVX is initialised.
    if ((in.rfbm & xstate::kAvx) != 0) std::copy_n(in.upper.begin() + 2 * i, 2, r.begin() + 2);
  }
}

const Uop* xrstor(Core& core, const Uop* u) {
  if (const auto why = xsave_refusal(core); why != 0) return core.fault(u, why);
  const std::uint64_t va = core.ea(u);
  if ((va & 63) != 0) return core.fault(u, cpu::GP, 0);
  RestoreInput in;
  in.rfbm = requested(core);
  if (!core.load_bytes(va + kLegacyBytes, &in.header, kHeaderBytes)) return refuse(core, u);
  if (!header_valid(core, in.header)) return core.fault(u, cpu::GP, 0);
  if (!read_components(core, u, va, in)) return refuse(core, u);
  const std::uint32_t mxcsr = mxcsr_in(in.legacy.data());
  if (in.loads_mxcsr && (mxcsr & ~kMxcsrMask) != 0) return core.fault(u, cpu::GP, 0);

  if ((in.rfbm & xstate::kX87) != 0) {
    if ((in.from_memory & xstate::kX87) != 0) {
      load_x87(core, in.legacy.data(), (u->aux & kWide) != 0);
    } else {
      set_x87(core, initial_x87());
    }
  }
  restore_vectors(core, in, register_count(u));
  if (in.loads_mxcsr) {
    core.arch.vector.mxcsr = mxcsr;
  } else if ((in.header.xcomp_bv & kCompacted) != 0 && (in.rfbm & xstate::kSse) != 0) {
    core.arch.vector.mxcsr = kMxcsrInitial;
  }
  if ((in.rfbm & xstate::kPkru) == 0 || core.arch.pkru == in.pkru) return u + 1;
  core.arch.pkru = in.pkru;
  core.rights_changed();
  return core.finish(u);
}

}  // namespace

bool lower_xsave(Lowering& l) {
  Handler fn = nullptr;
  std::uint8_t aux = l.mode.bits == 64 ? kSixteen : 0;
  switch (l.insn.mnemonic) {
    case ZYDIS_MNEMONIC_FXSAVE64:
      aux |= kWide;
      [[fallthrough]];
    case ZYDIS_MNEMONIC_FXSAVE:
      fn = fxsave;
      break;
    case ZYDIS_MNEMONIC_FXRSTOR64:
      aux |= kWide;
      [[fallthrough]];
    case ZYDIS_MNEMONIC_FXRSTOR:
      fn = fxrstor;
      break;
    case ZYDIS_MNEMONIC_XSAVE64:
      aux |= kWide;
      [[fallthrough]];
    case ZYDIS_MNEMONIC_XSAVE:
      fn = xsave;
      break;
    case ZYDIS_MNEMONIC_XSAVEOPT64:
      aux |= kWide;
      [[fallthrough]];
    case ZYDIS_MNEMONIC_XSAVEOPT:
      fn = xsave;
      aux |= kInit;
      break;
    case ZYDIS_MNEMONIC_XSAVEC64:
      aux |= kWide;
      [[fallthrough]];
    case ZYDIS_MNEMONIC_XSAVEC:
      fn = xsavec;
      aux |= kCompact;
      break;
    case ZYDIS_MNEMONIC_XRSTOR64:
      aux |= kWide;
      [[fallthrough]];
    case ZYDIS_MNEMONIC_XRSTOR:
      fn = xrstor;
      break;
    default:
      return false;
  }
  Uop u = l.step(fn);
  u.aux = aux;
  l.emit(u);
  // XRSTOR of PKRU returns through the run loop; the others fall through.
  return true;
}

}  // namespace strata::interp
