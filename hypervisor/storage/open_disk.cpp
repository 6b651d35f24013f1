#include "storage/open_disk.hpp"

#include <utility>
#include <vector>

#include "storage/file_engine.hpp"
#include "storage/image_file.hpp"
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
  auto image = open_image(options.path, access);
  if (!image) return Unexpected{image.error()};
  if (auto size = check_disk_size(options.path, *image); !size) return Unexpected{size.error()};
  auto engine = make_engine(options.engine, {image->file.get()});
  return std::unique_ptr<Disk>{
      std::make_unique<RawDisk>(std::move(*image), access, std::move(engine))};
}

}  // namespace strata::storage
