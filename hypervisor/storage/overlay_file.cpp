#include "storage/overlay_file.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <optional>
#include <span>
#include <utility>

namespace strata::storage {

namespace {

using Magic = std::array<char, 8>;
constexpr Magic kMagic{'S', 'T', 'R', 'A', 'T', 'A', 'O', 'V'};
constexpr std::uint32_t kVersion = 1;

/// The first sector of the file. Little endian, as the only hosts there are.
struct Header {
  Magic magic = kMagic;
  std::uint32_t version = kVersion;
  std::uint32_t cluster_bytes = kClusterBytes;
  std::uint64_t disk_bytes = 0;
  std::int64_t base_changed_ns = 0;
  std::uint64_t data_offset = 0;
  std::uint64_t identity = 0;  ///< random; sectors of the table depend on it
  std::array<std::uint8_t, 456> reserved{};
  std::uint64_t checksum = 0;  ///< XXH3 of all before
};
static_assert(sizeof(Header) == kSectorBytes && offsetof(Header, checksum) == 504);

Unexpected<DiskError> refuse(std::string message) {
  return Unexpected{DiskError{std::move(message)}};
}

std::uint64_t checksum(const Header& header) {
  return ::XXH3_64bits(&header, offsetof(Header, checksum));
}

std::uint64_t clusters_of(std::uint64_t disk_bytes) {
  return (disk_bytes + kClusterBytes - 1) / kClusterBytes;
}

/// Whole clusters of the disk are whole, aligned clusters of the file.
std::uint64_t data_offset_of(std::uint64_t disk_bytes) {
  const std::uint64_t table = ClusterTable::sectors_for(clusters_of(disk_bytes)) * kSectorBytes;
  return (OverlayFile::kTableOffset + table + kClusterBytes - 1) / kClusterBytes * kClusterBytes;
}

[[nodiscard]] bool write_at(int fd, std::span<const std::byte> bytes, std::uint64_t offset) {
  while (!bytes.empty()) {
    const ssize_t n = ::pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    bytes = bytes.subspan(static_cast<std::size_t>(n));
    offset += static_cast<std::uint64_t>(n);
  }
  return true;
}

[[nodiscard]] bool read_at(int fd, std::span<std::byte> bytes, std::uint64_t offset) {
  while (!bytes.empty()) {
    const ssize_t n = ::pread(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    bytes = bytes.subspan(static_cast<std::size_t>(n));
    offset += static_cast<std::uint64_t>(n);
  }
  return true;
}

[[nodiscard]] bool write_empty(int fd, const ImageFile& base) {
  Header header;
  header.disk_bytes = base.bytes;
  header.base_changed_ns = base.changed_ns;
  header.data_offset = data_offset_of(base.bytes);
  if (::getrandom(&header.identity, sizeof header.identity, 0) != sizeof header.identity) {
    return false;
  }
  header.checksum = checksum(header);
  const auto end = static_cast<off_t>(header.data_offset + base.bytes);
  if (::ftruncate(fd, end) != 0) return false;
  const ClusterTable table{clusters_of(base.bytes), header.identity};
  const std::uint64_t sectors = ClusterTable::sectors_for(clusters_of(base.bytes));
  for (std::uint64_t i = 0; i < sectors; ++i) {
    const ClusterTable::Sector sector = table.sector(i);
    if (!write_at(fd, sector, OverlayFile::kTableOffset + i * kSectorBytes)) return false;
  }
  return write_at(fd, std::as_bytes(std::span{&header, 1}), 0) && ::fsync(fd) == 0;
}

/// The name is durable once its directory is.
void sync_folder_of(const std::string& path) {
  const std::string folder = std::filesystem::path{path}.parent_path().string();
  const machine::FileDescriptor directory{
      ::open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
  if (directory.valid()) ::fsync(directory.get());
}

/// Makes an empty overlay under another name first, so that there is never half of one.
Expected<void, DiskError> create(const std::string& path, const ImageFile& base) {
  std::string unfinished = path + ".new-XXXXXX";
  const machine::FileDescriptor file{::mkostemp(unfinished.data(), O_CLOEXEC)};
  const auto failed = [&] {
    const int error = errno;
    if (file.valid()) ::unlink(unfinished.c_str());
    return refuse(fmt::format("cannot make overlay {}: {}", path, std::strerror(error)));
  };
  if (!file.valid() || !write_empty(file.get(), base)) return failed();
  // Somebody else was quicker: theirs is opened next.
  if (::link(unfinished.c_str(), path.c_str()) != 0 && errno != EEXIST) return failed();
  ::unlink(unfinished.c_str());
  sync_folder_of(path);
  return {};
}

Expected<Header, DiskError> read_header(const std::string& path, int fd) {
  Header header;
  if (!read_at(fd, std::as_writable_bytes(std::span{&header, 1}), 0) || header.magic != kMagic) {
    return refuse(fmt::format("{} is not an overlay of Strata; nothing was changed", path));
  }
  if (header.checksum != checksum(header)) {
    return refuse(fmt::format("overlay {} is damaged: its header has another checksum", path));
  }
  if (header.version != kVersion) {
    return refuse(fmt::format("overlay {} has version {} of the format; this Strata reads {}", path,
                              header.version, kVersion));
  }
  return header;
}

Expected<void, DiskError> check_against_base(const std::string& path, const std::string& base_path,
                                             const Header& header, const ImageFile& base) {
  if (header.disk_bytes != base.bytes) {
    return refuse(fmt::format("overlay {} was made for a disk of {} bytes; {} has {}", path,
                              header.disk_bytes, base_path, base.bytes));
  }
  if (header.base_changed_ns == base.changed_ns) return {};
  return refuse(
      fmt::format("{} was changed after overlay {} was made of it; they no longer fit together",
                  base_path, path));
}

Expected<ClusterTable, DiskError> read_table(const std::string& path, int fd,
                                             const Header& header) {
  ClusterTable table{clusters_of(header.disk_bytes), header.identity};
  const std::uint64_t sectors = ClusterTable::sectors_for(clusters_of(header.disk_bytes));
  for (std::uint64_t i = 0; i < sectors; ++i) {
    ClusterTable::Sector sector{};
    if (!read_at(fd, sector, OverlayFile::kTableOffset + i * kSectorBytes) ||
        !table.load(i, sector)) {
      return refuse(fmt::format("overlay {} is damaged: sector {} of its table", path, i));
    }
  }
  return table;
}

bool missing(const std::string& path) {
  struct stat status {};
  return ::stat(path.c_str(), &status) != 0 && errno == ENOENT;
}

}  // namespace

Expected<OverlayFile, DiskError> open_overlay(const std::string& path, const std::string& base_path,
                                              const ImageFile& base, Access access) {
  if (missing(path)) {
    if (access == Access::read_only) {
      return refuse(fmt::format("overlay {} does not exist; a read-only disk makes none", path));
    }
    if (auto made = create(path, base); !made) return Unexpected{made.error()};
  }
  auto image = open_image(path, access);
  if (!image) return Unexpected{image.error()};
  const int fd = image->file.get();
  const auto header = read_header(path, fd);
  if (!header) return Unexpected{header.error()};
  if (auto fits = check_against_base(path, base_path, *header, base); !fits) {
    return Unexpected{fits.error()};
  }
  const std::uint64_t data_offset = data_offset_of(base.bytes);
  if (header->cluster_bytes != kClusterBytes || header->data_offset != data_offset ||
      image->block_device || image->bytes != data_offset + base.bytes) {
    return refuse(fmt::format("overlay {} is damaged: its size or layout is wrong", path));
  }
  auto table = read_table(path, fd, *header);
  if (!table) return Unexpected{table.error()};
  return OverlayFile{std::move(*image), std::move(*table), data_offset};
}

}  // namespace strata::storage
