// Kernel files: what they are, where their parts go and how they are entered. Hostile input.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "boot/error.hpp"

namespace strata::boot {

/// How the processor starts in the kernel.
enum class EntryKind : std::uint8_t {
  pvh,        ///< 32-bit, RBX = hvm_start_info (the Xen PVH boot protocol)
  linux64,    ///< long mode, RSI = boot_params (Linux boot protocol, "64-bit boot protocol")
  linux32,    ///< 32-bit, ESI = boot_params (Linux boot protocol, "32-bit boot protocol")
  multiboot,  ///< 32-bit, EAX = magic, EBX = Multiboot information (kvm-unit-tests)
};
[[nodiscard]] const char* name_of(EntryKind kind) noexcept;

/// One piece to load. `data` views the image's own storage; memory beyond it is zero.
struct LoadSegment {
  std::uint64_t physical = 0;
  std::span<const std::byte> data;
  std::uint64_t memory_bytes = 0;  ///< at least data.size()
};

struct ImageOptions {
  /// Decompress a bzImage's payload here and enter the kernel proper: several times faster than
  /// in the guest, but without KASLR. false: load the bzImage as a boot loader would.
  bool decompress = true;
  /// A payload that claims or proves to be larger than this is refused.
  std::uint64_t max_payload_bytes = 512ULL << 20;
  /// A file larger than this is refused.
  std::uint64_t max_file_bytes = 512ULL << 20;
};

/// A parsed and validated kernel. Segments are disjoint and lie between 1 MiB and 4 GiB; the
/// entry lies in one of them. Immutable; safe to read from any thread. Movable, not copyable.
class KernelImage {
 public:
  /// Parses `file` (ELF32, ELF64 or bzImage). Errors say what is wrong with the file.
  [[nodiscard]] static Result<KernelImage> parse(std::vector<std::byte> file,
                                                 const ImageOptions& options = {});
  /// Reads and parses the file at `path`.
  [[nodiscard]] static Result<KernelImage> read(const std::filesystem::path& path,
                                                const ImageOptions& options = {});

  KernelImage(KernelImage&&) noexcept = default;
  KernelImage& operator=(KernelImage&&) noexcept = default;
  KernelImage(const KernelImage&) = delete;
  KernelImage& operator=(const KernelImage&) = delete;
  ~KernelImage() = default;

  [[nodiscard]] EntryKind entry_kind() const noexcept { return entry_kind_; }
  /// Guest-physical address of the first instruction.
  [[nodiscard]] std::uint64_t entry() const noexcept { return entry_; }
  [[nodiscard]] std::span<const LoadSegment> segments() const noexcept { return segments_; }
  /// End of the memory the kernel uses before it reads its memory map (segments, init_size).
  [[nodiscard]] std::uint64_t memory_end() const noexcept { return memory_end_; }
  /// bzImage: its setup header, the file's bytes from 1F1h on; empty for ELF files.
  [[nodiscard]] std::span<const std::byte> setup_header() const noexcept { return setup_header_; }
  /// Longest command line without its terminator, in bytes.
  [[nodiscard]] std::uint32_t max_cmdline() const noexcept { return max_cmdline_; }
  /// The initrd must end at or below this address.
  [[nodiscard]] std::uint64_t initrd_limit() const noexcept { return initrd_limit_; }
  /// For the log, e.g. "bzImage 6.1.0-56-cloud-amd64 (xz), ELF64, pvh".
  [[nodiscard]] const std::string& description() const noexcept { return description_; }

 private:
  friend struct ImageBuilder;
  KernelImage() = default;
  std::vector<std::byte> storage_;  ///< the file, or the decompressed payload
  std::vector<std::byte> setup_header_;
  std::vector<LoadSegment> segments_;
  EntryKind entry_kind_ = EntryKind::pvh;
  std::uint64_t entry_ = 0;
  std::uint64_t memory_end_ = 0;
  std::uint64_t initrd_limit_ = 0xFFFFFFFF;
  std::uint32_t max_cmdline_ = 2047;
  std::string description_;
};

/// Reads a whole regular file of at most `max_bytes`. Errors name the path and the reason.
[[nodiscard]] Result<std::vector<std::byte>> read_file(const std::filesystem::path& path,
                                                       std::uint64_t max_bytes);

}  // namespace strata::boot
