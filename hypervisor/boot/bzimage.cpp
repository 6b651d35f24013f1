#include "boot/bzimage.hpp"

#include "boot/bytes.hpp"
#include "boot/linux_boot.hpp"
#include "boot/machine_layout.hpp"

namespace strata::boot {
namespace {

constexpr std::uint64_t kSector = 512;
constexpr std::uint16_t kOldestProtocol = 0x020C;  // the first with xloadflags

Unexpected<Error> bad(const std::string& why) { return fail("bzImage: " + why); }

std::string protocol_name(std::uint16_t protocol) {
  return std::to_string(protocol >> 8) + "." + std::to_string(protocol & 0xFF);
}

/// The version string's first word, if the pointer leads to one.
std::string kernel_version(ByteView file, std::uint64_t setup_end) {
  const std::uint64_t pointer = file.get<std::uint16_t>(zero_page::kKernelVersion);
  std::string version;
  if (pointer == 0) return version;
  for (std::uint64_t at = pointer + kSector; at < setup_end && version.size() < 64; ++at) {
    const char c = static_cast<char>(file.get<std::uint8_t>(at));
    if (c <= ' ' || c > '~') break;
    version += c;
  }
  return version;
}

Result<void> check_placement(const BzImage& image) {
  constexpr std::uint64_t kLimit = 1ULL << 32;
  if (image.preferred_address < layout::kKernelBase || image.preferred_address >= kLimit ||
      image.init_bytes > kLimit - image.preferred_address ||
      image.protected_code.size() > kLimit - image.preferred_address) {
    return bad("its preferred address and size do not lie between 1 MiB and 4 GiB");
  }
  return {};
}

}  // namespace

bool looks_like_bzimage(std::span<const std::byte> file) noexcept {
  const ByteView view{file};
  const auto magic = view.sub(zero_page::kHeaderMagic, 4);
  return magic && magic->starts_with("HdrS");
}

Result<BzImage> parse_bzimage(std::span<const std::byte> file) {
  const ByteView view{file};
  const std::uint64_t header_end = 0x202 + std::uint64_t{view.get<std::uint8_t>(0x201)};
  // boot_params has room for the header up to the EDD buffer at 290h.
  if (header_end < zero_page::kInitSize + 4 || header_end > 0x290) {
    return bad("its setup header ends at " + std::to_string(header_end) + "; 612 to 656 is right");
  }
  if (!view.sub(0, header_end)) return bad("the file ends inside the setup header");
  if (view.get<std::uint16_t>(zero_page::kBootFlag) != 0xAA55) {
    return bad("the boot flag at 1FEh is not AA55h");
  }
  BzImage image;
  image.protocol = view.get<std::uint16_t>(zero_page::kVersion);
  if (image.protocol < kOldestProtocol) {
    return bad("boot protocol " + protocol_name(image.protocol) +
               " is too old; 2.12 (Linux 3.8) or later is needed");
  }
  if ((view.get<std::uint8_t>(zero_page::kLoadFlags) & 1) == 0) {
    return bad("it is a zImage that loads below 640 KiB; build a bzImage");
  }
  const std::uint64_t setup_sectors = view.get<std::uint8_t>(zero_page::kSetupSectors);
  const std::uint64_t setup_end = ((setup_sectors == 0 ? 4 : setup_sectors) + 1) * kSector;
  // syssize says how long the code is; a signature may follow it in the file.
  const std::uint64_t code_bytes = std::uint64_t{view.get<std::uint32_t>(zero_page::kSysSize)} * 16;
  // The count is in paragraphs: up to 15 bytes of the last may be missing from the file.
  const std::uint64_t present =
      setup_end < view.size() && code_bytes <= view.size() - setup_end + 15
          ? std::min(code_bytes, view.size() - setup_end)
          : 0;
  if (present == 0) {
    return bad("the file is cut off: it has " + std::to_string(view.size()) +
               " bytes, setup and "
               "kernel need " +
               std::to_string(setup_end + code_bytes));
  }
  image.setup_header =
      view.sub(zero_page::kSetupHeader, header_end - zero_page::kSetupHeader)->bytes();
  const ByteView code = *view.sub(setup_end, present);
  image.protected_code = code.bytes();
  const auto payload = code.sub(view.get<std::uint32_t>(zero_page::kPayloadOffset),
                                view.get<std::uint32_t>(zero_page::kPayloadLength));
  if (!payload) return bad("its payload lies beyond the end of the file");
  image.payload = payload->bytes();
  image.version = kernel_version(view, setup_end);
  image.entry64 = (view.get<std::uint16_t>(zero_page::kXloadFlags) & 1) != 0;
  image.preferred_address = view.get<std::uint64_t>(zero_page::kPreferredAddress);
  image.init_bytes = view.get<std::uint32_t>(zero_page::kInitSize);
  image.max_cmdline = view.get<std::uint32_t>(zero_page::kCmdlineSize);
  image.initrd_limit = view.get<std::uint32_t>(zero_page::kInitrdMax);
  if (auto ok = check_placement(image); !ok) return fail(ok.error().message);
  return image;
}

}  // namespace strata::boot
