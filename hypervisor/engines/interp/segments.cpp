#include "engines/interp/segments.hpp"

#include <optional>

namespace strata::interp {

using cpu::Segment;
using cpu::SegmentName;

const Uop* give_up(Core& core, const Uop* u, const Outcome& outcome) noexcept {
  if (outcome.kind == Outcome::Kind::aborted) return core.abort(u);
  return core.fault(u, outcome.vector,
                    outcome.has_error ? std::optional{outcome.error} : std::nullopt);
}

bool descriptor_address(const Core& core, std::uint16_t selector, unsigned bytes,
                        std::uint64_t& va) noexcept {
  const std::uint64_t offset = selector & 0xFFF8U;
  const bool local = (selector & 4U) != 0;
  if (local && core.arch.ldtr.unusable()) return false;
  const std::uint64_t limit = local ? core.arch.ldtr.limit : core.arch.gdtr.limit;
  if (offset + bytes - 1 > limit) return false;
  va = system_va(core, (local ? core.arch.ldtr.base : core.arch.gdtr.base) + offset);
  return true;
}

Outcome read_descriptor(Core& core, std::uint16_t selector, std::uint8_t vector,
                        std::uint32_t external, Descriptor& out) {
  out = Descriptor{};
  out.selector = selector;
  if (!descriptor_address(core, selector, 8, out.va)) {
    return raised(vector, selector_error(selector, external));
  }
  if (!core.system_load(out.va, out.low)) return aborted();
  return done();
}

Outcome read_upper_half(Core& core, std::uint8_t vector, std::uint32_t external, Descriptor& d) {
  std::uint64_t va = 0;
  const Outcome bad = raised(vector, selector_error(d.selector, external));
  if (!descriptor_address(core, d.selector, 16, va)) return bad;
  if (!core.system_load(va + 8, d.upper)) return aborted();
  // Bits 12:8 of the last doubleword must be clear, so that it cannot pass for a descriptor of its
  // own (SDM 3A 5.8.3.1).
  if ((d.upper >> 40 & 0x1F) != 0) return bad;
  return done();
}

Outcome mark_accessed(Core& core, Descriptor& d) {
  if ((d.low >> 40 & 1) != 0) return done();
  if (!core.system_set_bits(d.va + 5, 1)) return aborted();
  d.low |= 1ULL << 40;
  return done();
}

Segment to_segment(const Descriptor& d, std::uint16_t selector) noexcept {
  return {d.base(), d.limit(), selector, d.attributes()};
}

Segment null_segment(std::uint16_t selector, unsigned dpl) noexcept {
  return {0, 0, selector, 1U << 16 | dpl << 5};
}

Segment real_segment(const Segment& old, std::uint16_t selector, bool is_vm86) noexcept {
  // Real mode keeps limit and attributes from whoever loaded them last ("unreal" mode); VM86 has
  // fixed ones (SDM 3A 20.1.1, 20.2.1).
  Segment s = old;
  s.selector = selector;
  s.base = static_cast<std::uint64_t>(selector) << 4;
  if (is_vm86) {
    s.limit = 0xFFFF;
    s.attributes = 0xF3;
  } else if (s.unusable()) {
    s.limit = 0xFFFF;
    s.attributes = 0x93;
  }
  return s;
}

namespace {

Outcome load_null(Core& core, SegmentName name, std::uint16_t selector, Segment& out) {
  if (name != cpu::SS) {
    out = null_segment(selector, 0);
    return done();
  }
  // A null SS is for 64-bit code below CPL 3 whose RPL agrees (SDM 2A, MOV).
  if (!core.long_mode() || core.cpl == 3 || rpl_of(selector) != core.cpl) {
    return raised(cpu::GP, 0);
  }
  out = null_segment(selector, core.cpl);
  return done();
}

Outcome check_data(const Core& core, const Descriptor& d) {
  const Outcome bad = raised(cpu::GP, selector_error(d.selector));
  if (!d.readable()) return bad;
  const bool any_privilege = d.code() && d.conforming();
  if (!any_privilege && (rpl_of(d.selector) > d.dpl() || core.cpl > d.dpl())) return bad;
  if (!d.present()) return raised(cpu::NP, selector_error(d.selector));
  return done();
}

}  // namespace

Outcome load_segment(Core& core, SegmentName name, std::uint16_t selector, Segment& out) {
  if (!descriptors_in_use(core)) {
    out = real_segment(core.arch.segment[name], selector, vm86(core));
    return done();
  }
  if (is_null(selector)) return load_null(core, name, selector, out);
  Descriptor d;
  if (name == cpu::SS) {
    if (auto o = load_stack_segment(core, selector, core.cpl, cpu::GP, 0, d); !o.ok()) return o;
  } else {
    if (auto o = read_descriptor(core, selector, cpu::GP, 0, d); !o.ok()) return o;
    if (auto o = check_data(core, d); !o.ok()) return o;
    if (auto o = mark_accessed(core, d); !o.ok()) return o;
  }
  out = to_segment(d, selector);
  return done();
}

Outcome load_stack_segment(Core& core, std::uint16_t selector, unsigned level, std::uint8_t vector,
                           std::uint32_t external, Descriptor& out) {
  if (is_null(selector)) return raised(vector, external);
  if (auto o = read_descriptor(core, selector, vector, external, out); !o.ok()) return o;
  if (rpl_of(selector) != level || out.dpl() != level || !out.writable_data()) {
    return raised(vector, selector_error(selector, external));
  }
  if (!out.present()) return raised(cpu::SS_FAULT, selector_error(selector, external));
  return mark_accessed(core, out);
}

Outcome load_ldt(Core& core, std::uint16_t selector, Segment& out) {
  if (is_null(selector)) {
    out = null_segment(selector, 0);
    return done();
  }
  const std::uint32_t error = selector_error(selector);
  if ((selector & 4U) != 0) return raised(cpu::GP, error);
  Descriptor d;
  if (auto o = read_descriptor(core, selector, cpu::GP, 0, d); !o.ok()) return o;
  if (d.ordinary() || d.type() != system_type::kLdt) return raised(cpu::GP, error);
  if (!d.present()) return raised(cpu::NP, error);
  if (ia32e(core)) {
    if (auto o = read_upper_half(core, cpu::GP, 0, d); !o.ok()) return o;
    if (!canonical(d.base())) return raised(cpu::GP, error);
  }
  out = to_segment(d, selector);
  return done();
}

void drop_inner_segments(Core& core, unsigned new_cpl) noexcept {
  for (const SegmentName name : {cpu::ES, cpu::DS, cpu::FS, cpu::GS}) {
    Segment& s = core.arch.segment[name];
    if (s.unusable() || s.dpl() >= new_cpl) continue;
    const bool conforming_code = (s.type() & 0xC) == 0xC;
    if (conforming_code) continue;
    // The hidden base stays: it is unreachable outside 64-bit mode, and FS and GS keep theirs in
    // it.
    s.selector = 0;
    s.attributes = 1U << 16;
  }
}

bool within_limit(const Segment& s, std::uint64_t offset, unsigned bytes) noexcept {
  const std::uint64_t last = offset + bytes - 1;
  const bool expand_down = (s.type() & 0xC) == 4;
  if (!expand_down) return last <= s.limit;
  return offset > s.limit && last <= (s.big() ? 0xFFFFFFFFULL : 0xFFFFULL);
}

Stack::Stack(Core& core) noexcept
    : core_{core},
      ss_{core.arch.segment[cpu::SS]},
      pointer_{core.r[cpu::RSP]},
      mask_{stack_mask(ss_, core.long_mode())},
      implicit_{false},
      external_{0} {}

Outcome Stack::address(unsigned size, std::uint64_t& va) const noexcept {
  const std::uint64_t offset = pointer_ & mask_;
  const Outcome bad = raised(cpu::SS_FAULT, external_);
  if (mask_ == ~0ULL) {
    va = offset;
    return canonical(va) && canonical(va + size - 1) ? done() : bad;
  }
  if (!within_limit(ss_, offset, size)) return bad;
  va = static_cast<std::uint32_t>(ss_.base + offset);
  return done();
}

Outcome Stack::push(std::uint64_t value, unsigned size) {
  const std::uint64_t before = pointer_;
  move(0ULL - size);
  std::uint64_t va = 0;
  if (auto o = address(size, va); !o.ok()) {
    pointer_ = before;
    return o;
  }
  const auto put = [&](auto v) {
    return implicit_ ? core_.system_store(va, v) : core_.store(va, v);
  };
  const bool stored = size == 8   ? put(value)
                      : size == 4 ? put(static_cast<std::uint32_t>(value))
                                  : put(static_cast<std::uint16_t>(value));
  if (!stored) pointer_ = before;
  return stored ? done() : aborted();
}

Outcome Stack::pop(std::uint64_t& value, unsigned size) {
  std::uint64_t va = 0;
  if (auto o = address(size, va); !o.ok()) return o;
  const auto get = [&](auto v) {
    const bool loaded = implicit_ ? core_.system_load(va, v) : core_.load(va, v);
    value = v;
    return loaded;
  };
  const bool loaded = size == 8   ? get(std::uint64_t{0})
                      : size == 4 ? get(std::uint32_t{0})
                                  : get(std::uint16_t{0});
  if (!loaded) return aborted();
  move(size);
  return done();
}

}  // namespace strata::interp
