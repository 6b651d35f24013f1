#include "boot/kernel_image.hpp"

#include <algorithm>
#include <fstream>
#include <system_error>

#include "boot/bytes.hpp"
#include "boot/bzimage.hpp"
#include "boot/decompress.hpp"
#include "boot/elf.hpp"
#include "boot/machine_layout.hpp"

namespace strata::boot {

const char* name_of(EntryKind kind) noexcept {
  switch (kind) {
    case EntryKind::pvh:
      return "pvh";
    case EntryKind::linux64:
      return "linux64";
    case EntryKind::linux32:
      return "linux32";
    case EntryKind::multiboot:
      return "multiboot";
  }
  return "unknown";
}

/// Puts a KernelImage together. Spans into the file stay valid when its vector is moved.
struct ImageBuilder {
  KernelImage image;

  void take_elf(ElfImage&& elf, std::vector<std::byte> storage) {
    image.storage_ = std::move(storage);
    image.segments_ = std::move(elf.segments);
    for (const LoadSegment& s : image.segments_) {
      image.memory_end_ = std::max(image.memory_end_, s.physical + s.memory_bytes);
    }
    image.description_ += elf.is64 ? "ELF64, " : "ELF32, ";
  }

  void enter(EntryKind kind, std::uint64_t entry) {
    image.entry_kind_ = kind;
    image.entry_ = entry;
    image.description_ += name_of(kind);
  }

  /// A bare ELF file: PVH, or Multiboot for 32-bit ones.
  Result<void> from_elf(std::vector<std::byte> file) {
    auto elf = parse_elf(file, "kernel");
    if (!elf) return fail(elf.error().message);
    const bool multiboot = elf->multiboot && in_file_data(elf->segments, elf->entry);
    const auto pvh = elf->pvh_entry;
    const std::uint64_t entry = elf->entry;
    if (!pvh && !multiboot) {
      return fail(
          "kernel: the ELF file has neither a PVH entry note (Linux: CONFIG_PVH=y) nor a "
          "Multiboot header; for other Linux kernels give the bzImage");
    }
    take_elf(std::move(*elf), std::move(file));
    enter(pvh ? EntryKind::pvh : EntryKind::multiboot, pvh ? *pvh : entry);
    return {};
  }

  Result<void> from_bzimage(std::vector<std::byte> file, const ImageOptions& options) {
    auto bz = parse_bzimage(file);
    if (!bz) return fail(bz.error().message);
    image.setup_header_.assign(bz->setup_header.begin(), bz->setup_header.end());
    image.max_cmdline_ = bz->max_cmdline;
    image.initrd_limit_ = bz->initrd_limit;
    image.description_ = "bzImage " + (bz->version.empty() ? "of unknown version" : bz->version);
    return options.decompress ? decompressed(*bz, options) : as_loaded(*bz, std::move(file));
  }

  /// The kernel proper, out of the payload.
  Result<void> decompressed(const BzImage& bz, const ImageOptions& options) {
    auto payload = decompress_payload(bz.payload, options.max_payload_bytes);
    if (!payload) return fail(payload.error().message);
    if (!looks_like_elf(payload->bytes)) return fail("kernel payload: it is not an ELF file");
    image.description_ += " (" + std::string{payload->format} + "), ";
    auto elf = parse_elf(payload->bytes, "kernel payload");
    if (!elf) return fail(elf.error().message);
    const auto pvh = elf->pvh_entry;
    const std::uint64_t entry = elf->entry;
    const bool is64 = elf->is64;
    if (!pvh && !in_file_data(elf->segments, entry)) {
      return fail("kernel payload: its entry address is in no segment");
    }
    take_elf(std::move(*elf), std::move(payload->bytes));
    enter(pvh    ? EntryKind::pvh
          : is64 ? EntryKind::linux64
                 : EntryKind::linux32,
          pvh ? *pvh : entry);
    return {};
  }

  /// The bzImage's own decompressor, as a boot loader would load it.
  Result<void> as_loaded(const BzImage& bz, std::vector<std::byte> file) {
    image.storage_ = std::move(file);
    image.segments_ = {{bz.preferred_address, bz.protected_code, bz.protected_code.size()}};
    image.memory_end_ =
        bz.preferred_address + std::max<std::uint64_t>(bz.init_bytes, bz.protected_code.size());
    image.description_ += ", ";
    constexpr std::uint64_t kEntry64Offset = 0x200;
    enter(bz.entry64 ? EntryKind::linux64 : EntryKind::linux32,
          bz.preferred_address + (bz.entry64 ? kEntry64Offset : 0));
    if (!in_file_data(image.segments_, image.entry_)) {
      return fail("bzImage: the kernel is shorter than its entry's offset");
    }
    return {};
  }
};

Result<KernelImage> KernelImage::parse(std::vector<std::byte> file, const ImageOptions& options) {
  if (file.empty()) return fail("kernel: the file is empty");
  ImageBuilder builder{KernelImage{}};
  Result<void> done = fail(
      "kernel: the file is neither an ELF executable nor a bzImage (no ELF magic, no \"HdrS\" at "
      "202h)");
  if (looks_like_elf(file)) {
    done = builder.from_elf(std::move(file));
  } else if (looks_like_bzimage(file)) {
    done = builder.from_bzimage(std::move(file), options);
  }
  if (!done) return fail(done.error().message);
  return std::move(builder.image);
}

Result<KernelImage> KernelImage::read(const std::filesystem::path& path,
                                      const ImageOptions& options) {
  auto file = read_file(path, options.max_file_bytes);
  if (!file) return fail(file.error().message);
  auto image = parse(std::move(*file), options);
  if (!image) return fail(path.string() + ": " + image.error().message);
  return image;
}

Result<std::vector<std::byte>> read_file(const std::filesystem::path& path,
                                         std::uint64_t max_bytes) {
  const auto bad = [&path](const std::string& why) { return fail(path.string() + ": " + why); };
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  if (error) return bad(error.message());
  if (!std::filesystem::is_regular_file(status)) return bad("not a regular file");
  const std::uint64_t size = std::filesystem::file_size(path, error);
  if (error) return bad(error.message());
  if (size > max_bytes) {
    return bad("the file has " + std::to_string(size) + " bytes; at most " +
               std::to_string(max_bytes) + " are accepted");
  }
  std::ifstream in{path, std::ios::binary};
  std::vector<std::byte> bytes(size);
  in.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(size));
  if (!in) return bad("can not be read");
  return bytes;
}

}  // namespace strata::boot
