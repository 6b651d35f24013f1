// Small kernel files for tests, every field of which can be bent.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace strata::boot::test {

using File = std::vector<std::byte>;

struct TestSegment {
  std::uint64_t physical = 0x100000;
  std::string data = "kernel code";
  std::uint64_t memory_bytes = 0x1000;
};

struct ElfSpec {
  bool is64 = true;
  std::uint16_t type = 2;
  std::uint64_t entry = 0x100000;
  std::vector<TestSegment> segments{TestSegment{}};
  bool pvh = true;
  std::uint64_t pvh_entry = 0x100004;
  unsigned pvh_bytes = 8;
  bool multiboot = false;
};

/// Header, program headers, segment data in order, then the note.
[[nodiscard]] File make_elf(const ElfSpec& spec);

struct BzSpec {
  std::uint16_t protocol = 0x020F;
  bool entry64 = true;
  std::string version = "9.9.9-test (someone)";
  File payload;
  std::uint64_t preferred = 0x1000000;
  std::uint32_t init_bytes = 0x100000;
  std::uint32_t max_cmdline = 2047;
  std::uint32_t initrd_limit = 0x7FFFFFFF;
};

/// Three setup sectors, 400h bytes of code, the payload.
[[nodiscard]] File make_bzimage(const BzSpec& spec);

template <class T>
void patch(File& file, std::size_t at, T value) {
  std::memcpy(std::span{file}.subspan(at, sizeof value).data(), &value, sizeof value);
}

template <class T>
[[nodiscard]] T peek(std::span<const std::byte> bytes, std::size_t at) {
  T value;
  std::memcpy(&value, bytes.subspan(at, sizeof value).data(), sizeof value);
  return value;
}

[[nodiscard]] inline std::string text_at(std::span<const std::byte> bytes, std::size_t at,
                                         std::size_t length) {
  const auto range = bytes.subspan(at, length);
  return {reinterpret_cast<const char*>(range.data()), range.size()};
}

}  // namespace strata::boot::test
