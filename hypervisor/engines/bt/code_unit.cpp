#include "engines/bt/code_unit.hpp"

#include <algorithm>

namespace strata::bt {
namespace {

/// What `count` elements of a deque take: it allocates them half a KiB at a time.
constexpr std::size_t in_deque(std::size_t count, std::size_t size) noexcept {
  return count * size + count * size / 16;
}

/// Of an allocation of its own: the heap's header and the pointer to it.
constexpr std::size_t kPerSteps = 24;

}  // namespace

bool CodeUnit::has_room() const noexcept {
  // Links come later than the blocks that they are in: something is left for them.
  return next_ + kCodeRoom <= end_ &&
         table_bytes() + kTableRoom <= table_share_ - table_share_ / 32;
}

bool CodeUnit::take(std::size_t code_bytes) noexcept {
  if (code_bytes > end_ - next_) return false;
  next_ = std::min(next_ + ((code_bytes + 15) & ~std::size_t{15}), end_);
  touched_ = std::max(touched_, next_);
  return true;
}

std::uint32_t CodeUnit::add_steps(std::span<const interp::Uop> steps) {
  const std::size_t size = sizeof(interp::Block) + steps.size_bytes();
  steps_.push_back(std::make_unique<std::byte[]>(size));
  step_bytes_ += size + kPerSteps;
  auto* block = new (steps_.back().get()) interp::Block{};
  for (std::size_t i = 0; i < steps.size(); ++i) new (block->first() + i) interp::Uop{steps[i]};
  block->steps = static_cast<std::uint16_t>(steps.size());
  return static_cast<std::uint32_t>(steps_.size() - 1);
}

bool CodeUnit::add_link(const Link& link) {
  if (table_bytes() + sizeof(Link) * 2 > table_share_) return false;
  links.push_back(link);
  return true;
}

std::uint64_t CodeUnit::find_fault(std::uint64_t at) const noexcept {
  const auto next = std::ranges::upper_bound(faults, at, {}, &FaultRange::begin);
  if (next == faults.begin()) return 0;
  const FaultRange& range = *(next - 1);
  return at < range.end ? range.cold : 0;
}

const TranslatedBlock& CodeUnit::block_with(std::uint32_t entry) const noexcept {
  return *std::ranges::lower_bound(blocks, entry, {}, &TranslatedBlock::entry);
}

void CodeUnit::clear() noexcept {
  next_ = kept_;
  blocks.clear();
  crossings.clear();
  sites.clear();
  faults.clear();
  links.clear();
  steps_.clear();
  step_bytes_ = 0;
}

std::size_t CodeUnit::table_bytes() const noexcept {
  return in_deque(blocks.size(), sizeof(TranslatedBlock)) +
         in_deque(crossings.size(), sizeof(Crossing)) + in_deque(sites.size(), sizeof(Site)) +
         in_deque(faults.size(), sizeof(FaultRange)) + in_deque(links.size(), sizeof(Link)) +
         step_bytes_;
}

}  // namespace strata::bt
