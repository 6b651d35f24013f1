// What a run cost, as JSON: the program's own counters and what the host kernel says.
#include <fmt/format.h>

#include "vmm/vm.hpp"

namespace strata::vmm {

namespace {

using nlohmann::json;

json exits_json(const ExitCounts& exits) {
  json out = json::object();
  for (std::size_t i = 0; i < exits.size(); ++i) {
    if (exits[i] != 0)
      out[std::string{engine::name_of(static_cast<engine::ExitKind>(i))}] = exits[i];
  }
  return out;
}

json mmu_json(const MmuStats& s) {
  const auto per_walk = [&](std::uint64_t n) {
    return s.walks == 0 ? 0.0 : static_cast<double>(n) / static_cast<double>(s.walks);
  };
  return {{"translations", s.translations},
          {"walks", s.walks},
          {"guest_references", s.guest_references},
          {"table_references", s.table_references},
          {"references_per_walk", per_walk(s.guest_references + s.table_references)},
          {"ad_writes", s.ad_writes},
          {"misses", s.backend_misses},
          {"guest_faults", s.guest_faults},
          {"traced_writes", s.traced_writes},
          {"invalidations", s.invalidations},
          {"cache_hits", s.cache_hits},
          {"table_bytes", s.table_bytes}};
}

json vcpu_json(const engine::VcpuStats& s) {
  return {{"instructions", s.instructions},
          {"blocks_decoded", s.blocks_decoded},
          {"blocks_invalidated", s.blocks_invalidated},
          {"tlb_misses", s.tlb_misses},
          {"tlb_flushes", s.tlb_flushes},
          {"exceptions", s.exceptions},
          {"page_faults", s.page_faults},
          {"interrupts", s.interrupts},
          {"overhead_bytes", s.overhead_bytes},
          {"blocks_translated", s.blocks_translated},
          {"code_flushes", s.code_flushes},
          {"code_evictions", s.code_evictions},
          {"interpreted", s.interpreted},
          {"interpreted_blocks", s.interpreted_blocks},
          {"translated_cycles", s.translated_cycles},
          {"interpreted_cycles", s.interpreted_cycles},
          {"window_cycles", s.window_cycles},
          {"window_promotions", s.window_promotions},
          {"window_demotions", s.window_demotions},
          {"window_fills", s.window_fills},
          {"window_pages", s.window_pages},
          {"window_flushes", s.window_flushes},
          {"window_checks", s.window_checks},
          {"window_instructions", s.window_instructions}};
}

void add(engine::VcpuStats& sum, const engine::VcpuStats& s) {
  sum.instructions += s.instructions;
  sum.blocks_decoded += s.blocks_decoded;
  sum.blocks_invalidated += s.blocks_invalidated;
  sum.tlb_misses += s.tlb_misses;
  sum.tlb_flushes += s.tlb_flushes;
  sum.exceptions += s.exceptions;
  sum.interrupts += s.interrupts;
  sum.page_faults += s.page_faults;
  sum.overhead_bytes += s.overhead_bytes;
  sum.blocks_translated += s.blocks_translated;
  sum.code_flushes += s.code_flushes;
  sum.code_evictions += s.code_evictions;
  sum.interpreted += s.interpreted;
  sum.interpreted_blocks += s.interpreted_blocks;
  sum.translated_cycles += s.translated_cycles;
  sum.interpreted_cycles += s.interpreted_cycles;
  sum.window_cycles += s.window_cycles;
  sum.window_promotions += s.window_promotions;
  sum.window_demotions += s.window_demotions;
  sum.window_fills += s.window_fills;
  sum.window_pages += s.window_pages;
  sum.window_flushes += s.window_flushes;
  sum.window_checks += s.window_checks;
  sum.window_instructions += s.window_instructions;
}

/// Sums over all vCPUs under the names that one vCPU's counters have, and each one's own in
/// "vcpus", by vCPU id.
struct VcpuReport {
  json exits, vcpu, each;
  double halted = 0;
};

VcpuReport report(const std::vector<std::unique_ptr<VcpuThread>>& vcpus) {
  VcpuReport out;
  out.each = json::array();
  ExitCounts exits{};
  engine::VcpuStats sum;
  for (const auto& vcpu : vcpus) {
    const VcpuThreadStats& thread = vcpu->stats();
    const engine::VcpuStats own = vcpu->vcpu().stats();
    for (std::size_t i = 0; i < exits.size(); ++i) exits[i] += thread.exits[i];
    add(sum, own);
    const double halted = static_cast<double>(thread.halted_ns) / 1e9;
    out.halted += halted;
    json one = vcpu_json(own);
    one["exits"] = exits_json(thread.exits);
    one["halted_seconds"] = halted;
    one["inits"] = thread.inits;
    one["startups"] = thread.startups;
    out.each.push_back(std::move(one));
  }
  out.exits = exits_json(exits);
  out.vcpu = vcpu_json(sum);
  return out;
}

json devices_json(const Platform& platform) {
  json out = json::object();
  for (const devices::Bus* bus : {&platform.ports(), &platform.mmio()}) {
    for (const devices::DeviceCounts& c : bus->counts()) {
      out[c.name] = {{"reads", c.reads}, {"writes", c.writes}};
    }
  }
  return out;
}

}  // namespace

Overhead Vm::overhead() const {
  const host::OwnMemory::Mappings m = own_memory_.mappings("memfd:strata-vm");
  return {.resident = m.resident,
          .guest_mapped = m.guest,
          .guest_pages = segment_->resident_bytes(),
          .page_tables = own_memory_.page_table_bytes(),
          .binary = m.binary};
}

json Vm::stats() const {
  const Overhead o = overhead();
  const auto frames = frames_->in_use();
  const auto frame_bytes = [&](FrameKind kind) {
    return frames[static_cast<std::size_t>(kind)] * kPageSize;
  };
  const VcpuReport vcpus = report(vcpus_);
  json out;
  out["kernel"] = kernel_description_;
  out["engine"] = config_.engine;
  out["engine_reason"] = config_.engine_reason;
  out["mmu"] = mmu_name_;
  if (config_.engine == "bt") out["windows"] = config_.windows;
  out["cpu_model"] = model_.name();
  out["memory_bytes"] = config_.memory_bytes;
  out["outcome"] = outcome_ ? name_of(outcome_->ending) : "running";
  out["seconds"] = {{"total", static_cast<double>(ran_ns_) / 1e9}, {"halted", vcpus.halted}};
  out["cpus"] = config_.cpus;
  out["clock"] = config_.clock;
  out["exits"] = vcpus.exits;
  out["vcpu"] = vcpus.vcpu;
  out["vcpus"] = vcpus.each;
  out["code_page_bytes"] = group_->code_pages.bytes();
  out["translation"] = mmu_json(mmu_.mmu ? mmu_.mmu->stats() : MmuStats{});
  out["backend"] = host_engine_ ? host_engine_->details() : mmu_.details();
  out["devices"] = devices_json(*platform_);
  out["p2m"] = {{"private_pages", p2m_->private_pages()},
                {"node_bytes", p2m_->table_bytes().nodes},
                {"leaf_bytes", p2m_->table_bytes().leaves}};
  out["tables"] = {
      {"shadow_bytes", frame_bytes(FrameKind::shadow_table)},
      {"nested_bytes", frame_bytes(FrameKind::nested_table)},
      {"p2m_bytes", frame_bytes(FrameKind::p2m_node) + frame_bytes(FrameKind::p2m_leaf)}};
  out["overhead"] = {
      {"resident_bytes", o.resident},           {"guest_mapped_bytes", o.guest_mapped},
      {"guest_bytes", o.guest_pages},           {"vmm_resident_bytes", o.vmm_resident()},
      {"host_page_table_bytes", o.page_tables}, {"binary_bytes", o.binary}};
  return out;
}

}  // namespace strata::vmm
