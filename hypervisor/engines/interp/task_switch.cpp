#include "engines/interp/task_switch.hpp"

#include <array>

#include "engines/interp/control_registers.hpp"
#include "engines/interp/far_transfers.hpp"

namespace strata::interp {

namespace rf = cpu::rflags;
using cpu::Segment;
using cpu::SegmentName;

namespace {

constexpr std::uint8_t kBusy = 2;
constexpr std::uint64_t kTaskSwitchTrap = 1ULL << 15;  ///< DR6.BT

/// Where the fields of a TSS are (SDM 3A figures 7-2, 7-10).
struct Layout {
  unsigned ip, flags, registers, segments, ldt, width, segment_count, minimum_limit;
};
constexpr Layout kLayout32{0x20, 0x24, 0x28, 0x48, 0x60, 4, 6, 0x67};
constexpr Layout kLayout16{0x0E, 0x10, 0x12, 0x22, 0x2A, 2, 4, 0x2B};
constexpr unsigned kCr3 = 0x1C, kTrap = 0x64;

const Layout& layout_of(unsigned type) noexcept { return (type & 8) != 0 ? kLayout32 : kLayout16; }

/// The new task as its TSS describes it.
struct Image {
  std::uint64_t ip = 0, flags = 0;
  std::uint32_t cr3 = 0;
  std::array<std::uint32_t, 8> registers{};
  std::array<std::uint16_t, 6> segments{};
  std::uint16_t ldt = 0;
  bool trap = false;
};

std::uint64_t tss_va(const Core& core, const Segment& tss, unsigned at) noexcept {
  return static_cast<std::uint32_t>(system_va(core, tss.base + at));
}

bool load_field(Core& core, const Segment& tss, unsigned at, unsigned width, std::uint32_t& out) {
  if (width == 4) return core.system_load(tss_va(core, tss, at), out);
  std::uint16_t word = 0;
  if (!core.system_load(tss_va(core, tss, at), word)) return false;
  out = word;
  return true;
}

bool store_field(Core& core, const Segment& tss, unsigned at, unsigned width, std::uint64_t value) {
  const std::uint64_t va = tss_va(core, tss, at);
  return width == 4 ? core.system_store(va, static_cast<std::uint32_t>(value))
                    : core.system_store(va, static_cast<std::uint16_t>(value));
}

bool read_image(Core& core, const Segment& tss, Image& image) {
  const Layout& at = layout_of(tss.type());
  std::uint32_t ip = 0;
  std::uint32_t flags = 0;
  bool ok = load_field(core, tss, at.ip, at.width, ip) &&
            load_field(core, tss, at.flags, at.width, flags);
  image.ip = ip;
  image.flags = flags;
  for (unsigned i = 0; ok && i < image.registers.size(); ++i) {
    ok = load_field(core, tss, at.registers + i * at.width, at.width, image.registers[i]);
  }
  for (unsigned i = 0; ok && i < at.segment_count; ++i) {
    ok = core.system_load(tss_va(core, tss, at.segments + i * at.width), image.segments[i]);
  }
  ok = ok && core.system_load(tss_va(core, tss, at.ldt), image.ldt);
  if (!ok || at.width == 2) return ok;
  std::uint16_t trap = 0;
  ok = core.system_load(tss_va(core, tss, kCr3), image.cr3) &&
       core.system_load(tss_va(core, tss, kTrap), trap);
  image.trap = (trap & 1) != 0;
  return ok;
}

/// The dynamic fields of the task that is left (SDM 3A 7.2.1).
bool save_old_task(Core& core, std::uint64_t ip, std::uint64_t flags) {
  const Segment& tss = core.arch.tr;
  const Layout& at = layout_of(tss.type());
  bool ok = store_field(core, tss, at.ip, at.width, ip) &&
            store_field(core, tss, at.flags, at.width, flags);
  for (unsigned i = 0; ok && i < 8; ++i) {
    ok = store_field(core, tss, at.registers + i * at.width, at.width, core.r[i]);
  }
  for (unsigned i = 0; ok && i < at.segment_count; ++i) {
    ok = store_field(core, tss, at.segments + i * at.width, 2, core.arch.segment[i].selector);
  }
  return ok;
}

/// The TSS descriptor of `selector` if a switch may go there.
Outcome read_tss(Core& core, std::uint16_t selector, const TaskRequest& request, Descriptor& d) {
  const bool iret = request.source == TaskSource::iret;
  const std::uint8_t vector = iret ? cpu::TS : cpu::GP;
  const Outcome bad = raised(vector, selector_error(selector, request.external));
  if (is_null(selector) || (selector & 4U) != 0) return bad;
  if (auto o = read_descriptor(core, selector, vector, request.external, d); !o.ok()) return o;
  const unsigned type = d.type() & ~unsigned{kBusy};
  const bool is_tss = !d.ordinary() && (type == system_type::kTss16 || type == system_type::kTss32);
  const bool busy = (d.type() & kBusy) != 0;
  if (!is_tss || busy != iret) return bad;
  if (!d.present()) return raised(cpu::NP, selector_error(selector, request.external));
  if (d.limit() < layout_of(d.type()).minimum_limit) {
    return raised(cpu::TS, selector_error(selector, request.external));
  }
  return done();
}

bool clear_busy(Core& core, std::uint16_t selector) {
  std::uint64_t va = 0;
  std::uint8_t access = 0;
  if (is_null(selector) || !descriptor_address(core, selector, 8, va)) return true;
  return core.system_load(va + 5, access) &&
         core.system_store(va + 5, static_cast<std::uint8_t>(access & ~unsigned{kBusy}));
}

/// Memory's part of the switch: the old TSS, the link and the busy bits. What fails here still
/// belongs to the old task.
Outcome write_tasks(Core& core, const Descriptor& to, const Segment& tss,
                    const TaskRequest& request, Image& image) {
  const std::uint16_t old = core.arch.tr.selector;
  if (core.arch.tr.unusable() ||
      core.arch.tr.limit < layout_of(core.arch.tr.type()).minimum_limit) {
    return raised(cpu::TS, selector_error(old, request.external));
  }
  const bool iret = request.source == TaskSource::iret;
  const bool nests = request.source == TaskSource::call || request.source == TaskSource::event;
  const std::uint64_t flags = iret ? request.flags & ~rf::NT : request.flags;
  if (!save_old_task(core, request.return_ip, flags)) return aborted();
  if (!read_image(core, tss, image)) return aborted();
  if (nests) {
    image.flags |= rf::NT;
    if (!core.system_store(tss_va(core, tss, 0), old)) return aborted();
  }
  if (!nests && !clear_busy(core, old)) return aborted();
  if (!iret && !core.system_set_bits(to.va + 5, kBusy)) return aborted();
  return done();
}

/// Registers of the new task; its segments hold selectors and nothing else yet.
void load_registers(Core& core, const Image& image, bool wide) {
  for (unsigned i = 0; i < 8; ++i) {
    // The upper halves are undefined after a switch to a 16-bit task; ones are what is common.
    core.r[i] = wide ? image.registers[i] : image.registers[i] | 0xFFFF0000U;
  }
  for (const auto name : {cpu::ES, cpu::CS, cpu::SS, cpu::DS, cpu::FS, cpu::GS}) {
    Segment& s = core.arch.segment[name];
    const bool stays = name == cpu::CS || name == cpu::SS;  // usable until loaded
    const std::uint16_t selector = image.segments[name];
    if (stays) {
      s.selector = selector;
    } else {
      s = null_segment(selector, 0);
    }
  }
  core.arch.ldtr = null_segment(image.ldt, 0);
  core.arch.cr0 |= cpu::cr0::TS;
  constexpr std::uint64_t kLocalEnables = 0x155;  // L0-L3, LE
  core.arch.dr[7] &= ~kLocalEnables;
}

// ---- the new task's segments (SDM 3A table 7-1) -------------------------------------------------

Outcome load_task_ldt(Core& core, std::uint16_t selector, std::uint32_t external) {
  if (is_null(selector)) return done();
  Segment s;
  const Outcome o = load_ldt(core, selector, s);
  if (o.kind == Outcome::Kind::exception) {
    return raised(cpu::TS, selector_error(selector, external));
  }
  if (o.ok()) core.arch.ldtr = s;
  return o;
}

Outcome load_task_code(Core& core, std::uint16_t selector, std::uint32_t external) {
  const Outcome bad = raised(cpu::TS, selector_error(selector, external));
  Descriptor d;
  if (is_null(selector)) return bad;
  if (auto o = read_descriptor(core, selector, cpu::TS, external, d); !o.ok()) return o;
  const unsigned rpl = rpl_of(selector);
  if (!d.code() || (d.conforming() ? d.dpl() > rpl : d.dpl() != rpl)) return bad;
  if (!d.present()) return raised(cpu::NP, selector_error(selector, external));
  if (auto o = mark_accessed(core, d); !o.ok()) return o;
  put_segment(core, cpu::CS, to_segment(d, selector));
  return done();
}

Outcome load_task_stack(Core& core, std::uint16_t selector, unsigned level,
                        std::uint32_t external) {
  Descriptor d;
  if (is_null(selector)) return raised(cpu::TS, selector_error(selector, external));
  if (auto o = load_stack_segment(core, selector, level, cpu::TS, external, d); !o.ok()) return o;
  put_segment(core, cpu::SS, to_segment(d, selector));
  return done();
}

Outcome load_task_data(Core& core, SegmentName name, std::uint16_t selector, unsigned level,
                       std::uint32_t external) {
  if (is_null(selector)) return done();
  const Outcome bad = raised(cpu::TS, selector_error(selector, external));
  Descriptor d;
  if (auto o = read_descriptor(core, selector, cpu::TS, external, d); !o.ok()) return o;
  if (!d.readable()) return bad;
  const bool any_privilege = d.code() && d.conforming();
  if (!any_privilege && (rpl_of(selector) > d.dpl() || level > d.dpl())) return bad;
  if (!d.present()) return raised(cpu::NP, selector_error(selector, external));
  if (auto o = mark_accessed(core, d); !o.ok()) return o;
  put_segment(core, name, to_segment(d, selector));
  return done();
}

Outcome load_segments(Core& core, const Image& image, std::uint32_t external) {
  if (auto o = load_task_ldt(core, image.ldt, external); !o.ok()) return o;
  if (vm86(core)) {
    for (const auto name : {cpu::ES, cpu::CS, cpu::SS, cpu::DS, cpu::FS, cpu::GS}) {
      put_segment(core, name, real_segment({}, image.segments[name], true));
    }
    return done();
  }
  const unsigned level = rpl_of(image.segments[cpu::CS]);
  if (auto o = load_task_code(core, image.segments[cpu::CS], external); !o.ok()) return o;
  if (auto o = load_task_stack(core, image.segments[cpu::SS], level, external); !o.ok()) return o;
  for (const auto name : {cpu::ES, cpu::DS, cpu::FS, cpu::GS}) {
    if (auto o = load_task_data(core, name, image.segments[name], level, external); !o.ok()) {
      return o;
    }
  }
  return done();
}

/// Everything of the new task that can fail in it.
Outcome enter_task(Core& core, const Image& image, const TaskRequest& request, bool wide) {
  const Outcome loaded = load_segments(core, image, request.external);
  core.debug_registers_changed();
  core.set_ip(image.ip);
  if (!loaded.ok()) return loaded;
  if (image.ip > core.arch.segment[cpu::CS].limit) return raised(cpu::GP, request.external);
  if (request.has_error) {
    Stack stack{core};
    if (auto o = stack.push(request.error, wide ? 4 : 2); !o.ok()) return o;
    core.r[cpu::RSP] = stack.pointer();
  }
  return done();
}

}  // namespace

Outcome switch_task(Core& core, std::uint16_t selector, const TaskRequest& request) {
  Descriptor d;
  if (auto o = read_tss(core, selector, request, d); !o.ok()) return o;
  Segment tss = to_segment(d, selector);
  const bool wide = (d.type() & 8) != 0;
  Image image;
  if (auto o = write_tasks(core, d, tss, request, image); !o.ok()) return o;

  // From here on faults are the new task's.
  tss.attributes |= kBusy;
  core.arch.tr = tss;
  const bool paged = wide && (core.arch.cr0 & cpu::cr0::PG) != 0;
  Outcome o = paged ? write_cr3(core, image.cr3) : done();
  load_registers(core, image, wide);
  constexpr std::uint64_t kKnown = 0x3F7FD7;
  const std::uint64_t mask = wide ? kKnown : kKnown & 0xFFFF;
  core.flags = from_rflags(image.flags & mask);
  core.rflags_other = (image.flags & mask & ~rf::ARITHMETIC) | rf::FIXED;
  core.arch.interrupt_shadow = false;
  if (o.ok()) o = enter_task(core, image, request, wide);
  if (o.kind == Outcome::Kind::exception) {
    core.record_exception(o.vector, o.has_error ? std::optional{o.error} : std::nullopt);
  }
  if (image.trap && o.ok()) core.debug_hits |= kTaskSwitchTrap;
  return done();
}

Outcome return_to_task(Core& core, std::uint64_t return_ip) {
  std::uint16_t link = 0;
  if (!core.system_load(tss_va(core, core.arch.tr, 0), link)) return aborted();
  return switch_task(core, link,
                     {.source = TaskSource::iret, .return_ip = return_ip, .flags = core.rflags()});
}

}  // namespace strata::interp
