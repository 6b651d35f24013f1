// A disk whose bytes are those of one file.
#pragma once

#include <memory>

#include "storage/file_engine.hpp"
#include "storage/image_file.hpp"

namespace strata::storage {

/// Status of a request that a disk of `bytes` bytes cannot even begin; ok if it can.
[[nodiscard]] Status check_request(const Request& request, std::uint64_t bytes, bool read_only);

class RawDisk final : public Disk {
 public:
  /// `engine` works on one file: that of `image`.
  RawDisk(ImageFile image, Access access, std::unique_ptr<FileEngine> engine) noexcept
      : image_{std::move(image)}, access_{access}, engine_{std::move(engine)} {}

  [[nodiscard]] std::uint64_t bytes() const noexcept override { return image_.bytes; }
  [[nodiscard]] bool read_only() const noexcept override { return access_ == Access::read_only; }
  [[nodiscard]] bool discards() const noexcept override { return image_.punches; }
  [[nodiscard]] std::string_view engine() const noexcept override { return engine_->name(); }
  void start() override { engine_->start(); }
  void submit(const Request& request, Completion& done) override;
  void kick() override { engine_->kick(); }
  void drain() override { engine_->drain(); }

 private:
  const ImageFile image_;
  const Access access_;
  const std::unique_ptr<FileEngine> engine_;
};

}  // namespace strata::storage
