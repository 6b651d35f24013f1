// One interrupt input with several level-triggered sources, as INTx lines share them.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "devices/device.hpp"

namespace strata::devices::pci {

/// High while any source is. connect() before the guest runs; sources: any thread.
class SharedLine {
 public:
  /// `out` outlives the line.
  explicit SharedLine(IrqLine& out) noexcept : out_{out} {}
  SharedLine(const SharedLine&) = delete;
  SharedLine& operator=(const SharedLine&) = delete;
  ~SharedLine();
  /// A source of its own, low; lives as long as the line.
  [[nodiscard]] IrqLine& connect();

 private:
  class Source;
  void change(bool& source, bool level);

  IrqLine& out_;
  std::vector<std::unique_ptr<IrqLine>> sources_;
  std::mutex mutex_;  ///< guards the sources' levels; held while out_ is set
  unsigned high_ = 0;
};

}  // namespace strata::devices::pci
