#include "devices/pci/shared_line.hpp"

namespace strata::devices::pci {

class SharedLine::Source final : public IrqLine {
 public:
  explicit Source(SharedLine& line) noexcept : line_{line} {}
  void set(bool level) override { line_.change(level_, level); }

 private:
  SharedLine& line_;
  bool level_ = false;
};

SharedLine::~SharedLine() = default;

IrqLine& SharedLine::connect() {
  sources_.push_back(std::make_unique<Source>(*this));
  return *sources_.back();
}

void SharedLine::change(bool& source, bool level) {
  const std::lock_guard lock{mutex_};
  if (source == level) return;
  source = level;
  high_ += level ? 1 : -1U;
  out_.set(high_ != 0);
}

}  // namespace strata::devices::pci
