#include "storage/image_file.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "storage/disk.hpp"

namespace strata::storage {

namespace {

Unexpected<DiskError> refuse(std::string message) {
  return Unexpected{DiskError{std::move(message)}};
}

Expected<void, DiskError> check_kind(const std::string& path, const struct stat& status) {
  if (S_ISREG(status.st_mode) || S_ISBLK(status.st_mode)) return {};
  if (S_ISDIR(status.st_mode)) {
    return refuse(fmt::format("{} is a directory; a disk is a file or a block device", path));
  }
  return refuse(fmt::format("{} is neither a file nor a block device", path));
}

std::string why_not_opened(const std::string& path, Access access, int error) {
  if (error == ENOENT) {
    return fmt::format("{} does not exist; `truncate -s 8G {}` makes an empty disk", path, path);
  }
  if ((error == EACCES || error == EROFS || error == EPERM) && access == Access::read_write) {
    return fmt::format("cannot write {}: {}; a disk can be read-only", path, std::strerror(error));
  }
  return fmt::format("cannot open {}: {}", path, std::strerror(error));
}

/// Behind the end there is nothing to lose: the call only says whether the file system has holes.
/// Devices are asked when it happens.
bool can_punch(int fd, const ImageFile& image) {
  if (image.block_device) return true;
  return ::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                     static_cast<off_t>(image.bytes), 4096) == 0;
}

Expected<void, DiskError> lock(const std::string& path, int fd, Access access) {
  struct flock whole {};
  whole.l_type = access == Access::read_only ? F_RDLCK : F_WRLCK;
  whole.l_whence = SEEK_SET;
  if (::fcntl(fd, F_OFD_SETLK, &whole) == 0) return {};
  if (errno != EAGAIN && errno != EACCES) {
    return refuse(fmt::format("cannot lock {}: {}", path, std::strerror(errno)));
  }
  if (access == Access::read_only) {
    return refuse(fmt::format("{} is in use: another VM writes it", path));
  }
  return refuse(fmt::format(
      "{} is in use by another VM; several can read one disk, only one alone can write it", path));
}

Expected<struct stat, DiskError> status_of_file(const std::string& path, int fd) {
  struct stat status {};
  if (::fstat(fd, &status) == 0) return status;
  return refuse(fmt::format("cannot examine {}: {}", path, std::strerror(errno)));
}

Expected<void, DiskError> measure(const std::string& path, const struct stat& status,
                                  ImageFile& image) {
  image.block_device = S_ISBLK(status.st_mode);
  if (!image.block_device) {
    image.bytes = static_cast<std::uint64_t>(status.st_size);
    image.changed_ns =
        static_cast<std::int64_t>(status.st_mtim.tv_sec) * 1'000'000'000 + status.st_mtim.tv_nsec;
  } else if (::ioctl(image.file.get(), BLKGETSIZE64, &image.bytes) != 0) {
    return refuse(fmt::format("cannot find the size of {}: {}", path, std::strerror(errno)));
  }
  return {};
}

}  // namespace

Expected<ImageFile, DiskError> open_image(const std::string& path, Access access) {
  struct stat named {};
  // Before open(), which would wait for the other end of a pipe.
  if (::stat(path.c_str(), &named) != 0) return refuse(why_not_opened(path, access, errno));
  if (auto kind = check_kind(path, named); !kind) return Unexpected{kind.error()};
  const int mode = (access == Access::read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NOCTTY;
  ImageFile image;
  image.lock = machine::FileDescriptor{::open(path.c_str(), mode)};
  if (!image.lock.valid()) return refuse(why_not_opened(path, access, errno));
  if (auto locked = lock(path, image.lock.get(), access); !locked) {
    return Unexpected{locked.error()};
  }
  image.file = machine::FileDescriptor{::open(path.c_str(), mode)};
  if (!image.file.valid()) return refuse(why_not_opened(path, access, errno));
  const auto locked = status_of_file(path, image.lock.get());
  const auto opened = status_of_file(path, image.file.get());
  if (!locked) return Unexpected{locked.error()};
  if (!opened) return Unexpected{opened.error()};
  if (locked->st_dev != opened->st_dev || locked->st_ino != opened->st_ino) {
    return refuse(fmt::format("{} was replaced by another file just now", path));
  }
  if (auto kind = check_kind(path, *opened); !kind) return Unexpected{kind.error()};
  if (auto size = measure(path, *opened, image); !size) return Unexpected{size.error()};
  image.punches = access == Access::read_write && can_punch(image.file.get(), image);
  return image;
}

Expected<void, DiskError> check_disk_size(const std::string& path, const ImageFile& image) {
  if (image.bytes == 0) {
    return refuse(
        fmt::format("{} is empty; `truncate -s 8G {}` makes it an empty disk", path, path));
  }
  if (image.bytes % kSectorBytes == 0) return {};
  const std::uint64_t whole = (image.bytes / kSectorBytes + 1) * kSectorBytes;
  return refuse(
      fmt::format("{} has {} bytes, which is no multiple of {}; `truncate -s {} {}` fills it up",
                  path, image.bytes, kSectorBytes, whole, path));
}

}  // namespace strata::storage
