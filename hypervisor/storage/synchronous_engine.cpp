#include <mutex>
#include <utility>

#include "storage/file_engine.hpp"
#include "storage/transfer.hpp"

namespace strata::storage {

namespace {

class SynchronousEngine final : public FileEngine {
 public:
  explicit SynchronousEngine(std::vector<int> files) : files_{std::move(files)} {
    flush_failed_.resize(files_.size(), false);
  }

  [[nodiscard]] std::string_view name() const noexcept override { return "synchronous"; }
  void start() override {}
  void submit(unsigned file, const Request& request, Completion& done) override {
    done.completed(request.operation == Operation::flush ? flush(file) : carry_out(file, request));
  }
  void kick() override {}
  void drain() override {}

 private:
  [[nodiscard]] Status carry_out(unsigned file, const Request& request) const {
    Transfer transfer;
    transfer.begin(request);
    while (true) {
      if (const auto status = transfer.advance(make_call(files_[file], transfer.next()))) {
        return *status;
      }
    }
  }

  [[nodiscard]] Status flush(unsigned file) {
    // One at a time: the kernel reports an error to one caller only.
    const std::lock_guard hold{flush_lock_};
    if (flush_failed_[file]) return Status::io_error;
    const Status status = carry_out(file, {.operation = Operation::flush});
    if (status != Status::ok) flush_failed_[file] = true;
    return status;
  }

  const std::vector<int> files_;
  std::mutex flush_lock_;  ///< guards flush_failed_; held during fdatasync
  std::vector<bool> flush_failed_;
};

}  // namespace

std::unique_ptr<FileEngine> make_synchronous_engine(std::vector<int> files) {
  return std::make_unique<SynchronousEngine>(std::move(files));
}

}  // namespace strata::storage
