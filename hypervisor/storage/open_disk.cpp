#include "storage/open_disk.hpp"

#include <fmt/format.h>

#include <filesystem>
#include <system_error>
#include <utility>
#include <vector>

#include "storage/file_engine.hpp"
#include "storage/image_file.hpp"
#include "storage/overlay_disk.hpp"
#include "storage/overlay_file.hpp"
#include "storage/raw_disk.hpp"

namespace strata::storage {

namespace {

std::unique_ptr<FileEngine> make_engine(Engine wanted, const std::vector<int>& files) {
  if (wanted == Engine::asynchronous) {
    if (auto engine = make_uring_engine(files)) return engine;
  }
  return make_synchronous_engine(files);
}

}  // namespace

Expected<std::unique_ptr<Disk>, DiskError> open_disk(const DiskOptions& options) {
  const Access access = options.read_only ? Access::read_only : Access::read_write;
  const bool raw = options.overlay.empty();
  auto image = open_image(options.path, raw ? access : Access::read_only);
  if (!image) return Unexpected{image.error()};
  if (auto size = check_disk_size(options.path, *image); !size) return Unexpected{size.error()};
  if (raw) {
    auto engine = make_engine(options.engine, {image->file.get()});
    return std::unique_ptr<Disk>{
        std::make_unique<RawDisk>(std::move(*image), access, std::move(engine))};
  }
  std::error_code missing;
  if (std::filesystem::equivalent(options.path, options.overlay, missing)) {
    return Unexpected{
        DiskError{fmt::format("{} cannot be the overlay of itself", options.overlay)}};
  }
  auto overlay = open_overlay(options.overlay, options.path, *image, access);
  if (!overlay) return Unexpected{overlay.error()};
  auto engine = make_engine(options.engine, {image->file.get(), overlay->image.file.get()});
  return std::unique_ptr<Disk>{std::make_unique<OverlayDisk>(std::move(*image), std::move(*overlay),
                                                             access, std::move(engine))};
}

}  // namespace strata::storage
